"""Train the photo model (ResNet-50 transfer learning) and the models of the table.

Reads   data/dataset/, data/images/, data/tabular/
Writes  data/model/       (image_model.safetensors, .json, .onnx, .int8.onnx; table_models.*, price_model.*; metrics.json; .png)
        data/features/    (the starting trunk's features of every photo: computed once, trained on, compared with)
        data/tensorboard/ (the curves for TensorBoard)
Run     python train.py                                  ImageNet weights, downloaded once
        python train.py --weights resnet50.pth           your own checkpoint
        python train.py --backbone efficientnet_lite0    lighter on a CPU, weights from a Python package
        python train.py --finetune all                   the whole network; the default with a GPU
        torchrun --nproc_per_node 2 train.py --finetune all
"""

import argparse
import dataclasses
import functools
import hashlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save as safetensors_bytes
from sklearn.metrics import classification_report, confusion_matrix, r2_score
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from tqdm import tqdm

from dataset import ListingPhotos, photo_tensor
from marketplace.cleaning import listings, photos
from marketplace.cleaning import pictures as sheets
from marketplace.files import atomic, cli, reading, stages
from marketplace.files.stages import StageError
from marketplace.metrics import PRICE_BOUNDS
from marketplace.models import backbone, photo_model, price_model, text_model, training
from marketplace.models import int8 as quantise

EPOCHS = {"head": 30, "last": 6, "all": 6}
LEARNING_RATE = {"adamw": 1e-3, "sgd": 0.05}
TRUNK_SHARE = 0.3  # of the learning rate, for a trunk that starts from weights
BATCH_SIZE, PATIENCE = 32, 5
# From scratch there are few steps: small batches make more of them. The head sees thousands of positive features that mean
# nothing yet: at 0.001 one step of AdamW moves its logits by 1.
SCRATCH_EPOCHS, SCRATCH_BATCH_SIZE = 40, 16
SCRATCH_LEARNING_RATE = {"adamw": 3e-4, "sgd": 0.005}
HARDEST_TILES, HARDEST_COLUMNS, HARDEST_TILE_PX = 24, 6, 200
CHECKPOINT = "checkpoint.pt"  # of the last whole epoch, while --finetune all or last is at work


def training_transform(
    input_size: int, mean: list[float], std: list[float], scratch: bool = False
) -> Callable[[bytes], torch.Tensor]:
    """JPEG bytes -> a randomly cropped, mirrored, tinted and partly erased (3, S, S) tensor; only training sees it.

    From scratch it is cropped less, and neither tinted nor erased: so few steps have the plain photos to learn first.
    """
    return v2.Compose(
        [
            photo_tensor,
            v2.RandomResizedCrop(input_size, scale=(0.8 if scratch else 0.4, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            *([] if scratch else [v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05)]),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
            *([] if scratch else [v2.RandomErasing(p=0.25)]),
        ]
    )


def evaluation_transform(input_size: int, mean: list[float], std: list[float]) -> Callable[[bytes], torch.Tensor]:
    """JPEG bytes -> (3, S, S) tensor, as the batch and the API see it."""
    return v2.Compose([functools.partial(photos.model_input, size=input_size, mean=mean, std=std), torch.from_numpy])


class Curves:
    """What each epoch measured, kept for metrics.json and curves.png and shown in TensorBoard; silent on other ranks than 0."""

    def __init__(self, folder: Path, ranks: training.Ranks):
        self.epochs: list[dict[str, float]] = []
        self._writer = None
        if ranks.rank == 0:
            from torch.utils.tensorboard import SummaryWriter

            shutil.rmtree(folder, ignore_errors=True)
            self._writer = SummaryWriter(folder)

    def add(self, **values: float) -> None:
        self.epochs.append({"epoch": len(self.epochs) + 1} | {name: round(value, 6) for name, value in values.items()})
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name, value, len(self.epochs))
            measured = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
            print(f"epoch {len(self.epochs)}  {measured}", file=sys.stderr)

    def close(self) -> None:
        if self._writer:
            self._writer.close()


def forward(run: Callable[[torch.Tensor], torch.Tensor], loader: DataLoader) -> torch.Tensor:
    """What `run` makes of a loader's photos, in order: (N, ...)."""
    with torch.inference_mode():
        batches = tqdm(loader, desc="forward", unit="batch", file=sys.stderr, disable=None)
        return torch.cat([run(pixels) for pixels, _, _ in batches])


class _Mirrored(torch.utils.data.Dataset):
    """The same photos from right to left."""

    def __init__(self, plain: ListingPhotos):
        self.plain = plain

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, index: int):
        pixels, label, index = self.plain[index]
        return pixels.flip(2), label, index


def loader_of(photos_of_split, args: argparse.Namespace) -> DataLoader:
    return DataLoader(photos_of_split, args.batch_size, num_workers=args.workers)


def trunk_features(photo_network: backbone.PhotoNetwork, views: list, args: argparse.Namespace) -> list[np.ndarray]:
    """(N, D) pooled features of each of `views` (datasets of photos) by the network's trunk as it is."""
    trunk = backbone.frozen_trunk(photo_network, args.image_size, args.device)
    return [forward(trunk, loader_of(view, args)).numpy() for view in views]


def starting_features(
    photo_network: backbone.PhotoNetwork, every: ListingPhotos, args: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray | None]:
    """The untrained trunk's features of every photo, and of the mirrored ones when only a head is trained: (N, D) each.

    They stay in data/features/ until photos or weights change, whatever the split: another training of the head takes seconds.
    """
    arguments = {"backbone": args.backbone, "weights": args.weights, "seed": args.seed if args.weights == "none" else None}
    arguments |= {"image_size": args.image_size, "mirrored": args.finetune == "head"}
    image_ids = every.table["image_id"].tolist()
    arguments["image_ids"] = hashlib.sha256(json.dumps(image_ids).encode()).hexdigest()
    inputs = stages.digests(args.data, "images/photos.csv")
    if args.weights not in ("imagenet", "none"):
        inputs["--weights"] = stages.digest(Path(args.weights))
    stage = stages.Stage(args.data / "features", arguments, inputs)
    names = ["plain.npy", "mirrored.npy"][: 1 + arguments["mirrored"]]
    if not stage.finished():
        stage.begin()
        views = [every, _Mirrored(every)][: len(names)]
        for name, features in zip(names, trunk_features(photo_network, views, args), strict=True):
            atomic.write_array(stage.folder / name, features)
        atomic.write_json(stage.folder / "image_ids.json", image_ids, indent=None)
        stage.finish({"photos": len(every), "dimension": photo_network.head.in_features}, [*names, "image_ids.json"])
    arrays = [np.array(reading.read_array(stage.folder / name)) for name in names]
    return arrays[0], arrays[1] if arguments["mirrored"] else None


def coded_photos(
    data_dir: Path, table: pd.DataFrame, features: np.ndarray, mirrored: np.ndarray | None = None
) -> training.Photos:
    """training.Photos of the rows of a ListingPhotos table."""
    pixels = photos.pixel_digests(data_dir / "images", table["image_id"])
    codes = [pd.factorize(column)[0] for column in (table["product_id"], table["cluster"], pixels)]
    return training.Photos(features, table["label"].to_numpy(), *codes, mirrored)


def train_photo_model(
    photo_network: backbone.PhotoNetwork, args: argparse.Namespace, settings: dict, ranks: training.Ranks, key: str
) -> tuple[photo_model.Description, dict, list[dict], np.ndarray] | None:
    """Train the network in place: its head or all of it, then the embedding that retrieves best on validation.

    settings: how the photos were cleaned; key: names the run for its checkpoint.
    Returns the description, the embeddings' figures, what each epoch measured, and (N, D) features of every photo; None on
    other ranks than 0.
    """
    mean, std = (list(values) for values in backbone.normalisation(args.backbone))
    plain = evaluation_transform(args.image_size, mean, std)
    every = ListingPhotos(args.data, None, plain)
    splits = {name: ListingPhotos(args.data, name, plain) for name in ("train", "validation")}
    for name, split in splits.items():
        if not len(split):
            raise StageError(f"the {name} split has no photos: give more listings with photos, or dataset.py a --split-column")
    rows = {name: np.flatnonzero(every.table["split"] == name) for name in ("train", "validation")}
    known = np.sort(np.concatenate([rows["train"], rows["validation"]]))  # test photos take no part in any choice
    queries = np.flatnonzero(every.table["split"].to_numpy()[known] == "validation")
    classes = every.classes
    photo_network.to(args.device, memory_format=torch.channels_last)
    features = mirrored = None
    if ranks.rank == 0:
        features, mirrored = starting_features(photo_network, every, args)
        of_train = None if mirrored is None else mirrored[rows["train"]]
        train = coded_photos(args.data, every.table.iloc[rows["train"]], features[rows["train"]], of_train)
        validation = coded_photos(args.data, every.table.iloc[rows["validation"]], features[rows["validation"]])
        started = coded_photos(args.data, every.table.iloc[known], features[known])
        frozen = {
            "frozen trunk": nn.Identity(),
            "frozen trunk, whitened": training.whitening(train.features, args.embedding_size, power=False),
        }
    curves = Curves(args.data / "tensorboard", ranks)
    torch.manual_seed(args.seed)  # whether the features were there already must not matter
    if args.finetune == "head":
        training.train_head(photo_network.head, train, validation, args, curves.add)
        candidates = dict(frozen)
        for weight in training.CATEGORY_WEIGHTS:
            candidates[f"projection, category weight {weight:g}"] = training.train_projection(
                train, args.embedding_size, weight, len(classes), args.seed
            )
        chosen, figures = training.choose_embedder(candidates, started, queries)
    else:
        photo_network.embedder = backbone.Projection(photo_network.head.in_features, args.embedding_size, power=True).to(
            args.device
        )
        augmented = ListingPhotos(args.data, "train", training_transform(args.image_size, mean, std, args.weights == "none"))
        table = augmented.table
        validate = functools.partial(_validate, loader=loader_of(splits["validation"], args), table=splits["validation"].table)
        training.fine_tune(
            photo_network,
            augmented,
            pd.factorize(table["product_id"])[0],
            table["label"].to_numpy(),
            functools.partial(validate, device=args.device),
            args,
            ranks,
            args.data / "model" / CHECKPOINT,
            key,
            curves.add,
        )
        if ranks.rank:
            return None
        compared = training.choose_embedder(frozen, started, queries)[1]
        (features,) = trunk_features(photo_network, [every], args)
        whitened = training.whitening(features[rows["train"]], args.embedding_size, power=False)
        candidates = {"projection": photo_network.embedder, "trunk": nn.Identity(), "trunk, whitened": whitened}
        tuned = coded_photos(args.data, every.table.iloc[known], features[known])
        chosen, figures = training.choose_embedder(candidates, tuned, queries)
        figures = compared | figures
    curves.close()
    photo_network.embedder = embedder = candidates[chosen]
    linear = isinstance(embedder, backbone.Projection)
    description = photo_model.Description(
        backbone=args.backbone,
        weights=args.weights if args.weights in ("imagenet", "none") else Path(args.weights).name,
        classes=classes,
        input_size=args.image_size,
        mean=mean,
        std=std,
        dimension=embedder.linear.out_features if linear else photo_network.head.in_features,
        embedding=chosen,
        pooling=args.pooling,
        projection="none" if not linear else "power" if embedder.power else "linear",
        photo=settings,
    )
    photo_network.cpu().to(memory_format=torch.contiguous_format)
    return description, {"chosen": chosen, "validation": figures}, curves.epochs, features


def _validate(photo_network: backbone.PhotoNetwork, loader: DataLoader, table: pd.DataFrame, device: str) -> tuple[float, float]:
    """Accuracy by listing and cross-entropy by photo."""
    photo_network.eval()
    logits = forward(lambda pixels: photo_network(pixels.to(device, memory_format=torch.channels_last))[1].float().cpu(), loader)
    probabilities, labels = logits.softmax(1).numpy(), table["label"].to_numpy()
    accuracy = training.accuracy_by_listing(probabilities, labels, pd.factorize(table["product_id"])[0])
    return accuracy, training.cross_entropy(probabilities, labels)


def measure_photo_model(model_dir: Path, args: argparse.Namespace) -> tuple[dict, dict[str, pd.DataFrame]]:
    """Metrics by listing of the saved model, run as the API runs it, on validation and test.

    Also, by split, a table of its photos with the model's probability of each class in columns 0 to C - 1.
    """
    served = photo_model.PhotoModel(model_dir, device=args.device)
    known = served.description
    plain = evaluation_transform(known.input_size, known.mean, known.std)
    metrics, tables = {}, {}
    for name in ("validation", "test"):
        split = ListingPhotos(args.data, name, plain)
        if not len(split):
            metrics[name] = None
            continue
        probabilities = forward(lambda pixels: torch.from_numpy(served.run(pixels.numpy())[1]), loader_of(split, args)).numpy()
        tables[name] = split.table.join(pd.DataFrame(probabilities))
        by_product, truth = by_listing(tables[name], len(known.classes))
        metrics[name] = {
            "loss": training.cross_entropy(probabilities, split.table["label"].to_numpy()),
            **report_of(by_product.argmax(1), truth, known.classes),
        }
    return metrics, tables


def by_listing(table: pd.DataFrame, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each listing's photos: (P, C) probabilities and (P,) labels, listings in the order of their ids."""
    groups = table.groupby("product_id")
    return groups[list(range(n_classes))].mean().to_numpy(), groups["label"].first().to_numpy()


def report_of(guess: np.ndarray, truth: np.ndarray, classes: list[str]) -> dict:
    """Accuracy, macro-F1 over the classes that occur, and each class's precision, recall, F1 and number of listings."""
    report = classification_report(
        truth, guess, labels=range(len(classes)), target_names=classes, output_dict=True, zero_division=0
    )
    per_class = {name: report[name] for name in classes}
    occurring = [row["f1-score"] for label, row in enumerate(per_class.values()) if row["support"] or (guess == label).any()]
    return {
        "accuracy": float((guess == truth).mean()),
        "macro_f1": float(np.mean(occurring)),
        "listings": len(truth),
        "per_class": per_class,
    }


def train_table_models(
    data_dir: Path, vectors: np.ndarray, photo_tables: dict[str, pd.DataFrame], classes: list[str], seed: int
) -> tuple[text_model.TableModels, price_model.PriceModel, dict]:
    """The models of the table, fitted on training listings, calibrated on validation ones; and their metrics.

    vectors: (N, D) of the photos of training_data.csv; photo_tables: of measure_photo_model().
    """
    products = listings.read_products(data_dir / "tabular")
    split = reading.read_csv(data_dir / "dataset" / "listings.csv").set_index("product_id")
    for column in ("split", "cluster"):
        products[column] = products["product_id"].map(split[column])
    products["text"] = listings.texts(products)
    products["usable"] = products["price_plausible"] & (products["price"] > 0)
    owners = reading.read_csv(data_dir / "dataset" / "training_data.csv")["product_id"].to_numpy()
    by_product = pd.DataFrame(vectors).groupby(owners).mean().reindex(products["product_id"]).to_numpy(np.float32)
    rows = {name: np.flatnonzero(products["split"] == name) for name in ("train", "validation", "test")}

    def evidence(name: str) -> tuple:
        part = products.iloc[rows[name]]
        return part["text"].tolist(), part["category"].tolist(), part["county"].tolist(), by_product[rows[name]]

    def prices(name: str) -> tuple[np.ndarray, np.ndarray]:
        part = products.iloc[rows[name]]
        return part["price"].to_numpy(), part["usable"].to_numpy(bool)

    def photo_probabilities(name: str) -> np.ndarray:
        """(P, C) of the split's listings, NaN for one without a photo."""
        if name not in photo_tables:
            return np.full((len(rows[name]), len(classes)), np.nan, np.float32)
        means = photo_tables[name].groupby("product_id")[list(range(len(classes)))].mean()
        return means.reindex(products["product_id"].iloc[rows[name]]).to_numpy(np.float32)

    labels = products["label"].to_numpy()
    texts, paths, _, _ = evidence("train")
    models = text_model.fit(texts, labels[rows["train"]], paths, len(classes), seed)
    if len(rows["validation"]):
        held_out = evidence("validation")[0]
        models.calibrate(held_out, labels[rows["validation"]])
        by_text = models.category_probabilities(held_out)
        models.fit_fusion(photo_probabilities("validation"), by_text, labels[rows["validation"]])
    clusters = products["cluster"].to_numpy()[rows["train"]]
    pricing = price_model.fit(models, *evidence("train"), *prices("train"), clusters, seed)
    if len(rows["validation"]):
        pricing.calibrate(*evidence("validation"), *prices("validation"))

    train_prices, usable = prices("train")
    metrics = {"median_price_pounds": float(np.median(train_prices[usable]))}
    for name in ("validation", "test"):
        metrics[name] = None
        if not len(rows[name]):
            continue
        truth, by_text = labels[rows[name]], models.category_probabilities(evidence(name)[0])
        fused = models.fuse(photo_probabilities(name), by_text)
        quantiles, price = pricing.quantiles(*evidence(name)), prices(name)[0]
        priced = (price >= PRICE_BOUNDS[0]) & (price <= PRICE_BOUNDS[1])
        metrics[name] = {
            "text": report_of(by_text.argmax(1), truth, classes),
            "fused": report_of(fused.argmax(1), truth, classes),
            "price": evaluate_price(price[priced], quantiles[priced], metrics["median_price_pounds"]),
        }
    return models, pricing, metrics


def evaluate_price(price: np.ndarray, quantiles: np.ndarray, median_price: float) -> dict:
    """R2 of log price, median absolute error beside the median price's, and coverage, of (N, 3) log10 pounds."""
    if len(price) < 2:
        return {"listings": len(price)}
    low, middle, high = quantiles.T
    return {
        "listings": len(price),
        "log_r2": float(r2_score(np.log10(price), middle)),
        "median_error_pounds": float(np.median(np.abs(price - 10**middle))),
        "median_error_of_median_pounds": float(np.median(np.abs(price - median_price))),
        "share_within_range": float(((low <= np.log10(price)) & (np.log10(price) <= high)).mean()),
    }


def main_figures(photo: dict, table: dict) -> dict:
    """The few figures of a split that are printed."""
    figures = {"photo": photo} | {name: table.get(name, {}) for name in ("text", "fused")}
    return {f"{name}_accuracy": figure.get("accuracy") for name, figure in figures.items()} | {
        f"price_{name}": value for name, value in table.get("price", {}).items()
    }


def draw_hardest(table: pd.DataFrame, classes: list[str], images_dir: Path) -> bytes:
    """A contact sheet (PNG) of the test photos that the model is surest about, and wrong; below, the truth and its guess."""
    short = [re.split(",| & ", listings.category_levels(name)[-1])[0] for name in classes]
    probabilities = table[list(range(len(classes)))].to_numpy()
    guess = probabilities.argmax(1)
    wrong = np.flatnonzero(guess != table["label"])
    hardest = wrong[np.argsort(-probabilities[wrong, guess[wrong]], kind="stable")][:HARDEST_TILES]
    tiles = [
        (
            photos.load(images_dir, table["image_id"].iloc[row], bytes),
            f"{short[table['label'].iloc[row]]}, not {short[guess[row]]}",
            "#c0392b",
        )
        for row in hardest
    ]
    sheet = io.BytesIO()
    sheets.contact_sheet(tiles, HARDEST_COLUMNS, HARDEST_TILE_PX).save(sheet, "PNG")
    return sheet.getvalue()


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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", type=Path, help="folder of all stages (default: %(default)s)")
    parser.add_argument(
        "--backbone", default="resnet50", help=f"torchvision classifier, or {backbone.LITE0} (default: %(default)s)"
    )
    parser.add_argument(
        "--weights", default="imagenet", help="imagenet, none, or a .pth or .safetensors file (default: %(default)s)"
    )
    parser.add_argument(
        "--finetune",
        choices=["head", "last", "all"],
        help="what is trained: a head on the frozen trunk, its last quarter too, or all (default: all with a GPU or without "
        "weights, else head)",
    )
    parser.add_argument(
        "--embedding-size", default=256, type=cli.positive, help="numbers in a photo's vector (default: %(default)s)"
    )
    parser.add_argument(
        "--pooling", default="average", choices=["average", "gem"], help="of the trunk's last maps (default: %(default)s)"
    )
    parser.add_argument(
        "--image-size", default=224, type=cli.positive, help="pixels a side of the model's input (default: %(default)s)"
    )
    parser.add_argument(
        "--epochs",
        type=cli.positive,
        help=f"passes over the photos (default: head {EPOCHS['head']}, else {EPOCHS['all']}; without weights {SCRATCH_EPOCHS})",
    )
    parser.add_argument(
        "--batch-size",
        type=cli.positive,
        help=f"photos a step (default: {BATCH_SIZE}; without weights {SCRATCH_BATCH_SIZE})",
    )
    parser.add_argument("--optimizer", default="adamw", choices=["adamw", "sgd"], help="(default: %(default)s)")
    parser.add_argument(
        "--learning-rate", type=float, help="of the head (default: 0.001, 0.05 with sgd; without weights 0.0003, 0.005)"
    )
    parser.add_argument(
        "--trunk-learning-rate",
        type=float,
        help=f"(default: {TRUNK_SHARE:g} of the head's for a trunk that starts from weights, else the same)",
    )
    parser.add_argument(
        "--patience",
        type=cli.positive,
        help=f"epochs without a better validation before it ends (default: {PATIENCE}; without weights all)",
    )
    parser.add_argument("--resume", action="store_true", help="go on after the last whole epoch of a killed run (last, all)")
    parser.add_argument("--seed", default=0, type=cli.not_negative, help="of everything random (default: %(default)s)")
    parser.add_argument(
        "--workers",
        default=min(os.cpu_count() or 1, 8),
        type=cli.not_negative,
        help="decoding processes (default: one a core, at most 8)",
    )
    parser.add_argument("--device", type=cli.device, help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument(
        "--check-weights", action="store_true", help="only tell whether the backbone's ImageNet weights can be had; exit 1 if not"
    )
    args = parser.parse_args(argv)
    ranks = training.Ranks()
    scratch = args.weights == "none"
    args.batch_size = args.batch_size or (SCRATCH_BATCH_SIZE if scratch else BATCH_SIZE)
    if args.image_size < 32 or args.batch_size < 2:
        parser.error("--image-size is at least 32, --batch-size at least 2")
    for rate in (args.learning_rate, args.trunk_learning_rate):
        if rate is not None and not 0 < rate < float("inf"):
            parser.error("--learning-rate and --trunk-learning-rate are above 0")
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.finetune = args.finetune or ("all" if args.device.startswith("cuda") or scratch else "head")
    if args.finetune != "all" and scratch:
        parser.error(f"--finetune {args.finetune} needs a pretrained trunk: give --weights, or --finetune all")
    if args.finetune == "head" and (args.resume or args.pooling == "gem"):
        parser.error("--resume and --pooling gem are for --finetune all or last")
    if args.batch_size % ranks.world:
        parser.error(f"--batch-size {args.batch_size} cannot be shared by {ranks.world} processes: give a multiple")
    args.epochs = args.epochs or (SCRATCH_EPOCHS if scratch else EPOCHS[args.finetune])
    args.learning_rate = args.learning_rate or (SCRATCH_LEARNING_RATE if scratch else LEARNING_RATE)[args.optimizer]
    args.trunk_learning_rate = args.trunk_learning_rate or args.learning_rate * (1 if scratch else TRUNK_SHARE)
    args.patience = args.patience or (args.epochs if scratch else PATIENCE)
    if ranks.world > 1 and args.device.startswith("cuda"):
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
    return args


def run(args: argparse.Namespace) -> dict:
    if args.check_weights:
        if not backbone.imagenet_available(args.backbone):
            raise StageError(f"the ImageNet weights of {args.backbone} are not cached and cannot be downloaded: see --weights")
        return {"backbone": args.backbone, "imagenet_weights": "available"}
    for folder in ("tabular", "images"):
        stages.read_manifest(args.data / folder)
    stages.check_inputs(args.data, "dataset")
    settings = stages.read_manifest(args.data / "images")["arguments"]
    left_out = ("data", "check_weights", "resume", "device", "workers")
    arguments = {name: value for name, value in vars(args).items() if name not in left_out}
    inputs = stages.digests(
        args.data,
        *("dataset/training_data.csv", "dataset/listings.csv", "dataset/settings.json"),
        *("tabular/products.csv", "tabular/labels.json", "images/photos.csv"),
    )
    if args.weights not in ("imagenet", "none"):
        backbone.check_file(args.weights)
        inputs["--weights"] = stages.digest(Path(args.weights))
    ranks = training.Ranks()
    if args.finetune == "head" and ranks.rank:
        return {"stage": "model", "rank": ranks.rank, "left_to_rank_0": True}  # the cached features need one process
    if args.finetune != "head":
        ranks.start(args.device)
    stage = stages.Stage(args.data / "model", arguments, inputs)
    if done := ranks.share(stage.finished()) if args.finetune != "head" else stage.finished():
        return done
    classes = listings.read_classes(args.data / "tabular")
    torch.manual_seed(args.seed)
    photo_network = backbone.build(args.backbone, args.weights, len(classes), args.image_size)  # may fail: before begin()
    if args.pooling == "gem":
        backbone.use_gem(photo_network)
    if args.weights == "none":
        backbone.prepare_for_scratch(photo_network)
    if ranks.rank == 0:
        stage.begin()
        if not args.resume:
            (stage.folder / CHECKPOINT).unlink(missing_ok=True)
    key = hashlib.sha256(json.dumps([arguments, inputs]).encode()).hexdigest()
    trained = train_photo_model(photo_network, args, settings, ranks, key)
    if trained is None:
        return {"stage": "model", "rank": ranks.rank, "epochs": args.epochs}
    description, embedding, epochs, features = trained
    atomic.write_bytes(stage.folder / photo_model.WEIGHTS, safetensors_bytes(photo_network.state_dict()))
    with atomic.atomic_path(stage.folder / photo_model.ONNX) as path:
        backbone.export_onnx(photo_network, args.image_size, path)
    description.save(stage.folder)
    tables = [ListingPhotos(args.data, name).table for name in ("train", "validation")]
    int8 = quantise.export(stage.folder, args.data / "images", *tables, args.seed)
    if int8["reason"]:
        print(int8["reason"], file=sys.stderr)
    dataclasses.replace(description, int8=int8).save(stage.folder)
    photo_metrics, photo_tables = measure_photo_model(stage.folder, args)
    with torch.inference_mode():
        vectors = photo_network.of_features(torch.from_numpy(features))[0].numpy()
    texts, prices, table_metrics = train_table_models(args.data, vectors, photo_tables, classes, args.seed)
    texts.save(stage.folder)
    prices.save(stage.folder)
    test = photo_tables.get("test", pd.DataFrame(columns=["product_id", "label", "image_id", *range(len(classes))]))
    probabilities, truth = by_listing(test, len(classes))
    confusion = (
        confusion_matrix(truth, probabilities.argmax(1), labels=range(len(classes))) if len(test) else np.zeros((1, 1), int)
    )
    atomic.write_bytes(stage.folder / "curves.png", draw_curves(epochs))
    atomic.write_bytes(stage.folder / "confusion.png", draw_confusion(confusion, description.classes))
    atomic.write_bytes(stage.folder / "hardest.png", draw_hardest(test, description.classes, args.data / "images"))
    atomic.write_json(
        stage.folder / "metrics.json",
        {"photo": photo_metrics | {"epochs": epochs}, "embedding": embedding, "table": table_metrics},
    )
    (stage.folder / CHECKPOINT).unlink(missing_ok=True)
    counts = {name: main_figures(photo_metrics[name] or {}, table_metrics[name] or {}) for name in ("validation", "test")}
    print(json.dumps(counts | {"embedding": embedding}, indent=2), file=sys.stderr)
    pictures = ("curves.png", "confusion.png", "hardest.png")
    return stage.finish(
        counts | {"embedding": description.embedding}, [*photo_model.FILES, "metrics.json", *pictures], photo_model.FILES
    )


def main(argv=None) -> int:
    return cli.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
