"""The stages as processes and as a chain: killed at any moment, and on ResNet-50 from a file to a served answer."""

import hashlib
import json
import random
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
from marketplace.cleaning import photos
from marketplace.files import generations, reading, stages
from marketplace.retrieval.recommender import Recommender
from tests.conftest import STAGES, run_stages

ROOT = Path(__file__).resolve().parents[1]
TIMES_ONLY = {"manifest.json", "report.json"}  # the two files that may tell when something happened
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


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_killed_at_random_moments_and_run_again_ends_with_the_same_files(demo_dir, tmp_path, name):
    before = list(STAGES)[: list(STAGES).index(name)]
    (tmp_path / "raw").symlink_to(demo_dir / "raw")  # the very files: their inodes and times are in the records of photos
    for earlier in before:
        shutil.copytree(demo_dir / earlier, tmp_path / earlier)
    command = [sys.executable, stages.STAGES[name].script, "--data", str(tmp_path), *STAGES[name][1]]
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
