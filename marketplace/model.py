"""The trained photo model: what it is, saved and loaded, run through ONNX Runtime or torch. Imports torch only to use it."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from marketplace import photos, price_model, storage, table_models
from marketplace.errors import StageError

RUNTIMES = ("auto", "onnx", "torch")
DESCRIPTION, WEIGHTS, ONNX = "image_model.json", "image_model.safetensors", "image_model.onnx"


FILES = (DESCRIPTION, WEIGHTS, ONNX, *table_models.FILES, *price_model.FILES)  # all that serving needs of data/model/


@dataclass(frozen=True)
class Description:
    """What a reader of the weights must know; image_model.json."""

    backbone: str
    weights: str  # what the trunk started from
    classes: list[str]  # main categories, by label
    input_size: int  # pixels
    mean: list[float]
    std: list[float]
    dimension: int  # of the embedding
    embedding: str  # how it is made
    pooling: str  # of the trunk's last maps: average or gem
    projection: str  # of the pooled features: none, linear, or power (linear after a signed square root)
    photo: dict  # photos.CleanSettings of the training photos: an upload is cleaned the same way

    def save(self, model_dir: Path) -> None:
        storage.write_json(model_dir / DESCRIPTION, asdict(self))

    @classmethod
    def load(cls, model_dir: Path) -> "Description":
        return cls(**storage.read_json(model_dir / DESCRIPTION))


class PhotoModel:
    """A photo model ready to run.

    description: its Description; runtime: "onnx" or "torch".
    """

    def __init__(self, model_dir: Path, runtime: str = "auto", device: str | None = None):
        """Load from `model_dir`: torch where CUDA is there, ONNX Runtime on a CPU, or as asked for."""
        self.description = Description.load(model_dir)
        self.settings = photos.CleanSettings.from_dict(self.description.photo)
        self.runtime = _choose_runtime(runtime, device)
        self._run = _onnx(model_dir) if self.runtime == "onnx" else _torch(model_dir, self.description, device)

    def input(self, jpeg: bytes) -> np.ndarray:
        """(3, S, S) float32 of one cleaned photo."""
        return photos.model_input(jpeg, self.description.input_size, self.description.mean, self.description.std)

    def run(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3, S, S) float32 -> (N, D) float32 unit rows, (N, C) category probabilities."""
        features, logits = self._run(pixels)
        if not np.isfinite(features).all():
            raise StageError("the photo model gives values that are not finite: run python train.py again")
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        return features, exponents / exponents.sum(axis=1, keepdims=True)


def _choose_runtime(runtime: str, device: str | None) -> str:
    if runtime != "auto":
        return runtime
    if device is not None:
        return "onnx" if device == "cpu" else "torch"
    # Only a machine with an NVIDIA driver pays for importing torch (650 MB a worker) to ask about CUDA.
    if os.path.exists("/proc/driver/nvidia/version"):
        import torch

        return "torch" if torch.cuda.is_available() else "onnx"
    return "onnx"


def _onnx(model_dir: Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads must not hold the cores
    path = model_dir / ONNX
    if not path.is_file():
        raise StageError(f"{path} is missing: run python train.py first")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(["features", "logits"], {"pixels": pixels})


def _torch(model_dir: Path, description: Description, device: str | None):
    import safetensors.torch
    import torch

    from marketplace import network

    photo_network = network.of_description(description)
    photo_network.load_state_dict(safetensors.torch.load_file(model_dir / WEIGHTS))
    return network.as_function(photo_network, device or ("cuda" if torch.cuda.is_available() else "cpu"))
