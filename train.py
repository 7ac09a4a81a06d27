"""Train the photo model (ResNet-50 transfer learning) and the models of the table.

Reads   data/dataset/, data/images/, data/tabular/
Writes  data/model/       (image_model.json, image_model.safetensors, image_model.onnx, image_model.int8.onnx;
                          table_models.json, table_models.safetensors; price_model.json, price_model.safetensors;
                          metrics.json, curves.png)
        data/features/    (plain.npy, mirrored.npy, image_ids.json: the untrained backbone's features of every photo, computed
                          once, trained on, compared with)
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
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from dataset import ListingPhotos, listings_with_splits, photo_tensor
from marketplace import metrics
from marketplace.cleaning import listings, photos
from marketplace.files import atomic, cli, reading, stages
from marketplace.files.progress import begin, progress
from marketplace.files.stages import StageError
from marketplace.models import backbone as network
from marketplace.models import charts, photo_model, price_model, text_model, training
from marketplace.models import int8 as quantise

EPOCHS = {"head": 30, "last": 6, "all": 6}
LEARNING_RATE, BATCH_SIZE = 1e-3, 32
# From scratch there are few steps: small batches make more of them. The head sees thousands of positive features that mean
# nothing yet: at 0.001 one step of AdamW moves its logits by 1.
SCRATCH_EPOCHS, SCRATCH_BATCH_SIZE = 40, 16
SCRATCH_LEARNING_RATE = 3e-4
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
    """What each epoch measured, kept for metrics.json and curves.png, printed, and shown in TensorBoard."""

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.epochs: list[dict[str, float]] = []
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(folder)

    def add(self, **values: float) -> None:
        self.epochs.append({"epoch": len(self.epochs) + 1} | {name: round(value, 6) for name, value in values.items()})
        for name, value in values.items():
            self._writer.add_scalar(name, value, len(self.epochs))
        measured = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        print(f"epoch {len(self.epochs)}  {measured}", file=sys.stderr)

    def close(self) -> None:
        self._writer.close()


def forward(run: Callable[[torch.Tensor], torch.Tensor], loader: DataLoader, desc: str) -> torch.Tensor:
    """What `run` makes of a loader's photos, in order: (N, ...); desc: what progress says."""
    with torch.inference_mode():
        return torch.cat([run(pixels) for pixels, _, _ in progress(loader, desc, "batch")])


class _Mirrored(torch.utils.data.Dataset):
    """The same photos from right to left."""

    def __init__(self, plain: ListingPhotos):
        self.plain = plain

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, index: int):
        pixels, label, index = self.plain[index]
        return pixels.flip(2), label, index


def loader_of(split: torch.utils.data.Dataset, config: training.TrainingConfig) -> DataLoader:
    return DataLoader(split, config.batch_size, num_workers=config.workers)


def backbone_features(photo_network: network.PhotoNetwork, views: list, config: training.TrainingConfig) -> list[np.ndarray]:
    """(N, D) pooled features of each of `views` (datasets of photos) by the network's backbone as it is."""
    backbone = network.frozen_backbone(photo_network, config.image_size, config.device)
    return [forward(backbone, loader_of(view, config), "features of the backbone").numpy() for view in views]


class Photos:
    """Every photo as the model sees it in service, and which rows are of the training and the validation split."""

    def __init__(self, data_dir: Path, backbone: str, config: training.TrainingConfig):
        self.data_dir, self.scratch = data_dir, not config.pretrained
        self.input_size = config.image_size
        self.mean, self.std = (list(values) for values in network.normalisation(backbone))
        plain = evaluation_transform(self.input_size, self.mean, self.std)
        self.every = ListingPhotos(data_dir, None, plain)
        self.validation = ListingPhotos(data_dir, "validation", plain)
        self.rows = {name: np.flatnonzero(self.every.table["split"] == name) for name in ("train", "validation")}
        for name, rows in self.rows.items():
            if not len(rows):
                raise StageError(
                    f"the {name} split has no photos: give more listings with photos, or dataset.py a --split-column"
                )
        pixels = photos.pixel_digests(data_dir / "images", self.every.table["image_id"])
        self._codes = [
            pd.factorize(column)[0] for column in (self.every.table["product_id"], self.every.table["cluster"], pixels)
        ]

    def changed_at_random(self) -> training.TrainingPhotos:
        """The training photos for training end to end."""
        split = ListingPhotos(self.data_dir, "train", training_transform(self.input_size, self.mean, self.std, self.scratch))
        return training.TrainingPhotos(split, pd.factorize(split.table["product_id"])[0], split.table["label"].to_numpy())

    def coded(self, rows: np.ndarray, features: np.ndarray, mirrored: np.ndarray | None = None) -> training.Photos:
        """Some rows of (N, D) features of every photo, and of the mirrored ones, with their codes."""
        codes = (codes[rows] for codes in self._codes)
        labels = self.every.table["label"].to_numpy()[rows]
        return training.Photos(features[rows], labels, *codes, None if mirrored is None else mirrored[rows])

    def choose_embedder(self, candidates: dict[str, nn.Module], features: np.ndarray) -> tuple[str, dict[str, dict]]:
        """training.choose_embedder() by validation photos among these and the training photos: test photos choose nothing."""
        rows = np.sort(np.concatenate(list(self.rows.values())))
        queries = np.flatnonzero(np.isin(rows, self.rows["validation"]))
        return training.choose_embedder(candidates, self.coded(rows, features), queries)


def starting_features(
    photo_network: network.PhotoNetwork, every: ListingPhotos, args: argparse.Namespace, config: training.TrainingConfig
) -> list[np.ndarray]:
    """The untrained backbone's features of every photo, and of the mirrored ones when only a head is trained: (N, D) each.

    They stay in data/features/ until photos or weights change, whatever the split: another training of the head takes seconds.
    """
    mirrored = config.finetune == "head"
    image_ids = every.table["image_id"].tolist()
    arguments = {
        "backbone": args.backbone,
        "weights": args.weights,
        "seed": None if config.pretrained else config.seed,
        "image_size": config.image_size,
        "mirrored": mirrored,
        "image_ids": hashlib.sha256(json.dumps(image_ids).encode()).hexdigest(),
    }
    names = ["plain.npy", "mirrored.npy"] if mirrored else ["plain.npy"]
    with stages.open_stage(args.data, "features", arguments, weights_digest(args.weights)) as stage:
        if not stage.is_done():
            stage.begin()
            views = [every, _Mirrored(every)] if mirrored else [every]
            for name, features in zip(names, backbone_features(photo_network, views, config), strict=True):
                atomic.write_array(stage.folder / name, features)
            atomic.write_json(stage.folder / "image_ids.json", image_ids, indent=None)
            stage.finish({"photos": len(every), "dimension": photo_network.head.in_features}, [*names, "image_ids.json"])
        return [np.array(reading.read_array(stage.folder / name)) for name in names]


@dataclass(frozen=True)
class Embedding:
    """The embedder that retrieves best on validation; figures: of every candidate, by name; features: (N, D) of every photo."""

    name: str
    embedder: nn.Module
    figures: dict[str, dict]
    features: np.ndarray

    def report(self) -> dict:
        return {"chosen": self.name, "validation": self.figures}


def frozen_embedders(train_features: np.ndarray, config: training.TrainingConfig) -> dict[str, nn.Module]:
    """What embeds without training, to be compared with."""
    whitened = training.whitening(train_features, config.embedding_size, power=False)
    return {"frozen backbone": nn.Identity(), "frozen backbone, whitened": whitened}


def train_on_features(
    photo_network: network.PhotoNetwork,
    data: Photos,
    features: np.ndarray,
    mirrored: np.ndarray,
    config: training.TrainingConfig,
    record: Callable[..., None],
) -> Embedding:
    """Train the head in place, and embeddings, on the frozen backbone's features of every photo and every mirrored one."""
    train = data.coded(data.rows["train"], features, mirrored)
    validation = data.coded(data.rows["validation"], features)
    candidates = frozen_embedders(train.features, config)
    torch.manual_seed(config.seed)  # whether the features were there already must not matter
    training.train_head(photo_network.head, train, validation, config, record)
    begin("train and compare embeddings")
    for weight in training.CATEGORY_WEIGHTS:
        candidates[f"projection, category weight {weight:g}"] = training.train_projection(
            train, config.embedding_size, weight, len(data.every.classes), config.seed
        )
    name, figures = data.choose_embedder(candidates, features)
    return Embedding(name, candidates[name], figures, features)


def train_end_to_end(
    photo_network: network.PhotoNetwork,
    data: Photos,
    config: training.TrainingConfig,
    checkpoint: training.Checkpoint,
    ranks: training.Ranks,
    record: Callable[..., None],
) -> None:
    """Train the network in place, its embedder too; on every rank."""
    torch.manual_seed(config.seed)
    projection = network.Projection(photo_network.head.in_features, config.embedding_size, power=True)
    photo_network.embedder = projection.to(config.device)
    validate = functools.partial(validate_network, split=data.validation, config=config)
    training.fine_tune(photo_network, data.changed_at_random(), validate, config, checkpoint, ranks, record)


def choose_tuned_embedding(
    photo_network: network.PhotoNetwork, data: Photos, started: np.ndarray, config: training.TrainingConfig
) -> Embedding:
    """Of the network after train_end_to_end(); started: (N, D) features of every photo before it."""
    compared = data.choose_embedder(frozen_embedders(started[data.rows["train"]], config), started)[1]
    (features,) = backbone_features(photo_network, [data.every], config)
    whitened = training.whitening(features[data.rows["train"]], config.embedding_size, power=False)
    candidates = {"projection": photo_network.embedder, "backbone": nn.Identity(), "backbone, whitened": whitened}
    name, figures = data.choose_embedder(candidates, features)
    return Embedding(name, candidates[name], compared | figures, features)


def describe(
    photo_network: network.PhotoNetwork, data: Photos, args: argparse.Namespace, embedding: str
) -> photo_model.Description:
    embedder = photo_network.embedder
    linear = isinstance(embedder, network.Projection)
    return photo_model.Description(
        backbone=args.backbone,
        weights=args.weights if args.weights in ("imagenet", "none") else Path(args.weights).name,
        classes=data.every.classes,
        input_size=data.input_size,
        mean=data.mean,
        std=data.std,
        dimension=embedder.linear.out_features if linear else photo_network.head.in_features,
        embedding=embedding,
        projection="none" if not linear else "power" if embedder.power else "linear",
        photo=stages.read_manifest(args.data / "images")["arguments"],  # how the photos were cleaned
    )


def save_photo_model(
    photo_network: network.PhotoNetwork, description: photo_model.Description, data_dir: Path, seed: int
) -> photo_model.Description:
    """Write the network as torch's weights, as ONNX and in 8 bits, and the description, which then tells of the 8 bits."""
    model_dir = data_dir / "model"
    photo_network.cpu().to(memory_format=torch.contiguous_format)
    atomic.write_bytes(model_dir / photo_model.WEIGHTS, safetensors_bytes(photo_network.state_dict()))
    with atomic.atomic_path(model_dir / photo_model.ONNX) as path:
        network.export_onnx(photo_network, description.input_size, path)
    description.save(model_dir)
    tables = [ListingPhotos(data_dir, name).table for name in ("train", "validation")]
    description = dataclasses.replace(description, int8=quantise.export(model_dir, data_dir / "images", *tables, seed))
    description.save(model_dir)
    return description


def validate_network(
    photo_network: network.PhotoNetwork, split: ListingPhotos, config: training.TrainingConfig
) -> tuple[float, float]:
    """Accuracy by listing and cross-entropy by photo."""
    photo_network.eval()

    def logits_of(pixels: torch.Tensor) -> torch.Tensor:
        return photo_network(pixels.to(config.device, memory_format=torch.channels_last))[1].float().cpu()

    probabilities = forward(logits_of, loader_of(split, config), "validate").softmax(1).numpy()
    labels = split.table["label"].to_numpy()
    accuracy = training.accuracy_by_listing(probabilities, labels, pd.factorize(split.table["product_id"])[0])
    return accuracy, training.cross_entropy(probabilities, labels)


def validation_probabilities(data_dir: Path, config: training.TrainingConfig) -> pd.DataFrame:
    """(P, C) of the validation listings with photos, by product_id: the saved model's, run as the API runs it.

    A listing's are the mean of its photos'.
    """
    served = photo_model.PhotoModel(data_dir / "model", device=config.device)
    description = served.description
    split = ListingPhotos(data_dir, "validation", evaluation_transform(description.input_size, description.mean, description.std))
    by_photo = forward(
        lambda pixels: torch.from_numpy(served.run(pixels.numpy())[1]), loader_of(split, config), "validation photos"
    ).numpy()
    return pd.DataFrame(by_photo).groupby(split.table["product_id"].to_numpy()).mean()


class Listings:
    """The training and validation listings, and what the models of the table see of them.

    vectors: (N, D) of the photos of training_data.csv; probabilities: of validation_probabilities().
    """

    def __init__(self, data_dir: Path, vectors: np.ndarray, probabilities: pd.DataFrame):
        table = listings_with_splits(data_dir)
        table["text"] = listings.texts(table)
        table["usable"] = table["price_plausible"] & (table["price"] > 0)
        owners = reading.read_csv(data_dir / "dataset" / "training_data.csv")["product_id"].to_numpy()
        self.by_split = {name: table[table["split"] == name] for name in ("train", "validation")}
        self.n_classes = probabilities.shape[1]
        self._vectors, self._probabilities = pd.DataFrame(vectors).groupby(owners).mean(), probabilities

    def evidence(self, split: str) -> tuple[list[str], list[str], list[str], np.ndarray]:
        """Texts, category paths, counties, and the mean vector of each listing's photos, NaN for one without a photo."""
        part = self.by_split[split]
        vectors = self._vectors.reindex(part["product_id"]).to_numpy(np.float32)
        return part["text"].tolist(), part["category"].tolist(), part["county"].tolist(), vectors

    def prices(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """(P,) pounds, and whether each tells anything."""
        part = self.by_split[split]
        return part["price"].to_numpy(), part["usable"].to_numpy(bool)

    def photo_probabilities(self) -> np.ndarray:
        """(P, C) of the validation listings, NaN for one without a photo."""
        return self._probabilities.reindex(self.by_split["validation"]["product_id"]).to_numpy(np.float32)


def fit_text_models(data: Listings, seed: int) -> text_model.TableModels:
    """Fitted on the training listings, calibrated on the validation ones."""
    train, validation = data.by_split["train"], data.by_split["validation"]
    texts, paths = train["text"].tolist(), train["category"].tolist()
    models = text_model.fit(texts, train["label"].to_numpy(), paths, data.n_classes, seed)
    held_out, labels = validation["text"].tolist(), validation["label"].to_numpy()
    models.calibrate(held_out, labels)
    models.fit_fusion(data.photo_probabilities(), models.category_probabilities(held_out), labels)
    return models


def fit_price_model(data: Listings, models: text_model.TableModels, seed: int) -> price_model.PriceModel:
    """Fitted on the training listings, calibrated on the validation ones."""
    clusters = data.by_split["train"]["cluster"].to_numpy()
    prices = price_model.fit(models, *data.evidence("train"), *data.prices("train"), clusters, seed)
    prices.calibrate(*data.evidence("validation"), *data.prices("validation"))
    return prices


def measure(
    data: Listings, models: text_model.TableModels, pricing: price_model.PriceModel, classes: list[str]
) -> dict[str, dict]:
    """Figures of the validation listings: of the photo, text and fused category models, by listing, and of the price."""
    train_prices, usable = data.prices("train")
    labels = data.by_split["validation"]["label"].to_numpy()
    by_photo = data.photo_probabilities()
    by_text = models.category_probabilities(data.evidence("validation")[0])
    has_photo = ~np.isnan(by_photo).any(axis=1)
    quantiles = pricing.quantiles(*data.evidence("validation"))
    return {
        "photo": metrics.category_report(labels[has_photo], by_photo[has_photo], classes),
        "text": metrics.category_report(labels, by_text, classes),
        "fused": metrics.category_report(labels, models.fuse(by_photo, by_text), classes),
        "price": metrics.price_report(data.prices("validation")[0], quantiles, float(np.median(train_prices[usable]))),
    }


def main_figures(figures: dict[str, dict]) -> dict[str, float | None]:
    """The few that go into the summary."""
    accuracies = {f"{name}_accuracy": figures[name].get("accuracy") for name in ("photo", "text", "fused")}
    return accuracies | {f"price_{name}": value for name, value in figures["price"].items()}


def tell(figures: dict[str, dict], embedding: Embedding, description: photo_model.Description, model_dir: Path) -> None:
    """What came of it, in five lines that a person reads."""
    photo, text, fused, price = (figures[name] for name in ("photo", "text", "fused", "price"))
    found, int8 = embedding.figures[embedding.name], description.int8
    hits = found["same_listing_hit_at_1"]
    lines = [
        f"words {text['accuracy']:.0%}, photos {photo['accuracy']:.0%}, both {fused['accuracy']:.0%} of {text['listings']:,} "
        f"validation listings get the right one of {len(description.classes)} categories "
        f"(photos: of the {photo['listings']:,} with a photo)",
        "price: no validation listing has one to be measured by"
        if not price["listings"]
        else f"price: half of {price['listings']:,} validation listings are told to within £{price['median_error_pounds']:,.2f} "
        f"(always saying the median price: £{price['median_error_of_median_pounds']:,.2f}), "
        f"{price['interval_coverage']:.0%} lie within the 80% range",
        f"embedding: {embedding.name}, {description.dimension} numbers; "
        + ("no listing has a second photo" if hits is None else f"the nearest photo is the listing's own for {hits:.0%}"),
        int8["reason"]
        or f"8 bits are used on CPUs: on {int8['photos']:,} held-out photos the mean cosine to fp32 is {int8['mean_cosine']:.4f}",
        f"pictures: {model_dir / 'curves.png'}, and those of the test split from evaluate.py, in "
        f"{model_dir.with_name('evaluation')}, once there is an index",
    ]
    print("\n".join(lines), file=sys.stderr)


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
        "--finetune",
        choices=["head", "last", "all"],
        help="what is trained: a head on the frozen backbone, its last quarter too, or all (default: all with a GPU or without "
        "weights, else head)",
    )
    parser.add_argument(
        "--embedding-size", default=256, type=cli.positive, help="numbers in a photo's vector (default: %(default)s)"
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
    parser.add_argument(
        "--learning-rate",
        type=float,
        help=f"of the head; a backbone that starts from weights takes {training.BACKBONE_SHARE:g} of it "
        f"(default: {LEARNING_RATE:g}; without weights {SCRATCH_LEARNING_RATE:g})",
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
    if args.learning_rate is not None and not 0 < args.learning_rate < float("inf"):
        parser.error("--learning-rate is above 0")
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.finetune = args.finetune or ("all" if args.device.startswith("cuda") or scratch else "head")
    if args.finetune != "all" and scratch:
        parser.error(f"--finetune {args.finetune} needs a pretrained backbone: give --weights, or --finetune all")
    if args.finetune == "head" and args.resume:
        parser.error("--resume is for --finetune all or last")
    if args.batch_size % ranks.world:
        parser.error(f"--batch-size {args.batch_size} cannot be shared by {ranks.world} processes: give a multiple")
    args.epochs = args.epochs or (SCRATCH_EPOCHS if scratch else EPOCHS[args.finetune])
    args.learning_rate = args.learning_rate or (SCRATCH_LEARNING_RATE if scratch else LEARNING_RATE)
    if ranks.world > 1 and args.device.startswith("cuda"):
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
    return args


def config_of(args: argparse.Namespace) -> training.TrainingConfig:
    return training.TrainingConfig(
        finetune=args.finetune,
        pretrained=args.weights != "none",
        image_size=args.image_size,
        embedding_size=args.embedding_size,
        epochs=args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed,
        workers=args.workers,
        device=args.device,
    )


def check_weights(backbone: str) -> dict:
    if not network.imagenet_available(backbone):
        raise StageError(f"the ImageNet weights of {backbone} are not cached and cannot be downloaded: see --weights")
    return {"backbone": backbone, "imagenet_weights": "available"}


def weights_digest(weights: str) -> dict[str, str]:
    """The digest of the file that --weights names, where it names one."""
    if weights in ("imagenet", "none"):
        return {}
    network.check_file(weights)
    return {"--weights": stages.digest(Path(weights))}


def arguments_of(args: argparse.Namespace) -> dict:
    """The flags that decide what is trained."""
    left_out = ("data", "check_weights", "resume", "device", "workers")
    return {name: value for name, value in vars(args).items() if name not in left_out}


def build_network(args: argparse.Namespace) -> network.PhotoNetwork:
    torch.manual_seed(args.seed)
    n_classes = len(listings.read_classes(args.data / "tabular"))
    photo_network = network.build(args.backbone, args.weights, n_classes, args.image_size)
    if args.weights == "none":
        network.prepare_for_scratch(photo_network)
    return photo_network


def train_photo_network(
    photo_network: network.PhotoNetwork,
    data: Photos,
    args: argparse.Namespace,
    checkpoint: training.Checkpoint,
    curves: Curves,
) -> Embedding:
    """Train the network in place and give it its embedder; on rank 0."""
    config = config_of(args)
    started = starting_features(photo_network, data.every, args, config)
    if config.finetune == "head":
        embedding = train_on_features(photo_network, data, *started, config, curves.add)
    else:
        train_end_to_end(photo_network, data, config, checkpoint, training.Ranks(), curves.add)
        embedding = choose_tuned_embedding(photo_network, data, *started, config)
    curves.close()
    photo_network.embedder = embedding.embedder
    return embedding


def run(args: argparse.Namespace) -> dict:
    if args.check_weights:
        return check_weights(args.backbone)
    with stages.open_stage(args.data, "model", arguments_of(args), weights_digest(args.weights)) as stage:
        config, ranks = config_of(args), training.Ranks()
        if config.finetune != "head":
            ranks.start(config.device)
        elif ranks.rank:
            return {"stage": "model", "rank": ranks.rank, "left_to_rank_0": True}  # the cached features need one process
        if ranks.share(stage.is_done()):
            return stage.summary()
        photo_network = build_network(args)  # may fail: before begin()
        checkpoint = training.Checkpoint(stage.folder / CHECKPOINT, run_key(stage), args.resume)
        if ranks.rank == 0:
            stage.begin()
            if not args.resume:
                checkpoint.path.unlink(missing_ok=True)
        data = Photos(args.data, args.backbone, config)
        photo_network.to(config.device, memory_format=torch.channels_last)
        if ranks.rank:
            train_end_to_end(photo_network, data, config, checkpoint, ranks, lambda **values: None)
            return {"stage": "model", "rank": ranks.rank, "epochs": config.epochs}
        return train(stage, args, photo_network, data, checkpoint)


def train(
    stage: stages.Stage,
    args: argparse.Namespace,
    photo_network: network.PhotoNetwork,
    data: Photos,
    checkpoint: training.Checkpoint,
) -> dict:
    """Train, measure on validation and save the photo model, then the models of the table; on rank 0."""
    config, curves = config_of(args), Curves(args.data / "tensorboard")
    embedding = train_photo_network(photo_network, data, args, checkpoint, curves)
    description = describe(photo_network, data, args, embedding.name)
    begin("export the network, and quantise it to 8 bits")
    description = save_photo_model(photo_network, description, args.data, config.seed)
    with torch.inference_mode():
        vectors = photo_network.of_features(torch.from_numpy(embedding.features))[0].numpy()
    table = Listings(args.data, vectors, validation_probabilities(args.data, config))
    begin("fit the models of words and prices")
    texts = fit_text_models(table, config.seed)
    prices = fit_price_model(table, texts, config.seed)
    texts.save(stage.folder)
    prices.save(stage.folder)
    figures = measure(table, texts, prices, description.classes)
    report = {"validation": figures, "embedding": embedding.report(), "epochs": curves.epochs}
    atomic.write_json(stage.folder / "metrics.json", report)
    atomic.write_bytes(stage.folder / "curves.png", charts.draw_curves(curves.epochs))
    checkpoint.path.unlink(missing_ok=True)
    tell(figures, embedding, description, stage.folder)
    return stage.finish({"validation": main_figures(figures), "embedding": embedding.name})


def run_key(stage: stages.Stage) -> str:
    """Names a run, so that --resume goes on with no other's checkpoint."""
    return hashlib.sha256(json.dumps([stage.arguments, stage.inputs]).encode()).hexdigest()


def main(argv=None) -> int:
    return cli.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
