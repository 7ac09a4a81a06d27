import subprocess
import sys
from urllib.error import URLError

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
import torchvision

from marketplace.files.stages import StageError
from marketplace.models import backbone as network


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).eval()


def torchvision_features(classifier: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """The input of the classifier's last layer, caught by a hook."""
    caught = []
    handle = classifier.fc.register_forward_hook(lambda _, inputs, __: caught.append(inputs[0]))
    with torch.inference_mode():
        classifier(pixels)
    handle.remove()
    return caught[0]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_resnet50_loads_a_torchvision_file_and_gives_torchvisions_features(tmp_path, suffix):
    torch.manual_seed(1)
    classifier = torchvision.models.resnet50(weights=None).eval()
    path = tmp_path / f"resnet50{suffix}"
    if suffix == ".pth":
        torch.save(classifier.state_dict(), path)
    else:
        safetensors.torch.save_file(classifier.state_dict(), path)
    ours = network.build("resnet50", str(path), n_classes=13, input_size=64).eval()
    pixels = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert (ours.backbone(pixels) - torchvision_features(classifier, pixels)).abs().max() < 1e-5
        features, logits = ours(pixels)
    assert features.shape == (2, 2048) and logits.shape == (2, 13)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))


def test_a_checkpoint_with_another_head_loads_its_backbone(tmp_path, resnet18):
    other = torchvision.models.resnet18(weights=None, num_classes=7)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "w.pth")
    ours = network.build("resnet18", str(tmp_path / "w.pth"), n_classes=3, input_size=64)
    torch.testing.assert_close(ours.backbone.conv1.weight, other.conv1.weight)
    assert ours.head.out_features == 3


def test_a_checkpoint_that_lacks_a_layer_or_has_one_too_many_is_refused(tmp_path, resnet18):
    state = dict(resnet18.state_dict())
    for name, changed in (
        ("lacks.pth", {key: value for key, value in state.items() if key != "conv1.weight"}),
        ("extra.pth", state | {"surprise": torch.zeros(1)}),
    ):
        torch.save(changed, tmp_path / name)
        with pytest.raises(StageError, match=f"{name} do not fit --backbone resnet18: .*(conv1.weight|surprise)"):
            network.build("resnet18", str(tmp_path / name), 3, 64)


class Bomb:
    def __reduce__(self):
        return (print, ("code in a checkpoint ran",))


def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path, capsys):
    path = tmp_path / "bomb.pth"
    torch.save({"state_dict": Bomb()}, path)
    with pytest.raises(StageError, match="bomb.pth is not a checkpoint of plain tensors"):
        network.build("resnet18", str(path), 3, 64)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content"), [("junk.pth", b"no checkpoint"), ("empty.pth", b""), ("junk.safetensors", b"x" * 50)]
)
def test_a_file_that_is_no_checkpoint_is_one_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StageError, match=f"{name} is not a (checkpoint|safetensors file)") as caught:
        network.build("resnet18", str(tmp_path / name), 3, 64)
    assert "\n" not in str(caught.value)


def test_a_missing_checkpoint_and_an_unknown_backbone_are_named(tmp_path):
    with pytest.raises(StageError, match="nowhere.pth does not exist: give a .pth or .safetensors file, imagenet or none$"):
        network.build("resnet18", str(tmp_path / "nowhere.pth"), 3, 64)
    lites = "efficientnet_lite0, efficientnet_lite1, efficientnet_lite2"
    with pytest.raises(StageError, match=f"^--backbone resnet51 is unknown: use resnet50, {lites} or another"):
        network.build("resnet51", "none", 3, 64)


def test_where_imagenet_weights_cannot_be_downloaded_the_choices_are_named(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    assert not network.imagenet_available("resnet50")
    with pytest.raises(StageError) as caught:
        network.build("resnet50", "imagenet", 3, 64)
    assert str(caught.value) == (
        "the ImageNet weights of resnet50 cannot be downloaded (<urlopen error no route>): "
        "give a checkpoint with --weights FILE, train from scratch with --weights none, "
        "or use --backbone efficientnet_lite0, whose weights come with its package"
    )


def test_cached_and_packaged_weights_are_available_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet50-11ad3fa6.pth").write_bytes(b"cached")
    assert network.imagenet_available("resnet50") and network.imagenet_available("efficientnet_lite0")


@pytest.mark.parametrize("name", list(network.LITES))
def test_a_lite_starts_from_its_packages_weights(name):
    first, second = (network.build(name, "imagenet", 4, 96).backbone.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    random = network.build(name, "none", 4, 96).backbone.state_dict()
    assert not torch.equal(first["_conv_stem.weight"], random["_conv_stem.weight"])


@pytest.mark.parametrize(("backbone", "last", "blocks"), [("resnet18", "bn2", 8), ("resnet50", "bn3", 16)])
def test_from_scratch_residual_blocks_start_close_to_their_shortcuts_and_logits_equal(backbone, last, blocks):
    torch.manual_seed(0)
    drawn = network.build(backbone, "none", 4, 32)
    torch.manual_seed(0)
    ours = network.build(backbone, "none", 4, 32)
    network.prepare_for_scratch(ours)
    changed = {name for name, values in drawn.state_dict().items() if not torch.equal(ours.state_dict()[name], values)}
    norms = {name for name in changed if name.startswith("backbone.layer") and name.endswith(f".{last}.weight")}
    assert len(norms) == blocks and changed == norms | {"head.weight", "head.bias"}
    assert all((ours.state_dict()[name] == 0.2).all() for name in norms)
    assert (ours(torch.rand(2, 3, 32, 32))[1] == 0).all()


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0"])
def test_onnx_gives_what_torch_gives_for_any_batch_size(tmp_path, backbone):
    torch.manual_seed(0)
    ours = network.build(backbone, "none", 5, 64)
    network.export_onnx(ours, 64, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    run = network.as_function(ours, "cpu")
    for size in (1, 3, 8):
        pixels = np.random.default_rng(size).normal(size=(size, 3, 64, 64)).astype(np.float32)
        features, logits = session.run(["features", "logits"], {"pixels": pixels})
        np.testing.assert_allclose(features, run(pixels)[0], atol=1e-5)
        np.testing.assert_allclose(logits, run(pixels)[1], atol=1e-4)


def test_equal_networks_are_exported_to_equal_bytes_by_two_processes(tmp_path):
    code = (
        "import sys, torch; from pathlib import Path; from marketplace.models import backbone as network\n"
        "torch.manual_seed(0); network.export_onnx(network.build('resnet18', 'none', 3, 64), 64, Path(sys.argv[1]))"
    )
    for name in ("a.onnx", "b.onnx"):
        subprocess.run([sys.executable, "-c", code, tmp_path / name], check=True, capture_output=True)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_the_way_of_a_gpu_pads_and_cuts_batches_and_stays_near_fp32(monkeypatch):
    torch.manual_seed(0)
    ours = network.build("resnet18", "none", 5, 64)
    expected_run = network.as_function(ours, "cpu")
    seen = []

    def compiled(backbone, dynamic):
        assert dynamic is False
        return lambda batch: seen.append(len(batch)) or backbone(batch)

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(network, "COMPILED_BATCHES", (1, 4, 6))
    run = network.as_function(ours, "cpu:0")  # the device is a CPU's, by another name than the slow way's
    for size, batches in ((1, [1]), (3, [4]), (4, [4]), (5, [6]), (8, [6, 4])):
        pixels = np.random.default_rng(size).normal(size=(size, 3, 64, 64)).astype(np.float32)
        features, logits = run(pixels)
        expected, expected_logits = expected_run(pixels)
        assert seen == batches
        assert features.dtype == np.float32 and features.shape == (size, 512) and logits.shape == (size, 5)
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
        assert (features * expected).sum(1).min() > 0.999 and not np.array_equal(features, expected)
        np.testing.assert_allclose(logits, expected_logits, atol=0.05)
        seen.clear()


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_whole_pixels_are_normalised_where_the_network_runs(monkeypatch, device):
    monkeypatch.setattr(torch, "compile", lambda backbone, dynamic: backbone)
    torch.manual_seed(0)
    ours = network.build("resnet18", "none", 5, 64)
    mean, std = network.normalisation("resnet18")
    whole = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    normalised = ((whole / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    run = network.as_function(ours, device, mean, std)
    for actual, expected in zip(run(whole), run(normalised), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5 if device == "cpu" else 0.02)
