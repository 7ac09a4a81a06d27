"""How the photo network is trained: a head on cached features, or the whole network end to end."""

import copy
import dataclasses
import datetime
import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import distributed, nn
from torch.optim import lr_scheduler, swa_utils
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from marketplace.files import atomic
from marketplace.files.progress import progress
from marketplace.files.stages import StageError
from marketplace.models import backbone

WEIGHT_DECAY = 1e-4
BACKBONE_SHARE = 0.3  # of the learning rate, for a backbone that starts from weights
PATIENCE = 5  # epochs without a better validation
HEAD_BATCH = 256  # cached feature vectors a step
LABEL_SMOOTHING = 0.1
LARGEST_GRADIENT = 5.0  # its norm is clipped there
EMA_SHARE = 0.05  # of all steps: how far back the averaged weights reach
WARM_UP_SHARE = 0.1  # of all steps
CATEGORY_WEIGHT, LISTING_WEIGHT = 0.5, 0.5  # of the embedding's two losses beside the cross-entropy, end to end
TEMPERATURE = 0.1  # of the same-listing loss (Khosla et al. 2020, table 4)


@dataclass(frozen=True)
class TrainingConfig:
    """How the photo network is trained.

    finetune: "head", on the features of a backbone that stays as it is; "last", the last quarter of the backbone too; "all".
    pretrained: whether the backbone starts from weights.
    """

    finetune: str
    pretrained: bool
    image_size: int  # pixels
    embedding_size: int
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    workers: int  # processes that decode photos
    device: str
    bf16: bool = False  # whether the network's forward pass in training is in bfloat16 where that loses nothing

    @property
    def backbone_learning_rate(self) -> float:
        return self.learning_rate * (BACKBONE_SHARE if self.pretrained else 1)

    @property
    def on_cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def patience(self) -> int:
        """Epochs without a better validation before training ends; from scratch it goes through all epochs."""
        return PATIENCE if self.pretrained else self.epochs


@dataclass(frozen=True)
class Photos:
    """Photos by row: features (N, D) float32 of the backbone; mirrored, those from right to left, or None; codes (N,) of each."""

    features: np.ndarray
    labels: np.ndarray
    listings: np.ndarray
    clusters: np.ndarray
    pixels: np.ndarray
    mirrored: np.ndarray | None = None


@dataclass(frozen=True)
class LabelledPhotos:
    """photos: items (pixels, label, row), for training changed at random anew each time; listings, labels: (N,) codes."""

    photos: Dataset
    listings: np.ndarray
    labels: np.ndarray


def random_changes(input_size: int, mean: list[float], std: list[float], scratch: bool = False) -> v2.Compose:
    """A uint8 photo -> a randomly cropped, mirrored, tinted and partly erased (3, S, S) tensor; only training sees it.

    From scratch it is cropped less, and neither tinted nor erased: so few steps have the plain photos to learn first.
    """
    return v2.Compose(
        [
            v2.RandomResizedCrop(input_size, scale=(0.8 if scratch else 0.4, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            *([] if scratch else [v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05)]),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
            *([] if scratch else [v2.RandomErasing(p=0.25)]),
        ]
    )


def forward(run: Callable[[torch.Tensor], torch.Tensor], loader: DataLoader, desc: str) -> torch.Tensor:
    """What `run` makes of a loader's photos, in order: (N, ...); desc: what progress says."""
    with torch.inference_mode():
        return torch.cat([run(pixels) for pixels, _, _ in progress(loader, desc, "batch")])


def loader_of(split: Dataset, config: TrainingConfig) -> DataLoader:
    return DataLoader(split, config.batch_size, num_workers=config.workers, pin_memory=config.on_cuda)


def backbone_features(photo_network: backbone.PhotoNetwork, views: list, config: TrainingConfig) -> list[np.ndarray]:
    """(N, D) pooled features of each of `views` (datasets of photos) by the network's backbone as it is."""
    run = backbone.frozen_backbone(photo_network, config.image_size, config.device)
    return [forward(run, loader_of(view, config), "features of the backbone").numpy() for view in views]


def accuracy_by_listing(probabilities: np.ndarray, labels: np.ndarray, listings: np.ndarray) -> float:
    """The share of listings whose photos' mean probabilities (N, C) are largest for the listing's label."""
    _, first, listing_of = np.unique(listings, return_index=True, return_inverse=True)
    sums = np.zeros((len(first), probabilities.shape[1]))
    np.add.at(sums, listing_of, probabilities)
    return float((sums.argmax(axis=1) == labels[first]).mean())


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, 1)).mean())


def validate(photo_network: backbone.PhotoNetwork, held_out: LabelledPhotos, config: TrainingConfig) -> tuple[float, float]:
    """Accuracy by listing and cross-entropy by photo."""
    photo_network.eval()

    def logits_of(pixels: torch.Tensor) -> torch.Tensor:
        return photo_network(pixels.to(config.device, memory_format=torch.channels_last))[1].float().cpu()

    probabilities = forward(logits_of, loader_of(held_out.photos, config), "validate").softmax(1).numpy()
    accuracy = accuracy_by_listing(probabilities, held_out.labels, held_out.listings)
    return accuracy, cross_entropy(probabilities, held_out.labels)


def class_weights(labels: np.ndarray, n_classes: int) -> torch.Tensor:
    """(C,) by the inverse square root of the classes' sizes: between every photo and every class counting the same; mean 1."""
    counts = np.bincount(labels, minlength=n_classes)
    weights = 1 / np.sqrt(np.maximum(counts, 1))
    return torch.tensor(weights * len(labels) / (weights * counts).sum(), dtype=torch.float32)


@dataclass
class History:
    """How far training has come; best: accuracy and minus cross-entropy of the best epoch, best_state: its weights."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    best: list[float] | None = None
    best_state: dict[str, torch.Tensor] | None = None
    waited: int = 0  # epochs since the best one

    def add(self, values: dict[str, float], module: nn.Module) -> None:
        self.epochs.append(values)
        measured = [values["validation_accuracy"], -values["validation_loss"]]
        self.waited += 1
        if self.best is None or measured > self.best:
            self.best, self.waited = measured, 0
            self.best_state = copy.deepcopy(module.state_dict())

    def goes_on(self, config: TrainingConfig) -> bool:
        return len(self.epochs) < config.epochs and self.waited < config.patience


def train_head(head: nn.Linear, train: Photos, validation: Photos, config: TrainingConfig, record: Callable[..., None]) -> None:
    """Train the linear head on the frozen backbone's features of both views; its best epoch by validation is kept."""
    features = torch.from_numpy(np.concatenate([train.features, train.mirrored])).to(config.device)
    labels = torch.tensor(train.labels).repeat(2).to(config.device)
    held_out = torch.from_numpy(validation.features).to(config.device)
    head.to(config.device)
    optimiser = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=WEIGHT_DECAY)
    history = History()
    while history.goes_on(config):
        total = 0.0
        for rows in torch.randperm(len(features)).to(config.device).split(HEAD_BATCH):
            loss = nn.functional.cross_entropy(head(features[rows]), labels[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            total += loss.item() * len(rows)
        check_finite(total)
        with torch.inference_mode():
            probabilities = head(held_out).softmax(1).cpu().numpy()
        values = {
            "train_loss": total / len(features),
            "validation_loss": cross_entropy(probabilities, validation.labels),
            "validation_accuracy": accuracy_by_listing(probabilities, validation.labels, validation.listings),
        }
        record(**values)
        history.add(values, head)
    head.load_state_dict(history.best_state)


def check_finite(loss: float) -> None:
    if not math.isfinite(loss):
        raise StageError("training diverged: give a smaller --learning-rate")


# End to end.


@dataclass(frozen=True)
class Ranks:
    """This process among those that torchrun started."""

    rank: int = int(os.environ.get("RANK", 0))
    world: int = int(os.environ.get("WORLD_SIZE", 1))

    def start(self, device: str) -> None:
        """Meet the others; device: this rank's own."""
        if self.world == 1 or distributed.is_initialized():
            return
        patience = datetime.timedelta(days=1)  # the others wait while rank 0 computes features and validates
        if device.startswith("cuda"):
            torch.cuda.set_device(device)  # what is broadcast goes over the current device
            distributed.init_process_group("nccl", timeout=patience, device_id=torch.device(device))
        else:
            distributed.init_process_group("gloo", timeout=patience)

    def share(self, value):
        """Rank 0's value, on every rank; this rank's own where start() was not called."""
        if not distributed.is_initialized():
            return value
        box = [value]
        distributed.broadcast_object_list(box)
        return box[0]


class ListingBatches:
    """Batches of rows in which the photos of a listing stand together, drawn anew each epoch from the seed.

    With several ranks each takes its part of every batch, so that the batches are those of one process. The last batch of an
    epoch, when it is not full, is left out unless it is the only one.
    """

    def __init__(self, listings: np.ndarray, batch_size: int, seed: int, ranks: Ranks):
        order = np.argsort(listings, kind="stable")
        self._rows_of = np.split(order, np.flatnonzero(np.diff(listings[order])) + 1)
        self.batch_size = min(batch_size, len(listings) // ranks.world * ranks.world)
        self.seed, self.ranks, self.epoch = seed, ranks, 0
        self._batches = len(listings) // self.batch_size

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        shuffled = np.random.default_rng((self.seed, self.epoch)).permutation(len(self._rows_of))
        rows = np.concatenate([self._rows_of[listing] for listing in shuffled])
        for batch in rows[: self._batches * self.batch_size].reshape(self._batches, -1):
            yield batch[self.ranks.rank :: self.ranks.world].tolist()


class SeededPhotos(Dataset):
    """Photos whose random transforms depend on the seed, the epoch and the photo alone: on no worker, rank or earlier epoch."""

    def __init__(self, photos: Dataset, seed: int):
        self.photos, self.seed, self.epoch = photos, seed, 0

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self.seed, self.epoch, index)) % 2**63)
            return self.photos[index]


class _Trained(nn.Module):
    """The network and the classes' directions in its embedding: all that end-to-end training moves.

    embedding_moves_backbone: whether the embedding's losses move the backbone too, or only the embedder.
    """

    def __init__(self, photo_network: backbone.PhotoNetwork, size: int, embedding_moves_backbone: bool):
        super().__init__()
        self.network, self.embedding_moves_backbone = photo_network, embedding_moves_backbone
        self.by_category = losses.NormalizedSoftmaxLoss(photo_network.head.out_features, size)

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features = self.network.backbone(pixels)
        vectors = self.network.embed(features if self.embedding_moves_backbone else features.detach())
        return vectors, self.network.head(features), self.by_category(vectors.float(), labels)


@dataclass(frozen=True)
class Moving:
    """What moves in training, and goes into checkpoints; averaged: the exponential moving average of trained."""

    trained: _Trained
    averaged: swa_utils.AveragedModel
    optimiser: torch.optim.Optimizer
    schedule: lr_scheduler.LRScheduler

    @classmethod
    def begin(cls, photo_network: backbone.PhotoNetwork, config: TrainingConfig, steps: int) -> "Moving":
        size = photo_network.embedder.linear.out_features
        trained = _Trained(photo_network, size, embedding_moves_backbone=config.pretrained)
        trained = trained.to(config.device, memory_format=torch.channels_last)
        if config.finetune == "last":
            parameters = list(photo_network.backbone.parameters())
            for parameter in parameters[: len(parameters) * 3 // 4]:  # in the order of the layers: the last quarter is trained
                parameter.requires_grad_(False)
        optimiser = _optimiser(trained, config)
        schedule = make_schedule(optimiser, steps)
        decay = 1 - 1 / max(EMA_SHARE * steps, 1)
        averaged = swa_utils.AveragedModel(trained, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(decay), use_buffers=True)
        return cls(trained, averaged, optimiser, schedule)

    def parts(self) -> dict[str, object]:
        """name -> what has a state_dict."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


class BatchLoss:
    """The loss of one batch, from what _Trained gives for it: cross-entropy, and the embedding's two losses."""

    def __init__(self, train: LabelledPhotos, n_classes: int, ranks: Ranks, device: str):
        self._balance = class_weights(train.labels, n_classes).to(device)
        self._paired = len(np.unique(train.listings)) < len(train.listings)  # else no listing has a second photo to attract
        self._listings, self._world, self._device = torch.tensor(train.listings), ranks.world, device
        self._attraction: nn.Module = losses.SupConLoss(TEMPERATURE)
        if ranks.world > 1:
            self._attraction = DistributedLossWrapper(self._attraction)

    def __call__(
        self, outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], targets: torch.Tensor, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """To be minimised, and its value for reports, in float64: a number would have the GPU waited for in every step.

        The attraction is over the rows of all ranks. Each rank has the gradient of its own rows only, and the mean over ranks
        is taken, so the wrapper multiplies it by their number, which the value goes without.
        """
        vectors, logits, category_loss = outputs
        each = nn.functional.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=LABEL_SMOOTHING)
        loss = (each * self._balance[targets]).mean() + CATEGORY_WEIGHT * category_loss
        if not self._paired:
            return loss, loss.detach().double()
        attraction = LISTING_WEIGHT * self._attraction(vectors.float(), self._listings[rows].to(self._device))
        loss = loss + attraction
        return loss, loss.detach().double() - (1 - 1 / self._world) * attraction.detach().double()


def fine_tune(
    photo_network: backbone.PhotoNetwork,
    train: LabelledPhotos,
    validate: Callable[[backbone.PhotoNetwork], tuple[float, float]],
    config: TrainingConfig,
    checkpoint: "Checkpoint",
    ranks: Ranks,
    record: Callable[..., None],
) -> None:
    """Train the network end to end, and keep its best epoch by validation. Writes a checkpoint after each epoch.

    validate: accuracy by listing, cross-entropy; record: gets each epoch's figures.
    """
    batches = ListingBatches(train.listings, config.batch_size, config.seed, ranks)
    moving = Moving.begin(photo_network, config, config.epochs * len(batches))
    batch_loss = BatchLoss(train, photo_network.head.out_features, ranks, config.device)
    parallel = nn.parallel.DistributedDataParallel(moving.trained) if ranks.world > 1 else moving.trained
    seeded = SeededPhotos(train.photos, config.seed)
    loader = DataLoader(seeded, batch_sampler=batches, num_workers=config.workers, pin_memory=config.on_cuda)
    history = load_checkpoint(checkpoint, moving, config.device) if checkpoint.resume else History()
    for values in history.epochs:
        record(**values)
    while history.goes_on(config):
        epoch = seeded.epoch = batches.epoch = len(history.epochs)
        torch.manual_seed(hash((config.seed, epoch, ranks.rank)) % 2**63)  # dropout in the backbone, where it has some
        train_loss = train_epoch(moving, parallel, loader, batch_loss, config)
        measured = validate(moving.averaged.module.network) if ranks.rank == 0 else None
        accuracy, loss = ranks.share(measured and [float(value) for value in measured])
        values = {"train_loss": train_loss, "validation_loss": loss, "validation_accuracy": accuracy}
        record(**values)
        history.add(values, moving.averaged.module.network)
        if ranks.rank == 0:
            save_checkpoint(checkpoint, moving, history)
    photo_network.load_state_dict(history.best_state)


def train_epoch(moving: Moving, parallel: nn.Module, loader: DataLoader, batch_loss: BatchLoss, config: TrainingConfig) -> float:
    """One pass over the loader's batches; the mean of their losses. parallel: moving.trained, or what shares its gradients."""
    parallel.train()
    if config.pretrained:  # small batches would spoil the statistics that came with the weights
        for module in moving.trained.network.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    values = []
    for pixels, targets, rows in progress(loader, "train", "batch"):
        pixels = pixels.to(config.device, memory_format=torch.channels_last, non_blocking=True)
        targets = targets.to(config.device, non_blocking=True)
        with torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=config.bf16):
            outputs = parallel(pixels, targets)
        loss, value = batch_loss(outputs, targets, rows)
        moving.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(moving.trained.parameters(), LARGEST_GRADIENT)
        moving.optimiser.step()
        moving.schedule.step()
        moving.averaged.update_parameters(moving.trained)
        values.append(value)
    total = 0.0
    for value in values:
        total += value.item()
    check_finite(total)
    return total / len(loader)


def _optimiser(trained: _Trained, config: TrainingConfig) -> torch.optim.Optimizer:
    """Of what is trained, the backbone at a rate of its own.

    From scratch fused: in one pass over the weights, which is faster on a CPU and rounds in another way.
    """
    in_backbone = {id(parameter) for parameter in trained.network.backbone.parameters()}
    moved = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    groups = [
        {"params": [each for each in moved if id(each) in in_backbone], "lr": config.backbone_learning_rate},
        {"params": [each for each in moved if id(each) not in in_backbone], "lr": config.learning_rate},
    ]
    return torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, fused=not config.pretrained)


def make_schedule(optimiser: torch.optim.Optimizer, steps: int) -> lr_scheduler.LRScheduler:
    """A linear warm-up to the full rate, then a cosine to nothing at the last of `steps` batches; stepped after each."""
    warm_up = max(1, round(WARM_UP_SHARE * steps))
    rising = lr_scheduler.LinearLR(optimiser, start_factor=1 / warm_up, total_iters=warm_up - 1)
    falling = lr_scheduler.CosineAnnealingLR(optimiser, T_max=max(1, steps - warm_up))
    return lr_scheduler.SequentialLR(optimiser, [rising, falling], milestones=[warm_up])


@dataclass(frozen=True)
class Checkpoint:
    """Where the last whole epoch is kept; run_key: names the run, so that `resume` goes on with no other's."""

    path: Path
    run_key: str
    resume: bool


def save_checkpoint(checkpoint: Checkpoint, moving: Moving, history: History) -> None:
    states = {name: part.state_dict() for name, part in moving.parts().items()}
    with atomic.atomic_path(checkpoint.path) as path:
        torch.save({"key": checkpoint.run_key, "history": vars(history), "parts": states}, path)


# What torch.load and load_state_dict raise on files that were cut or changed.
UNREADABLE = (backbone.UnpicklingError, struct.error, RuntimeError, EOFError, KeyError, IndexError, TypeError, ValueError)


def read_checkpoint(checkpoint: Checkpoint, device: str) -> dict:
    """What save_checkpoint() saved; StageError when the file is missing, damaged or of another run."""
    path = checkpoint.path
    if not path.is_file():
        raise StageError(f"{path} is missing, so there is nothing to resume: run python train.py without --resume")
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        run_key = saved["key"]
    except UNREADABLE:
        raise StageError(f"{path} is damaged: run python train.py without --resume") from None
    if run_key != checkpoint.run_key:
        raise StageError(f"{path} is of a run with other flags or inputs: give the same, or run python train.py without --resume")
    return saved


def load_checkpoint(checkpoint: Checkpoint, moving: Moving, device: str) -> History:
    """Put `moving` back to where it was saved; raises as read_checkpoint()."""
    saved = read_checkpoint(checkpoint, device)
    try:
        for name, part in moving.parts().items():
            part.load_state_dict(saved["parts"][name])
        return History(**saved["history"])
    except UNREADABLE:
        raise StageError(f"{checkpoint.path} is damaged: run python train.py without --resume") from None
