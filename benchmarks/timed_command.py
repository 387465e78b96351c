"""Run a command and write its seconds and its peak memory to a file: `timed_command.py FILE COMMAND`.

It is a process of its own because the system counts the memory of the process that starts a command as the
command's: this one holds nothing. It imports nothing of the project, and ends as the command does.
"""

import json
import os
import sys
import time


def main(out: str, command: list[str]) -> int:
    began = time.perf_counter()
    process = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(process, 0)
    figures = {
        "seconds": float(f"{time.perf_counter() - began:.4g}"),
        "cpu_seconds": float(f"{usage.ru_utime + usage.ru_stime:.4g}"),
        "peak_memory_mib": round(usage.ru_maxrss / 1024),
    }
    with open(out, "w", encoding="utf-8") as file:  # noqa: PTH123 - pathlib takes as long to import as all else
        json.dump(figures, file)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
