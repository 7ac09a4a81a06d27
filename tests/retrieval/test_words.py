import itertools
import sqlite3
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.retrieval import words

NAMES = [
    "Acoustic guitar", "Pine double bed", "Brass lamp", "Racing bicycle", "Guitar stand", "Lamps, a pair", "Café chairs",
    "Washing machine", "Camp bed", "Bed", "", "Bicycle pump and bicycle lock", "Guide to camping", "iPhone 6s 64GB", "iPhone 7",
]  # fmt: skip
DESCRIPTIONS = [f"A lovely {name.split(' ')[-1]} number {row}, good condition" for row, name in enumerate(NAMES)]
CATEGORIES = ["Music", "Home / Beds", "Home / Lighting", "Sports", "Music"] * 3
FIELDS, WEIGHTS = (NAMES, DESCRIPTIONS, CATEGORIES), (5.0, 1.0, 2.0)
ROWS = np.arange(len(NAMES))
VOCABULARY = sorted({word for text in (*NAMES, *DESCRIPTIONS, *CATEGORIES) for word in words.split(text)})


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> words.WordIndex:
    folder = tmp_path_factory.mktemp("words")
    words.write(folder, [FIELDS], WEIGHTS)
    return words.WordIndex(folder, len(NAMES))


@pytest.fixture(scope="module")
def fts5():
    """SQLite's own full text search over the same listings."""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE t USING fts5 (a, b, c, tokenize='porter unicode61 remove_diacritics 2')")
    connection.executemany("INSERT INTO t (rowid, a, b, c) VALUES (?, ?, ?, ?)", zip(ROWS.tolist(), *FIELDS, strict=True))
    return connection


@settings(deadline=None)
@given(st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=5, unique=True))
def test_scores_of_words_that_are_there_are_those_of_sqlite(index, fts5, query):
    stems = {words._stem([word])[0]: word for word in query}  # FTS5 counts "lamp lamps" twice
    expression = " OR ".join(f'"{word}"' for word in stems.values())
    expected = np.zeros(len(NAMES))
    for row, score in fts5.execute("SELECT rowid, -bm25(t, 5, 1, 2) FROM t WHERE t MATCH ?", (expression,)):
        expected[row] = score
    np.testing.assert_allclose(index.score(" ".join(query), ROWS), expected, rtol=1e-4, atol=1e-6)
    every = {row for (row,) in fts5.execute("SELECT rowid FROM t WHERE t MATCH ?", (expression.replace(" OR ", " AND "),))}
    found = index.match(" ".join(query), len(NAMES)).tolist()
    assert set(found[: len(every)]) == every and set(found) == set(np.flatnonzero(expected).tolist())
    for part in (found[: len(every)], found[len(every) :]):
        assert part == sorted(part, key=lambda row: (-index.score(" ".join(query), ROWS)[row], row))


def test_the_best_k_are_the_first_k_of_all(index):
    everything = index.match("guitar bed good lamp", 100).tolist()
    for k in range(1, len(everything)):
        assert index.match("guitar bed good lamp", k).tolist() == everything[:k]
    allowed = ROWS % 2 == 0
    assert index.match("guitar bed good lamp", 100, allowed).tolist() == [row for row in everything if allowed[row]]


@pytest.mark.parametrize("typed", ["guitra", "giutar", "guittar", "gitar", "Guitär", "guitars", "acoustc guitar", "guit", "gui"])
def test_a_misspelt_or_unfinished_word_finds_what_was_meant(index, typed):
    assert {0, 4} & set(index.match(typed, 3).tolist())


@pytest.mark.parametrize(
    ("typed", "meant"), [("bicylce", "bicycle"), ("wahsing mashine", "washing machine"), ("bicyc", "bicycle")]
)
def test_a_guess_counts_half_of_what_the_right_word_counts(index, typed, meant):
    right, guessed = index.score(meant, ROWS), index.score(typed, ROWS)
    assert right.any() and (guessed[right > 0] > 0).all()
    np.testing.assert_allclose(guessed[right > 0], right[right > 0] / 2, rtol=1e-5)


def test_a_word_that_is_there_is_not_taken_for_another(index):
    assert set(index.match("lamp", 20).tolist()) == {2, 5}  # and not "camp"
    assert index.match("bed camp", 20)[0] == 8


def test_a_number_is_not_a_misspelt_number_and_a_short_word_no_other(index):
    assert not len(index.match("9s", 20)) and not len(index.match("648GB", 20)) and not len(index.match("bxd", 20))
    assert set(index.match("iphone 8", 20).tolist()) - {8} == {13, 14}


def test_case_accents_and_endings_do_not_matter(index):
    for typed in ("CAFE", "cafés", "ｃａｆé", "Chair"):
        assert index.match(typed, 20).tolist() == [6], typed


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=80), st.integers(1, 20))
def test_whatever_is_typed_is_words(index, query, k):
    found = index.match(query, k)
    assert len(found) <= k and len(set(found.tolist())) == len(found)
    scores = index.score(query, ROWS)
    assert np.isfinite(scores).all() and (scores[found] > 0).all()


def test_listings_without_any_word_can_be_written(tmp_path):
    words.write(tmp_path, [(["", "!"], ["", ""], ["", "?"])], WEIGHTS)
    index = words.WordIndex(tmp_path, 2)
    assert not len(index.match("guitar nothing", 5)) and not index.score("nothing", np.arange(2)).any()
    assert not len(index.match("guitra", 5))


def part(start: int, end: int) -> list[list[str]]:
    return [list(field[start:end]) for field in FIELDS]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, len(NAMES) - 1), max_size=4, unique=True).map(sorted))
def test_listings_written_in_blocks_are_found_as_if_written_at_once(ends):
    queries = ("guitar bed good lamp", "lovely number", "guitra", "bicyc", "camp 64GB", "gui", "iphone 8 washing")
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / which for which in ("once", "blocks")]
        for folder, bounds in zip(folders, ([0, len(NAMES)], [0, *ends, len(NAMES)]), strict=True):
            folder.mkdir()
            words.write(folder, (part(start, end) for start, end in itertools.pairwise(bounds)), WEIGHTS)
        once, blocks = (words.WordIndex(folder, len(NAMES)) for folder in folders)
        for query in queries:
            np.testing.assert_allclose(blocks.score(query, ROWS), once.score(query, ROWS), rtol=1e-5)
            assert blocks.match(query, 5).tolist() == once.match(query, 5).tolist()
