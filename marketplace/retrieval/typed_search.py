"""Search by what a shopper typed: candidates by words and by meaning, ranked by a rule, and nothing where nothing is close."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from marketplace.files import reading
from marketplace.models.text_encoder import TextEncoder
from marketplace.retrieval import analysis, forward, milvus
from marketplace.retrieval.catalogue import Catalogue
from marketplace.retrieval.filters import Filters, deepest, said_by_category
from marketplace.retrieval.forward import ForwardIndex
from marketplace.retrieval.matching import Matches, explain, match
from marketplace.retrieval.typed import Reader, Synonyms, TypedQuery
from marketplace.retrieval.vectors import Vectors, unit_rows
from marketplace.retrieval.words import Alternative, Wanted

SYNONYMS = "synonyms.csv"  # of the generation
CATEGORY_NAMES, CATEGORY_VECTORS = "category_names.npy", "category_vectors.npy"  # (codes, E): by name and path; by all
DEPTH = 200  # candidates by each way to find them, for an answer's first results
NEAR_COSINE = 0.5  # of a name or text, from which a listing that lacks words belongs to a result by its meaning,
FAR_COSINE, ENOUGH = 0.35, 20  # or less, where a result would hold fewer listings than these

# How raw scores add up. A tier by the words held, which the rest cannot outweigh between all and none of the words:
TIER = {"all_name_typed": 1.5, "all_name_meant": 1.35, "all_text_typed": 0.7, "all_text_meant": 0.56}
SAME_TITLE = 3.0
WORDS = {"name_typed": 0.3, "name_meant": 0.3, "bm25": 0.4, "coverage": 0.3}
MEANING = {"name": 0.8, "text": 0.4, "category": 0.8, "neighbours": 0.6}
# A question in sentences holds words that the listings that answer it do not: only its meaning counts.
SENTENCE_MEANING = {"text": 1.0, "category": 4.0, "neighbours": 1.0}
SENTENCE_WORDS = 3  # at least, a function word among them,
SENTENCE_HELD = 0.7  # where no name holds so much of the words' rarity
HIGHEST = 1.5 + sum(WORDS.values()) + sum(MEANING.values())  # raw score, but for the same title and sentences
SENTENCE_HIGHEST = sum(SENTENCE_MEANING.values())
NEIGHBOURS, TEMPERATURE = 50, 0.1  # listings nearest by meaning, which vote for their categories by their cosines
FLOOR_HELD, FLOOR_COSINE = 0.4, 0.5  # nothing is close where no listing reaches either
PARTS = {"words": "words", "name": "text", "text": "text", "category": "category", "neighbours": "category"}  # of an answer


@dataclass(frozen=True)
class Typed:
    """What was typed: its words as read and, where there is an encoder, the (E,) unit vector of what they mean."""

    query: TypedQuery
    vector: np.ndarray | None


@dataclass(frozen=True)
class Candidates:
    """rows: (N,) ascending; matches: how they hold the words; cosines: "name", "text" and "category", (N,) of the meanings, empty
    without an encoder."""

    rows: np.ndarray
    matches: Matches
    cosines: dict[str, np.ndarray]

    def is_close(self) -> bool:
        """Whether any of them is worth to be shown."""
        best = max((float(values.max(initial=0)) for values in self.cosines.values()), default=0.0)
        return best >= FLOOR_COSINE or float(self.matches.held.max(initial=0)) >= FLOOR_HELD


@dataclass(frozen=True)
class Result:
    """What a search for words is answered by: the listings that hold every one of `words`, places in TypedQuery.required, and
    some by their meaning; wanted: the same for the words' own index; total: how many."""

    words: list[int]
    wanted: Wanted
    total: int


class TypedSearch:
    """One generation's words and meanings; safe to use from many threads."""

    def __init__(self, folder: Path, catalogue: Catalogue, encoder: TextEncoder | None, server: milvus.Server | None = None):
        """Raises StageError when files are missing or do not belong together. server: as OpenIndex takes it."""
        self._catalogue, self._encoder = catalogue, encoder
        self._forward = ForwardIndex(folder)
        synonyms = Synonyms.read(folder / SYNONYMS)
        self._reader = Reader(catalogue.words, synonyms, None if encoder is None else encoder.pieces)
        levels = catalogue.columns["category"]
        self._main = levels[:, 0]
        self._path = deepest(levels)
        said = [analysis.split(said_by_category(path)) for path in catalogue.names["category"]]
        self._category_stems = [frozenset(forward.codes_of([analysis.stem(word) for word in words]).tolist()) for words in said]
        self.names = self.meanings = None
        if encoder is not None:
            self.names, self.meanings = (milvus.open_vectors(folder, kind, server) for kind in ("names", "meanings"))
            self._category_vectors = reading.read_array(folder / CATEGORY_VECTORS)

    def over(self, catalogue: Catalogue) -> "TypedSearch":
        """The same search of another view of the generation's catalogue."""
        view = copy.copy(self)
        view._catalogue, view._reader = catalogue, self._reader.over(catalogue.words)
        return view

    def read(self, text: str) -> Typed | None:
        """None for a text without words."""
        query = self._reader.read(text)
        if not query.words:
            return None
        return Typed(query, None if self._encoder is None else self._encode(query.meanings))

    def _encode(self, meanings: tuple[str, ...]) -> np.ndarray:
        """The vector of a query and, with as much weight, of those that mean the same."""
        own, *others = self._encoder.encode(meanings)
        return unit_rows(own + np.mean(others, axis=0)) if others else own

    def candidates(
        self, typed: Typed, depth: int = DEPTH, filters: Filters | None = None, allowed: np.ndarray | None = None
    ) -> Candidates:
        """The listings of find() and the evidence for each."""
        return self.evidence(typed, self.find(typed, depth, filters, allowed))

    def find(self, typed: Typed, depth: int, filters: Filters | None = None, allowed: np.ndarray | None = None) -> np.ndarray:
        """Rows, ascending, of the listings found by the words as typed, by what they may mean, and by the meaning of name and of
        text: `depth` of each.

        allowed: (P,) bool, which may be found; filters: what it comes from, where it does.
        """
        content = [typed.query.words[place] for place in typed.query.content]
        meant = [word.alternatives for word in typed.query.required]
        found = [self._catalogue.match_words([word.exact for word in content], meant, depth, filters, allowed)]
        if typed.vector is not None:
            passing = self._catalogue.passing(allowed, filters)
            for index in (self.names, self.meanings):
                nearest = lambda k, index=index: index.nearest(typed.vector, k, passing)[0]  # noqa: E731
                found.append(self._catalogue.first_shown(nearest, depth))
        return np.unique(np.concatenate(found))

    def evidence(self, typed: Typed, rows: np.ndarray) -> Candidates:
        paths = self._path[rows]
        matches = match(typed.query, self._forward.words_of(rows), paths, self._category_stems, self._forward.mean_length)
        cosines = {}
        if typed.vector is not None:
            cosines = {
                "name": self.names.cosines(typed.vector, rows),
                "text": self.meanings.cosines(typed.vector, rows),
                "category": np.where(paths >= 0, (self._category_vectors @ typed.vector)[paths], 0),
            }
        return Candidates(rows, matches, {kind: np.maximum(values, 0) for kind, values in cosines.items()})

    def score(self, typed: Typed, candidates: Candidates) -> dict[str, np.ndarray]:
        """What "words", "text" and "category" add to each candidate's raw score, (N,) each."""
        matches, meaning = candidates.matches, dict(candidates.cosines)
        if meaning:
            meaning["neighbours"] = self._votes(candidates)
        if meaning and is_sentence(typed, candidates):
            found = {kind: weight * meaning[kind] for kind, weight in SENTENCE_MEANING.items()}
        else:
            tier = np.maximum.reduce([weight * getattr(matches, name) for name, weight in TIER.items()])
            added = sum(weight * getattr(matches, name) for name, weight in WORDS.items())
            # Words that no listing holds were meant too: what holds all the others is that much less of an answer.
            found = {"words": typed.query.held_share * (tier + SAME_TITLE * matches.same_title + added)}
            found |= {kind: weight * meaning[kind] for kind, weight in MEANING.items() if meaning}
        parts = {part: np.zeros(len(candidates.rows)) for part in dict.fromkeys(PARTS[kind] for kind in found)}
        for kind, values in found.items():
            parts[PARTS[kind]] += values
        return parts

    def _votes(self, candidates: Candidates) -> np.ndarray:
        """(N,) the share of the nearest listings by meaning, the nearer the more, that are of a candidate's path, and the share
        of its main category, on average."""
        alike = candidates.cosines["name"] + candidates.cosines["text"]
        near = np.argsort(-alike, kind="stable")[:NEIGHBOURS]
        weights = np.exp((alike[near] - alike[near].max(initial=0)) / TEMPERATURE)
        weights /= weights.sum()
        shares = []
        for codes in (self._path[candidates.rows], self._main[candidates.rows]):
            votes = np.bincount(codes[near] + 1, weights, minlength=len(self._category_stems) + 1)  # the first: of no category
            votes[0] = 0
            shares.append(votes[codes + 1])
        return np.mean(shares, axis=0)

    @property
    def vector_indexes(self) -> list[Vectors]:
        return [index for index in (self.names, self.meanings) if index is not None]

    def share(self, typed: Typed, rows: np.ndarray) -> np.ndarray:
        """(N,) in [0, 1]: the raw score of each listing of `rows`, as a share of the highest there is."""
        candidates = self.evidence(typed, rows)
        highest = SENTENCE_HIGHEST if is_sentence(typed, candidates) else HIGHEST
        return np.clip(sum(self.score(typed, candidates).values()) / highest, 0, 1)

    def alike(self, typed: Typed, rows: np.ndarray) -> dict[str, np.ndarray]:
        """ "category" and "text": (N,) bool, whether the category of each listing of `rows`, and its name or text, mean what was
        typed; empty without an encoder."""
        if typed.vector is None:
            return {}
        paths = self._path[rows]
        category = np.where(paths >= 0, (self._category_vectors @ typed.vector)[paths], 0)
        name, text = (index.cosines(typed.vector, rows) for index in self.vector_indexes)
        return {"category": category >= FLOOR_COSINE, "text": np.maximum(name, text) >= FLOOR_COSINE}

    def explain(self, typed: Typed, rows: np.ndarray) -> list[dict[str, Alternative]]:
        """For each listing of `rows` the typed content words that it holds, and what of each it holds."""
        return explain(typed.query, self._forward.words_of(np.asarray(rows)))

    def is_in(self, result: Result, candidates: Candidates) -> np.ndarray:
        """(N,) bool: which of the candidates belong to a result."""
        by_words = candidates.matches.required[result.words].all(axis=0) & bool(result.words)
        return by_words | np.isin(self._catalogue.keys[candidates.rows], result.wanted.others)

    def members(
        self,
        typed: Typed,
        result: Result,
        candidates: Candidates,
        depth: int,
        filters: Filters | None = None,
        allowed: np.ndarray | None = None,
    ) -> Candidates:
        """The candidates; where fewer than `depth` of them belong to a result that has more, the listings found by its words too:
        the best of all by those and the words that were given up need not hold any of its own."""
        if self.is_in(result, candidates).sum() >= min(depth, result.total):
            return candidates
        found = self._catalogue.match_words([], result.wanted.words, depth, filters, allowed)
        others = self._catalogue.row_of_key.rows(result.wanted.others)
        return self.evidence(typed, np.unique(np.concatenate([candidates.rows, found, others])))

    def result(self, typed: Typed, candidates: Candidates, filters: Filters | None) -> Result:
        """What the whole result is, by the candidates of the usual depth.

        It holds the listings with every word or, where there is none, with all but the commonest, and so on; and of the
        candidates those that hold much of the words or are near by their meaning, or all where a question in sentences asks for
        nothing but that.
        """
        required, none = typed.query.required, np.empty(0, np.int64)
        words = sorted(range(len(required)), key=lambda place: -required[place].rarity)
        while words:
            wanted = Wanted(tuple(required[place].alternatives for place in words), none)
            if total := self._catalogue.words.count(wanted, filters):
                break
            words.pop()
        else:
            wanted, total = Wanted((), none), 0
        by_words = self.is_in(Result(words, wanted, total), candidates)
        near = candidates.matches.held >= FLOOR_HELD
        if typed.vector is not None:
            cosines = np.maximum(candidates.cosines["name"], candidates.cosines["text"])
            near |= (cosines >= NEAR_COSINE) | is_sentence(typed, candidates)
            if total + np.count_nonzero(near & ~by_words) < ENOUGH:
                near |= cosines >= FAR_COSINE
        others = self._catalogue.keys[candidates.rows[near & ~by_words]]
        return Result(words, replace(wanted, others=others), total + len(others))


def is_sentence(typed: Typed, candidates: Candidates) -> bool:
    """Whether a thing is described rather than named."""
    words = typed.query.words
    described = len(words) >= SENTENCE_WORDS and any(word.is_function for word in words)
    return described and float(candidates.matches.name_meant.max(initial=0)) < SENTENCE_HELD
