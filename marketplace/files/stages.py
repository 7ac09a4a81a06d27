"""The stages of the pipeline: who reads and writes what, one run of one of them, and the failures that a user can mend."""

import contextlib
import datetime
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from marketplace.files import atomic, disk, locks

MANIFEST = "manifest.json"
FLAGS = ".flags.json"  # of the last run that began, in the stage's folder: it outlives a failed one, as a manifest does not


class StageError(Exception):
    """A failure whose message is one sentence for the user: what, where, and what to do or run."""


# The contract between the stages.


@dataclass(frozen=True)
class Reads:
    """What a stage reads of another one.

    files: those whose content decides whether the reader has to run again. made_from: of what the other stage read, below
    --data, the files that must be the same still; None: all of them. optional: more files, where the other stage wrote them.
    """

    stage: str
    files: tuple[str, ...]
    made_from: tuple[str, ...] | None = None
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contract:
    """One stage: the script that runs it, what that reads and writes, in words for the table of the docs too.

    raw: flags of inputs from outside, and what they are; writes: the files of the stage's folder, "<...>" for many of a kind.
    schema: raised when the files change their meaning: then the stage runs again, and later ones where its files differ.
    """

    script: str
    does: str
    raw: dict[str, str]
    reads: tuple[Reads, ...]
    writes: tuple[str, ...]
    schema: int


PHOTO_MODEL = ("image_model.json", "image_model.safetensors", "image_model.onnx", "image_model.int8.onnx")
TABLE_MODELS = (
    *("table_models.json", "table_models.safetensors", "price_model.json", "price_model.safetensors"),
    "text_encoder.json",
)
PRICE_RANGES = "price_ranges.csv"  # of the listings that the price model learned from, by models that had not seen them
TEXT_ENCODER = ("text_encoder.onnx", "tokenizer.json")  # where there is one: text_encoder.json tells
LEARNED = "listings.csv"  # label and split of every listing at the training
EMBEDDED = ("image_ids.json", "vectors.npy", "probabilities.npy", "text_vectors.npy")
ENCODED = ("name_vectors.npy", "meaning_vectors.npy")  # by the text encoder
KEPT_ROWS = tuple(f"{kind}-<number>.npy" for kind in ("photos", "texts", "names", "meanings"))

STAGES = {  # folder below --data -> its stage, in the order in which they run
    "tabular": Contract(
        "clean_tabular_data.py",
        "recognises the records, rejects what is incomplete, redacts, labels",
        {"--products": "the export's Products.csv", "--images-csv": "its Images.csv"},
        (),
        ("products.csv", "images.csv", "labels.json", "rejected.csv", "report.json"),
        schema=7,
    ),
    "images": Contract(
        "clean_images.py",
        "makes every photo an upright sRGB square, and copies to look at, or says why not",
        {"--photos": "a folder, a zip or s3://"},
        (Reads("tabular", ("images.csv",)),),
        (
            *("<image_id>.jpg", "photos.csv", "display/<image_id>.jpg", "card/<image_id>.jpg", "display.csv"),
            *("shards/<number>.tar", "shards.sqlite"),
        ),
        schema=8,
    ),
    "dataset": Contract(
        "dataset.py",
        "clusters what belongs together, and splits the clusters",
        {},
        (Reads("tabular", ("products.csv", "images.csv", "labels.json")), Reads("images", ("photos.csv",))),
        ("settings.json", "listings.csv", "training_data.csv", "preview.png", "report.json"),
        schema=7,
    ),
    "features": Contract(
        "train.py",
        "the untrained backbone's features of every photo, kept for the next training",
        {"--weights": "a checkpoint of your own"},
        (Reads("images", ("photos.csv",)),),
        ("plain.npy", "mirrored.npy", "image_ids.json"),
        schema=6,
    ),
    "model": Contract(
        "train.py",
        "trains the photo model and the models of the table, and exports the text encoder",
        {"--weights": "a checkpoint of your own", "--text-encoder": "a sentence encoder of your own"},
        (
            Reads("tabular", ("products.csv", "labels.json")),
            Reads("images", ("photos.csv",)),
            Reads("dataset", ("settings.json", "listings.csv", "training_data.csv")),
        ),
        (*PHOTO_MODEL, *TABLE_MODELS, *TEXT_ENCODER, LEARNED, PRICE_RANGES, "metrics.json", "curves.png"),
        schema=9,
    ),
    "embeddings": Contract(
        "extract_embeddings.py",
        "turns every photo and every listing's text into a vector",
        {},
        (
            Reads("tabular", ("products.csv",)),
            Reads("images", ("photos.csv",)),
            Reads("dataset", ("training_data.csv",)),
            # Listings, and the last of a category, may come and go without a new training; another split asks for one.
            Reads("model", (*PHOTO_MODEL, *TABLE_MODELS), made_from=("dataset/settings.json",), optional=TEXT_ENCODER),
        ),
        ("image_embeddings.json", *EMBEDDED, *ENCODED, *KEPT_ROWS),
        schema=7,
    ),
    "index": Contract(
        "build_index.py",
        "builds or updates what the API serves, and publishes it",
        {"--embeddings": "photo vectors of your own"},
        (
            Reads("tabular", ("products.csv", "rejected.csv")),
            Reads("images", ("photos.csv",), made_from=(), optional=("display.csv",)),
            Reads("dataset", ("listings.csv", "training_data.csv")),
            Reads("model", (*PHOTO_MODEL, *TABLE_MODELS, PRICE_RANGES), made_from=(), optional=TEXT_ENCODER),
            Reads("embeddings", EMBEDDED, optional=ENCODED),
        ),
        ("current.json", "<generation>/"),
        schema=12,
    ),
    "evaluation": Contract(
        "evaluate.py",
        "measures the published index and its models on the test split",
        {"--queries": "what your shoppers type"},
        (
            Reads("tabular", ("products.csv",)),
            Reads("images", ("photos.csv",)),
            Reads("dataset", ("listings.csv", "training_data.csv")),
            Reads("features", ("image_ids.json", "plain.npy"), made_from=()),
            Reads("model", (), made_from=("tabular/labels.json",)),  # the numbers of its labels are compared with the listings'
            Reads("embeddings", ("image_ids.json", "vectors.npy", "probabilities.npy")),
            Reads("index", ("current.json",)),
        ),
        ("report.md", "report.json", "gallery.png", "confusion.png", "hardest.png", "listings.csv", "questions.csv"),
        schema=7,
    ),
}


def remedy(folder: Path) -> str:
    """What to do about a missing or damaged file of a folder, as the end of a sentence."""
    above = [folder, *folder.parents][:3]  # a generation, and a folder in it, stand below their stage's folder
    contract = next((STAGES[path.name] for path in above if path.name in STAGES), None)
    return f"run python {contract.script} first" if contract else "check the path"


_kept: dict[tuple[int, ...], str] | None = None  # while keep_digests(): identity of a file -> its digest
SETTLED_NS = 100_000_000  # a file that has not changed for so long has another time when it does: clocks tick a hundred times a s


@contextlib.contextmanager
def keep_digests() -> Iterator[None]:
    """Digest no file twice that is the same by size, inode and times: for a process that runs several stages."""
    global _kept
    _kept = {}
    try:
        yield
    finally:
        _kept = None


def digest(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal; StageError when there is no such file."""
    try:
        with open(path, "rb") as file:
            status = os.stat(file.fileno())
            identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if _kept is not None and identity in _kept:
                return _kept[identity]
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if _kept is not None and time.time_ns() - status.st_ctime_ns > SETTLED_NS:
                _kept[identity] = found
            return found
    except (FileNotFoundError, IsADirectoryError):
        raise StageError(f"{path} is missing: {remedy(Path(path).parent)}") from None


def digests(folder: Path, *names: str) -> dict[str, str]:
    """name -> digest of files of a folder, on all cores."""
    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter to others
        return dict(zip(names, pool.map(lambda name: digest(folder / name), names), strict=True))


# Manifests: no manifest, not finished.


def read_manifest(folder: Path) -> dict:
    """The manifest of a finished stage; StageError names the command to run when there is none, or one of another version."""
    folder = Path(folder)
    manifest = _whole_manifest(folder)
    if not manifest:
        raise StageError(f"{folder} is not finished: {remedy(folder)}")
    contract = STAGES[folder.name]
    if manifest["schema"] != contract.schema:
        raise StageError(f"{folder} was written by another version of this program: run python {contract.script} again")
    return manifest


def _whole_manifest(folder: Path) -> dict | None:
    """The folder's manifest, None when it is missing, damaged or lacks what finish() writes."""
    try:
        manifest = orjson.loads((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    kinds = {"schema": int, "arguments": dict, "inputs": dict, "outputs": dict, "counts": dict}
    is_whole = isinstance(manifest, dict) and all(isinstance(manifest.get(key), kind) for key, kind in kinds.items())
    return manifest if is_whole else None


@contextlib.contextmanager
def open_stage(
    data_dir: Path,
    name: str,
    arguments: Mapping,
    raw: Mapping[str, str] | None = None,
    locked: bool = True,
    reads: tuple[Reads, ...] | None = None,
    flags: Mapping | None = None,
) -> Iterator["Stage"]:
    """One run of a stage, from its checks to its end; nobody else writes its folder, or one that it reads, meanwhile.

    arguments: JSON values that decide what is written. raw: flag -> digest of an input from outside. locked: False for a process
    whose sibling holds the locks for both, as rank 0 does under torchrun. reads: what this run reads of other stages (default:
    all that the table of stages says). flags: of the command line, from cli.flags_of(), kept for last_flags().
    Raises StageError when a stage that this one reads is unfinished, damaged or out of date, or another run is at work.
    """
    data_dir, reads = Path(data_dir), STAGES[name].reads if reads is None else reads
    with contextlib.ExitStack() as stack:
        # Shared locks first: a stage that is at work has taken its manifest away, and "run it first" would be the wrong advice.
        for other in reads:
            if locked and (data_dir / other.stage).is_dir():
                _lock(stack, data_dir, other.stage, name)
            read_manifest(data_dir / other.stage)  # before a folder is made below a mistyped --data
        if locked:
            _make_folder(data_dir / name)
            _lock(stack, data_dir, name, name)
        stage = Stage(data_dir, name, dict(arguments), dict(raw or {}), dict(flags) if flags is not None and locked else None)
        for other in reads:
            stage.take(other)
        with disk.writing(stage.folder):
            yield stage


def last_flags(data_dir: Path, name: str) -> list[str]:
    """The flags that a stage's script last ran with, for its command line; StageError where it never did."""
    path = data_dir / name / FLAGS
    try:
        flags = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        run = f"run python {STAGES[name].script} first, with the flags that it shall have every time"
        raise StageError(f"{path.parent} does not say how it was made: {run}") from None
    return [f"--{flag}" if value is True else f"--{flag}={value}" for flag, value in flags.items()]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, FileExistsError, NotADirectoryError):
        raise StageError(f"the folder {folder} cannot be made: give another --data") from None


def _lock(stack: contextlib.ExitStack, data_dir: Path, locked: str, name: str) -> None:
    """Lock a folder for a run of the stage `name`: its own to write, another one to read."""
    folder = data_dir / locked
    try:
        stack.enter_context(locks.hold(folder, exclusive=locked == name))
    except locks.Locked:
        what = f"another run is at work in {folder}" if locked == name else f"python {STAGES[locked].script} is writing {folder}"
        raise StageError(f"{what}: wait for its end, then run python {STAGES[name].script} again") from None


def check(data_dir: Path, name: str, made_from: Iterable[str] | None = None, digest_of: Callable[[Path], str] = digest) -> dict:
    """The manifest of a finished stage whose inputs below `data_dir` (all, or those of `made_from`) are still what it read.

    StageError names the command to run when one of them has changed since.
    """
    manifest = read_manifest(data_dir / name)
    for path, recorded in manifest["inputs"].items():
        must_be_same = path in made_from if made_from is not None else not path.startswith("--")
        if must_be_same and digest_of(data_dir / path) != recorded:
            raise StageError(f"{data_dir / name} was made from another {path}: run python {STAGES[name].script} again")
    return manifest


@dataclass
class Stage:
    """One run of one stage, from open_stage(): what would make another run of it the same run.

    inputs: path below --data, or flag, -> digest of what is read. flags: what last_flags() shall give after this run began, or
    found that nothing is to be done; None for a run that keeps none.
    """

    data_dir: Path
    name: str
    arguments: dict
    inputs: dict[str, str]
    flags: dict | None = None
    started_s: float = field(default_factory=time.time)
    _digests: dict[Path, str] = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> Path:
        return self.data_dir / self.name

    def digest(self, path: Path) -> str:
        """digest(), once a run: what is read stays as it is meanwhile, which the locks see to."""
        if path not in self._digests:
            self._digests[path] = digest(path)
        return self._digests[path]

    def take(self, reads: Reads) -> None:
        """Check what another stage wrote, and count it among the inputs."""
        wrote = check(self.data_dir, reads.stage, reads.made_from, self.digest)["outputs"]
        for name in (*reads.files, *(name for name in reads.optional if name in wrote)):
            path = self.data_dir / reads.stage / name
            if self.digest(path) != wrote.get(name):
                raise StageError(f"{path} has been changed: run python {STAGES[reads.stage].script} again")
            self.inputs[f"{reads.stage}/{name}"] = wrote[name]

    def is_done(self) -> bool:
        """Whether an earlier run with the same inputs and arguments ended, and its files are what it wrote, to the byte."""
        manifest = _whole_manifest(self.folder)
        wanted = {"schema": STAGES[self.name].schema, "arguments": self.arguments, "inputs": self.inputs}
        if not manifest or any(manifest[key] != json.loads(json.dumps(value)) for key, value in wanted.items()):
            return False
        try:
            return digests(self.folder, *manifest["outputs"]) == manifest["outputs"]
        except StageError:
            return False

    def whole_manifest(self) -> dict | None:
        """The manifest of the last run, None where it did not end."""
        return _whole_manifest(self.folder)

    def summary(self) -> dict:
        """Of the earlier run, when is_done()."""
        self._keep_flags()
        return {"stage": self.name, **read_manifest(self.folder)["counts"], "unchanged": True}

    def begin(self) -> None:
        """Take the manifest away, and what a killed run left half-written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.unfinish()
        atomic.remove_leftovers(self.folder)
        self._keep_flags()

    def _keep_flags(self) -> None:
        path, content = self.folder / FLAGS, json.dumps(self.flags).encode()
        if self.flags is not None and not (path.exists() and path.read_bytes() == content):
            atomic.write_bytes(path, content)

    def unfinish(self) -> None:
        (self.folder / MANIFEST).unlink(missing_ok=True)

    def finish(self, counts: Mapping, outputs: Iterable[str] | None = None, digested: Mapping[str, str] | None = None) -> dict:
        """Write the manifest, which makes the stage finished, and return its summary.

        counts: JSON values to record and print; outputs: the files that this run wrote, or found to be right (default: all that
        the table of stages names one by one); digested: more of them, with digests that this run has taken already.
        """
        if outputs is None:
            outputs = [name for name in STAGES[self.name].writes if "<" not in name]
        seconds = round(time.time() - self.started_s, 2)
        manifest = {
            "stage": self.name,
            "schema": STAGES[self.name].schema,
            "arguments": self.arguments,
            "inputs": self.inputs,
            "outputs": digests(self.folder, *outputs) | dict(digested or {}),
            "counts": dict(counts),
            "started": datetime.datetime.fromtimestamp(self.started_s, datetime.UTC).isoformat(),
            "seconds": seconds,
        }
        atomic.write_json(self.folder / MANIFEST, manifest)
        return {"stage": self.name, **counts, "seconds": seconds}
