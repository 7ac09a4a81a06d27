"""Two machines on one: processes in network, mount, name and process namespaces of their own, joined by a cable.

Each has its own host name, /dev/shm and temporary folder. The second sees neither this checkout nor the data, only the Python
environment. Killing a machine's first process kills all that runs on it, as a power cut would.
"""

import itertools
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Both the namespaces and what is in them end with this process, however it ends.
NAMESPACES = ["setpriv", "--pdeathsig=KILL"]
NAMESPACES += ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
_cables = itertools.count()


def are_allowed() -> bool:
    try:
        return subprocess.run([*NAMESPACES, "ip", "link", "set", "lo", "up"], capture_output=True).returncode == 0
    except FileNotFoundError:  # not Linux, or without iproute2
        return False


class Host:
    """One of the machines. setup: shell commands that its first process begins with; env: of what runs on it."""

    def __init__(self, name: str, address: str, setup: Sequence[str], env: dict[str, str]):
        self.name, self.address, self.env = name, address, env
        commands = "; ".join(["set -e", f"hostname {name}", "mount -t tmpfs none /dev/shm", *setup, "echo ready"])
        words = [*NAMESPACES, "bash", "-c", f"{commands}; exec sleep infinity"]
        self._unshare = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._unshare.stdout.readline() == "ready\n", f"{name} does not start"
        (self._first_pid,) = children(self._unshare.pid)

    @property
    def network(self) -> str:
        return str(self._first_pid)

    def begin(self, *words: str | Path, env: dict[str, str] | None = None) -> subprocess.Popen:
        """A command on this machine, with its output in pipes."""
        # A shell that begins the tests in the background has them, and all that they begin, ignore Ctrl-C.
        enter = ["env", "--default-signal=INT"]
        enter += ["nsenter", f"--target={self._first_pid}", "--net", "--mount", "--uts", "--pid", "--wd=/"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "text": True}
        return subprocess.Popen([*enter, *map(str, words)], env=self.env | (env or {}), **pipes)

    def run(self, *words: str | Path, env: dict[str, str] | None = None, timeout_s: float = 300) -> tuple[int, str, str]:
        """Its exit code, stdout and stderr."""
        with self.begin(*words, env=env) as process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            finally:
                process.kill()
        return process.returncode, out, err

    def must(self, *words: str | Path) -> str:
        code, out, err = self.run(*words)
        assert code == 0, f"{self.name}: {words} ended with {code}: {err}"
        return out

    def is_running(self, words: str) -> bool:
        """Whether a process there has these words on its command line."""
        return words in self.must("ps", "-eo", "args")

    def kill(self) -> None:
        self._unshare.kill()  # its child, the first process, gets a SIGKILL from the kernel, and so does all else there
        self._unshare.wait()
        self._unshare.stdout.close()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def hide(*folders: Path) -> list[str]:
    """Commands that put an empty folder in the place of each, with the Python environment of this process left where it is."""
    kept = {Path(sys.prefix), Path(sys.base_prefix)} | {Path(entry) for entry in sys.path if "site-packages" in entry}
    kept = {path for path in kept if any(folder in path.parents for folder in folders)}
    kept = sorted(path for path in kept if not kept & set(path.parents))
    commands = ["mount -t tmpfs none /mnt"]
    for number, path in enumerate(kept):
        commands += [f"mkdir /mnt/{number}", f"mount --bind {shlex.quote(str(path))} /mnt/{number}"]
    commands += [f"mount -t tmpfs none {shlex.quote(str(folder))}" for folder in folders]
    for number, path in enumerate(kept):
        commands += [f"mkdir -p {shlex.quote(str(path))}", f"mount --move /mnt/{number} {shlex.quote(str(path))}"]
    return [*commands, "umount /mnt"]


def join(first: Host, second: Host) -> None:
    """Put a cable between two machines."""
    number = next(_cables)
    ends = [f"v{os.getpid()}-{number}{end}" for end in "ab"]
    peer = ["type", "veth", "peer", "name", ends[1], "netns", second.network]
    subprocess.run(["ip", "link", "add", ends[0], "netns", first.network, *peer], check=True)
    for host, end in zip((first, second), ends, strict=True):
        host.must("ip", "link", "set", "lo", "up")
        host.must("ip", "addr", "add", f"{host.address}/32", "dev", "lo")  # the cable goes with either machine
        host.must("ip", "addr", "add", f"{host.address}/24", "dev", end)
        host.must("ip", "link", "set", end, "up")
