"""Train the photo model (ResNet-50 transfer learning) and the models of the table.

Reads   data/dataset/, data/images/, data/tabular/
Writes  data/model/       (image_model.json, image_model.safetensors, image_model.onnx, image_model.int8.onnx;
                          table_models.json, table_models.safetensors; price_model.json, price_model.safetensors,
                          price_ranges.csv; listings.csv (label and split of each listing then);
                          text_encoder.json, text_encoder.onnx, tokenizer.json;
                          metrics.json, curves.png)
        data/features/    (plain.npy, mirrored.npy, image_ids.json: the untrained backbone's features of every photo, computed
                          once, trained on, compared with)
        data/tensorboard/ (the curves for TensorBoard)
Run     python train.py                                  ImageNet weights, downloaded once
        python train.py --weights resnet50.pth           your own checkpoint
        python train.py --backbone efficientnet_lite0    lighter on a CPU, weights from a Python package
        python train.py --finetune all                   the whole network; the default with a GPU
        python train.py --text-encoder none              no sentence encoder: words tell categories and prices alone
        torchrun --nproc_per_node 2 train.py --finetune all
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn
from torchvision.transforms import v2

from dataset import ListingPhotos, listings_with_splits, photo_tensor
from marketplace import metrics
from marketplace.cleaning import photos
from marketplace.cleaning.listings import read_classes, read_currency, texts
from marketplace.cleaning.prices import POUNDS, before_amounts
from marketplace.files import atomic, cli, reading, stages
from marketplace.files.progress import begin
from marketplace.files.stages import StageError
from marketplace.models import backbone as network
from marketplace.models import (
    charts,
    embedding,
    encoder_export,
    int8,
    photo_model,
    price_model,
    report,
    sample_sizes,
    text_encoder,
    text_model,
    training,
)

EPOCHS = {"head": 30, "last": 6, "all": 6}
LEARNING_RATE, BATCH_SIZE = 1e-3, 32
# From scratch there are few steps: small batches make more of them. The head sees thousands of positive features that mean
# nothing yet: at 0.001 one step of AdamW moves its logits by 1.
SCRATCH_EPOCHS, SCRATCH_BATCH_SIZE = 40, 16
SCRATCH_LEARNING_RATE = 3e-4
CHECKPOINT = "checkpoint.pt"  # of the last whole epoch, while --finetune all or last is at work


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", default="data", type=Path, help="folder of all stages (default: %(default)s)")
    add("--backbone", default="resnet50", help=f"torchvision classifier, or {', '.join(network.LITES)} (default: %(default)s)")
    add("--weights", default="imagenet", help="imagenet, none, or a .pth or .safetensors file (default: %(default)s)")
    add(
        "--text-encoder",
        default=encoder_export.DEFAULT,
        help="what tells the meaning of words: a sentence-transformers name, a folder, or none (default: %(default)s, from a "
        "Python package)",
    )
    add(
        "--finetune",
        choices=["head", "last", "all"],
        help="what is trained: a head on the frozen backbone, its last quarter too, or all (default: all with a GPU or without "
        "weights, else head)",
    )
    add("--embedding-size", default=256, type=cli.positive, help="numbers in a photo's vector (default: %(default)s)")
    add("--image-size", default=224, type=cli.positive, help="pixels a side of the model's input (default: %(default)s)")
    add(
        "--epochs",
        type=cli.positive,
        help=f"passes over the photos (default: head {EPOCHS['head']}, else {EPOCHS['all']}; without weights {SCRATCH_EPOCHS})",
    )
    add("--batch-size", type=cli.positive, help=f"photos a step (default: {BATCH_SIZE}; without weights {SCRATCH_BATCH_SIZE})")
    add(
        "--learning-rate",
        type=float,
        help=f"of the head; a backbone that starts from weights takes {training.BACKBONE_SHARE:g} of it "
        f"(default: {LEARNING_RATE:g}; without weights {SCRATCH_LEARNING_RATE:g})",
    )
    add("--resume", action="store_true", help="go on after the last whole epoch of a killed run (last, all)")
    add("--seed", default=0, type=cli.not_negative, help="of everything random (default: %(default)s)")
    add(
        "--workers",
        default=min(cli.cores(), 8),
        type=cli.not_negative,
        help="decoding processes (default: one a core, at most 8)",
    )
    add("--device", type=cli.device, help="cpu or cuda (default: cuda where there is one)")
    add(
        "--check-weights", action="store_true", help="only tell whether the backbone's ImageNet weights can be had; exit 1 if not"
    )
    return parser


def parse_args(argv=None) -> argparse.Namespace:
    """The flags, with the defaults that depend on others put in."""
    parser = make_parser()
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
    names = {field.name for field in dataclasses.fields(training.TrainingConfig)}
    given = {name: value for name, value in vars(args).items() if name in names}
    return training.TrainingConfig(pretrained=args.weights != "none", bf16=args.device.startswith("cuda"), **given)


def run(args: argparse.Namespace) -> dict:
    if args.check_weights:
        if not network.imagenet_available(args.backbone):
            raise StageError(f"the ImageNet weights of {args.backbone} are not cached and cannot be downloaded: see --weights")
        return {"backbone": args.backbone, "imagenet_weights": "available"}
    left_out = ("data", "check_weights", "resume", "device", "workers")
    deciding = {name: value for name, value in vars(args).items() if name not in left_out}
    config, ranks = config_of(args), training.Ranks()
    currency = read_currency(args.data / "tabular")
    deciding |= {"currency": currency} if currency != POUNDS.currency else {}
    raw = weights_digest(args.weights) | encoder_export.check_name(args.text_encoder)
    flags = cli.flags_of(args, *left_out)
    with stages.open_stage(args.data, "model", deciding, raw, locked=ranks.rank == 0, flags=flags) as stage:
        if config.finetune != "head":
            ranks.start(config.device)
        elif ranks.rank:
            return {}  # left to rank 0: the cached features need one process
        if ranks.share(stage.is_done()):
            return stage.summary()
        check_listings(args.data)
        photo_network = build_network(args)  # may fail, as what follows: before begin()
        encoder = encoder_export.open_encoder(text_encoder.NONE if ranks.rank else args.text_encoder)
        run_key = hashlib.sha256(json.dumps([stage.arguments, stage.inputs]).encode()).hexdigest()
        checkpoint = training.Checkpoint(stage.folder / CHECKPOINT, run_key, args.resume)
        if ranks.rank == 0:
            if args.resume:
                training.read_checkpoint(checkpoint, "cpu")  # a mistaken --resume must not take a good model's manifest
            stage.begin()
            if not args.resume:
                checkpoint.path.unlink(missing_ok=True)
        data = Photos(args.data, args.backbone, config)
        photo_network.to(config.device, memory_format=torch.channels_last)
        if ranks.rank:
            train_end_to_end(photo_network, data, checkpoint, ranks, lambda **values: None)
            return {}
        return train(stage, args, photo_network, encoder, data, checkpoint)


def train(
    stage: stages.Stage,
    args: argparse.Namespace,
    photo_network: network.PhotoNetwork,
    source: encoder_export.Source,
    data: "Photos",
    checkpoint: training.Checkpoint,
) -> dict:
    """Train, measure on validation and save the photo model, then the models of the table; on rank 0."""
    curves = charts.Curves(args.data / "tensorboard")
    started = starting_features(photo_network, data, args)
    if data.config.finetune == "head":
        chosen = train_on_features(photo_network, data, *started, curves.add)
    else:
        train_end_to_end(photo_network, data, checkpoint, training.Ranks(), curves.add)
        chosen = choose_tuned_embedding(photo_network, data, *started)
    curves.close()
    begin("export the network, and quantise it to 8 bits")
    description = save_photo_model(photo_network, describe(photo_network, data, args, chosen.name), data, stage.folder)
    with torch.inference_mode():
        vectors = photo_network.of_features(torch.from_numpy(chosen.features))[0].numpy()
    by_photo = validation_probabilities(data, stage.folder)
    begin("export the text encoder")
    encoder = export_encoder(source, args.data, data.config.seed, stage.folder)
    warnings = sample_sizes.of_training(listings_with_splits(data.data_dir), data.every.classes)
    begin("fit the models of words and prices")
    figures = fit_table_models(data, vectors, by_photo, stage.folder)
    measured = {
        "warnings": warnings,
        "validation": figures,
        "embedding": {"chosen": chosen.name, "validation": chosen.figures},
        "epochs": curves.epochs,
    }
    atomic.write_json(stage.folder / "metrics.json", measured)
    atomic.write_bytes(stage.folder / "curves.png", charts.draw_curves(curves.epochs))
    checkpoint.path.unlink(missing_ok=True)
    sample_sizes.tell(warnings)
    tell(figures, chosen, description, encoder, stage.folder, before_amounts(read_currency(stage.data_dir / "tabular")))
    accuracies = {f"{name}_accuracy": figures[name].get("accuracy") for name in ("photo", "text", "fused")}
    summary = accuracies | {f"price_{name}": value for name, value in figures["price"].items()}
    written = [name for name in stages.STAGES["model"].writes if encoder.dimension or name not in stages.TEXT_ENCODER]
    return stage.finish({"validation": summary, "embedding": chosen.name, "text_encoder": encoder.name}, written)


def write_learned(listings: pd.DataFrame, classes: list[str], model_dir: Path) -> None:
    """Of which label and split each listing is now: product_id, label, split; update.py compares them with later ones."""
    labels = listings["label"].map(dict(enumerate(classes)))
    atomic.write_csv(model_dir / stages.LEARNED, listings[["product_id", "split"]].assign(label=labels))


def evaluation_transform(input_size: int, mean: list[float], std: list[float]) -> Callable[[bytes], torch.Tensor]:
    """JPEG bytes -> (3, S, S) tensor, as the batch and the API see it."""
    return v2.Compose([functools.partial(photos.model_input, size=input_size, mean=mean, std=std), torch.from_numpy])


def weights_digest(weights: str) -> dict[str, str]:
    """The digest of the file that --weights names, where it names one."""
    if weights in ("imagenet", "none"):
        return {}
    network.check_file(weights)
    return {"--weights": stages.digest(Path(weights))}


def check_listings(data_dir: Path) -> None:
    """StageError, before minutes go into photos, where the models of the table would find too little."""
    table = listings_with_splits(data_dir)
    train = table[table["split"] == "train"]
    price_model.check_evidence(train["price_plausible"].to_numpy(), train["cluster"].to_numpy())


def build_network(args: argparse.Namespace) -> network.PhotoNetwork:
    torch.manual_seed(args.seed)
    n_classes = len(read_classes(args.data / "tabular"))
    photo_network = network.build(args.backbone, args.weights, n_classes, args.image_size)
    photo_network.normaliser = network.Normaliser(args.image_size, *network.normalisation(args.backbone), args.device)
    if args.weights == "none":
        network.prepare_for_scratch(photo_network)
    return photo_network


class Photos:
    """Every photo as the model sees it in service, and which rows are of the training and the validation split."""

    def __init__(self, data_dir: Path, backbone: str, config: training.TrainingConfig):
        self.data_dir, self.config = data_dir, config
        self.mean, self.std = (list(values) for values in network.normalisation(backbone))
        # A GPU gets bytes, a quarter of what floats are, and network.Normaliser does the rest.
        plain = photo_tensor if config.on_cuda else evaluation_transform(config.image_size, self.mean, self.std)
        self.every = ListingPhotos(data_dir, None, plain)
        self.validation = ListingPhotos(data_dir, "validation", plain)
        table = self.every.table
        self.rows = {name: np.flatnonzero(table["split"] == name) for name in ("train", "validation")}
        for name, rows in self.rows.items():
            if not len(rows):
                raise StageError(
                    f"the {name} split has no photos: give more listings with photos, or dataset.py a --split-column"
                )
        pixels = photos.pixel_digests(data_dir / "images", table["image_id"])
        self._codes = [pd.factorize(column)[0] for column in (table["product_id"], table["cluster"], pixels)]

    def changed_at_random(self) -> training.LabelledPhotos:
        """The training photos for training end to end."""
        scratch = not self.config.pretrained
        changes = training.random_changes(self.config.image_size, self.mean, self.std, scratch, as_bytes=self.config.on_cuda)
        split = ListingPhotos(self.data_dir, "train", v2.Compose([photo_tensor, changes]))
        return labelled(split)

    def coded(self, rows: np.ndarray, features: np.ndarray, mirrored: np.ndarray | None = None) -> training.Photos:
        """Some rows of (N, D) features of every photo, and of the mirrored ones, with their codes."""
        codes = (codes[rows] for codes in self._codes)
        labels = self.every.table["label"].to_numpy()[rows]
        return training.Photos(features[rows], labels, *codes, None if mirrored is None else mirrored[rows])


def labelled(split: ListingPhotos) -> training.LabelledPhotos:
    return training.LabelledPhotos(split, pd.factorize(split.table["product_id"])[0], split.table["label"].to_numpy())


def starting_features(photo_network: network.PhotoNetwork, data: Photos, args: argparse.Namespace) -> list[np.ndarray]:
    """The untrained backbone's features of every photo, and of the mirrored ones when only a head is trained: (N, D) each.

    They stay in data/features/ until photos or weights change, whatever the split: another training of the head takes seconds.
    """
    views = {"plain.npy": data.every}
    if args.finetune == "head":
        mirror = v2.Compose([data.every.transform, functools.partial(torch.flip, dims=(2,))])
        views["mirrored.npy"] = ListingPhotos(args.data, None, mirror)
    image_ids = data.every.table["image_id"].tolist()
    arguments = {
        "backbone": args.backbone,
        "weights": args.weights,
        "seed": args.seed if args.weights == "none" else None,
        "image_size": args.image_size,
        "mirrored": args.finetune == "head",
        "image_ids": hashlib.sha256(json.dumps(image_ids).encode()).hexdigest(),
    }
    with stages.open_stage(args.data, "features", arguments, weights_digest(args.weights)) as stage:
        if not stage.is_done():
            stage.begin()
            features = training.backbone_features(photo_network, list(views.values()), data.config)
            for name, array in zip(views, features, strict=True):
                atomic.write_array(stage.folder / name, array)
            atomic.write_json(stage.folder / "image_ids.json", image_ids, indent=None)
            stage.finish({"photos": len(image_ids), "dimension": photo_network.head.in_features}, [*views, "image_ids.json"])
        return [np.array(reading.read_array(stage.folder / name)) for name in views]


@dataclass(frozen=True)
class Embedding:
    """What retrieves best on validation; figures: of every candidate, by name; features: (N, D) of every photo."""

    name: str
    figures: dict[str, dict]
    features: np.ndarray


def choose_embedding(
    photo_network: network.PhotoNetwork, data: Photos, candidates: dict[str, nn.Module], features: np.ndarray
) -> Embedding:
    """Give the network what finds validation photos best among these and the training photos: test photos choose nothing."""
    rows = np.sort(np.concatenate(list(data.rows.values())))
    queries = np.flatnonzero(np.isin(rows, data.rows["validation"]))
    name, figures = embedding.choose_embedder(candidates, data.coded(rows, features), queries)
    photo_network.embedder = candidates[name]
    return Embedding(name, figures, features)


def train_on_features(
    photo_network: network.PhotoNetwork, data: Photos, features: np.ndarray, mirrored: np.ndarray, record: Callable[..., None]
) -> Embedding:
    """Train the head in place, and embeddings, on the frozen backbone's features of every photo and every mirrored one."""
    train = data.coded(data.rows["train"], features, mirrored)
    torch.manual_seed(data.config.seed)  # whether the features were there already must not matter
    training.train_head(photo_network.head, train, data.coded(data.rows["validation"], features), data.config, record)
    candidates = embedding.train_candidates(train, data.config, len(data.every.classes))
    begin("compare embeddings")
    return choose_embedding(photo_network, data, candidates, features)


def train_end_to_end(
    photo_network: network.PhotoNetwork,
    data: Photos,
    checkpoint: training.Checkpoint,
    ranks: training.Ranks,
    record: Callable[..., None],
) -> None:
    """Train the network in place, its embedder too; on every rank."""
    config = data.config
    torch.manual_seed(config.seed)
    projection = network.Projection(photo_network.head.in_features, config.embedding_size, power=True)
    photo_network.embedder = projection.to(config.device)
    validate = functools.partial(training.validate, held_out=labelled(data.validation), config=config)
    training.fine_tune(photo_network, data.changed_at_random(), validate, config, checkpoint, ranks, record)


def choose_tuned_embedding(photo_network: network.PhotoNetwork, data: Photos, started: np.ndarray) -> Embedding:
    """Of the network after train_end_to_end(); started: (N, D) features of every photo before it."""
    train, size, tuned = data.rows["train"], data.config.embedding_size, photo_network.embedder
    compared = choose_embedding(photo_network, data, embedding.frozen_embedders(started[train], size), started).figures
    (features,) = training.backbone_features(photo_network, [data.every], data.config)
    whitened = embedding.whitening(features[train], size, power=False)
    candidates = {"projection": tuned, "backbone": nn.Identity(), "backbone, whitened": whitened}
    chosen = choose_embedding(photo_network, data, candidates, features)
    return dataclasses.replace(chosen, figures=compared | chosen.figures)


def describe(
    photo_network: network.PhotoNetwork, data: Photos, args: argparse.Namespace, embedding: str
) -> photo_model.Description:
    embedder = photo_network.embedder
    linear = isinstance(embedder, network.Projection)
    return photo_model.Description(
        backbone=args.backbone,
        weights=args.weights if args.weights in ("imagenet", "none") else Path(args.weights).name,
        classes=data.every.classes,
        input_size=data.config.image_size,
        mean=data.mean,
        std=data.std,
        dimension=embedder.linear.out_features if linear else photo_network.head.in_features,
        embedding=embedding,
        projection="none" if not linear else "power" if embedder.power else "linear",
        photo=photos.CleanSettings.from_dict(stages.read_manifest(args.data / "images")["arguments"]).as_dict(),
    )


def save_photo_model(
    photo_network: network.PhotoNetwork, description: photo_model.Description, data: Photos, model_dir: Path
) -> photo_model.Description:
    """Write the network as torch's weights, as ONNX and in 8 bits, and the description, which then tells of the 8 bits."""
    photo_network.cpu().to(memory_format=torch.contiguous_format)
    atomic.write_bytes(model_dir / photo_model.WEIGHTS, safetensors_bytes(photo_network.state_dict()))
    with atomic.atomic_path(model_dir / photo_model.ONNX) as path:
        network.export_onnx(photo_network, description.input_size, path)
    description.save(model_dir)
    tables = [data.every.table.iloc[rows] for rows in data.rows.values()]
    found = int8.export(model_dir, data.data_dir / "images", *tables, data.config.seed)
    description = dataclasses.replace(description, int8=found)
    description.save(model_dir)
    return description


def validation_probabilities(data: Photos, model_dir: Path) -> pd.DataFrame:
    """(P, C) of the validation listings with photos, by product_id: the saved model's, run as the API runs it.

    A listing's are the mean of its photos'.
    """
    served = photo_model.PhotoModel(model_dir, device=data.config.device)

    def probabilities_of(pixels: torch.Tensor) -> torch.Tensor:
        channels_last = pixels.permute(0, 2, 3, 1) if pixels.dtype == torch.uint8 else pixels  # as bytes are served
        return torch.from_numpy(served.run(channels_last.numpy())[1])

    by_photo = training.forward(probabilities_of, training.loader_of(data.validation, data.config), "validation photos")
    return pd.DataFrame(by_photo.numpy()).groupby(data.validation.table["product_id"].to_numpy()).mean()


def export_encoder(source: encoder_export.Source, data_dir: Path, seed: int, model_dir: Path) -> text_encoder.Description:
    """Write the text encoder, its 8 bits checked on listings of no test split."""
    table = listings_with_splits(data_dir)
    return encoder_export.export(model_dir, source, texts(table[table["split"] != "test"]), seed)


def fit_table_models(data: Photos, vectors: np.ndarray, by_photo: pd.DataFrame, model_dir: Path) -> dict[str, dict]:
    """Fit the models of words and prices on the training listings, calibrate them on the validation ones, fit the words' again on
    both, and save them.

    vectors: (N, D) of every photo; by_photo: of validation_probabilities(). Returns figures of the validation listings: of the
    photo, text and fused category models, and of the price.
    """
    table = listings_with_splits(data.data_dir)
    write_learned(table, data.every.classes, model_dir)
    table["text"] = texts(table)
    encoder = text_encoder.TextEncoder.load(model_dir, threads=max(1, data.config.workers))
    vectors_of = pd.DataFrame(vectors).groupby(data.every.table["product_id"].to_numpy()).mean()
    train, validation = (table[table["split"] == name] for name in data.rows)
    meanings = {
        name: None if encoder is None else encoder.encode(part["text"].tolist(), text_encoder.TEXT_TOKENS)
        for name, part in (("train", train), ("validation", validation))
    }

    def evidence(name: str, part: pd.DataFrame) -> price_model.Evidence:
        found = vectors_of.reindex(part["product_id"]).to_numpy(np.float32)  # NaN: no photo
        columns = (part[column].tolist() for column in ("text", "category", "county"))
        return price_model.Evidence(*columns, found, meanings[name])

    classes, seed = data.every.classes, data.config.seed
    taught = [train["text"].tolist(), train["label"].to_numpy(), train["category"].tolist()]
    first = text_model.fit(*taught, by_photo.shape[1], seed, encoder, meanings["train"])
    held_out, labels = validation["text"].tolist(), validation["label"].to_numpy()
    first.calibrate(held_out, labels, meanings["validation"])
    photo = by_photo.reindex(validation["product_id"]).to_numpy(np.float32)
    text = first.category_probabilities(held_out, meanings["validation"])
    first.fit_fusion(photo, text, labels)
    both = pd.concat([train, validation])
    models = first.refit(
        *(both["text"].tolist(), both["label"].to_numpy(), both["category"].tolist(), seed),
        None if encoder is None else np.concatenate(list(meanings.values())),
    )
    models.save(model_dir)
    currency = read_currency(data.data_dir / "tabular")
    usable, clusters = train["price_plausible"].to_numpy(), train["cluster"].to_numpy()
    fitted = evidence("train", train)
    prices = price_model.fit(models, fitted, train["price"].to_numpy(), usable, clusters, seed, currency)
    held_out_prices = validation["price"].to_numpy()
    validated = evidence("validation", validation)
    prices.calibrate(validated, held_out_prices, validation["price_plausible"].to_numpy())
    prices.save(model_dir)
    write_price_ranges(prices, fitted, train["product_id"], model_dir / stages.PRICE_RANGES)
    has_photo = ~np.isnan(photo).any(axis=1)
    quantiles, median = prices.quantiles(validated), train.loc[usable, "price"].median()
    return {
        "photo": metrics.category_report(labels[has_photo], photo[has_photo], classes),
        "text": metrics.category_report(labels, text, classes),
        "fused": metrics.category_report(labels, first.fuse(photo, text), classes),
        "price": metrics.price_report(held_out_prices, quantiles, median, report.measured_prices(data.data_dir, table)),
    }


def write_price_ranges(prices: price_model.PriceModel, fitted: price_model.Evidence, product_ids: pd.Series, path: Path) -> None:
    """What models that had not seen them say of the listings that the price model learned from. product_ids: of each of these."""
    rows, quantiles = prices.unseen_quantiles(fitted)
    table = pd.DataFrame(np.round(10**quantiles, 2), columns=["low", "median", "high"])
    table.insert(0, "product_id", product_ids.to_numpy()[rows])
    atomic.write_csv(path, table.sort_values("product_id"))


def tell(
    figures: dict[str, dict],
    chosen: Embedding,
    description: photo_model.Description,
    encoder: text_encoder.Description,
    model_dir: Path,
    unit: str,
) -> None:
    """What came of it, in six lines that a person reads. unit: what stands before amounts."""
    photo, text, fused, price = (figures[name] for name in ("photo", "text", "fused", "price"))
    found, int8 = chosen.figures[chosen.name], description.int8
    hits = found["same_listing_hit_at_1"]
    lines = [
        f"words {text['accuracy']:.0%}, photos {photo['accuracy']:.0%}, both {fused['accuracy']:.0%} of {text['listings']:,} "
        f"validation listings get the right one of {len(description.classes)} categories "
        f"(photos: of the {photo['listings']:,} with a photo)",
        "price: no validation listing has one to be measured by"
        if not price["listings"]
        else f"price: half of {price['listings']:,} validation listings are told to within "
        f"{unit}{price['median_error']:,.2f} "
        f"(always saying the median price: {unit}{price['median_error_of_median']:,.2f}), "
        f"{price['interval_coverage']:.0%} lie within the 80% range",
        f"embedding: {chosen.name}, {description.dimension} numbers; "
        + ("no listing has a second photo" if hits is None else f"the nearest photo is the listing's own for {hits:.0%}"),
        int8["reason"]
        or f"8 bits are used on CPUs: on {int8['photos']:,} held-out photos the mean cosine to fp32 is {int8['mean_cosine']:.4f}",
        "no text encoder: words tell categories and prices by their letters alone"
        if not encoder.dimension
        else f"text encoder: {encoder.name}, {encoder.dimension} numbers, in {encoder.precision}",
        f"pictures: {model_dir / 'curves.png'}, and those of the test split from evaluate.py, in "
        f"{model_dir.with_name('evaluation')}, once there is an index",
    ]
    print("\n".join(lines), file=sys.stderr)


def main(argv=None) -> int:
    return cli.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
