"""What a new generation of the index takes over of the published one: its engines, updated, where little has changed."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from marketplace.cleaning.listings import category_levels
from marketplace.files import atomic, generations, reading, stages
from marketplace.files.stages import StageError
from marketplace.models.text_encoder import TextEncoder
from marketplace.retrieval import catalogue, forward, milvus, typed, typed_search, words
from marketplace.retrieval import vectors as vector_search
from marketplace.retrieval.entries import Entries
from marketplace.retrieval.filters import deepest
from marketplace.retrieval.keys import RowsByKey

RANKER, REPORT = "ranker.json", "report.json"
READ_ONLY = 0o444


@dataclass(frozen=True)
class BuildSettings:
    """What decides how a generation is built: only one with equal settings is updated.

    kind, recall, max_memory_bytes: of the photo index, as vectors.build() takes them; models: the digest of each file of
    data/model/ that serving needs; own_embeddings: whether the photos' vectors are not the model's; dimension: of those;
    server: where the vectors go, None for files of the generation. What is there is written whole, so nothing is updated.
    """

    kind: str
    recall: float
    max_memory_bytes: int | None
    models: dict[str, str]
    own_embeddings: bool
    dimension: int
    server: milvus.Server | None = None

    @property
    def arguments(self) -> dict:
        elsewhere = {} if self.server is None else {"vectors": self.server.uri}
        return {"kind": self.kind, "recall": self.recall, "max_memory": self.max_memory_bytes, **elsewhere}

    def recorded(self) -> dict:
        """As a report records them."""
        rest = {"own_embeddings": self.own_embeddings, "dimension": self.dimension}
        return {"arguments": self.arguments, "models": self.models, **rest}


@dataclass(frozen=True)
class Published:
    """A generation and its report; where there is none, or one of another version of this program, the report is empty, and
    nothing of it can be used again."""

    folder: Path
    report: dict

    @classmethod
    def read(cls, folder: Path) -> "Published":
        try:
            report = reading.read_json(folder / REPORT)
        except StageError:
            return cls(folder, {})
        return cls(folder, report if report.get("schema") == stages.STAGES["index"].schema else {})

    @classmethod
    def current(cls, index_dir: Path) -> "Published":
        try:
            return cls.read(generations.current_generation(index_dir))
        except StageError:
            return cls(index_dir, {})

    def is_whole(self, *names: str) -> bool:
        """Whether files, or all of them and the vectors that are elsewhere, are those it was published with.

        Raises vectors.Unavailable where that cannot be told of the vectors.
        """
        recorded = self.report.get("files", {})
        wanted = {name: recorded[name] for name in names or recorded}
        try:
            same = bool(wanted) and stages.digests(self.folder, *wanted) == wanted
        except StageError:
            return False
        return same and (bool(names) or milvus.are_there(self.folder))

    def was_built_with(self, settings: BuildSettings) -> bool:
        return self.report.get("settings") == settings.recorded()

    def changes_to(self, folder: Path) -> dict[str, "Changes"]:
        """What changed of each index's rows from this generation to that in `folder`, whose vectors and catalogue are there."""
        found = {}
        for kind in self.report["built_rows"]:
            files = vector_search.FILES[kind]
            before, after = (_Rows.read(own, kind, files) for own in (self.folder, folder))
            found[kind] = before.changes_to(after)
            for vectors in (before.vectors, after.vectors):
                reading.release(vectors)
        return found

    def is_outgrown(self, changes: dict[str, "Changes"], rows: dict[str, int], settings: BuildSettings) -> bool:
        """Whether one of its indexes is too old to be updated (vectors.rebuild_is_due()), or would take more memory than it may.

        rows: of each of the new generation's indexes.
        """
        built_rows, changed = self.report["built_rows"], self.drift_after(changes)
        for kind in changes:
            index = vector_search.read(self.folder / vector_search.FILES[kind].index, mapped=True)
            index_kind = settings.kind if kind == "photos" else "auto"
            if vector_search.rebuild_is_due(index, rows[kind], changed[kind], built_rows[kind], index_kind):
                return True
        grown_bytes = (self.folder / vector_search.FILES["photos"].index).stat().st_size * rows["photos"] / self.report["photos"]
        return settings.max_memory_bytes is not None and grown_bytes > settings.max_memory_bytes

    def drift_after(self, changes: dict[str, "Changes"]) -> dict[str, int]:
        """How many vectors were added and removed since the last full build, the given changes among them."""
        return {kind: self.report["drift"][kind] + changes[kind].size for kind in changes}

    def ranks_alike(self, settings: BuildSettings) -> bool:
        """Whether its ranker was fitted with the same models: new listings alone keep it."""
        recorded = self.report.get("settings", {})
        same = recorded.get("models") == settings.models and recorded.get("own_embeddings") == settings.own_embeddings
        return same and not settings.own_embeddings and self.is_whole(RANKER)

    def ranks_by_fit(self) -> bool:
        """Whether there were listings enough to fit its ranker by."""
        return "queries" in self.report["ranker"]


@dataclass(frozen=True)
class Changes:
    """gone: keys of the published generation's rows that went or changed; came: rows of the new one that came or changed."""

    gone: np.ndarray
    came: np.ndarray

    @property
    def size(self) -> int:
        return len(self.gone) + len(self.came)


@dataclass(frozen=True)
class _Rows:
    """What tells whether a photo or listing is what it was: its vector and, of a listing, the hash of its fields."""

    keys: np.ndarray
    vectors: np.ndarray
    contents: np.ndarray

    @classmethod
    def read(cls, folder: Path, kind: str, files: vector_search.Files) -> "_Rows":
        keys, vectors = (reading.read_array(folder / name) for name in (files.keys, files.vectors))
        contents = reading.read_array(folder / catalogue.CONTENT) if kind == "listings" else np.zeros(len(keys), np.uint64)
        return cls(np.asarray(keys), vectors, np.asarray(contents))

    def changes_to(self, after: "_Rows") -> Changes:
        row_before = RowsByKey(self.keys).rows(after.keys)
        same = row_before >= 0
        for start in range(0, len(same), vector_search.BLOCK_ROWS):
            rows = start + np.flatnonzero(same[start : start + vector_search.BLOCK_ROWS])
            own = row_before[rows]
            same[rows] = (self.vectors[own] == after.vectors[rows]).all(axis=1) & (self.contents[own] == after.contents[rows])
        gone = np.ones(len(self.keys), bool)
        gone[row_before[same]] = False
        return Changes(self.keys[gone], np.flatnonzero(~same))


def write_vectors(data_dir: Path, folder: Path, entries: Entries, settings: BuildSettings) -> None:
    """Write the vectors and their keys, by row.

    Those of the stage before are linked, and read-only from then on: who changed them in place would change the generation too.
    """
    for kind, keys in entries.keys().items():
        atomic.write_array(folder / vector_search.FILES[kind].keys, keys)
    for kind, vectors in entries.indexed().items():
        name = vector_search.FILES[kind].vectors
        if settings.own_embeddings if kind == "photos" else entries.unclaimed:
            atomic.write_array(folder / name, vectors)
        else:
            generations.link(data_dir / "embeddings" / name, folder / name)
            (folder / name).chmod(READ_ONLY)


def write_engines(folder: Path, entries: Entries, settings: BuildSettings) -> None:
    """Write the indexes and the words of a full build; vectors that go to a server, with write_remote()."""
    for kind, vectors in entries.indexed().items() if settings.server is None else ():
        own_limits = (settings.kind, settings.recall, settings.max_memory_bytes)
        limits = own_limits if kind == "photos" else ("auto", settings.recall, None)
        files = vector_search.FILES[kind]
        keys = reading.read_array(folder / files.keys)
        vector_search.write(vector_search.build(vectors, *limits, keys), folder / files.index)
        reading.release(vectors)
    keys = reading.read_array(folder / vector_search.FILES["listings"].keys)
    words.write(folder, *listing_blocks(folder, keys))
    forward.write(folder, catalogue.read_listings(folder))


def write_remote(folder: Path, generation: str, entries: Entries, settings: BuildSettings) -> None:
    """Write the vectors to the server, once the words are there, and where they are."""
    listings, places = catalogue.Catalogue(folder), {}
    for kind, vectors in entries.indexed().items():
        keys = reading.read_array(folder / vector_search.FILES[kind].keys)
        numbers = listings.numbers()
        if kind == "photos":
            numbers = {name: values[listings.listing_of_photo] for name, values in numbers.items()}
        index_kind = "auto" if settings.kind == "auto" or kind != "photos" else settings.kind
        collection = settings.server.collection(generation, kind)
        places[kind] = milvus.write(settings.server, collection, vectors, keys, numbers, index_kind, settings.recall)
        reading.release(vectors)
    milvus.write_places(folder, settings.server, places)


def leave_out_vectors(folder: Path) -> None:
    """Take the files of the vectors away that a server has."""
    for files in vector_search.FILES.values():
        (folder / files.vectors).unlink(missing_ok=True)


def update_engines(published: Path, folder: Path, entries: Entries, changes: dict[str, Changes]) -> None:
    """Write the published generation's indexes and words as the changes make them."""
    for kind, vectors in entries.indexed().items():
        files, came = vector_search.FILES[kind], changes[kind].came
        keys = reading.read_array(folder / files.keys)[came]
        vector_search.update(published / files.index, folder / files.index, changes[kind].gone, vectors[came], keys)
    came = changes["listings"].came
    keys = reading.read_array(folder / vector_search.FILES["listings"].keys)[came]
    words.update(published, folder, changes["listings"].gone, *listing_blocks(folder, keys, came))
    before, after = (reading.read_array(own / vector_search.FILES["listings"].keys) for own in (published, folder))
    row_before = RowsByKey(np.asarray(before)).rows(np.asarray(after))
    row_before[came] = -1
    forward.update(published, folder, row_before, catalogue.read_listings(folder, came))


def write_synonyms(folder: Path, own: Path) -> None:
    """Those that come with the program and, where there are any, the marketplace's own. Raises as typed.Synonyms.read()."""
    paths = [path for path in (typed.SYNONYMS, own) if path.is_file()]
    typed.Synonyms.read(*paths)
    texts = [path.read_text(encoding="utf-8-sig") for path in paths]
    atomic.write_bytes(folder / typed_search.SYNONYMS, "\n".join(texts).encode())


def write_category_vectors(folder: Path, encoder: TextEncoder, published: Path | None) -> None:
    """What each category means: its name with its path, and the texts of its own listings.

    published: a generation of the same encoder, whose categories are not encoded again.
    """
    paths = _paths(folder)
    found: dict[str, np.ndarray] = {}
    if published is not None:
        found |= zip(_paths(published), reading.read_array(published / typed_search.CATEGORY_NAMES), strict=True)
    more = [path for path in paths if path not in found]
    last, whole = (encoder.encode(texts) for texts in ([category_levels(path)[-1] for path in more], more))
    found |= zip(more, vector_search.unit_rows(last + whole), strict=True)
    names = np.array([found[path] for path in paths], np.float32).reshape(len(paths), encoder.dimension)
    atomic.write_array(folder / typed_search.CATEGORY_NAMES, names)
    vectors = reading.read_array(folder / vector_search.FILES["meanings"].vectors)
    path_of = deepest(reading.read_array(folder / "category.npy"))
    sums = np.zeros_like(names)
    for start in range(0, len(vectors), vector_search.BLOCK_ROWS):
        codes = path_of[start : start + vector_search.BLOCK_ROWS]
        filed = np.flatnonzero(codes >= 0)
        chosen = csr_array((np.ones(len(filed), np.float32), (codes[filed], filed)), shape=(len(paths), len(codes)))
        sums += chosen @ np.asarray(vectors[start : start + len(codes)])
    reading.release(vectors)
    atomic.write_array(folder / typed_search.CATEGORY_VECTORS, vector_search.unit_rows(2 * names + vector_search.unit_rows(sums)))


def _paths(folder: Path) -> list[str]:
    """Of each code of a category."""
    return reading.read_json(folder / catalogue.FILTERS)["category"]


def purge(folder: Path) -> None:
    """Write the word index anew: an updated one holds words of listings that are gone, as tantivy's segments never change."""
    shutil.rmtree(folder / words.FOLDER)
    words.write(folder, *listing_blocks(folder, reading.read_array(folder / vector_search.FILES["listings"].keys)))


def listing_blocks(
    folder: Path, keys: np.ndarray, rows: np.ndarray | None = None
) -> tuple[Iterator[pd.DataFrame], Iterator[np.ndarray]]:
    """The catalogue's listings of some rows, or of all, with their keys, in blocks of one size."""
    blocks = (keys[start : start + catalogue.ROWS_AT_A_TIME] for start in range(0, len(keys), catalogue.ROWS_AT_A_TIME))
    return catalogue.read_listings(folder, rows), blocks
