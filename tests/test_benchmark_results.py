"""What a benchmark keeps of its last full run."""

import datetime
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("results", ROOT / "benchmarks" / "results.py")
results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results)


def test_a_run_is_kept_with_everything_that_is_needed_to_repeat_it(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    path = results.save("search", {"recall_at_10": 0.99}, "python benchmarks/search.py")
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert path == tmp_path / "results" / "search.json"
    assert kept["figures"] == {"recall_at_10": 0.99}
    assert kept["command"] == "python benchmarks/search.py"
    assert datetime.date.fromisoformat(kept["date"]) <= datetime.date.today()
    assert set(kept) == {"figures", "command", "date", "commit", "processor"}
    assert kept["processor"].split()[0].isdigit()


def test_folders_of_one_machine_are_not_kept(tmp_path, monkeypatch):
    words = [str(ROOT / "benchmarks" / "quality.py"), "../photos", "--data", str(tmp_path), "--folds", "5"]
    monkeypatch.setattr(sys, "argv", words)
    assert results.command(Path("../photos"), None) == "python benchmarks/quality.py FOLDER --data FOLDER --folds 5"


@pytest.fixture
def checkout(tmp_path):
    """A repository of one commit, and its name."""

    def git(*words: str) -> str:
        user = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", "-C", tmp_path, *user, *words], capture_output=True, text=True, check=True).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "code.py").write_text("1\n")
    git("add", ".")
    git("commit", "--quiet", "-m", "Begin")
    return tmp_path, git("rev-parse", "--short", "HEAD")


def test_the_commit_is_that_of_the_code_whatever_results_have_been_written(checkout):
    folder, head = checkout
    (folder / "benchmarks" / "results").mkdir(parents=True)
    (folder / "benchmarks" / "results" / "search.json").write_text("{}\n")
    assert results.commit(folder) == head


def test_changed_code_is_called_dirty(checkout):
    folder, head = checkout
    (folder / "code.py").write_text("2\n")
    assert results.commit(folder) == f"{head}-dirty"


def test_a_folder_without_history_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert results.commit(tmp_path) == "unknown"
