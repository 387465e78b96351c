"""Runs one Python program in namespaces of its own: no network, no files but Python's, no other process.

Started by `clusterucb_core.evaluation.sandbox` as a script, in a bare interpreter that holds nothing of the
project; standard library only. Reads a request from standard input; writes to standard output what `RUNNER`
says, or one line of JSON with the `problem` where the program could not be isolated.

The steps (user_namespaces(7), mount_namespaces(7)): a child leaves for new user, mount, network, process, IPC
and host name namespaces, and its parent maps its ids. A new root is built in memory, with the folders that
Python needs bound read-only, and moved over the old one. The program then runs as the child of the first
process there, without capabilities and under resource limits; when that first process ends, the kernel ends
all others.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

# sched.h: user, mount, network, process, IPC and host name namespaces
NEW_NAMESPACES = 0x10000000 | 0x00020000 | 0x40000000 | 0x20000000 | 0x08000000 | 0x04000000
# sys/mount.h; statvfs gives the first four under the same numbers
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 32, 4096, 8192, 16384, 1 << 18
# sys/prctl.h; the bits say that root's id gives no capability, for good
PR_SET_PDEATHSIG, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS = 1, 28, 38
NOROOT_LOCKED = 0b11

NOBODY = 65534
WORK = Path("/work")
SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/lib32", "/bin")
SYSTEM_FILES = ("/dev/null", "/dev/urandom", "/etc/ld.so.cache")

# A program passes by running to its end: one that leaves early has no outcome, and has not passed.
RUNNER = """
import json, os, sys
program = sys.stdin.read()
answer = os.fdopen(os.dup(1), "w")
answer.write("started\\n")
answer.flush()
null = os.open("/dev/null", os.O_RDWR)
for number in range(3):
    os.dup2(null, number)
outcome = "passed"
try:
    exec(compile(program, "program", "exec"), {"__name__": "program"})
except BaseException as error:
    outcome = type(error).__name__
answer.write(json.dumps({"outcome": outcome}))
answer.flush()
os._exit(0)
"""

Request = dict[str, Any]


def main() -> None:
    """Run the program of the request on standard input, and end when it has ended."""
    request: Request = json.load(sys.stdin)
    _end_with_parent()
    os.waitpid(_in_new_namespaces(request), 0)


def _in_new_namespaces(request: Request) -> int:
    """Fork a child that leaves for new namespaces, map its ids, and return its process id."""
    (left, has_left), (mapped, has_mapped) = os.pipe(), os.pipe()
    child = _forked(lambda: _leave(request, has_left, mapped))
    os.close(has_left)
    if os.read(left, 1):
        _map_ids(child)
        os.write(has_mapped, b"1")
    return child


def _leave(request: Request, has_left: int, mapped: int) -> None:
    _call("unshare", NEW_NAMESPACES)
    _end_with_parent()
    os.write(has_left, b"1")
    os.read(mapped, 1)
    os.waitpid(_forked(lambda: _first_process(request)), 0)


def _first_process(request: Request) -> None:
    _end_with_parent()
    _build_root(Path(request["root"]), request["python_folders"], disk_bytes=request["disk_bytes"])
    os.waitpid(_forked(lambda: _become_program(request)), 0)


def _map_ids(child: int) -> None:
    """Map the child's root to this user; and nobody to nobody, which only root may do."""
    user, group, folder = os.geteuid(), os.getegid(), Path(f"/proc/{child}")
    nobody = f"{NOBODY} {NOBODY} 1\n" if user == 0 else ""
    if user != 0:
        (folder / "setgroups").write_text("deny", encoding="ascii")
    (folder / "uid_map").write_text(f"0 {user} 1\n{nobody}", encoding="ascii")
    (folder / "gid_map").write_text(f"0 {group} 1\n{nobody}", encoding="ascii")


def _build_root(root: Path, python_folders: list[str], *, disk_bytes: int) -> None:
    """Make a root in memory in which nothing can be written but an empty work folder, and enter it."""
    _mount(None, Path("/"), MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, MS_NOSUID | MS_NODEV, kind="tmpfs", options="size=1m,mode=755")
    for folder in map(Path, SYSTEM_FOLDERS):
        if folder.is_symlink():  # where all of them lie in /usr
            (root / folder.name).symlink_to(folder.readlink())
        elif folder.is_dir():
            _bind_folder(folder, root)
    for folder in map(Path, python_folders):
        if not (root / folder.relative_to("/")).exists():
            _bind_folder(folder, root)
    for file in map(Path, SYSTEM_FILES):
        if file.exists():
            _bind_file(file, root)
    work = root / WORK.relative_to("/")
    work.mkdir()
    options = f"size={disk_bytes},nr_inodes=1024,mode=777"
    _mount("tmpfs", work, MS_NOSUID | MS_NODEV, kind="tmpfs", options=options)
    _mount(None, root, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir(root)
    _mount(".", Path("/"), MS_MOVE)
    os.chroot(".")
    os.chdir(WORK)


def _bind_folder(folder: Path, root: Path) -> None:
    place = root / folder.relative_to("/")
    place.mkdir(parents=True)
    _mount(str(folder), place, MS_BIND | MS_REC)
    # flags that the mount has already are locked in a user namespace and have to be named again
    kept = os.statvfs(place).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _mount(None, place, MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


def _bind_file(file: Path, root: Path) -> None:
    place = root / file.relative_to("/")
    place.parent.mkdir(exist_ok=True)
    place.touch()
    _mount(str(file), place, MS_BIND)


def _become_program(request: Request) -> NoReturn:
    for name, value in request["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if Path("/proc").exists():
        raise OSError("the files of the machine can still be seen")
    source = os.memfd_create("program")
    os.write(source, request["program"].encode())
    os.lseek(source, 0, os.SEEK_SET)
    os.dup2(source, 0)
    _call("prctl", PR_SET_SECUREBITS, NOROOT_LOCKED, 0, 0, 0)
    if request["as_nobody"]:  # the kernel holds root to no number of processes
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.execve(request["python"], [request["python"], "-I", "-S", "-c", RUNNER], {})  # noqa: S606


def _forked(work: Callable[[], None]) -> int:
    """Do something in a child, and return its process id; what the system refuses there is told."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except OSError as error:
        os.write(1, json.dumps({"problem": str(error)}).encode())
    os._exit(1)


def _end_with_parent() -> None:
    _call("prctl", PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _mount(
    source: str | None, place: Path, flags: int, *, kind: str | None = None, options: str = ""
) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, place, kind)]
    _call("mount", *texts, ctypes.c_ulong(flags), os.fsencode(options))


def _call(name: str, *arguments: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        os.write(1, json.dumps({"problem": str(error)}).encode())
