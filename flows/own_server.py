"""The process of the Prefect server that a run starts for itself: it ends with the run, however that ended.

A program of its own, since it comes before anything of Prefect:

    python -P own_server.py PID UVICORN_ARGUMENTS...
"""

import os
import signal
import sys
import threading
import time

LOOK_EVERY_S = 1.0
# what a server may take for its end
ENDS_WITHIN_S = 10.0


def main() -> None:
    """Serve what the arguments say, and end once the process that started this one is no more."""
    pid, *arguments = sys.argv[1:]
    threading.Thread(target=_end_after, args=(int(pid),), name="end with the run", daemon=True).start()
    from uvicorn.main import main as serve

    serve(arguments, prog_name="uvicorn")


def _end_after(pid: int) -> None:
    while os.getppid() == pid:
        time.sleep(LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ENDS_WITHIN_S)
    os._exit(1)


if __name__ == "__main__":
    main()
