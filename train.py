"""Train the photo model (ResNet-50 transfer learning) and the models of the table.

Reads   data/dataset/, data/images/, data/tabular/
Writes  data/model/       (image_model.safetensors, .json, .onnx; table_models.*; metrics.json, curves.png, confusion.png)
        data/tensorboard/ (the same curves for TensorBoard)
Run     python train.py                                  ImageNet weights, downloaded once
        python train.py --weights resnet50.pth           your own checkpoint
        python train.py --backbone efficientnet_lite0    lighter on a CPU, weights from a Python package
"""

import argparse
import copy
import functools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save as safetensors_bytes
from sklearn.metrics import confusion_matrix, f1_score, r2_score
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from tqdm import tqdm

from dataset import ListingPhotos, photo_tensor
from marketplace import errors, flags, listings, model, network, photos, storage, table_models
from marketplace.errors import StageError

EPOCHS = {"head": 30, "all": 10}
LEARNING_RATE = {"head": 1e-3, "all": 3e-4}  # AdamW's; trunks that start from weights move at a tenth of it
WEIGHT_DECAY = 1e-4
HEAD_BATCH = 256  # cached feature vectors a step
PRICE_BOUNDS = (1.0, 20_000.0)  # pounds; outside them listings are gifts, jokes and houses, which no median error should hang on


def training_transform(input_size: int, mean: list[float], std: list[float]) -> Callable[[bytes], torch.Tensor]:
    """JPEG bytes -> a randomly cropped, mirrored and tinted (3, S, S) tensor; only training sees it."""
    return v2.Compose(
        [
            photo_tensor,
            v2.RandomResizedCrop(input_size, scale=(0.6, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )


def evaluation_transform(input_size: int, mean: list[float], std: list[float]) -> Callable[[bytes], torch.Tensor]:
    """JPEG bytes -> (3, S, S) tensor, as the batch and the API see it."""
    return v2.Compose([functools.partial(photos.model_input, size=input_size, mean=mean, std=std), torch.from_numpy])


def by_listing(probabilities: np.ndarray, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each listing's photos: (N, C) rows of photos -> (P, C) rows of listings, and their labels (P,)."""
    products = table["product_id"].to_numpy()
    means = pd.DataFrame(probabilities).groupby(products).mean()
    return means.to_numpy(), table.groupby(products)["label"].first().to_numpy()


class Curves:
    """What each epoch measured, kept for metrics.json and curves.png and shown in TensorBoard."""

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(folder)
        self.epochs: list[dict[str, float]] = []

    def add(self, **values: float) -> None:
        self.epochs.append({"epoch": len(self.epochs) + 1} | {name: round(value, 6) for name, value in values.items()})
        for name, value in values.items():
            self._writer.add_scalar(name, value, len(self.epochs))
        measured = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        print(f"epoch {len(self.epochs)}  {measured}", file=sys.stderr)

    def close(self) -> None:
        self._writer.close()


def forward(run: Callable[[torch.Tensor], torch.Tensor], loader: DataLoader) -> torch.Tensor:
    """What `run` makes of a loader's photos, in order: (N, ...)."""
    with torch.inference_mode():
        batches = tqdm(loader, desc="forward", unit="batch", file=sys.stderr, disable=None)
        return torch.cat([run(pixels) for pixels, _, _ in batches])


def evaluate(probabilities: np.ndarray, table: pd.DataFrame) -> dict[str, float]:
    """Mean cross-entropy by photo, and accuracy by listing, of (N, C) probabilities."""
    own = probabilities[np.arange(len(table)), table["label"]]
    by_product, truth = by_listing(probabilities, table)
    return {"loss": float(-np.log(np.clip(own, 1e-12, 1)).mean()), "accuracy": float((by_product.argmax(1) == truth).mean())}


class _Mirrored(torch.utils.data.Dataset):
    """The same photos from right to left."""

    def __init__(self, plain: ListingPhotos):
        self.plain = plain

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, index: int):
        pixels, label, index = self.plain[index]
        return pixels.flip(2), label, index


def train_head(photo_network, splits, args, curves: Curves) -> dict[str, torch.Tensor]:
    """Train the head on the frozen trunk's features, computed once per photo and view; the best epoch's head weights."""
    plain, validation = splits["train"], splits["validation"]
    trunk = network.frozen_trunk(photo_network, args.image_size, args.device)
    views = [forward(trunk, loader_of(view, args)) for view in (plain, _Mirrored(plain))]
    features = torch.cat(views).to(args.device)
    labels = torch.tensor(plain.table["label"].to_numpy()).repeat(len(views)).to(args.device)
    held_out = forward(trunk, loader_of(validation, args)).to(args.device)
    head = photo_network.head.to(args.device)
    optimiser = torch.optim.AdamW(head.parameters(), lr=args.learning_rate, weight_decay=WEIGHT_DECAY)

    def epoch() -> Iterator[torch.Tensor]:
        for rows in torch.randperm(len(features)).to(args.device).split(HEAD_BATCH):
            yield nn.functional.cross_entropy(head(features[rows]), labels[rows])

    def validate() -> dict[str, float]:
        with torch.inference_mode():
            return evaluate(head(held_out).softmax(1).cpu().numpy(), validation.table)

    return _train(head, optimiser, epoch, validate, args.epochs, curves)


def train_all(photo_network, splits, args, curves: Curves) -> dict[str, torch.Tensor]:
    """Train trunk and head end to end on augmented photos; the best epoch's weights."""

    def on_device(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.to(args.device, memory_format=torch.channels_last)

    train = loader_of(splits["augmented"], args, shuffle=True)
    validation = loader_of(splits["validation"], args)
    trunk_rate = args.learning_rate * (1 if args.weights == "none" else 0.1)
    groups = [
        {"params": photo_network.trunk.parameters(), "lr": trunk_rate},
        {"params": photo_network.head.parameters(), "lr": args.learning_rate},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=[group["lr"] for group in groups], total_steps=args.epochs * len(train)
    )

    def epoch() -> Iterator[torch.Tensor]:
        photo_network.train()
        for pixels, labels, _ in tqdm(train, desc="train", unit="batch", file=sys.stderr, disable=None):
            _, logits = photo_network(on_device(pixels))
            yield nn.functional.cross_entropy(logits, labels.to(args.device))

    def validate() -> dict[str, float]:
        photo_network.eval()
        logits = forward(lambda pixels: photo_network(on_device(pixels))[1].cpu(), validation)
        return evaluate(logits.softmax(1).numpy(), splits["validation"].table)

    return _train(photo_network, optimiser, epoch, validate, args.epochs, curves, schedule)


def _train(module, optimiser, epoch, validate, epochs: int, curves: Curves, schedule=None) -> dict[str, torch.Tensor]:
    best, best_state = None, None
    for _ in range(epochs):
        losses = []
        for loss in epoch():
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            if schedule:
                schedule.step()
            losses.append(loss.item())
        if not np.isfinite(losses).all():
            raise StageError(f"training diverged in epoch {len(curves.epochs) + 1}: give a smaller --learning-rate")
        validation = validate()
        curves.add(train_loss=float(np.mean(losses)), **{f"validation_{name}": value for name, value in validation.items()})
        key = (validation["accuracy"], -validation["loss"])
        if best is None or key > best:
            best, best_state = key, copy.deepcopy(module.state_dict())
    return best_state


def loader_of(photos_of_split, args: argparse.Namespace, shuffle: bool = False) -> DataLoader:
    generator = torch.Generator().manual_seed(args.seed)
    # A last batch of one photo would break batch normalisation in training.
    drop_last = shuffle and len(photos_of_split) % args.batch_size == 1 and len(photos_of_split) > 1
    return DataLoader(
        photos_of_split, args.batch_size, shuffle, num_workers=args.workers, generator=generator, drop_last=drop_last
    )


def train_photo_model(
    photo_network: network.PhotoNetwork, args: argparse.Namespace, settings: dict
) -> tuple[network.PhotoNetwork, model.Description, list[dict]]:
    """The network, trained, its description, and what each epoch measured. settings: how the photos were cleaned."""
    mean, std = (list(values) for values in network.normalisation(args.backbone))
    plain = evaluation_transform(args.image_size, mean, std)
    splits = {name: ListingPhotos(args.data, name, plain) for name in ("train", "validation")}
    splits["augmented"] = ListingPhotos(args.data, "train", training_transform(args.image_size, mean, std))
    for name, split in splits.items():
        if not len(split):
            raise StageError(f"the {name} split has no photos: give more listings with photos, or dataset.py a --split-column")
    classes = splits["train"].classes
    photo_network = photo_network.to(args.device, memory_format=torch.channels_last)
    curves = Curves(args.data / "tensorboard")
    if args.finetune == "head":
        photo_network.head.load_state_dict(train_head(photo_network, splits, args, curves))
    else:
        photo_network.load_state_dict(train_all(photo_network, splits, args, curves))
    curves.close()
    description = model.Description(
        backbone=args.backbone,
        weights=args.weights if args.weights in ("imagenet", "none") else Path(args.weights).name,
        classes=classes,
        input_size=args.image_size,
        mean=mean,
        std=std,
        dimension=photo_network.head.in_features,
        embedding="pooled features of the trunk, unit length",
        photo=settings,
    )
    return photo_network.cpu().to(memory_format=torch.contiguous_format), description, curves.epochs


def measure_photo_model(model_dir: Path, args: argparse.Namespace) -> tuple[dict, np.ndarray]:
    """Metrics by listing of the saved model, run as the API runs it, and the test listings' confusion matrix (rows: truth)."""
    served = model.PhotoModel(model_dir, device=args.device)
    known = served.description
    plain = evaluation_transform(known.input_size, known.mean, known.std)
    metrics, confusion = {}, np.zeros((len(known.classes),) * 2, int)
    for name in ("validation", "test"):
        split = ListingPhotos(args.data, name, plain)
        if not len(split):
            metrics[name] = None
            continue
        probabilities = forward(lambda pixels: torch.from_numpy(served.run(pixels.numpy())[1]), loader_of(split, args)).numpy()
        by_product, truth = by_listing(probabilities, split.table)
        guess = by_product.argmax(1)
        metrics[name] = evaluate(probabilities, split.table) | {
            "macro_f1": float(f1_score(truth, guess, average="macro", zero_division=0)),
            "listings": len(truth),
        }
        if name == "test":
            confusion = confusion_matrix(truth, guess, labels=range(len(known.classes)))
    return metrics, confusion


def train_table_models(data_dir: Path, seed: int) -> tuple[table_models.TableModels, dict]:
    """The models of the table, fitted on training listings, calibrated on validation ones; and their metrics."""
    products = listings.read_products(data_dir / "tabular")
    split = storage.read_csv(data_dir / "dataset" / "listings.csv").set_index("product_id")["split"]
    products["split"] = products["product_id"].map(split)
    products["text"] = listings.texts(products)
    labels = storage.read_json(data_dir / "tabular" / "labels.json")["encoder"]
    parts = {name: part for name, part in products.groupby("split")}
    train = parts.get("train", products[:0])

    def usable(part: pd.DataFrame) -> np.ndarray:
        return part["price_plausible"].to_numpy(bool) & (part["price"] > 0).to_numpy(bool)

    def columns(part: pd.DataFrame) -> tuple:
        return part["text"].tolist(), part["label"].to_numpy(), part["price"].to_numpy(), usable(part)

    models = table_models.fit(*columns(train), n_classes=len(labels), seed=seed)
    if "validation" in parts:
        table_models.calibrate(models, *columns(parts["validation"]))
    median_price = float(train["price"][usable(train)].median())
    metrics = {"median_price_pounds": median_price}
    for name in ("validation", "test"):
        metrics[name] = evaluate_table(models, parts[name], median_price) if name in parts else None
    return models, metrics


def evaluate_table(models: table_models.TableModels, part: pd.DataFrame, median_price: float) -> dict:
    """Category accuracy and macro-F1; price R2 on log pounds and median absolute error beside the median price's."""
    truth = part["label"].to_numpy()
    guess = models.category_probabilities(part["text"].tolist()).argmax(1)
    metrics = {
        "listings": len(part),
        "text_accuracy": float((guess == truth).mean()),
        "text_macro_f1": float(f1_score(truth, guess, average="macro", zero_division=0)),
    }
    priced = part[part["price"].between(*PRICE_BOUNDS)]
    if len(priced) < 2:
        return metrics | {"priced_listings": len(priced)}
    price = priced["price"].to_numpy()
    one_hot = np.eye(models.n_classes, dtype=np.float32)[priced["label"].to_numpy()]
    log_price = models.log_price(priced["text"].tolist(), one_hot)
    return metrics | {
        "priced_listings": len(priced),
        "price_log_r2": float(r2_score(np.log10(price), log_price)),
        "price_median_error_pounds": float(np.median(np.abs(price - 10**log_price))),
        "price_median_error_of_median_pounds": float(np.median(np.abs(price - median_price))),
    }


def draw_curves(epochs: list[dict]) -> bytes:
    figure, (left, right) = _figure(1, 2, (9, 3.5))
    steps = [epoch["epoch"] for epoch in epochs]
    left.plot(steps, [epoch["train_loss"] for epoch in epochs], label="training")
    left.plot(steps, [epoch["validation_loss"] for epoch in epochs], label="validation")
    left.set(xlabel="epoch", ylabel="cross-entropy")
    left.legend()
    right.plot(steps, [epoch["validation_accuracy"] for epoch in epochs], color="tab:orange")
    right.set(xlabel="epoch", ylabel="validation accuracy, by listing", ylim=(0, 1))
    return _png(figure)


def draw_confusion(confusion: np.ndarray, classes: list[str]) -> bytes:
    size = 3.5 + 0.38 * len(classes)
    figure, axes = _figure(1, 1, (size + 1.5, size))
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(confusion), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, confusion[row, column], ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true", title="Test listings, photo model")
    return _png(figure)


def _figure(rows: int, columns: int, size_inches: tuple[float, float]):
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(size_inches, layout="constrained")
    return figure, figure.subplots(rows, columns)


def _png(figure) -> bytes:
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", type=Path, help="folder of all stages (default: %(default)s)")
    parser.add_argument(
        "--backbone", default="resnet50", help=f"torchvision classifier, or {network.LITE0} (default: %(default)s)"
    )
    parser.add_argument(
        "--weights", default="imagenet", help="imagenet, none, or a .pth or .safetensors file (default: %(default)s)"
    )
    parser.add_argument(
        "--finetune", choices=["head", "all"], help="what is trained (default: all with a GPU or without weights, else head)"
    )
    parser.add_argument(
        "--image-size", default=224, type=flags.positive, help="pixels a side of the model's input (default: %(default)s)"
    )
    parser.add_argument(
        "--epochs",
        type=flags.positive,
        help=f"passes over the photos (default: {EPOCHS['head']} for head, {EPOCHS['all']} for all)",
    )
    parser.add_argument("--batch-size", default=32, type=flags.positive, help="photos a step (default: %(default)s)")
    parser.add_argument(
        "--learning-rate", type=float, help=f"AdamW's (default: {LEARNING_RATE['head']} for head, {LEARNING_RATE['all']} for all)"
    )
    parser.add_argument("--seed", default=0, type=flags.not_negative, help="of everything random (default: %(default)s)")
    parser.add_argument(
        "--workers",
        default=min(os.cpu_count() or 1, 8),
        type=flags.not_negative,
        help="decoding processes (default: %(default)s)",
    )
    parser.add_argument("--device", type=flags.device, help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument(
        "--check-weights", action="store_true", help="only tell whether the backbone's ImageNet weights can be had; exit 1 if not"
    )
    args = parser.parse_args(argv)
    if args.image_size < 32 or args.batch_size < 2:
        parser.error("--image-size is at least 32, --batch-size at least 2")
    if args.learning_rate is not None and not 0 < args.learning_rate < float("inf"):
        parser.error("--learning-rate is above 0")
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.finetune = args.finetune or ("all" if args.device == "cuda" or args.weights == "none" else "head")
    if args.finetune == "head" and args.weights == "none":
        parser.error("--finetune head needs a pretrained trunk: give --weights, or --finetune all")
    args.epochs = args.epochs or EPOCHS[args.finetune]
    args.learning_rate = args.learning_rate or LEARNING_RATE[args.finetune]
    return args


def run(args: argparse.Namespace) -> dict:
    if args.check_weights:
        if not network.imagenet_available(args.backbone):
            raise StageError(f"the ImageNet weights of {args.backbone} are not cached and cannot be downloaded: see --weights")
        return {"backbone": args.backbone, "imagenet_weights": "available"}
    for folder in ("tabular", "images"):
        storage.read_manifest(args.data / folder)
    storage.check_inputs(args.data, "dataset")
    settings = storage.read_manifest(args.data / "images")["arguments"]
    arguments = {name: value for name, value in vars(args).items() if name not in ("data", "check_weights")}
    inputs = storage.digests(
        args.data,
        *("dataset/training_data.csv", "dataset/listings.csv", "dataset/settings.json"),
        *("tabular/products.csv", "tabular/labels.json", "images/photos.csv"),
    )
    if args.weights not in ("imagenet", "none"):
        network.check_file(args.weights)
        inputs["--weights"] = storage.digest(Path(args.weights))
    stage = storage.Stage(args.data / "model", arguments, inputs)
    if done := stage.finished():
        return done
    classes = storage.read_json(args.data / "tabular" / "labels.json")["encoder"]
    torch.manual_seed(args.seed)
    photo_network = network.build(args.backbone, args.weights, len(classes), args.image_size)  # may fail: before begin()
    stage.begin()
    models, table_metrics = train_table_models(args.data, args.seed)
    photo_network, description, epochs = train_photo_model(photo_network, args, settings)
    models.save(stage.folder)
    storage.write_bytes(stage.folder / model.WEIGHTS, safetensors_bytes(photo_network.state_dict()))
    with storage.atomic_path(stage.folder / model.ONNX) as path:
        network.export_onnx(photo_network, args.image_size, path)
    description.save(stage.folder)
    photo_metrics, confusion = measure_photo_model(stage.folder, args)
    storage.write_bytes(stage.folder / "curves.png", draw_curves(epochs))
    storage.write_bytes(stage.folder / "confusion.png", draw_confusion(confusion, description.classes))
    storage.write_json(stage.folder / "metrics.json", {"photo": photo_metrics | {"epochs": epochs}, "table": table_metrics})
    counts = {
        name: {"photo_accuracy": (photo_metrics[name] or {}).get("accuracy")} | (table_metrics[name] or {})
        for name in ("validation", "test")
    }
    print(json.dumps(counts, indent=2), file=sys.stderr)
    table_files = (table_models.DESCRIPTION, table_models.WEIGHTS)
    outputs = (model.WEIGHTS, model.DESCRIPTION, model.ONNX, *table_files, "metrics.json", "curves.png", "confusion.png")
    return stage.finish(counts, outputs)


def main(argv=None) -> int:
    return errors.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
