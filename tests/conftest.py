import socket
import string
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvicorn
from hypothesis import settings

import api
import build_index
import clean_images
import clean_tabular_data
import dataset
import extract_embeddings
import train
from demo import sample, wording
from marketplace.cleaning import listings
from marketplace.files import reading, stages

# No test is timed: a busy machine would fail it.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

LISTINGS = 60
TRAIN_FLAGS = ["--backbone", "efficientnet_lite0", "--image-size", "96", "--epochs", "15", "--workers", "0", "--device", "cpu"]
TRAIN_FLAGS += ["--text-encoder", "none"]  # tests of the encoder take small_encoder
STAGES = {  # stage folder -> main, and flags beside --data
    "tabular": (clean_tabular_data.main, []),
    "images": (clean_images.main, ["--workers", "1"]),
    "dataset": (dataset.main, []),
    "model": (train.main, TRAIN_FLAGS),
    "embeddings": (extract_embeddings.main, ["--device", "cpu"]),
    "index": (build_index.main, []),
}


def run_stages(data_dir: Path, names=tuple(STAGES)) -> None:
    for name in names:
        main, flags = STAGES[name]
        assert main(["--data", str(data_dir), *flags]) == 0, name


def stamp(data_dir: Path, *names: str) -> None:
    """Make stages' manifests say that each read, and wrote, the files that are there now."""
    for name in names:
        manifest = reading.read_json(data_dir / name / "manifest.json")
        inputs = {path: stages.digest(data_dir / path) if "/" in path else old for path, old in manifest["inputs"].items()}
        stages.Stage(data_dir, name, manifest["arguments"], inputs).finish(manifest["counts"], manifest["outputs"])


@pytest.fixture(scope="session")
def demo_dir(tmp_path_factory) -> Path:
    """The data folder of a small synthetic marketplace that went through the whole pipeline; not to be written to."""
    data_dir = tmp_path_factory.mktemp("demo")
    sample.write(data_dir / "raw", listings=LISTINGS)
    run_stages(data_dir)
    return data_dir


@pytest.fixture(scope="session")
def small_encoder(tmp_path_factory) -> Path:
    """The folder of a sentence-transformers model with random weights, whose words are those of the synthetic marketplace."""
    import tokenizers
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    pieces = tokenizers.BertWordPieceTokenizer()
    words = [word for kind in wording.ALL_KINDS for word in (*kind.nouns, *kind.brands, *kind.facts)]
    pieces.train_from_iterator([*words, string.printable], vocab_size=400, show_progress=False)
    pieces.save(str(folder / "tokenizer.json"))
    BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")).save_pretrained(folder / "bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=400, max_position_embeddings=64, **sizes)).save_pretrained(folder / "bert")
    layers = [modules.Transformer(str(folder / "bert")), modules.Pooling(32), modules.Normalize()]
    SentenceTransformer(modules=layers, device="cpu").save(str(folder / "encoder"))
    return folder / "encoder"


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        self.ready.set()


@pytest.fixture(scope="session")
def served(demo_dir):
    """That marketplace served over HTTP on loopback."""
    app = api.create_app(api.Settings(demo_dir))
    server = _Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as connection:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [connection]}, daemon=True)
        thread.start()
        assert server.ready.wait(timeout=60)
        tests = reading.read_csv(demo_dir / "dataset" / "training_data.csv").query("split == 'test'")
        yield SimpleNamespace(
            url=f"http://127.0.0.1:{connection.getsockname()[1]}",
            app=app,
            data_dir=demo_dir,
            test_photo=demo_dir / "raw" / "images" / f"{tests['image_id'].iloc[0]}.jpg",
            products=listings.read_products(demo_dir / "tabular"),
        )
        server.should_exit = True
        thread.join(timeout=30)
