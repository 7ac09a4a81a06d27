"""The trained photo model: what it is, saved and loaded, run through ONNX Runtime or torch. Imports torch only to use it."""

import base64
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from marketplace.cleaning import photos
from marketplace.files import atomic, reading, stages
from marketplace.files.stages import StageError
from marketplace.models import onnx_session

RUNTIMES = ("auto", "onnx", "torch")
DESCRIPTION, WEIGHTS = "image_model.json", "image_model.safetensors"
ONNX, INT8 = "image_model.onnx", "image_model.int8.onnx"
# All that serving needs of data/model/, with text_encoder's other files where there is an encoder.
FILES = (*stages.PHOTO_MODEL, *stages.TABLE_MODELS)
# A training photo's JPEG and what the 8-bit model made of it where it was exported, both in base64 in that file's metadata:
# 8-bit kernels differ between processors (without VNNI their sums saturate).
PROBE_PHOTO, PROBE_VECTOR = "probe_photo", "probe_vector"
MIN_PROBE_COSINE = 0.999
GATHERED = 64  # photos of different requests in one batch, at most

Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # (N, 3, S, S) float32 -> (N, D) unit rows, (N, C) logits
DRIVER = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")  # one is there with an NVIDIA driver; the last in WSL


@dataclass(frozen=True)
class Description:
    """What a reader of the weights must know; image_model.json."""

    backbone: str
    weights: str  # what the backbone started from
    classes: list[str]  # main categories, by label
    input_size: int  # pixels
    mean: list[float]
    std: list[float]
    dimension: int  # of the embedding
    embedding: str  # how it is made
    projection: str  # of the pooled features: none, linear, or power (linear after a signed square root)
    photo: dict  # photos.CleanSettings of the training photos: an upload is cleaned the same way
    int8: dict | None = None  # what int8.export() found of the 8-bit model: whether it is used, figures, a reason if not

    def save(self, model_dir: Path) -> None:
        atomic.write_json(model_dir / DESCRIPTION, asdict(self))

    @classmethod
    def load(cls, model_dir: Path) -> "Description":
        """Raises StageError when it is missing, damaged, or has other fields than this version's."""
        return reading.read_record(model_dir / DESCRIPTION, cls, "train.py")


class Gathered:
    """Runs single items of many threads in batches: what arrived while one ran goes into the next; none waits for more.

    One thread runs them all, in batches of 1, 2, 4, ... GATHERED: cuDNN may choose anew, for each size and in each thread, how to
    compute a network.
    """

    def __init__(self, run: Callable[[np.ndarray], tuple[np.ndarray, ...]]):
        """run: (N, ...) items -> arrays of N rows."""
        self._run = run
        self._waiting: list[tuple[np.ndarray, Future]] = []
        self._adding, self._thread = threading.Lock(), ThreadPoolExecutor(1)

    def __call__(self, item: np.ndarray) -> tuple[np.ndarray, ...]:
        """Its row of each array; raises what the run of its batch raised."""
        own: Future = Future()
        with self._adding:
            self._waiting.append((item, own))
        self._thread.submit(self._run_waiting)
        return own.result()

    def _run_waiting(self) -> None:
        with self._adding:
            batch, self._waiting = self._waiting[:GATHERED], self._waiting[GATHERED:]
        if batch:  # an earlier call may have taken them
            self._finish(*zip(*batch, strict=True))

    def _finish(self, items: tuple[np.ndarray, ...], futures: tuple[Future, ...]) -> None:
        size = 1 << (len(items) - 1).bit_length()
        try:
            padded = np.stack([*items, *items[:1] * (size - len(items))])
            rows = [row for row, _ in zip(zip(*self._run(padded), strict=True), items, strict=False)]
        except BaseException as error:
            for future in futures:
                future.set_exception(error)
        else:
            for future, row in zip(futures, rows, strict=True):
                future.set_result(row)


class PhotoModel:
    """A photo model ready to run, on a CPU by any number of threads at once.

    description: its Description; runtime: "onnx" or "torch"; precision: "int8", "fp32" or, on CUDA, "bf16".
    """

    def __init__(self, model_dir: Path, runtime: str = "auto", device: str | None = None, threads: int | None = None):
        """Load from `model_dir`.

        runtime: "torch"; "onnx", ONNX Runtime in fp32; "auto", torch where CUDA is there, else ONNX Runtime in 8 bits if that
        passed train.py's check and gives this machine the same vector, else in fp32.
        threads: of ONNX Runtime for one run; default OMP_NUM_THREADS, else all cores.
        """
        self.description = Description.load(model_dir)
        self.settings = photos.CleanSettings.from_dict(self.description.photo)
        self.runtime = _choose_runtime(runtime, device)
        # Batches pay on a GPU. On a CPU they gain little, and who comes first would wait for who comes last.
        self.run_one = Gathered(self.run) if self.runtime == "torch" else self._run_alone
        if self.runtime == "torch":
            self._run, self.precision = _torch(model_dir, self.description, device)
            return
        self.precision = "fp32"
        quantised = runtime == "auto" and self.description.int8 and self.description.int8["used"]
        self._run = self._quantised(model_dir / INT8, threads) if quantised else None
        self.precision = "int8" if self._run else "fp32"
        self._run = self._run or open_onnx(model_dir / ONNX, threads)[0]

    def _quantised(self, path: Path, threads: int | None) -> Run | None:
        """The 8-bit model, None where this machine's vector of its probe photo is not the one it came with."""
        run, metadata = open_onnx(path, threads)
        vector, _ = run(self.input(base64.b64decode(metadata[PROBE_PHOTO]))[None])
        cosine = float(vector[0] @ np.frombuffer(base64.b64decode(metadata[PROBE_VECTOR]), "<f4"))
        if cosine >= MIN_PROBE_COSINE:
            return run
        logging.getLogger(__name__).warning(
            "%s gives another vector on this processor than where it was trained (cosine %.4f, at least %g is asked): "
            "%s is used instead",
            *(path, cosine, MIN_PROBE_COSINE, ONNX),
        )
        return None

    def input(self, jpeg: bytes) -> np.ndarray:
        """One cleaned photo as run() takes it: (3, S, S) float32; for CUDA its (H, W, 3) uint8 pixels, the rest is done there."""
        if self.precision == "bf16":
            return photos.pixels(jpeg)
        return photos.model_input(jpeg, self.description.input_size, self.description.mean, self.description.std)

    def _run_alone(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """run() of one photo's input(), for one of many threads: (D,) unit vector, (C,) category probabilities."""
        vectors, probabilities = self.run(pixels[None])
        return vectors[0], probabilities[0]

    def run(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """N photos' input(), or (N, 3, S, S) float32 anywhere -> (N, D) float32 unit rows, (N, C) category probabilities."""
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
    if any(map(os.path.exists, DRIVER)):
        import torch

        return "torch" if torch.cuda.is_available() else "onnx"
    return "onnx"


def open_onnx(path: Path, threads: int | None = None) -> tuple[Run, dict[str, str]]:
    """An exported network as a function, and its file's metadata; threads: as PhotoModel."""
    session = onnx_session.open_session(path, threads)
    return lambda pixels: session.run(["features", "logits"], {"pixels": pixels}), session.get_modelmeta().custom_metadata_map


def _torch(model_dir: Path, description: Description, device: str | None) -> tuple[Run, str]:
    import safetensors.torch
    import torch

    from marketplace.models import backbone as network

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    photo_network = network.of_description(description)
    photo_network.load_state_dict(safetensors.torch.load_file(model_dir / WEIGHTS))
    photo_network.normaliser = network.Normaliser(description.input_size, description.mean, description.std, device)
    return network.as_function(photo_network, device), "fp32" if device == "cpu" else "bf16"
