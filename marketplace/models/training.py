"""How the photo network is trained: a head and an embedding on cached features, or the whole network end to end."""

import copy
import math
import os
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pytorch_metric_learning import losses
from sklearn.decomposition import PCA
from torch import distributed, nn
from torch.optim import swa_utils
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from marketplace import metrics
from marketplace.files import atomic
from marketplace.files.stages import StageError
from marketplace.models import backbone

WEIGHT_DECAY = 1e-4
HEAD_BATCH = 256  # cached feature vectors a step
LABEL_SMOOTHING = 0.1
LARGEST_GRADIENT = 5.0  # its norm is clipped there
EMA_SHARE = 0.05  # of all steps: how far back the averaged weights reach
WARM_UP_SHARE = 0.1  # of all steps
CATEGORY_WEIGHT, LISTING_WEIGHT = 0.5, 0.5  # of the embedding's two losses beside the cross-entropy, end to end
CATEGORY_WEIGHTS = (0.03, 0.3, 3.0)  # beside a listing loss of 1, on cached features; the best on validation is taken
TEMPERATURE = 0.1  # of the same-listing loss (Khosla et al. 2020, table 4)
PROJECTION_STEPS, PROJECTION_RATE, PROJECTION_BATCH = 200, 1e-3, 512  # listings a step
FEATURE_DROPOUT = 0.3  # of the cached features: there is no other augmentation of them


@dataclass(frozen=True)
class Photos:
    """Photos by row: features (N, D) float32 of the trunk; mirrored, the same from right to left, or None; codes (N,) of each."""

    features: np.ndarray
    labels: np.ndarray
    products: np.ndarray
    clusters: np.ndarray
    pixels: np.ndarray
    mirrored: np.ndarray | None = None


def accuracy_by_listing(probabilities: np.ndarray, labels: np.ndarray, products: np.ndarray) -> float:
    """The share of listings whose photos' mean probabilities (N, C) are largest for the listing's label."""
    _, first, of = np.unique(products, return_index=True, return_inverse=True)
    sums = np.zeros((len(first), probabilities.shape[1]))
    np.add.at(sums, of, probabilities)
    return float((sums.argmax(axis=1) == labels[first]).mean())


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, 1)).mean())


def class_weights(labels: np.ndarray, n_classes: int) -> torch.Tensor:
    """(C,) by the inverse square root of the classes' sizes: between every photo and every class counting the same; mean 1."""
    counts = np.bincount(labels, minlength=n_classes)
    weights = 1 / np.sqrt(np.maximum(counts, 1))
    return torch.tensor(weights * len(labels) / (weights * counts).sum(), dtype=torch.float32)


def train_head(head: nn.Linear, train: Photos, validation: Photos, args, record: Callable[..., None]) -> None:
    """Train the linear head on the frozen trunk's features of both views; its best epoch by validation is kept."""
    features = torch.from_numpy(np.concatenate([train.features, train.mirrored])).to(args.device)
    labels = torch.tensor(train.labels).repeat(2).to(args.device)
    held_out = torch.from_numpy(validation.features).to(args.device)
    head.to(args.device)
    optimiser = torch.optim.AdamW(head.parameters(), lr=args.learning_rate, weight_decay=WEIGHT_DECAY)
    best, best_state = None, None
    for _ in range(args.epochs):
        total = 0.0
        for rows in torch.randperm(len(features)).to(args.device).split(HEAD_BATCH):
            loss = nn.functional.cross_entropy(head(features[rows]), labels[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            total += loss.item() * len(rows)
        check_finite(total)
        with torch.inference_mode():
            probabilities = head(held_out).softmax(1).cpu().numpy()
        measured = (
            accuracy_by_listing(probabilities, validation.labels, validation.products),
            -cross_entropy(probabilities, validation.labels),
        )
        record(train_loss=total / len(features), validation_loss=-measured[1], validation_accuracy=measured[0])
        if best is None or measured > best:
            best, best_state = measured, copy.deepcopy(head.state_dict())
    head.load_state_dict(best_state)


def check_finite(loss: float) -> None:
    if not math.isfinite(loss):
        raise StageError("training diverged: give a smaller --learning-rate")


# The embedding.


def whitening(features: np.ndarray, size: int, power: bool) -> backbone.Projection:
    """PCA whitening of (N, D) features to at most `size` dimensions, as a Projection."""
    projection = backbone.Projection(features.shape[1], min(size, *features.shape), power)
    rooted = projection.root(torch.from_numpy(features)).numpy()
    pca = PCA(projection.linear.out_features, whiten=True, random_state=0).fit(rooted)
    scale = 1 / np.sqrt(np.maximum(pca.explained_variance_, 1e-9))
    weight = pca.components_ * scale[:, None]
    with torch.no_grad():
        projection.linear.weight.copy_(torch.from_numpy(weight))
        projection.linear.bias.copy_(torch.from_numpy(-weight @ pca.mean_))
    return projection


def train_projection(train: Photos, size: int, category_weight: float, n_classes: int, seed: int) -> backbone.Projection:
    """A projection trained so that photos of one listing attract, and photos of one category; it starts from the whitening.

    Losses: supervised contrastive over listings (Khosla et al. 2020), where a listing's views and photos are each other's
    positives, and normalised softmax over categories (Zhai and Wu 2019).
    """
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    projection = whitening(train.features, size, power=True)
    with torch.no_grad():
        features = projection.root(torch.from_numpy(np.concatenate([train.features, train.mirrored])))
        centre = features.mean(0)
        projection.linear.bias.copy_(-projection.linear.weight @ centre)
    features -= centre  # dropout then puts the mean in an absent feature's place
    labels, products = (torch.tensor(codes) for codes in (train.labels, train.products))
    by_category = losses.NormalizedSoftmaxLoss(n_classes, projection.linear.out_features)
    by_listing = losses.SupConLoss(TEMPERATURE)
    # The bias only centres: it stays, and training sees centred features.
    weight = projection.linear.weight
    groups = [{"params": [weight], "lr": PROJECTION_RATE}, {"params": by_category.parameters(), "lr": 10 * PROJECTION_RATE}]
    optimiser = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    order = np.argsort(train.products, kind="stable")
    rows_of = np.split(order, np.flatnonzero(np.diff(train.products[order])) + 1)
    epochs = math.ceil(PROJECTION_STEPS / math.ceil(len(rows_of) / PROJECTION_BATCH))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        shuffled = generator.permutation(len(rows_of))
        for start in range(0, len(shuffled), PROJECTION_BATCH):
            rows = np.concatenate([rows_of[listing] for listing in shuffled[start : start + PROJECTION_BATCH]])
            inputs = nn.functional.dropout(features[np.concatenate([rows, rows + len(labels)])], FEATURE_DROPOUT)
            vectors = nn.functional.normalize(inputs @ weight.T, dim=1)
            loss = by_listing(vectors, products[rows].repeat(2)) + category_weight * by_category(vectors, labels[rows].repeat(2))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        check_finite(loss.item())
        schedule.step()
    with torch.no_grad():
        projection.linear.bias.copy_(-weight @ centre)
    return projection


def retrieval_figures(embedder: nn.Module, photos: Photos, queries: np.ndarray) -> dict[str, float | None]:
    """metrics.retrieval of the rows `queries` among `photos` by an embedder, the mean over listings; None where undefined."""
    with torch.inference_mode():
        vectors = nn.functional.normalize(embedder.cpu()(torch.from_numpy(photos.features)), dim=1).numpy()
    found = metrics.retrieval(vectors, queries, photos.labels, photos.products, photos.clusters, photos.pixels)
    means = {name: float(metrics.by_listing(values, photos.products[queries]).mean()) for name, values in found.items()}
    return {name: None if math.isnan(mean) else mean for name, mean in means.items()}


def choose_embedder(candidates: dict[str, nn.Module], photos: Photos, queries: np.ndarray) -> tuple[str, dict[str, dict]]:
    """The name of the candidate that retrieves best for the validation rows `queries` among training and validation photos.

    Best is by the geometric mean of category P@10, MAP@R and same-listing hit@1 and @10, as far as the data has them: a gain of
    a tenth in one weighs as much as in another, and an embedding that finds the category only does not win.
    Returns the name, and all figures by candidate.
    """
    figures = {name: retrieval_figures(embedder, photos, queries) for name, embedder in candidates.items()}
    judged = ("category_p_at_10", "map_at_r", "same_listing_hit_at_1", "same_listing_hit_at_10")

    def score(name: str) -> float:
        values = [max(figures[name][key], 1e-6) for key in judged if figures[name][key] is not None]
        return float(np.exp(np.mean(np.log(values)))) if values else 0.0

    for name in figures:
        figures[name]["score"] = score(name)
    return max(figures, key=lambda name: figures[name]["score"]), figures


# End to end.


@dataclass(frozen=True)
class Ranks:
    """This process among those that torchrun started."""

    rank: int = int(os.environ.get("RANK", 0))
    world: int = int(os.environ.get("WORLD_SIZE", 1))

    def start(self, device: str) -> None:
        if self.world > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")

    def share(self, value):
        """Rank 0's value, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box)
        return box[0]

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The rows of all ranks, in the same order everywhere; gradients flow back to this rank's own."""
        if self.world == 1:
            return tensor
        rows = [torch.empty_like(tensor) for _ in range(self.world)]
        distributed.all_gather(rows, tensor.detach().contiguous())
        rows[self.rank] = tensor
        return torch.cat(rows)


class ListingBatches:
    """Batches of rows in which the photos of a listing stand together, drawn anew each epoch from the seed.

    With several ranks each takes its part of every batch, so that the batches are those of one process. The last batch of an
    epoch, when it is not full, is left out unless it is the only one.
    """

    def __init__(self, products: np.ndarray, batch_size: int, seed: int, ranks: Ranks):
        order = np.argsort(products, kind="stable")
        self._rows_of = np.split(order, np.flatnonzero(np.diff(products[order])) + 1)
        self.batch_size = min(batch_size, len(products) // ranks.world * ranks.world)
        self.seed, self.ranks, self.epoch = seed, ranks, 0
        self._batches = len(products) // self.batch_size

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

    trunk_embeds: whether the embedding's losses move the trunk too, or only the embedder.
    """

    def __init__(self, photo_network: backbone.PhotoNetwork, size: int, trunk_embeds: bool):
        super().__init__()
        self.network, self.trunk_embeds = photo_network, trunk_embeds
        self.by_category = losses.NormalizedSoftmaxLoss(photo_network.head.out_features, size)

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features = self.network.trunk(pixels)
        vectors = self.network.embed(features if self.trunk_embeds else features.detach())
        return vectors, self.network.head(features), self.by_category(vectors.float(), labels)


def fine_tune(
    photo_network: backbone.PhotoNetwork,
    train: Dataset,
    products: np.ndarray,
    labels: np.ndarray,
    validate: Callable[[backbone.PhotoNetwork], tuple[float, float]],
    args,
    ranks: Ranks,
    checkpoint_path: Path,
    key: str,
    record: Callable[..., None],
) -> None:
    """Train the network end to end, and keep its best epoch by validation.

    train: items (pixels, label, row); products, labels: (N,) codes of its rows; validate: accuracy by listing, cross-entropy;
    key: names the run, so that --resume goes on with no other's checkpoint. Writes a checkpoint after each epoch.
    """
    pretrained = args.weights != "none"
    size = photo_network.embedder.linear.out_features
    trained = _Trained(photo_network, size, trunk_embeds=pretrained).to(args.device, memory_format=torch.channels_last)
    if args.finetune == "last":
        parameters = list(photo_network.trunk.parameters())
        for parameter in parameters[: len(parameters) * 3 // 4]:  # in the order of the layers: the last quarter is trained
            parameter.requires_grad_(False)
    in_trunk = {id(parameter) for parameter in photo_network.trunk.parameters()}
    groups: dict[bool, list] = {True: [], False: []}
    for parameter in trained.parameters():
        if parameter.requires_grad:
            groups[id(parameter) in in_trunk].append(parameter)
    rates = {True: args.trunk_learning_rate, False: args.learning_rate}
    by_part = [{"params": groups[part], "lr": rates[part]} for part in (True, False)]
    optimiser = _optimiser(args.optimizer, by_part, fused=not pretrained)
    batches = ListingBatches(products, args.batch_size, args.seed, ranks)
    steps = args.epochs * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _warm_up_and_cosine(step, steps))
    decay = 1 - 1 / max(EMA_SHARE * steps, 1)
    averaged = swa_utils.AveragedModel(trained, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(decay), use_buffers=True)
    balance = class_weights(labels, photo_network.head.out_features).to(args.device)
    by_listing = losses.SupConLoss(TEMPERATURE)
    paired = len(np.unique(products)) < len(products)  # else no listing has a second photo to attract
    codes = torch.tensor(products)
    parallel = nn.parallel.DistributedDataParallel(trained) if ranks.world > 1 else trained
    seeded = SeededPhotos(train, args.seed)
    loader = DataLoader(seeded, batch_sampler=batches, num_workers=args.workers)
    cuda = args.device.startswith("cuda")
    state = {"epoch": 0, "best": None, "best_state": None, "waited": 0, "epochs": []}
    parts = {"trained": trained, "averaged": averaged, "optimiser": optimiser, "schedule": schedule}
    if args.resume:
        state = _load_checkpoint(checkpoint_path, key, parts, args.device)
        for values in state["epochs"]:
            record(**values)
    while state["epoch"] < args.epochs and state["waited"] < args.patience:
        seeded.epoch = batches.epoch = state["epoch"]
        torch.manual_seed(hash((args.seed, state["epoch"], ranks.rank)) % 2**63)  # dropout in the trunk, where it has some
        parallel.train()
        if pretrained:  # small batches would spoil the statistics that came with the weights
            for module in photo_network.trunk.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        total = 0.0
        for pixels, targets, rows in tqdm(loader, desc="train", unit="batch", file=sys.stderr, disable=None):
            pixels = pixels.to(args.device, memory_format=torch.channels_last, non_blocking=True)
            targets = targets.to(args.device)
            with torch.autocast("cuda", torch.bfloat16, enabled=cuda):
                vectors, logits, category_loss = parallel(pixels, targets)
            each = nn.functional.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=LABEL_SMOOTHING)
            loss = (each * balance[targets]).mean() + CATEGORY_WEIGHT * category_loss
            if paired:
                everywhere = ranks.gather(vectors.float()), ranks.gather(codes[rows].to(args.device))
                # Every rank has the gradient of its own rows only, and the mean over ranks is taken: hence the factor.
                attraction = LISTING_WEIGHT * by_listing(*everywhere)
                loss = loss + ranks.world * attraction
                total -= (ranks.world - 1) * attraction.item()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trained.parameters(), LARGEST_GRADIENT)
            optimiser.step()
            schedule.step()
            averaged.update_parameters(trained)
            total += loss.item()
        check_finite(total)
        measured = ranks.share([float(value) for value in validate(averaged.module.network)] if ranks.rank == 0 else None)
        values = {"train_loss": total / len(batches), "validation_loss": measured[1], "validation_accuracy": measured[0]}
        record(**values)
        better = state["best"] is None or (measured[0], -measured[1]) > tuple(state["best"])
        if better:
            state["best"] = [measured[0], -measured[1]]
            state["best_state"] = copy.deepcopy(averaged.module.network.state_dict())
        state["waited"] = 0 if better else state["waited"] + 1
        state["epochs"].append(values)
        state["epoch"] += 1
        if ranks.rank == 0:
            with atomic.atomic_path(checkpoint_path) as path:
                saved = {name: part.state_dict() for name, part in parts.items()}
                torch.save({"key": key, "state": state, "parts": saved}, path)
    photo_network.load_state_dict(state["best_state"])


def _optimiser(name: str, groups: list[dict], fused: bool) -> torch.optim.Optimizer:
    """fused: in one pass over the weights, which takes a sixth of the time on a CPU and rounds in another way."""
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY, fused=fused)
    return torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, fused=fused)


def _warm_up_and_cosine(step: int, steps: int) -> float:
    warm_up = max(1, round(WARM_UP_SHARE * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _load_checkpoint(path: Path, key: str, parts: dict, device: str) -> dict:
    if not path.is_file():
        raise StageError(f"{path} is missing, so there is nothing to resume: run python train.py without --resume")
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        if saved["key"] != key:
            raise StageError(
                f"{path} is of a run with other flags or inputs: give the same, or run python train.py without --resume"
            )
        for name, part in parts.items():
            part.load_state_dict(saved["parts"][name])
        return saved["state"]
    except (backbone.UnpicklingError, struct.error, RuntimeError, EOFError, KeyError, IndexError, TypeError, ValueError):
        raise StageError(f"{path} is damaged: run python train.py without --resume") from None
