"""Starts the processes of one training, as `python -m torch.distributed.run` does, and with its arguments.

It ends them, and itself, as soon as its stdin is closed: whoever started it has ended then, however that was.
"""

import os
import signal
import sys
import threading

from torch.distributed.run import main


def _end_with_stdin() -> None:
    # not through sys.stdin: Python fails at its end where a thread still reads from that
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)  # torchrun passes it on


if __name__ == "__main__":
    threading.Thread(target=_end_with_stdin, name="end with stdin", daemon=True).start()
    main()
