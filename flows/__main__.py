"""`python -m flows` is the command line `clusterucb`."""

import sys

from flows.cli import main

if __name__ == "__main__":
    sys.exit(main())
