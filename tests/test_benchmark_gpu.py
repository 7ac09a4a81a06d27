"""The benchmark of a GPU, whole and in small on a CPU, and how the page shows what it measured."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> dict:
    """What a quick run on the CPU writes."""
    folder = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, SCRIPT, "--device", "cpu", "--quick", "--results", folder, "--commit", "abc1234"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    record = json.loads((folder / "gpu.json").read_text(encoding="utf-8"))
    assert record["figures"] == json.loads(ran.stdout)
    return record


@pytest.fixture
def render(tmp_path, monkeypatch):
    """docs/render.py, over another folder of results."""
    spec = importlib.util.spec_from_file_location("render", ROOT / "docs" / "render.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def save(render, record: dict) -> None:
    (render.ROOT / "benchmarks" / "results" / "gpu.json").write_text(json.dumps(record), encoding="utf-8")


def test_every_leg_runs_on_a_cpu_and_gives_what_fp32_gives(kept):
    figures = kept["figures"]
    assert kept["command"] == "python benchmarks/gpu.py" and kept["commit"] == "abc1234" and figures["device"] == "cpu"
    training, embedding, api = (figures[name] for name in ("training", "embedding", "api"))
    for kind in ("all", "head"):
        losses = [training[kind][way]["loss"] for way in ("fp32", "bf16", "compiled")]
        assert max(losses) - min(losses) < 0.1 * losses[0], kind
    assert embedding["trained"] and embedding["precision"] == "bf16"
    assert embedding["least_cosine_to_fp32"] > 0.999 and embedding["mean_cosine_between_photos"] < 0.99
    assert figures["stages"]["extract_embeddings.py"]["photos_embedded"] > 0
    assert api["errors"] == 0


def test_a_leg_that_fails_leaves_the_figures_of_the_others(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    gpu = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", gpu)  # a dataclass asks for its module
    spec.loader.exec_module(gpu)
    bench = gpu.Bench(tmp_path, "cpu", gpu.QUICK)
    found = gpu.run_leg("api", bench, True, 60, tmp_path / "api.log")  # there is nothing to serve
    assert found.keys() == {"error"} and found["error"].startswith("1: ")
    (tmp_path / "api.json").write_text('{"p50_ms": 2}', encoding="utf-8")  # as far as it came
    found = gpu.run_leg("api", bench, True, 0, tmp_path / "api.log")
    assert found["p50_ms"] == 2 and found["error"].startswith("it took more than 0 s")


def test_the_page_says_that_nothing_ran_on_a_gpu_until_something_has(kept, render):
    assert render.gpu() == "Not run on a GPU."
    save(render, kept)
    assert render.gpu() == "Not run on a GPU."


def test_the_page_shows_every_figure_of_a_gpu(kept, render):
    card = {"device": "cuda", "card": "a card", "card_gb": 80}
    on_card = {"api": kept["figures"]["api"] | {"card_mb": 1000, "card_mb_under_load": 2000}}
    save(render, kept | {"figures": kept["figures"] | card | on_card})
    page = render.gpu()
    assert "| memory on the card: at the start; under that load | 1,000 MB; 2,000 MB |" in page
    assert "a card, 80 GB" in page and render.NOT_MEASURED not in page


def test_a_leg_that_failed_is_not_measured(kept, render):
    card = {"device": "cuda", "card": "a card", "card_gb": 80, "api": {"error": "it took more than 100 s"}}
    save(render, kept | {"figures": kept["figures"] | card})
    assert "| a photo query through the API: p50 | not measured |" in render.gpu()
