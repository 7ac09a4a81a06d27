import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import dataset
import train
from demo import sample
from marketplace.cleaning import photos
from marketplace.files import atomic, reading, stages
from marketplace.models import backbone as network
from marketplace.models import photo_model, training
from tests.conftest import run_stages, stamp

FAST = ["--backbone", "resnet18", "--weights", "none", "--image-size", "32", "--epochs", "2", "--workers", "0", "--device", "cpu"]
FAST += ["--text-encoder", "none"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data folder that is ready to be trained on."""
    data_dir = tmp_path_factory.mktemp("prepared")
    sample.write(data_dir / "raw", listings=39)
    run_stages(data_dir, ["tabular", "images", "dataset"])
    return data_dir


def test_training_end_to_end_writes_everything_and_equal_runs_give_equal_bytes(prepared, capsys):
    trees = []
    for _ in range(2):
        (prepared / "model" / "manifest.json").unlink(missing_ok=True)
        assert train.main(["--data", str(prepared), *FAST]) == 0
        trees.append({path.name: path.read_bytes() for path in (prepared / "model").iterdir() if path.name != "manifest.json"})
    assert trees[0] == trees[1]
    assert {
        "image_model.safetensors",
        "image_model.json",
        "image_model.onnx",
        "metrics.json",
        "curves.png",
    } < set(trees[0])
    assert not {"confusion.png", "hardest.png"} & set(trees[0])
    metrics = json.loads(trees[0]["metrics.json"])
    assert [epoch["epoch"] for epoch in metrics["epochs"]] == [1, 2]
    assert set(metrics) == {"validation", "embedding", "epochs", "warnings"} and "test" not in json.dumps(metrics)
    assert list((prepared / "tensorboard").glob("events.out.tfevents.*"))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["stage"] == "model"


def test_a_second_run_with_the_same_arguments_does_nothing(demo_dir, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in (demo_dir / "model").iterdir()}
    run_stages(demo_dir, ["model"])
    assert json.loads(capsys.readouterr().out)["unchanged"] is True
    assert before == {path.name: path.stat().st_mtime_ns for path in (demo_dir / "model").iterdir()}


def test_the_saved_model_says_how_photos_are_prepared(demo_dir):
    description = photo_model.Description.load(demo_dir / "model")
    assert description.backbone == "efficientnet_lite0" and description.input_size == 96
    assert photos.CleanSettings(**description.photo) == photos.CleanSettings()
    np.testing.assert_allclose(description.mean, [127 / 255] * 3)


def test_torch_and_onnx_give_the_same_vectors_and_probabilities(demo_dir):
    image_ids = reading.read_json(demo_dir / "embeddings" / "image_ids.json")[:4]
    runtimes = [photo_model.PhotoModel(demo_dir / "model", runtime, "cpu") for runtime in ("onnx", "torch")]
    pixels = np.stack([runtimes[0].input((demo_dir / "images" / f"{name}.jpg").read_bytes()) for name in image_ids])
    for onnx, torch_ in zip(*(runtime.run(pixels) for runtime in runtimes), strict=True):
        np.testing.assert_allclose(onnx, torch_, atol=1e-4)


def test_accuracy_is_by_listing_not_by_photo():
    # Of the two photos of listing 5, the surer one wins.
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.4, 0.6]])
    labels, owners = np.array([0, 1, 0]), np.array([5, 2, 5])
    assert training.accuracy_by_listing(probabilities, labels, owners) == 1.0
    assert training.cross_entropy(probabilities, labels) == pytest.approx(-np.log([0.9, 0.9, 0.4]).mean())


def _changed(mean: list[float], std: list[float], scratch: bool = False) -> v2.Compose:
    """What training makes of a JPEG."""
    return v2.Compose([dataset.photo_tensor, training.random_changes(64, mean, std, scratch)])


def test_only_training_photos_are_ever_changed_at_random(prepared):
    jpeg = next((prepared / "images").glob("*.jpg")).read_bytes()
    mean, std = [0.5] * 3, [0.25] * 3
    plain, augmented = train.evaluation_transform(64, mean, std), _changed(mean, std)
    torch.manual_seed(0)
    assert torch.equal(plain(jpeg), plain(jpeg)) and not torch.equal(augmented(jpeg), augmented(jpeg))
    np.testing.assert_array_equal(plain(jpeg).numpy(), photos.model_input(jpeg, 64, mean, std))


def test_training_from_scratch_neither_tints_nor_erases():
    buffer = io.BytesIO()
    Image.new("RGB", (256, 256), (200, 120, 40)).save(buffer, "JPEG")
    mean, std = [0.5] * 3, [0.25] * 3
    expected = train.evaluation_transform(64, mean, std)(buffer.getvalue())
    torch.manual_seed(0)
    for scratch in (False, True):
        augmented = _changed(mean, std, scratch)
        same = [torch.allclose(augmented(buffer.getvalue()), expected, atol=1e-5) for _ in range(20)]
        assert all(same) if scratch else not any(same)


@pytest.mark.parametrize("scratch", [False, True])
def test_bytes_changed_at_random_and_normalised_later_are_what_training_sees_on_a_cpu(scratch):
    jpeg = photos.clean(_noise()).jpeg
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    as_bytes = v2.Compose([dataset.photo_tensor, training.random_changes(64, mean, std, scratch, as_bytes=True)])
    in_floats, normaliser = _changed(mean, std, scratch), network.Normaliser(64, mean, std, "cpu")
    for seed in range(10):
        torch.manual_seed(seed)
        expected = in_floats(jpeg)
        torch.manual_seed(seed)
        whole = as_bytes(jpeg)
        assert whole.dtype == torch.uint8
        torch.testing.assert_close(normaliser(whole[None])[0], expected, atol=0.01, rtol=0)  # half a grey level


def test_a_gpu_gets_every_photo_as_bytes(prepared, monkeypatch):
    config = train.config_of(train.parse_args(["--device", "cpu", "--image-size", "64", "--weights", "none"]))
    in_floats = train.Photos(prepared, "resnet18", config)
    monkeypatch.setattr(training.TrainingConfig, "on_cuda", True)
    as_bytes = train.Photos(prepared, "resnet18", config)
    assert as_bytes.changed_at_random().photos[0][0].dtype == torch.uint8
    normaliser = network.Normaliser(64, as_bytes.mean, as_bytes.std, "cpu")
    for mine, theirs in ((as_bytes.every, in_floats.every), (as_bytes.validation, in_floats.validation)):
        torch.testing.assert_close(normaliser(mine[0][0][None])[0], theirs[0][0], atol=0.02, rtol=0)  # a grey level


def test_garbage_in_test_listings_changes_no_fitted_file(prepared, tmp_path):
    """What is learned depends on training and validation listings alone."""
    kept = {}
    for name in ("clean", "garbage"):
        data_dir = tmp_path / name
        shutil.copytree(prepared, data_dir, ignore=shutil.ignore_patterns("model", "features", "tensorboard", "raw"))
        listings = reading.read_csv(data_dir / "tabular" / "products.csv")
        if name == "garbage":
            splits = reading.read_csv(data_dir / "dataset" / "listings.csv").set_index("product_id")["split"]
            rows = listings["product_id"].map(splits) == "test"
            assert rows.any()
            listings.loc[rows, ["name", "description", "price"]] = ["garbage", "zzz " * 50, "9999"]
            atomic.write_csv(data_dir / "tabular" / "products.csv", listings)
            stamp(data_dir, "tabular")
            assert dataset.main(["--data", str(data_dir)]) == 0  # the splits stay
            table = dataset.ListingPhotos(data_dir, "test").table
            for image_id in table["image_id"]:
                (data_dir / "images" / f"{image_id}.jpg").write_bytes(photos.clean(_noise()).jpeg)
        assert train.main(["--data", str(data_dir), *FAST]) == 0
        kept[name] = {file_name: (data_dir / "model" / file_name).read_bytes() for file_name in photo_model.FILES}
    assert kept["clean"] == kept["garbage"]


def _noise() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_before_the_earlier_stages_training_says_what_to_run(tmp_path, capsys):
    assert train.main(["--data", str(tmp_path), *FAST]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'tabular'} is not finished: run python clean_tabular_data.py first\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--finetune", "head", "--weights", "none"],
            "--finetune head needs a pretrained backbone: give --weights, or --finetune all",
        ),
        (["--epochs", "0"], "argument --epochs: '0' is not a whole number above 0"),
        (["--batch-size", "1"], "--image-size is at least 32, --batch-size at least 2"),
        (["--learning-rate", "-1"], "--learning-rate is above 0"),
        (["--seed", "-1"], "argument --seed: '-1' is not a whole number from 0 to 4294967295"),
    ],
)
def test_flags_that_make_no_sense_are_usage_errors(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        train.parse_args(flags)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--backbone", "nonsense"],
            "--backbone nonsense is unknown: use resnet50, efficientnet_lite0, efficientnet_lite1, efficientnet_lite2 "
            "or another torchvision classifier",
        ),
        (["--backbone", "fasterrcnn_resnet50_fpn", "--weights", "none"], "--backbone fasterrcnn_resnet50_fpn is unknown: use"),
        (
            ["--backbone", "vit_b_16", "--image-size", "64", "--weights", "none"],
            "--backbone vit_b_16 cannot take --image-size 64 (",
        ),
        (
            ["--backbone", "googlenet", "--weights", "none"],
            "--backbone googlenet gives more than logits in training: use resnet50",
        ),
        (["--weights", "."], "--weights . does not exist: give a .pth or .safetensors file, imagenet or none"),
        (
            ["--text-encoder", "."],
            "--text-encoder . lacks modules.json or model.safetensors: give a folder that sentence-transformers saved",
        ),
    ],
)
def test_what_cannot_be_trained_is_one_sentence_and_leaves_the_finished_model_alone(demo_dir, flags, message, capsys):
    assert train.main(["--data", str(demo_dir), "--device", "cpu", *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
    assert (demo_dir / "model" / "manifest.json").exists()
    assert "--epochs=15" in stages.last_flags(demo_dir, "model")  # what update.py goes by


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_photo_that_got_lost_is_one_sentence_with_and_without_workers(prepared, tmp_path, workers, capsys):
    shutil.copytree(prepared, tmp_path / "data", ignore=shutil.ignore_patterns("model", "tensorboard", "raw"))
    lost = tmp_path / "data" / "images" / f"{dataset.ListingPhotos(tmp_path / 'data', 'train').table['image_id'][0]}.jpg"
    lost.write_bytes(lost.read_bytes()[:200])
    assert train.main(["--data", str(tmp_path / "data"), *FAST, "--workers", workers]) == 1
    assert f"error: {lost} is missing or damaged: run python clean_images.py again" in capsys.readouterr().err.splitlines()


def test_the_weights_check_answers_by_its_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(train.network, "imagenet_available", lambda backbone: backbone == "efficientnet_lite0")
    assert train.main(["--check-weights", "--backbone", "efficientnet_lite0"]) == 0
    assert train.main(["--check-weights"]) == 1
    assert capsys.readouterr().err == (
        "error: the ImageNet weights of resnet50 are not cached and cannot be downloaded: see --weights\n"
    )
