import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

import train
from demo import sample
from marketplace.files.stages import StageError
from marketplace.models import backbone as network
from marketplace.models import photo_model, training
from tests.conftest import run_stages

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--backbone", "resnet18", "--finetune", "all", "--image-size", "32", "--epochs", "3", "--batch-size", "8"]
FLAGS += ["--text-encoder", "none"]
FLAGS += ["--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data folder that is ready to be trained on, and weights to start from."""
    data_dir = tmp_path_factory.mktemp("prepared")
    sample.write(data_dir / "raw", listings=39)
    run_stages(data_dir, ["tabular", "images", "dataset"])
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), data_dir / "resnet18.pth")
    return data_dir


def trained(data_dir: Path, *flags: str) -> dict[str, torch.Tensor]:
    assert train.main(["--data", str(data_dir), *FLAGS, *flags]) == 0
    return safetensors.torch.load_file(data_dir / "model" / photo_model.WEIGHTS)


def linked(prepared: Path, folder: Path) -> Path:
    """A data folder of its own over the same inputs."""
    folder.mkdir()
    for name in ("tabular", "images", "dataset"):
        (folder / name).symlink_to(prepared / name)
    return folder


class Pictures(torch.utils.data.Dataset):
    """Twelve 8-pixel pictures of three categories, two a listing, made noisy anew each time."""

    def __init__(self):
        self.plain = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        self.labels, self.owners = np.repeat([0, 1, 2], 4), np.repeat(np.arange(6), 2)

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return self.plain[index] + 0.1 * torch.rand(3, 8, 8), int(self.labels[index]), index


def fine_tuned(checkpoint_path: Path, *flags: str, record=lambda **values: None, backbone=None) -> dict[str, torch.Tensor]:
    """The weights of a small network after fine_tune() with these flags."""
    torch.manual_seed(0)
    backbone = backbone or torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Flatten()
    )
    with torch.no_grad():
        dimension = backbone.eval()(torch.zeros(2, 3, 8, 8)).shape[1]
    photo_network = network.PhotoNetwork(backbone, dimension, 3)
    photo_network.embedder = network.Projection(dimension, 5, power=True)
    pictures = Pictures()

    def validate(validated: network.PhotoNetwork) -> tuple[float, float]:
        with torch.inference_mode():
            logits = validated.eval()(pictures.plain)[1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(pictures.labels)).item()
        return (logits.argmax(1).numpy() == pictures.labels).mean(), loss

    arguments = train.parse_args(
        ["--finetune", "all", "--epochs", "4", "--batch-size", "4", "--workers", "0", "--device", "cpu", *flags]
    )
    photos = training.LabelledPhotos(pictures, pictures.owners, pictures.labels)
    checkpoint = training.Checkpoint(checkpoint_path, "run", arguments.resume)
    training.fine_tune(photo_network, photos, validate, train.config_of(arguments), checkpoint, training.Ranks(0, 1), record)
    return photo_network.state_dict()


@pytest.mark.parametrize("flags", [["--weights", "none"], []])
def test_a_run_that_is_killed_and_resumed_ends_with_the_weights_of_an_undisturbed_one(tmp_path, flags):
    epochs = []
    undisturbed = fine_tuned(tmp_path / "whole.pt", *flags, record=lambda **values: epochs.append(values))
    for killed_after in (2, 3, 4):
        seen = []

        def record_and_die(seen=seen, killed_after=killed_after, **values):
            seen.append(values)
            if len(seen) == killed_after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fine_tuned(tmp_path / "killed.pt", *flags, record=record_and_die)
        again = []
        resumed = fine_tuned(
            tmp_path / "killed.pt", *flags, "--resume", record=lambda again=again, **values: again.append(values)
        )
        assert again == epochs
        assert all(torch.equal(resumed[name], values) for name, values in undisturbed.items())


def test_training_ends_where_validation_has_not_got_better_for_long(tmp_path):
    epochs = []
    flags = ["--epochs", "50", "--learning-rate", "1e-9"]
    fine_tuned(tmp_path / "c.pt", *flags, record=lambda **values: epochs.append(values))
    assert len(epochs) < 50
    best = max(range(len(epochs)), key=lambda n: (epochs[n]["validation_accuracy"], -epochs[n]["validation_loss"]))
    assert len(epochs) == best + 1 + training.PATIENCE


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path):
    with pytest.raises(StageError) as caught:
        fine_tuned(tmp_path / "none.pt", "--resume")
    assert (
        str(caught.value)
        == f"{tmp_path / 'none.pt'} is missing, so there is nothing to resume: run python train.py without --resume"
    )


def moving(width: int = 2) -> training.Moving:
    """What moves in the training of a small network."""
    photo_network = network.PhotoNetwork(torch.nn.Flatten(), 3 * width, 2)
    photo_network.embedder = network.Projection(3 * width, 2, power=True)
    config = train.config_of(train.parse_args(["--finetune", "all", "--device", "cpu"]))
    return training.Moving.begin(photo_network, config, steps=10)


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint's path, and a function that loads it into parts like those it was saved from."""
    path = tmp_path / "checkpoint.pt"
    training.save_checkpoint(training.Checkpoint(path, "this run", False), moving(), training.History(waited=4))

    def load(key: str = "this run", width: int = 2) -> training.History:
        return training.load_checkpoint(training.Checkpoint(path, key, True), moving(width), "cpu")

    return path, load


def test_a_good_checkpoint_gives_its_history(checkpoint):
    assert checkpoint[1]() == training.History(waited=4)


def test_a_checkpoint_of_another_run_is_refused(checkpoint):
    path, load = checkpoint
    with pytest.raises(StageError) as caught:
        load(key="another run")
    expected = f"{path} is of a run with other flags or inputs: give the same, or run python train.py without --resume"
    assert str(caught.value) == expected


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"junk"])
def test_a_damaged_checkpoint_is_refused(checkpoint, damage):
    path, load = checkpoint
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StageError) as caught:
        load()
    assert str(caught.value) == f"{path} is damaged: run python train.py without --resume"


def test_a_checkpoint_of_another_network_is_refused(checkpoint):
    with pytest.raises(StageError, match="is damaged: run python train.py without --resume$"):
        checkpoint[1](width=3)


DESCENT = """
import sys
import torch
import train
torch.optim.AdamW = lambda groups, **_: torch.optim.SGD(groups)
sys.exit(train.main(sys.argv[1:]))
"""


def test_two_processes_end_with_the_weights_of_one_with_the_same_batches(prepared, tmp_path, monkeypatch):
    """By plain gradient descent, so that weights tell gradients: AdamW would blow up the rounding of those near 0.

    Tolerance: 1e-4 on every weight after 2 epochs; sums are added in another order.
    """
    flags = ["--weights", str(prepared / "resnet18.pth"), "--learning-rate", "0.05", "--epochs", "2"]
    (tmp_path / "descent.py").write_text(DESCENT)
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, **_: torch.optim.SGD(groups))
    alone = trained(linked(prepared, tmp_path / "one"), *flags)
    data_dir = linked(prepared, tmp_path / "two")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d"]
    command += [
        "--rdzv-endpoint",
        "127.0.0.1:0",
        "--local-addr",
        "127.0.0.1",
        str(tmp_path / "descent.py"),
        "--data",
        str(data_dir),
        *FLAGS,
        *flags,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    together = safetensors.torch.load_file(data_dir / "model" / photo_model.WEIGHTS)
    started = torch.load(prepared / "resnet18.pth", weights_only=True)
    moved = (alone["backbone.conv1.weight"] - started["conv1.weight"]).abs().max()
    assert moved > 1e-3
    for name, values in alone.items():
        torch.testing.assert_close(together[name], values, atol=1e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_statistics_that_came_with_the_weights_stay_and_only_the_last_quarter_of_the_layers_moves(tmp_path):
    layers = [layer for _ in range(4) for layer in (torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3))]
    backbone = torch.nn.Sequential(*layers, torch.nn.Flatten())
    started = copy.deepcopy(backbone.state_dict())
    tuned = fine_tuned(tmp_path / "c.pt", "--finetune", "last", backbone=backbone)
    moved = {name for name, values in started.items() if not torch.equal(tuned[f"backbone.{name}"], values)}
    assert moved == {"6.weight", "6.bias", "7.weight", "7.bias"}
    assert "1.running_mean" in started


@pytest.mark.parametrize("embedding_moves_backbone", [True, False])
def test_the_embedding_moves_the_backbone_only_where_it_started_from_weights(embedding_moves_backbone):
    photo_network = network.PhotoNetwork(torch.nn.Sequential(torch.nn.Conv2d(3, 6, 8), torch.nn.Flatten()), 6, 3)
    photo_network.embedder = network.Projection(6, 5, power=True)
    module = training._Trained(photo_network, 5, embedding_moves_backbone)
    pictures = Pictures()
    labels = torch.tensor(pictures.labels)
    vectors, logits, category_loss = module(pictures.plain, labels)
    expected_vectors, expected_logits = photo_network(pictures.plain)
    assert torch.equal(vectors, expected_vectors) and torch.equal(logits, expected_logits)
    backbone = photo_network.backbone[0].weight
    (vectors[0].sum() + category_loss).backward(retain_graph=True)
    assert photo_network.embedder.linear.weight.grad.abs().sum() > 0
    assert (backbone.grad is not None) == embedding_moves_backbone
    backbone.grad = None
    torch.nn.functional.cross_entropy(logits, labels).backward()
    assert backbone.grad.abs().sum() > 0


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(2, 16), st.integers(0, 3))
@settings(deadline=None)
def test_batches_hold_every_photo_at_most_once_and_listings_together_and_ranks_share_them(owners, batch_size, epoch):
    owners = np.array(owners)
    batch_size = 2 * max(1, min(batch_size, len(owners)) // 2) if len(owners) > 1 else 1

    def drawn(rank: int, world: int) -> list[list[int]]:
        batches = training.ListingBatches(owners, batch_size, 0, training.Ranks(rank, world))
        batches.epoch = epoch
        return list(batches)

    whole = drawn(0, 1)
    rows = [row for batch in whole for row in batch]
    assert len(rows) == len(set(rows)) == len(owners) // batch_size * batch_size
    listings = owners[rows]
    changes = np.count_nonzero(np.diff(listings)) + 1
    assert changes == len(np.unique(listings))
    if batch_size % 2 == 0:
        for batch, first, second in zip(whole, drawn(0, 2), drawn(1, 2), strict=True):
            assert sorted(first + second) == sorted(batch) and len(first) == len(second)


class Noise(torch.utils.data.Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return torch.rand(3) + index


def test_a_photo_is_changed_by_seed_epoch_and_photo_and_nothing_else():
    photos = training.SeededPhotos(Noise(), seed=1)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = photos[3]
    assert torch.equal(torch.rand(1), expected)  # nobody else's random numbers are used up
    photos[0]
    assert torch.equal(photos[3], first)
    photos.epoch = 1
    assert not torch.equal(photos[3], first)
    assert not torch.equal(training.SeededPhotos(Noise(), seed=2)[3], first)


def test_classes_are_weighed_between_photos_alike_and_classes_alike():
    labels = np.array([0] * 90 + [1] * 10)
    weights = training.class_weights(labels, 3).numpy()
    assert weights[labels].mean() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(3)


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_the_learning_rate_warms_up_and_falls_along_a_cosine_to_nothing(steps):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = training.make_schedule(optimiser, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    warm_up = max(1, round(0.1 * steps))
    rising = [(step + 1) / warm_up for step in range(warm_up)]
    falling = [0.5 * (1 + np.cos(np.pi * step / (steps - warm_up))) for step in range(steps - warm_up)]
    assert rates == pytest.approx([0.5 * factor for factor in rising + falling])


def test_the_head_keeps_its_best_epoch_not_its_last():
    # Features that tell the training labels by heart and mislead on validation: the first epochs are the best ones.
    generator = np.random.default_rng(0)
    labels = generator.integers(2, size=60)
    signal = np.eye(2)[labels]
    noise = generator.normal(size=(60, 200))
    features = np.concatenate([signal, noise], axis=1).astype(np.float32)
    owners = np.arange(60)
    train_photos = training.Photos(features[:30], labels[:30], owners[:30], owners[:30], owners[:30], features[:30])
    held_out = training.Photos(features[30:], labels[30:], owners[30:], owners[30:], owners[30:])
    arguments = train.parse_args(["--weights", "imagenet", "--epochs", "40", "--learning-rate", "0.05", "--device", "cpu"])
    head, seen, states = torch.nn.Linear(202, 2), [], []

    def record(**values):
        seen.append((values["validation_accuracy"], -values["validation_loss"]))
        states.append(copy.deepcopy(head.state_dict()))

    torch.manual_seed(0)
    training.train_head(head, train_photos, held_out, train.config_of(arguments), record)
    best = max(range(len(seen)), key=lambda epoch: (seen[epoch], -epoch))
    assert len(seen) == best + 1 + training.PATIENCE < 40
    assert torch.equal(head.weight, states[best]["weight"])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--finetune", "all"], (6, 32, 1e-3, 3e-4, 5)),
        (["--finetune", "head"], (30, 32, 1e-3, 3e-4, 5)),
        (["--finetune", "all", "--learning-rate", "0.01"], (6, 32, 0.01, 0.003, 5)),
        (["--weights", "none"], (40, 16, 3e-4, 3e-4, 40)),
        (["--weights", "none", "--batch-size", "32", "--learning-rate", "0.001", "--epochs", "7"], (7, 32, 1e-3, 1e-3, 7)),
    ],
)
def test_training_from_scratch_has_defaults_of_its_own(flags, expected):
    config = train.config_of(train.parse_args(["--device", "cpu", *flags]))
    chosen = (config.epochs, config.batch_size, config.learning_rate, config.backbone_learning_rate, config.patience)
    assert chosen == pytest.approx(expected)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--resume"], "--resume is for --finetune all or last"),
        (
            ["--finetune", "last", "--weights", "none"],
            "--finetune last needs a pretrained backbone: give --weights, or --finetune all",
        ),
        (["--learning-rate", "0"], "--learning-rate is above 0"),
    ],
)
def test_flags_that_do_not_go_together_are_usage_errors(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        train.parse_args(["--device", "cpu", *flags])
    assert capsys.readouterr().err.endswith(f"error: {message}\n")
