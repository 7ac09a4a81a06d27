"""A full disk for the tests: a small one, mounted, or where this system mounts none for us, a kernel that refuses every write.

Run as a script: `python small_disk.py FOLDER SCRIPT FLAGS...` runs the script, and as soon as it opens a file in the folder to
write to it, every write of more than a few bytes to any file fails as on a full disk, in whatever library it happens.
"""

import contextlib
import ctypes
import errno
import platform
import runpy
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

WRITES = {"x86_64": (1, 18, 20), "aarch64": (64, 68, 66)}  # write, pwrite64 and writev, of Linux' tables of system calls
SECCOMP = {"x86_64": 317, "aarch64": 277}
FEW_BYTES = 64  # what wakes another thread up through a pipe may pass


@contextlib.contextmanager
def at(folder: Path, size_bytes: int) -> Iterator[bool]:
    """Mount a small disk at a folder; whether that is allowed here."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def grow(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True)


def refusing(folder: Path) -> list[str]:
    """What to put before a script and its flags."""
    return [__file__, str(folder)]


def refuse_writes() -> None:
    """Have the kernel answer ENOSPC to this process' writes, standard output and error aside: a seccomp filter, which needs no
    privilege. Source: the Linux manual, seccomp(2); struct seccomp_data holds the call at 0 and its arguments from 16 on."""
    load, jump_equal, jump_above, end = 0x20, 0x15, 0x25, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.ENOSPC
    write, pwrite, writev = WRITES[platform.machine()]
    program = [
        (load, 0, 0, 0),
        (jump_equal, 2, 0, write),
        (jump_equal, 1, 0, pwrite),
        (jump_equal, 2, 5, writev),
        (load, 0, 0, 32),  # how many bytes
        (jump_above, 0, 3, FEW_BYTES),
        (load, 0, 0, 16),  # to which file descriptor
        (jump_above, 0, 1, 2),
        (end, 0, 0, refuse),
        (end, 0, 0, allow),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    filter_program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    set_no_new_privileges, filter_mode, all_threads = 38, 1, 1
    assert libc.prctl(set_no_new_privileges, 1, 0, 0, 0) == 0
    call = libc.syscall(SECCOMP[platform.machine()], filter_mode, all_threads, filter_program)
    assert call == 0, errno.errorcode[ctypes.get_errno()]


def main() -> None:
    folder, script = sys.argv[1:3]
    state = {"refusing": False}

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and not state["refusing"]:
            path, mode, _ = arguments
            if str(path).startswith(folder) and not str(path).endswith(".lock") and mode not in (None, "r", "rb"):
                state["refusing"] = True
                refuse_writes()

    sys.addaudithook(watch)
    sys.argv = sys.argv[2:]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
