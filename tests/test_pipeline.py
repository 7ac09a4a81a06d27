"""The stages as processes and as a chain: killed at any moment, and on ResNet-50 from a file to a served answer."""

import contextlib
import hashlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from starlette.testclient import TestClient

import api
from demo import sample
from marketplace.cleaning import photo_records, photos
from marketplace.files import disk, generations, reading, stages
from marketplace.retrieval.recommender import Recommender
from tests import small_disk
from tests.conftest import STAGES, TRAIN_FLAGS, run_stages

ROOT = Path(__file__).resolve().parents[1]
TIMES_ONLY = {"manifest.json", "report.json", photo_records.FILE}  # that may tell when something happened
KILLS = 2


def tree(folder: Path) -> dict[str, str]:
    """Path -> sha256 of every file of a stage that must not depend on time; tantivy's have random names."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in TIMES_ONLY and path.parent.name != "words")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kill_in_the_middle(command: list[str], folder: Path, after_s: float) -> bool:
    """Start a stage and SIGKILL it `after_s` after it began to write to `folder`; whether it was still at work."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = None
    while process.poll() is None:
        if deadline is None and folder.is_dir() and not (folder / "manifest.json").exists():
            deadline = time.monotonic() + after_s
        if deadline is not None and time.monotonic() >= deadline:
            process.kill()
        try:
            process.wait(timeout=0.01)
        except subprocess.TimeoutExpired:
            continue
    return process.returncode == -signal.SIGKILL


def prepare(demo_dir: Path, data_dir: Path, name: str) -> list[str]:
    """Copy what a stage reads; returns the command that runs it."""
    (data_dir / "raw").symlink_to(demo_dir / "raw")  # the very files: their inodes and times are in the records of photos
    for earlier in list(STAGES)[: list(STAGES).index(name)]:
        shutil.copytree(demo_dir / earlier, data_dir / earlier)
    return [sys.executable, stages.STAGES[name].script, "--data", str(data_dir), *STAGES[name][1]]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_killed_at_random_moments_and_run_again_ends_with_the_same_files(demo_dir, tmp_path, name):
    command = prepare(demo_dir, tmp_path, name)
    seconds = json.loads((demo_dir / name / "manifest.json").read_text())["seconds"]
    generator = random.Random(name)
    for _ in range(KILLS):
        after_s = generator.uniform(0, 0.8 * seconds)
        while not kill_in_the_middle(command, tmp_path / name, after_s):
            shutil.rmtree(tmp_path / name)  # it was quicker than the run that told its seconds
            after_s /= 2
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert tree(tmp_path / name) == tree(demo_dir / name)
    if name == "index":
        ours, theirs = (Recommender(generations.current_generation(folder / "index")) for folder in (tmp_path, demo_dir))
        for row in range(theirs.catalogue.n_products):
            words = theirs.catalogue.product(row)["name"]
            assert ours.recommend(ours.query(text=words), 10) == theirs.recommend(theirs.query(text=words), 10)


OTHER_FLAGS = {
    "tabular": ["--category-depth", "2"],
    "images": ["--size", "128"],
    "dataset": ["--seed", "1"],
    "model": ["--seed", "1"],
    "embeddings": ["--runtime", "onnx"],
    "index": ["--recall", "0.9"],
}


@pytest.mark.parametrize("name", STAGES)
def test_of_two_runs_at_once_one_ends_and_the_other_says_why_not(demo_dir, tmp_path, name, capsys):
    command = prepare(demo_dir, tmp_path, name)
    flags = [STAGES[name][1], [*STAGES[name][1], *OTHER_FLAGS[name]]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen([*command, *more], cwd=ROOT, **pipes) for more in ([], OTHER_FLAGS[name])]
    ends = [(*run.communicate(), run.returncode) for run in runs]
    finished = [number for number, (_, _, code) in enumerate(ends) if code == 0]
    assert finished
    for summary, lines, code in ends:
        if code:  # else it came after the end of the other
            refusal = "error: another run is at work in .*/(features|" + name + "): wait for its end, then run python .* again"
            assert (summary, code) == ("", 1) and re.fullmatch(refusal, lines.splitlines()[-1]) and "Traceback" not in lines
    summaries = []
    for number in finished:  # each in a copy: where both finished, either may have been the last
        copy = shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-{number}", symlinks=True)
        assert STAGES[name][0](["--data", str(copy), *flags[number]]) == 0
        summaries.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert any(summary.get("unchanged") for summary in summaries)  # the files are those of one of them, to the byte


FULL = r"error: the disk at {} is full \(.*\): make room on it, and run it again"


@pytest.mark.parametrize("way", ["mounted", "refused"])
@pytest.mark.parametrize("name", ["tabular", "images", "dataset", "embeddings", "index"])
def test_a_stage_on_a_full_disk_says_so_in_a_sentence_and_ends_with_the_same_files_when_there_is_room(
    demo_dir, tmp_path, name, way
):
    """A small disk of its own where this system lets us mount one; where it does not, both ways refuse its writes."""
    command = prepare(demo_dir, tmp_path, name)
    folder = tmp_path / name
    folder.mkdir()
    size_bytes = sum(path.stat().st_size for path in (demo_dir / name).rglob("*") if path.is_file())
    with small_disk.at(folder, size_bytes // 2) if way == "mounted" else contextlib.nullcontext(False) as mounted:
        run_on_full_disk(command, folder, mounted)
        if mounted:
            small_disk.grow(folder)
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert tree(folder) == tree(demo_dir / name)


@pytest.mark.parametrize("name", ["model", "evaluation"])
def test_training_and_evaluation_on_a_full_disk_say_so_in_a_sentence(demo_dir, tmp_path, name):
    for earlier in {"features", *STAGES} - {name}:
        shutil.copytree(demo_dir / earlier, tmp_path / earlier)
    folder = tmp_path / name
    folder.mkdir()
    command = [sys.executable, stages.STAGES[name].script, "--data", str(tmp_path), *(TRAIN_FLAGS if name == "model" else [])]
    with small_disk.at(folder, 100_000) as mounted:
        run_on_full_disk(command, folder, mounted)


def run_on_full_disk(command: list[str], folder: Path, mounted: bool) -> None:
    """Run a stage whose folder is on a small disk, or whose writes are refused; it must end in one sentence and leave no half."""
    words = command if mounted else [command[0], *small_disk.refusing(folder), *command[1:]]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "") and "Traceback" not in ended.stderr, ended.stderr
    assert (disk.mount_of(folder) == folder) == mounted
    assert re.fullmatch(FULL.format(disk.mount_of(folder)), ended.stderr.splitlines()[-1]), ended.stderr
    assert not (folder / "manifest.json").exists() and not list(folder.glob(".*.tmp"))


def test_every_script_runs_on_resnet50_from_a_file_to_a_served_answer(tmp_path):
    torch.manual_seed(0)
    classifier = torchvision.models.resnet50(weights=None).eval()
    torch.save(classifier.state_dict(), tmp_path / "resnet50.pth")
    sample.write(tmp_path / "raw", listings=39)
    flags = ["--backbone", "resnet50", "--weights", str(tmp_path / "resnet50.pth"), "--finetune", "head", "--image-size", "64"]
    run_stages(tmp_path, ["tabular", "images", "dataset"])
    assert STAGES["model"][0](["--data", str(tmp_path), *flags, "--epochs", "3", "--workers", "0", "--device", "cpu"]) == 0
    run_stages(tmp_path, ["embeddings", "index"])
    image_id = reading.read_json(tmp_path / "embeddings" / "image_ids.json")[0]
    raw = (tmp_path / "raw" / "images" / f"{image_id}.jpg").read_bytes()

    classifier.fc = torch.nn.Identity()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = torch.from_numpy(photos.model_input((tmp_path / "images" / f"{image_id}.jpg").read_bytes(), 64, mean, std))
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(classifier(pixels[None]))[0].numpy()
    pooled = np.load(tmp_path / "features" / "plain.npy")[0]
    assert pooled @ expected / np.linalg.norm(pooled) > 0.99999
    stored = np.load(tmp_path / "embeddings" / "vectors.npy")[0]
    with TestClient(api.create_app(api.Settings(tmp_path))) as client:
        assert client.get("/healthcheck").json()["model"] == "resnet50"
        features = np.array(client.post("/predict/feature_embedding", files={"image": raw}).json()["features"])
        assert features @ stored > 0.999
        answer = client.post("/predict/similar_images", files={"image": raw}, data={"k": 3}).json()
    assert answer["similar_index"][0] == image_id or answer["results"][0]["score"] > 0.999
    assert len(answer["results"]) == 3


def test_importing_a_script_does_nothing(tmp_path):
    names = sorted(path.stem for path in ROOT.glob("*.py"))
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {', '.join(names)}"
    ended = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", sorted(path.name for path in ROOT.glob("*.py")))
def test_a_flag_that_does_not_exist_is_a_usage_error(script):
    ended = subprocess.run([sys.executable, script, "--nonsense"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.splitlines()[-1] == f"{script}: error: unrecognized arguments: --nonsense"
