"""Run a command under the system calls that a systemd unit allows, where no systemd runs: a machine of CI, a container.

Run     python3 deploy/check_sandbox.py UNIT COMMAND ...     (by deploy/check.sh; as root)

Only SystemCallFilter= and MemoryDenyWriteExecute= are put in force, which can break a library without a word in the docs.
Rules and sets are those of systemd.exec(5); `systemd-analyze syscall-filter` says what is in a set.
"""

import ctypes
import errno
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM  # SCMP_ACT_ALLOW, SCMP_ACT_ERRNO(EPERM)
MASKED_EQUAL = 7  # SCMP_CMP_MASKED_EQ
WRITE_EXECUTE = {  # call -> the argument that asks for memory, and the bits that may not all be in it
    "mmap": (2, mmap.PROT_WRITE | mmap.PROT_EXEC),
    "mprotect": (2, mmap.PROT_EXEC),
    "pkey_mprotect": (2, mmap.PROT_EXEC),
    "shmat": (2, 0o100000),  # SHM_EXEC
}


class Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = [("argument", ctypes.c_uint), ("operator", ctypes.c_int), ("mask", ctypes.c_uint64), ("value", ctypes.c_uint64)]


def calls_in(name: str) -> set[str]:
    """The system calls of one of systemd's sets."""
    shown = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True).stdout
    words = {line.strip() for line in shown.splitlines()[1:] if not line.strip().startswith("#")} - {""}
    return {word for word in words if word[0] != "@"}.union(*(calls_in(word) for word in words if word[0] == "@"))


def allowed_by(unit: str) -> set[str]:
    allowed = set()
    for value in re.findall(r"^SystemCallFilter=(.*)$", unit, re.MULTILINE):
        allowed = allowed - calls_in(value[1:]) if value.startswith("~") else allowed | calls_in(value)
    return allowed


def restrict(allowed: set[str]) -> None:
    """Put both filters on this process and all that it starts."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_rule_add_array.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
    library.seccomp_load.argtypes = (ctypes.c_void_p,)
    memory, calls = library.seccomp_init(ctypes.c_uint32(ALLOW)), library.seccomp_init(ctypes.c_uint32(REFUSE))
    for name, (argument, bits) in WRITE_EXECUTE.items():
        comparison = Comparison(argument, MASKED_EQUAL, bits, bits)
        number = library.seccomp_syscall_resolve_name(name.encode())
        assert library.seccomp_rule_add_array(memory, REFUSE, number, 1, ctypes.byref(comparison)) == 0, name
    for name in allowed:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # below: not a call of this kind of processor
            assert library.seccomp_rule_add_array(calls, ALLOW, number, 0, None) == 0, name
    assert library.seccomp_load(memory) == 0
    assert library.seccomp_load(calls) == 0


def check_is_restricted() -> None:
    """Try what is refused: a filter that lets everything pass would prove nothing."""
    try:
        mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)
        sys.exit("error: memory can be written and executed")
    except PermissionError:
        pass
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(b"/is/not/there", 0) != -1 or ctypes.get_errno() != errno.EPERM:
        sys.exit("error: umount2 is not refused")


def main(unit: str, *command: str) -> None:
    text = Path(unit).read_text(encoding="utf-8")
    assert "\nMemoryDenyWriteExecute=yes\n" in text
    restrict(allowed_by(text))
    check_is_restricted()
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
