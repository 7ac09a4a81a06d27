"""Where a benchmark keeps its last full run: benchmarks/results/<name>.json, from which `make docs` renders the tables."""

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks" / "results"


def save(name: str, figures: Mapping, command: str) -> Path:
    """Write the figures of a full run, with the date, the commit, the processor and the command that gave them.

    figures: JSON values by the benchmark's own keys. Returns the file's path.
    """
    record = {"figures": dict(figures), "command": command, "date": datetime.date.today().isoformat()}
    path = FOLDER / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps(record | {"commit": commit(), "processor": processor()}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return path


def command(*folders: Path | str | None) -> str:
    """The command line of this process as anyone can repeat it: `folders`, and absolute paths, read FOLDER."""
    own = {str(folder) for folder in folders if folder}
    script = Path(sys.argv[0]).resolve().relative_to(ROOT)
    return " ".join(
        ["python", str(script), *("FOLDER" if word in own or Path(word).is_absolute() else word for word in sys.argv[1:])]
    )


def commit(root: Path = ROOT) -> str:
    """The commit that is checked out, "-dirty" when other files than results differ from it; "unknown" without git."""
    asked = (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--", ".", ":!benchmarks/results"])
    try:
        head, changes = (_output(["git", "-C", str(root), *words]) for words in asked)
    except (OSError, subprocess.CalledProcessError):  # a downloaded archive has no history
        return "unknown"
    return f"{head}-dirty" if changes else head


def _output(words: Iterable[str]) -> str:
    return subprocess.run(list(words), capture_output=True, text=True, check=True).stdout.strip()


def processor() -> str:
    """How many cores this process may use, the processor's model, and which of the instructions that matter here it has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        lines = []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = fields.get("flags", "").split()
    special = [name for name, flag in (("AVX-512", "avx512f"), ("VNNI", "avx512_vnni")) if flag in flags]
    model = fields.get("model name", platform.machine())
    return f"{cores} cores, {model}" + (f", {' and '.join(special)}" if special else "")
