"""How the next generation of an index is made: in full, or as an update of the published one, behind one interface."""

import hashlib
import os
import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from marketplace.files import atomic, generations, reading, stages
from marketplace.files.changes import Rows
from marketplace.files.stages import StageError
from marketplace.retrieval import catalogue
from marketplace.retrieval import vectors as vector_search
from marketplace.retrieval.entries import Entries

UPDATE_QUERIES = 20  # that measure the recall of an update: exact search among all vectors is most of the cost
RANKER, REPORT = "ranker.json", "report.json"


@dataclass(frozen=True)
class BuildSettings:
    """What decides how a generation is built: only one with equal settings is updated.

    kind, recall, max_memory_bytes: of the photo index, as search.build() takes them; models: the digest of each file of
    data/model/ that serving needs; own_embeddings: whether the photos' vectors are not the model's; dimension: of those.
    """

    kind: str
    recall: float
    max_memory_bytes: int | None
    models: dict[str, str]
    own_embeddings: bool
    dimension: int

    @property
    def arguments(self) -> dict:
        return {"kind": self.kind, "recall": self.recall, "max_memory": self.max_memory_bytes}

    def recorded(self) -> dict:
        """As a report records them."""
        rest = {"own_embeddings": self.own_embeddings, "dimension": self.dimension}
        return {"arguments": self.arguments, "models": self.models, **rest}


@dataclass(frozen=True)
class Published:
    """The generation that is published now, and its report; where there is none, or one of another version of this program, the
    report is empty, and nothing of it can be used again."""

    folder: Path
    report: dict

    @classmethod
    def read(cls, index_dir: Path) -> "Published":
        try:
            folder = generations.current_generation(index_dir)
            report = reading.read_json(folder / REPORT)
        except StageError:
            return cls(index_dir, {})
        return cls(folder, report if report.get("schema") == stages.STAGES["index"].schema else {})

    def is_whole(self, *names: str) -> bool:
        """Whether files, or all of them, are those it was published with."""
        recorded = self.report.get("files", {})
        wanted = {name: recorded[name] for name in names or recorded}
        try:
            return bool(wanted) and stages.digests(self.folder, *wanted) == wanted
        except StageError:
            return False

    def was_built_with(self, settings: BuildSettings) -> bool:
        return self.report.get("settings") == settings.recorded()

    def rows_after(self, keys: dict[str, np.ndarray]) -> dict[str, Rows]:
        """The Rows of photos and listings in an update of this generation. keys: of Entries."""
        return {kind: Rows.plan(keys[kind], reading.read_array(self.folder / vector_search.FILES[kind].keys)) for kind in keys}

    def is_outgrown(self, rows: dict[str, Rows], settings: BuildSettings) -> bool:
        """Whether one of its indexes is too old to be updated to these rows (search.rebuild_is_due()), or would take more memory
        than it may."""
        built_rows = self.report["built_rows"]
        for kind, files in vector_search.FILES.items():
            index = vector_search.read(self.folder / files.index, mapped=True)
            index_kind = settings.kind if kind == "photos" else "auto"
            if vector_search.rebuild_is_due(index, rows[kind].total, len(rows[kind].entry_rows), built_rows[kind], index_kind):
                return True
        built_bytes = (self.folder / vector_search.FILES["photos"].index).stat().st_size
        grown_bytes = built_bytes * rows["photos"].total / built_rows["photos"]
        return settings.max_memory_bytes is not None and grown_bytes > settings.max_memory_bytes

    def ranks_alike(self, settings: BuildSettings) -> bool:
        """Whether its ranker was fitted with the same models: new listings alone keep it."""
        recorded = self.report.get("settings", {})
        same = recorded.get("models") == settings.models and recorded.get("own_embeddings") == settings.own_embeddings
        return same and not settings.own_embeddings and self.is_whole(RANKER)

    def ranks_by_fit(self) -> bool:
        """Whether there were listings enough to fit its ranker by."""
        return "queries" in self.report["ranker"]


@dataclass(frozen=True)
class Build(ABC):
    """A generation in the making. rows: of "photos" and "listings" in it; published: the generation it comes after."""

    settings: BuildSettings
    rows: dict[str, Rows]
    published: Published
    recall_queries: ClassVar[int]

    @abstractmethod
    def generation(self, key: str) -> str:
        """The generation's name. key: a digest of all that it is made from."""

    @abstractmethod
    def is_published_as(self, key: str) -> bool:
        """Whether it is there already, published by a run that was killed before it could say so."""

    @abstractmethod
    def write_vectors(self, folder: Path, entries: Entries) -> None:
        """Write the indexes and the vectors."""

    @abstractmethod
    def write_catalogue(self, folder: Path, entries: Entries) -> None: ...

    @abstractmethod
    def keeps_ranker(self, enough: bool) -> bool:
        """Whether the published ranker goes on. enough: whether there are listings enough to fit one."""

    @abstractmethod
    def history(self) -> dict:
        """What the report tells of the generations before: updated, changed_rows, built_rows."""

    @abstractmethod
    def digest(self, path: Path) -> str:
        """The digest of one of the generation's files."""

    def write_keys(self, folder: Path, keys: dict[str, np.ndarray]) -> None:
        """Write what the next update recognises unchanged rows by; 0 for tombstones."""
        for kind, files in vector_search.FILES.items():
            atomic.write_array(folder / files.keys, self.rows[kind].spread(keys[kind], 0))

    def copy_ranker(self, folder: Path) -> dict:
        """Copy the published ranker; returns what it was chosen by."""
        shutil.copy2(self.published.folder / RANKER, folder / RANKER)
        return self.published.report["ranker"]

    def digests(self, folder: Path) -> dict[str, str]:
        """The digest of each file that is in the generation's folder by now."""
        return {path.name: self.digest(path) for path in sorted(folder.iterdir())}


class FullBuild(Build):
    """Everything is written anew: row i is entry i."""

    recall_queries = vector_search.RECALL_QUERIES

    def generation(self, key: str) -> str:
        return key[:12]

    def is_published_as(self, key: str) -> bool:
        return False

    def write_vectors(self, folder: Path, entries: Entries) -> None:
        own = self.settings
        vector_search.write(folder, vector_search.FILES["photos"], entries.vectors, own.kind, own.recall, own.max_memory_bytes)
        vector_search.write(folder, vector_search.FILES["listings"], entries.all_text_vectors(), "auto", own.recall)

    def write_catalogue(self, folder: Path, entries: Entries) -> None:
        added = entries.listings_at(np.arange(len(entries.duplicates)))
        catalogue.write(folder, added, entries.image_ids, entries.owners, entries.duplicates)

    def keeps_ranker(self, enough: bool) -> bool:
        return self.published.ranks_alike(self.settings) and (self.published.ranks_by_fit() or not enough)

    def history(self) -> dict:
        built_rows = {kind: rows.total for kind, rows in self.rows.items()}
        return {"updated": None, "changed_rows": None, "built_rows": built_rows}

    def digest(self, path: Path) -> str:
        return stages.digest(path)


class Update(Build):
    """What did not change keeps its row and its files, which are linked; what came, or changed, is written beside them."""

    recall_queries = UPDATE_QUERIES

    def generation(self, key: str) -> str:
        return hashlib.sha256(f"{key} {self.published.folder.name}".encode()).hexdigest()[:12]

    def is_published_as(self, key: str) -> bool:
        return self.published.report["key"] == key

    def write_vectors(self, folder: Path, entries: Entries) -> None:
        photos, listings = self.rows["photos"], self.rows["listings"]
        added = {"photos": entries.vectors[photos.added], "listings": entries.text_vectors_at(listings.added)}
        for kind, files in vector_search.FILES.items():
            vector_search.write_added(self.published.folder, folder, files, added[kind], self.rows[kind].before)

    def write_catalogue(self, folder: Path, entries: Entries) -> None:
        catalogue.write_added(
            self.published.folder,
            folder,
            entries.listings_at(self.rows["listings"].added),
            entries.image_ids_at(self.rows["photos"].added),
            entries.owners,
            entries.duplicates,
            self.rows["listings"],
            self.rows["photos"],
        )

    def keeps_ranker(self, enough: bool) -> bool:
        return self.published.ranks_alike(self.settings)

    def history(self) -> dict:
        return {
            "updated": self.published.folder.name,
            "changed_rows": {kind: len(rows.added) + len(rows.removed) for kind, rows in self.rows.items()},
            "built_rows": self.published.report["built_rows"],
        }

    def digest(self, path: Path) -> str:
        """Of a file that is linked from the generation before, the digest that was published with it."""
        recorded = self.published.report["files"]
        is_linked = path.name in recorded and os.path.samefile(path, self.published.folder / path.name)
        return recorded[path.name] if is_linked else stages.digest(path)


def plan(published: Published, settings: BuildSettings, keys: dict[str, np.ndarray], full: bool = False) -> Build:
    """An update of the published generation, unless a full build is asked for or due.

    A full build is due when models or flags have changed, when the indexes have been outgrown, or when any of the published files
    is damaged: what an update copies, links or extends is published anew.
    """
    if not full and published.was_built_with(settings) and published.is_whole():
        rows = published.rows_after(keys)
        if not published.is_outgrown(rows, settings):
            return Update(settings, rows, published)
    return FullBuild(settings, {kind: Rows.all_new(len(values)) for kind, values in keys.items()}, published)
