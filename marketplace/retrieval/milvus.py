"""Vectors in Milvus, where they outgrow one machine: a collection of its own for each index of a generation.

Nothing of this is imported, nor is pymilvus needed, while the vectors are in the generations' files.
"""

import argparse
import contextlib
import functools
import logging
import os
import re
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from marketplace.files import atomic, generations, reading
from marketplace.files.progress import progress
from marketplace.files.stages import StageError
from marketplace.retrieval.filters import Conditions, Passing
from marketplace.retrieval.keys import RowsByKey
from marketplace.retrieval.vectors import (
    FILES,
    FLAT_ROWS,
    MISSES,
    RECALL_QUERIES,
    Unavailable,
    VectorIndex,
    Vectors,
    checked,
    exact_neighbours,
    recall_of,
    unit,
)

if TYPE_CHECKING:
    from pymilvus import MilvusClient

PLACE = "vectors.json"  # of a generation whose vectors are in Milvus: where
TOKEN_VARIABLE = "MILVUS_TOKEN"
URI = re.compile(
    r"milvus(?P<tls>\+tls)?://(?P<host>[\w.-]+|\[[\da-fA-F:]+\])(:(?P<port>\d{1,5}))?(/(?P<name>[A-Za-z]\w{0,63}))?/?"
)
PORT, NAME = 19530, "marketplace"
LINKS, BREADTH = 16, 200  # of HNSW: neighbours of a vector in its graph, M, and what they are chosen from, efConstruction
BREADTHS = (64, 128, 256, 512, 1024, 2048, 4096)  # of its search, ef: the first that finds enough is taken
LARGEST_BREADTH = 32_768  # that Milvus takes
LEAST_SHARE = 0.07  # of the vectors: where fewer pass Milvus looks at each of them
MOST_FOUND = 16_384  # by one search, as Milvus has it
FEW = 1000  # rows that pass by no condition which Milvus knows: so few are named to it one by one
BLOCK_BYTES = 2**23  # of the vectors in one message, of which Milvus takes 64 MB
ASK_S, READY_S, LOAD_S = 5, 2, 600  # until a call is given up, which pymilvus repeats until then; the last reads or writes much
POLL_S = 0.2  # between two looks at an index that is being built

log = logging.getLogger("marketplace")


@dataclass(frozen=True)
class Server:
    """A Milvus server, or the proxy of several. uri: as a user gives it; address: as pymilvus takes it; name: what the names of
    its collections for one data folder begin with."""

    uri: str
    address: str
    name: str = NAME

    @classmethod
    def parse(cls, uri: str) -> "Server":
        """ValueError where it is not milvus://host, with a port, a name, and +tls, or without."""
        found = URI.fullmatch(uri)
        if not found or int(found["port"] or PORT) > 65535:
            raise ValueError(
                f"{uri!r} is not of the form milvus://host:port or milvus://host:port/name; a token goes into {TOKEN_VARIABLE}"
            )
        scheme = "https" if found["tls"] else "http"
        return cls(uri, f"{scheme}://{found['host']}:{found['port'] or PORT}", found["name"] or NAME)

    def client(self) -> "MilvusClient":
        """One a process, for all of its threads. Raises StageError without pymilvus, and Unavailable."""
        try:
            import pymilvus  # noqa: F401
        except ImportError:
            raise StageError(f"{self.uri} needs pymilvus: run pip install -r requirements-milvus.txt") from None
        with self.asked():
            return _connected(self.address)

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Raises Unavailable in place of what pymilvus and gRPC raise."""
        import grpc
        from pymilvus import MilvusException

        try:
            yield
        except (MilvusException, grpc.RpcError) as error:
            reason = " ".join(str(getattr(error, "message", None) or error).split())[:200]
            raise Unavailable(f"Milvus at {self.uri} fails ({reason}): see that it runs, or give another --vectors") from None

    def collection(self, generation: str, kind: str) -> str:
        """The name of a generation's collection; kind: of FILES."""
        return f"{self.name}_{generation.replace('-', '_')}_{kind}"

    def alias(self, kind: str) -> str:
        """The name by which others find the collection of the generation that was published last."""
        return f"{self.name}_{kind}"

    def collections(self) -> list[str]:
        """The names of all collections of the data folder."""
        pattern = re.compile(rf"{self.name}_[0-9a-f]{{12}}(_\d+)?_({'|'.join(FILES)})")
        with self.asked():
            return sorted(filter(pattern.fullmatch, self.client().list_collections(timeout=ASK_S)))


def uri(text: str) -> str:
    """What Server.parse() takes, for argparse."""
    try:
        Server.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


@functools.cache
def _connected(address: str) -> "MilvusClient":
    from pymilvus import MilvusClient

    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it would log with a traceback what Unavailable says in a sentence
    return MilvusClient(address, token=os.environ.get(TOKEN_VARIABLE, ""), timeout=ASK_S)


@dataclass(frozen=True)
class Place:
    """Where the vectors of one index are. breadth: of a search, 0 for one that looks at all vectors."""

    collection: str
    rows: int
    dimension: int
    breadth: int


def write(
    server: Server,
    collection: str,
    vectors: np.ndarray,
    keys: np.ndarray,
    numbers: Mapping[str, np.ndarray],
    kind: str = "auto",
    recall: float = 0.95,
) -> Place:
    """Make a collection, in place of one of the same name, of (N, D) float32 unit rows, their keys (N,) and, to filter by, the
    Catalogue.numbers() of each one's listing, (N,) each. Raises Unavailable.

    kind: flat looks at all vectors; hnsw as far into its graph as reaches `recall`@10 on the vectors themselves; auto takes flat
    up to 20,000 rows.
    """
    import pymilvus

    client, (rows, dimension) = server.client(), vectors.shape
    is_flat = kind == "flat" or kind == "auto" and rows <= FLAT_ROWS
    with server.asked():
        if client.has_collection(collection, timeout=ASK_S):
            client.drop_collection(collection, timeout=ASK_S)
        schema = client.create_schema(auto_id=False)
        schema.add_field("key", pymilvus.DataType.INT64, is_primary=True)
        schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=dimension)
        for name, values in numbers.items():
            field_type = {"f": pymilvus.DataType.FLOAT, "i": pymilvus.DataType.INT64}[values.dtype.kind]
            schema.add_field(name, field_type)
        # Nothing is added once it is searched: no search has to wait for what was.
        client.create_collection(collection, schema=schema, consistency_level="Eventually", timeout=ASK_S)
        each = max(1, BLOCK_BYTES // (4 * dimension))
        for start in progress(range(0, rows, each), f"vectors to {server.uri}", "block"):
            block = slice(start, start + each)
            columns = {"key": keys[block].tolist()} | {name: values[block].tolist() for name, values in numbers.items()}
            fields = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            entities = [own | {"vector": vector} for own, vector in zip(fields, np.asarray(vectors[block]), strict=True)]
            client.insert(collection, entities, timeout=LOAD_S)
        # In this order: what is loaded before it is flushed and indexed goes on being searched without its index, or not at all.
        client.flush(collection, timeout=LOAD_S)
        index = client.prepare_index_params()
        settings = {} if is_flat else {"M": LINKS, "efConstruction": BREADTH}
        index.add_index("vector", index_type="FLAT" if is_flat else "HNSW", metric_type="IP", params=settings)
        client.create_index(collection, index, timeout=LOAD_S, sync=False)
        while (state := client.describe_index(collection, "vector", timeout=ASK_S)["state"]) != "Finished":
            if state == "Failed":
                raise Unavailable(f"Milvus at {server.uri} could not index {collection}: see its log, and run this again")
            time.sleep(POLL_S)  # minutes, or hours
        client.load_collection(collection, timeout=LOAD_S)
    place = Place(collection, rows, dimension, 0)
    if is_flat or rows < 2:
        MilvusIndex(server, place, keys)
        return place
    return _tuned(server, place, vectors, keys, recall)


def _tuned(server: Server, place: Place, vectors: np.ndarray, keys: np.ndarray, recall: float) -> Place:
    """With the least of BREADTHS that reaches the recall, and a little more, or the greatest."""
    exact, wanted = exact_neighbours(vectors, RECALL_QUERIES), 1 - MISSES * (1 - recall)
    for breadth in BREADTHS:
        place = Place(place.collection, place.rows, place.dimension, breadth)
        if recall_of(MilvusIndex(server, place, keys), vectors, *exact) >= wanted:
            break
    return place


class MilvusIndex(Vectors):
    """A collection that write() made. Every call may raise Unavailable."""

    is_remote = True

    def __init__(self, server: Server, place: Place, keys: np.ndarray):
        """keys: (N,) int64, by row. Raises StageError where the collection is not of so many vectors of that size."""
        self.rows, self.dimension = place.rows, place.dimension
        self._server, self._place, self._keys = server, place, np.asarray(keys)
        self._client, self._rows_by_key = server.client(), RowsByKey(self._keys)
        found = counted(server, place.collection)
        if found != (len(keys), place.dimension) or len(keys) != place.rows:
            held = "is not there" if found is None else f"holds {found[0]} vectors of {found[1]}"
            raise StageError(
                f"{place.collection} in {server.uri} {held}, and the generation has {len(keys)} of {place.dimension}: "
                "run python build_index.py --full"
            )

    def describe(self) -> dict:
        return {"kind": "HNSW" if self._place.breadth else "FLAT", "ef": self._place.breadth or None}

    def check(self) -> None:
        with self._server.asked():
            state = self._client.get_load_state(self._place.collection, timeout=READY_S)
        if str(state["state"]) != "Loaded":
            raise Unavailable(f"{self._place.collection} in {self._server.uri} is not loaded")

    def nearest(
        self, query: np.ndarray, k: int, passing: Passing | None = None, lists: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As Vectors.nearest(); where more than MOST_FOUND rows may be found, no more than those."""
        query = unit(query, self.dimension)
        passing = None if passing is None else Passing(checked(passing, self.rows), passing.conditions)
        rows, cosines = self._near(query, k, passing)
        best = np.lexsort((rows, -cosines))[:k]
        return rows[best], cosines[best]

    def _near(self, query: np.ndarray, k: int, passing: Passing | None) -> tuple[np.ndarray, np.ndarray]:
        """Candidates for the k nearest rows, and their cosines: what Milvus finds by the conditions that it knows and that passes
        here, more of it where too little does; and all rows that pass where it finds too few of them."""
        there = self.rows if passing is None else int(np.count_nonzero(passing.rows))
        wanted, expression = min(k, there), "" if passing is None else expression_of(passing.conditions())
        if not wanted:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        share = there / self.rows
        depth = wanted if expression else int(1.2 * wanted / share) + 1
        looks = expression or there == self.rows or there > FEW
        while looks:
            depth = min(depth, self.rows, MOST_FOUND)
            rows, cosines = self._search(query, depth, expression, share if expression else 1)
            found = len(rows)
            if passing is not None:
                passes = passing.rows[rows]
                rows, cosines = rows[passes], cosines[passes]
            if len(rows) >= wanted:
                return rows, cosines
            looks, depth = depth == found < min(self.rows, MOST_FOUND), 4 * depth
        if there > MOST_FOUND:
            return rows, cosines
        rows = np.arange(self.rows) if passing is None else np.flatnonzero(passing.rows)
        return rows, self.cosines(query, rows)

    def cosines(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """As Vectors.cosines(); Milvus takes the products, of all that it finds by their keys."""
        distinct, place_of_row = np.unique(rows, return_inverse=True)
        products = np.full(len(distinct), np.nan, np.float32)
        for start in range(0, len(distinct), MOST_FOUND):
            keys = self._keys[distinct[start : start + MOST_FOUND]]
            found, cosines = self._search(query, len(keys), _any_of("key", keys), LEAST_SHARE)
            products[np.searchsorted(distinct, found)] = cosines
        missed = np.flatnonzero(np.isnan(products))
        if len(missed):
            products[missed] = self.vectors_of(distinct[missed]) @ query
        return products[place_of_row]

    def vectors_of(self, rows: np.ndarray) -> np.ndarray:
        distinct, place_of_row = np.unique(rows, return_inverse=True)
        vectors, found = np.empty((len(distinct), self.dimension), np.float32), 0
        each = max(1, BLOCK_BYTES // (4 * self.dimension))
        for start in range(0, len(distinct), each):
            keys = self._keys[distinct[start : start + each]].tolist()
            with self._server.asked():
                records = self._client.get(self._place.collection, keys, ["key", "vector"], timeout=ASK_S)
            own = self._rows_of([record["key"] for record in records])
            if len(own):
                vectors[np.searchsorted(distinct, own)] = np.array([record["vector"] for record in records], np.float32)
            found += len(own)
        if found != len(distinct):
            raise self._foreign()
        return vectors[place_of_row]

    def _search(self, query: np.ndarray, limit: int, expression: str, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Rows and cosines of what is nearest. share: of the vectors that the expression leaves: the fewer they are, the further
        one has to look for as many."""
        breadth = min(max(limit, int(self._place.breadth / max(share, LEAST_SHARE))), LARGEST_BREADTH)
        with self._server.asked():
            (hits,) = self._client.search(
                self._place.collection,
                data=[query],
                limit=int(limit),
                filter=expression,
                output_fields=[],
                anns_field="vector",
                search_params={"metric_type": "IP", "params": {"ef": breadth} if self._place.breadth else {}},
                consistency_level="Eventually",
                timeout=ASK_S,
            )
        return self._rows_of(hits.ids), np.array(hits.distances, np.float32)

    def _rows_of(self, keys: list[int]) -> np.ndarray:
        rows = self._rows_by_key.rows(np.array(keys, np.int64))
        if (rows < 0).any():
            raise self._foreign()
        return rows

    def _foreign(self) -> StageError:
        return StageError(
            f"{self._place.collection} in {self._server.uri} holds other vectors than it was made with: "
            "run python build_index.py --full"
        )


def expression_of(conditions: Conditions) -> str:
    """As Milvus takes it; empty for no condition."""
    terms = [
        _any_of(column, codes)
        for column, codes in (("category", conditions.categories), ("place", conditions.places))
        if codes is not None
    ]
    if conditions.min_price is not None or conditions.max_price is not None:
        terms.append(f"price >= {max(conditions.min_price or 0.0, 0.0)!r}")
    if conditions.max_price is not None:
        terms.append(f"price <= {conditions.max_price!r}")
    if len(conditions.hidden):
        terms.append(f"not ({_any_of('listing', conditions.hidden)})")
    return " and ".join(terms)


def _any_of(column: str, values: np.ndarray) -> str:
    return f"{column} in {values.tolist()}"


def counted(server: Server, collection: str) -> tuple[int, int] | None:
    """How many vectors a collection, which is loaded then, holds, and of what dimension; None where there is none. Raises
    Unavailable."""
    client = server.client()
    with server.asked():
        if not client.has_collection(collection, timeout=ASK_S):
            return None
        fields = client.describe_collection(collection, timeout=ASK_S)["fields"]
        dimension = next((int(field["params"]["dim"]) for field in fields if field["name"] == "vector"), 0)
        client.load_collection(collection, timeout=LOAD_S)
        counts = client.query(collection, filter="", output_fields=["count(*)"], consistency_level="Strong", timeout=ASK_S)
        return int(counts[0]["count(*)"]), dimension


# A generation's collections


def read_places(folder: Path) -> tuple[Server, dict[str, Place]] | None:
    """Where a generation's vectors are, by the kinds of FILES; None where they are in its files."""
    if not (folder / PLACE).is_file():
        return None
    record = reading.read_json(folder / PLACE)
    return Server(**record["server"]), {kind: Place(**place) for kind, place in record["places"].items()}


def write_places(folder: Path, server: Server, places: Mapping[str, Place]) -> None:
    record: dict[str, Any] = {"server": vars(server), "places": {kind: vars(place) for kind, place in places.items()}}
    atomic.write_json(folder / PLACE, record)


def open_vectors(folder: Path, kind: str, server: Server | None = None) -> Vectors:
    """One of FILES of a generation: of its files or, where those tell of a server, there, or on another one that has the same.

    Raises StageError where what is found does not belong together, and Unavailable.
    """
    recorded = read_places(folder)
    if recorded is None and server is not None:
        raise StageError(f"the vectors of {folder} are in its files: leave --vectors out, or give it to build_index.py first")
    if recorded is None:
        return VectorIndex.open(folder, FILES[kind])
    if kind not in recorded[1]:
        raise StageError(f"{folder / PLACE} tells of no {kind}: run python build_index.py again")
    return MilvusIndex(server or recorded[0], recorded[1][kind], reading.read_array(folder / FILES[kind].keys))


def are_there(folder: Path) -> bool:
    """Whether a generation's collections, where it has any, hold as many vectors as they were made of. Raises Unavailable."""
    recorded = read_places(folder)
    if recorded is None:
        return True
    server, places = recorded
    return all(counted(server, place.collection) == (place.rows, place.dimension) for place in places.values())


def check_name(server: Server, index_dir: Path) -> None:
    """StageError where the names that its collections would have are those of another data folder, which serves them."""
    client = server.client()
    for collection in _strangers(server, index_dir):
        with server.asked():
            is_served = bool(client.list_aliases(collection, timeout=ASK_S)["aliases"])
        if is_served:
            raise StageError(
                f"{collection} in {server.uri} is served, and is of no generation in {index_dir}: give a name of its own to this "
                "folder, as milvus://host:port/name, or drop that collection first"
            )


def servers(index_dir: Path) -> set[Server]:
    """Those that the generations that are there have collections on."""
    recorded = (read_places(path.parent) for path in Path(index_dir).glob(f"[!.]*/{PLACE}"))
    return {found[0] for found in recorded if found}


def follow(index_dir: Path, before: Collection[Server]) -> None:
    """Have the aliases tell of the generation that is published now, and drop the collections of those that are there no longer.

    before: servers() of before it was published. Raises Unavailable where its own server is; of another one stderr tells.
    """
    recorded = read_places(generations.current_generation(index_dir))
    if recorded is not None:
        _point(*recorded)
        drop_strangers(recorded[0], index_dir)
    for server in set(before) - ({recorded[0]} if recorded else set()):
        try:
            drop_strangers(server, index_dir)
        except StageError as error:
            print(f"{error}; collections of generations that are gone stay there: drop them by hand", file=sys.stderr)


def _point(server: Server, places: Mapping[str, Place]) -> None:
    client = server.client()
    with server.asked():
        for kind, place in places.items():
            aliases = (client.list_aliases(name, timeout=ASK_S)["aliases"] for name in server.collections())
            change = client.alter_alias if any(server.alias(kind) in own for own in aliases) else client.create_alias
            change(place.collection, server.alias(kind), timeout=ASK_S)


def drop_strangers(server: Server, index_dir: Path) -> None:
    """Drop the collections of generations that are not there: old ones, and what a build that failed has left."""
    client = server.client()
    for collection in _strangers(server, index_dir):
        with server.asked():
            for alias in client.list_aliases(collection, timeout=ASK_S)["aliases"]:
                client.drop_alias(alias, timeout=ASK_S)
            client.drop_collection(collection, timeout=ASK_S)


def _strangers(server: Server, index_dir: Path) -> list[str]:
    there = [path.name for path in Path(index_dir).iterdir() if path.is_dir() and path.name[0] != "."]
    kept = {server.collection(name, kind) for name in there for kind in FILES}
    return [name for name in server.collections() if name not in kept]
