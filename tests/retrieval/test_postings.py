import sqlite3
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.retrieval import postings as words

NAMES = [
    "Acoustic guitar", "Pine double bed", "Brass lamp", "Racing bicycle", "Guitar stand", "Lamps, a pair", "Café chairs",
    "Washing machine", "Camp bed", "Bed", "", "Bicycle pump and bicycle lock", "Guide to camping", "iPhone 6s 64GB", "iPhone 7",
]  # fmt: skip
DESCRIPTIONS = [f"A lovely {name.split(' ')[-1]} number {row}, good condition" for row, name in enumerate(NAMES)]
CATEGORIES = ["Music", "Home / Beds", "Home / Lighting", "Sports", "Music"] * 3
FIELDS, WEIGHTS = (NAMES, DESCRIPTIONS, CATEGORIES), (5.0, 1.0, 2.0)
ROWS = np.arange(len(NAMES))
ALL = np.ones(len(NAMES), bool)
VOCABULARY = sorted({word for text in (*NAMES, *DESCRIPTIONS, *CATEGORIES) for word in words.split(text)})


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> words.WordIndex:
    folder = tmp_path_factory.mktemp("words")
    words.write(folder, [FIELDS], WEIGHTS)
    return words.WordIndex(folder, ALL)


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
    index = words.WordIndex(tmp_path, np.ones(2, bool))
    assert not len(index.match("guitar nothing", 5)) and not index.score("nothing", np.arange(2)).any()
    assert not len(index.match("guitra", 5))


def part(start: int, end: int) -> list[list[str]]:
    return [list(field[start:end]) for field in FIELDS]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, len(NAMES)), min_size=1, max_size=4).map(sorted))
def test_listings_written_in_blocks_and_updates_are_found_as_if_written_at_once(ends):
    queries = ("guitar bed good lamp", "lovely number", "guitra", "bicyc", "camp 64GB", "gui", "iphone 8 washing")
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "B", 0)  # the mean length, which stays that of the first, counts nothing
        folders = [Path(name) / str(number) for number in range(len(ends) + 2)]
        for folder in folders:
            folder.mkdir()
        words.write(folders[0], [FIELDS], WEIGHTS)
        starts = [0, *ends]
        for number, (start, end) in enumerate(zip(starts, [*ends, len(NAMES)], strict=True)):
            middle = (start + end) // 2
            blocks = [part(start, middle), part(middle, end)]
            words.write(folders[number + 1], iter(blocks), WEIGHTS, folders[number] if number else None)
        once, parts = words.WordIndex(folders[0], ALL), words.WordIndex(folders[-1], ALL)
        for query in queries:
            np.testing.assert_allclose(parts.score(query, ROWS), once.score(query, ROWS), rtol=1e-5)
            assert parts.match(query, 5).tolist() == once.match(query, 5).tolist()


@settings(deadline=None, max_examples=30)
@given(st.sets(st.sampled_from(ROWS.tolist()), max_size=len(NAMES) - 1), st.integers(1, len(NAMES) - 1))
def test_listings_that_are_gone_count_in_nothing(gone, first):
    live = ~np.isin(ROWS, list(gone))
    kept = ROWS[live]
    held = sorted({word for row in kept for field in FIELDS for word in words.split(field[row])})
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "B", 0)  # the mean length counts nothing
        folders = [Path(name) / which for which in ("built", "updated", "without")]
        for folder in folders:
            folder.mkdir()
        words.write(folders[0], [part(0, first)], WEIGHTS)
        words.write(folders[1], [part(first, len(NAMES))], WEIGHTS, folders[0])
        words.write(folders[2], [[[field[row] for row in kept] for field in FIELDS]], WEIGHTS)
        ours, without = words.WordIndex(folders[1], live), words.WordIndex(folders[2], np.ones(len(kept), bool))
        for query in (*held, "guitar bed good"):
            np.testing.assert_allclose(ours.score(query, kept), without.score(query, np.arange(len(kept))), rtol=1e-5)
            assert ours.match(query, 50, live).tolist() == kept[without.match(query, 50)].tolist()


@pytest.mark.parametrize("query", ["gutiar", "gutiars", "guti"])
def test_a_word_that_only_listings_hold_which_are_gone_stands_for_others(query, tmp_path):
    names = ["Acoustic guitar", "Gutiar", "Gutierrez bag"]
    words.write(tmp_path, [[names, [""] * 3, [""] * 3]], WEIGHTS)
    everything, some = np.ones(3, bool), np.array([True, False, True])
    assert 1 in words.WordIndex(tmp_path, everything).match(query, 5)
    assert words.WordIndex(tmp_path, some).match(query, 5, some).tolist() == ([2] if query == "guti" else [0])
