import datetime
import math
import random
import shutil
import tempfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.files.stages import StageError
from marketplace.retrieval import catalogue, words
from marketplace.retrieval.filters import Filters

NAMES = [
    "Acoustic guitar", "Pine double bed", "Brass lamp", "Racing bicycle", "Guitar stand", "Lamps, a pair", "Café chairs",
    "Washing machine", "Camp bed", "Bed", "", "Bicycle pump and bicycle lock", "Guide to camping", "iPhone 6s 64GB", "iPhone 7",
]  # fmt: skip
CATEGORIES = ["Music", "Home / Beds", "Home / Lighting", "Sports", "Music / Home"] * 3
PLACES = [("London", "Greater London"), ("Hanley, Stoke-on-Trent", "Staffordshire"), ("Londonderry", ""), ("Stafford", "Kent")]
PRICES = [0.0, 9.99, 10.0, 24.99, 25.0, np.nan, 1234.56, 12.34]
DAYS = ["2020-01-31", "", "2021-03-01", "2019-12-24", "2021-03-02"]


def listing(row: int, name: str, description: str | None = None) -> dict:
    return {
        "name": name,
        "description": f"A lovely {name.split(' ')[-1]} number {row}, good condition" if description is None else description,
        "category": CATEGORIES[row % 15],
        "price": PRICES[row % 8],
        "price_plausible": True,
        "town": PLACES[row % 4][0],
        "county": PLACES[row % 4][1],
        "posted_on": DAYS[row % 5],
    }


TABLE = pd.DataFrame([listing(row, name) for row, name in enumerate(NAMES)])
KEYS = np.random.default_rng(0).integers(1, 2**63 - 1, len(NAMES))
ROW = {int(key): row for row, key in enumerate(KEYS)}


def rows_of(keys: np.ndarray) -> list[int]:
    return [ROW[key] for key in keys.tolist()]


def folder_of(root: Path, name: str) -> Path:
    (root / name).mkdir()
    return root / name


def written(folder: Path, table: pd.DataFrame, keys: np.ndarray = KEYS) -> words.WordIndex:
    folder.mkdir(parents=True, exist_ok=True)
    words.write(folder, [table], [keys[: len(table)]])
    return words.WordIndex(folder)


def named(*listing_names: str) -> pd.DataFrame:
    return pd.DataFrame([listing(row, name, "") for row, name in enumerate(listing_names)])


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> words.WordIndex:
    return written(tmp_path_factory.mktemp("words"), TABLE)


def bm25(table: pd.DataFrame, stem: str) -> np.ndarray:
    """(listings,) Okapi BM25 of a stem, fields weighted. Source: Robertson and Zaragoza 2009, with Lucene's idf above 0."""
    total = np.zeros(len(table))
    for field, weight in words.WEIGHTS.items():
        tokens = [[words._stem(word) for word in words.split(text)] for text in table[field]]
        lengths = np.array([len(one) for one in tokens])
        counts = np.array([one.count(stem) for one in tokens])
        holding = int((counts > 0).sum())
        idf = math.log(1 + (len(table) - holding + 0.5) / (holding + 0.5))
        with np.errstate(invalid="ignore"):
            total += weight * idf * counts * 2.2 / (counts + 1.2 * (0.25 + 0.75 * lengths / max(lengths.mean(), 1e-9)))
    return total


VOCABULARY = sorted({word for field in words.WEIGHTS for text in TABLE[field] for word in words.split(text)})


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=5, unique=True))
def test_words_that_are_there_score_as_bm25_is_written(index, query):
    per_stem = [bm25(TABLE, stem) for stem in {words._stem(word) for word in query}]
    expected = np.sum(per_stem, axis=0)
    np.testing.assert_allclose(index.score(" ".join(query), KEYS), expected, rtol=1e-4, atol=1e-5)
    keys, scores = index.match(" ".join(query), len(NAMES))
    found = rows_of(keys)
    np.testing.assert_allclose(scores, expected[found], rtol=1e-4)
    every = set(np.flatnonzero(np.all([scores > 0 for scores in per_stem], axis=0)).tolist())
    assert set(found[: len(every)]) == every and set(found) == set(np.flatnonzero(expected).tolist())
    for part in (scores[: len(every)], scores[len(every) :]):
        assert (np.diff(part) <= 1e-5).all()


def test_the_best_k_are_the_first_k_of_all(index):
    everything = index.match("guitar bed good lamp", 100)[0].tolist()
    for k in range(1, len(everything)):
        assert index.match("guitar bed good lamp", k)[0].tolist() == everything[:k]


def test_scores_of_given_listings_are_those_of_the_match_in_any_order(index):
    keys, scores = index.match("lovely guitar", 100)
    np.testing.assert_allclose(index.score("lovely guitar", keys[::-1]), scores[::-1], rtol=1e-5)
    some = keys[:3], scores[:3]  # the others are asked for
    np.testing.assert_allclose(index.score("lovely guitar", keys[::-1], some), scores[::-1], rtol=1e-5)
    assert not index.score("lovely guitar", np.array([5, 7])).any()  # keys of nobody
    assert index.score("lovely", np.empty(0, np.int64)).shape == (0,)


def test_excluded_listings_leave_their_places_to_others(index):
    everything = index.match("lovely guitar bed", 100)[0].tolist()
    excluded = everything[1:4]
    keys, scores = index.match("lovely guitar bed", 4, excluded=excluded)
    assert keys.tolist() == [key for key in everything if key not in excluded][:4] and len(scores) == 4


@pytest.mark.parametrize("typed", ["guitra", "giutar", "guittar", "gitar", "Guitär", "guitars", "acoustc guitar", "guit", "gui"])
def test_a_misspelt_or_unfinished_word_finds_what_was_meant(index, typed):
    assert {0, 4} & set(rows_of(index.match(typed, 3)[0]))


@pytest.mark.parametrize(
    ("typed", "meant"), [("bicylce", "bicycle"), ("wahsing mashine", "washing machine"), ("bicyc", "bicycle")]
)
def test_a_guess_counts_half_of_what_the_right_word_counts(index, typed, meant):
    right, guessed = index.score(meant, KEYS), index.score(typed, KEYS)
    assert right.any() and (guessed[right > 0] > 0).all()
    np.testing.assert_allclose(guessed[right > 0], right[right > 0] / 2, rtol=1e-5)


def test_a_word_that_is_there_is_not_taken_for_another(index):
    assert set(rows_of(index.match("lamp", 20)[0])) == {2, 5}  # and not "camp"
    assert rows_of(index.match("bed camp", 20)[0])[0] == 8


def test_a_misspelt_word_begins_as_it_was_meant(index):
    assert not len(index.match("xuitar", 20)[0]) and not len(index.match("huitar", 20)[0])


def test_a_number_is_not_a_misspelt_number_and_a_short_word_no_other(index):
    for typed in ("9s", "648GB", "bxd"):
        assert not len(index.match(typed, 20)[0]), typed
    assert set(rows_of(index.match("iphone 8", 20)[0])) - {8} == {13, 14}


def test_case_accents_and_endings_do_not_matter(index):
    for typed in ("CAFE", "cafés", "ｃａｆé", "cafe\u0301", "Chair"):
        assert rows_of(index.match(typed, 20)[0]) == [6], typed


@pytest.mark.parametrize(
    ("typed", "sold"),
    [
        ("wardrobe", "ward\u00adrobe"), ("wardrobe", "ward\u200brobe"), ("wardrobe", "ward&shy;robe"), ("pram", "PR&#8203;AM"),
        ("cafe", "caf&eacute;"), ("cafe", "cafe\u0301"), ("pram", "\ufeffpram"), ("orsted", "Ørsted"), ("strasse", "Straße"),
        ("istanbul", "İstanbul"), ("σοφος", "ΣΟΦΌΣ"), ("dogs", "cats&amp;dogs"), ("fine", "ﬁne"),
    ],
)  # fmt: skip
def test_what_nobody_sees_or_types_does_not_split_a_word(tmp_path, typed, sold):
    index = written(tmp_path, named(f"one {sold} two", "other"))
    for query in (typed, sold):
        assert rows_of(index.match(query, 5)[0]) == [0]


def test_an_ampersand_without_a_semicolon_is_no_entity(tmp_path):
    assert rows_of(written(tmp_path, named("black &notebook")).match("notebook", 5)[0]) == [0]


ODD = [
    "\0", "bed\0lamp", "\ud800 bed", "\U0001f600", "x" * 70_000, "y" * 70_000 + " bed", "bed " * 25_000, "+bed -lamp",
    '"bed lamp', "(bed", "bed)^5", "bed~2", "name:bed", "*", "be*", "[a TO z]", "bed AND", "OR", "NOT bed", "\\", "/bed/",
    "&#xD800; &#0; &#99999999;", "\u200b", " / ", ",", "é" * 40_000,
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_odd_characters_are_plain_text_in_listings_and_queries(tmp_path, odd):
    text = odd.encode("utf-8", "ignore").decode()  # as a file holds it
    row = listing(0, odd, odd) | {"category": text, "town": text, "county": text}
    index = written(tmp_path, pd.DataFrame([row, listing(1, "Pine bed")]))
    for keys, total in (index.search(odd), index.search(None, Filters(odd, None, None, odd)), index.search("bed")):
        assert total == len(keys)
    assert max(index.counts(odd).towns.values(), default=0) <= 2
    assert np.isfinite(index.score(odd, KEYS[:2])).all()
    highlighter = index.highlighter(odd)
    assert 1 in rows_of(index.match("pine", 5)[0]) and len(highlighter.snippet(odd).text) <= 200
    assert all(0 <= start < end <= len(odd) for start, end in highlighter.marks(odd))
    if "bed" in odd and words.split(odd)[:1] != ["x"]:
        assert 1 in rows_of(index.match(odd, 5)[0])


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=80), st.integers(1, 20))
def test_whatever_is_typed_is_words(index, query, k):
    keys, scores = index.match(query, k)
    assert len(keys) <= k and len(set(keys.tolist())) == len(keys) and (scores > 0).all()
    np.testing.assert_allclose(index.score(query, keys), scores, rtol=1e-4)
    sold = f"A {query} guitar"
    snippet, marks = index.highlighter(query).snippet(sold), index.highlighter(query).marks(sold)
    for text, marked in ((snippet.text, snippet.marks), (sold, marks)):
        assert [place for mark in marked for place in mark] == sorted({place for mark in marked for place in mark})
        assert all(0 <= start < end <= len(text) for start, end in marked)


def test_listings_without_any_word_can_be_written(tmp_path):
    empty = {"name": "", "description": "!", "category": "", "price": np.nan, "town": "", "county": "", "posted_on": ""}
    index = written(tmp_path, pd.DataFrame([empty, empty]))
    for typed in ("guitar nothing", "guitra", "", "?"):
        assert not len(index.match(typed, 5)[0]) and not index.score(typed, KEYS[:2]).any()
        assert index.search(typed)[1] == 0
    counts = index.counts(None)
    assert not counts.categories and not counts.towns and not sum(counts.prices.values())
    assert index.search(None, sort="price_up")[1] == 2 and index.search(None, Filters(location="", category=""))[1] == 0


def test_no_listing_at_all_can_be_written(tmp_path):
    words.write(tmp_path, [], [])
    index = words.WordIndex(tmp_path)
    assert len(index) == 0 and index.search(None)[1] == 0 and not len(index.match("bed", 5)[0])
    assert not index.counts(None).categories and set(index.counts(None).prices.values()) == {0}


# Filters, counts, sorting.


def passing(table: pd.DataFrame, filters: Filters) -> np.ndarray:
    """(listings,) bool of those that pass, by pandas."""
    mask = pd.Series(True, table.index)
    if filters.category is not None:
        wanted = [level.strip() for level in filters.category.lower().split(" / ")]
        levels = table["category"].str.lower().str.split(" / ")
        at_any = levels.map(lambda path: wanted[0] in path if len(wanted) == 1 else False)
        mask &= at_any | levels.map(lambda path: path[: len(wanted)] == wanted)
    if filters.min_price is not None:
        mask &= table["price"].astype(np.float32) >= np.float32(min(filters.min_price, 3e38))
    if filters.max_price is not None:
        mask &= table["price"].astype(np.float32) <= np.float32(min(filters.max_price, 3e38))
    if filters.location is not None:
        wanted = ", ".join(part.strip() for part in filters.location.lower().split(","))
        called = [
            {name for name in (f"{town}, {county}".strip(", "), town, county, *town.split(", ")) if name}
            | ({f"{part}, {county}" for part in town.split(", ")} if county else set())
            for town, county in zip(table["town"].str.lower(), table["county"].str.lower(), strict=True)
        ]
        exactly = pd.Series([wanted in one for one in called], table.index, bool)
        beginning = pd.Series([any(name.startswith(wanted) for name in one) for one in called], table.index, bool)
        mask &= exactly if exactly.any() else beginning
    return mask.to_numpy()


PRICE = st.none() | st.sampled_from([0.0, 9.99, 10.0, 12.34, 24.99, 25.0, 1234.56, 0.1, 1e39]) | st.floats(0, 2000)
FILTERS = st.builds(
    Filters,
    st.sampled_from([None, "Home", "HOME / beds", "Beds", "Music / Home", "Music", "Beds / Home", "Garden", "Hom"]),
    PRICE,
    PRICE,
    st.sampled_from(
        [None, "London", "lond", "LONDON, greater london", "Greater London", "Hanley, Stoke-on-Trent, Staffordshire",
         "Hanley", "Stoke-on-Trent", "Stoke", "Hanley , Staffordshire", "Staffordshire", "Stafford", "Staff",
         "Londonderry", "Leeds", "Kent"]
    ),
)  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(FILTERS)
def test_filters_select_the_listings_that_pandas_selects(index, filters):
    mask = passing(TABLE, filters)
    keys, total = index.search(None, filters, k=100)
    counts = index.counts(None, filters)
    assert set(rows_of(keys)) == set(np.flatnonzero(mask).tolist()) and total == mask.sum()
    selected = TABLE[mask]
    assert counts.towns == selected["town"].value_counts().to_dict()
    assert counts.counties == Counter(county for county in selected["county"] if county)
    assert counts.categories == Counter(
        " / ".join(path.split(" / ")[:depth]) for path in selected["category"] for depth in range(1, path.count("/") + 2)
    )
    for (low, high), count in counts.prices.items():
        assert count == passing(selected, Filters(min_price=low, max_price=high)).sum()
    assert sum(counts.prices.values()) == selected["price"].notna().sum()
    by_words = [row for row in rows_of(index.match("lovely guitar bed", 100)[0]) if mask[row]]
    assert set(rows_of(index.match("lovely guitar bed", 100, filters)[0])) == set(by_words)
    assert index.search("lovely guitar bed", filters)[1] == len(by_words)
    top = index.match("lovely guitar bed", 3, filters)
    np.testing.assert_array_equal(top[1], index.match("lovely guitar bed", 100, filters)[1][:3])


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> catalogue.Catalogue:
    folder = tmp_path_factory.mktemp("catalogue")
    table = TABLE.assign(product_id=[str(row) for row in range(len(TABLE))])
    catalogue.write(folder, [table], ["a photo"], np.array([0]))
    np.save(folder / catalogue.LISTING_KEYS, np.arange(len(TABLE)))
    words.write(folder, [table], [np.arange(len(TABLE))])
    return catalogue.Catalogue(folder)


@settings(deadline=None, max_examples=100)
@given(FILTERS)
def test_filters_select_the_same_listings_in_the_index_and_in_the_columns(index, listed, filters):
    allowed = listed.allowed(filters)
    rows = range(len(TABLE)) if allowed is None else np.flatnonzero(allowed).tolist()
    assert sorted(rows_of(index.search(None, filters, k=100)[0])) == list(rows)


def test_results_are_sorted_by_price_and_date_those_without_either_last(index):
    price, day = TABLE["price"].to_numpy(), TABLE["posted_on"].to_numpy()
    cheapest, dearest = (rows_of(index.search(None, sort=sort, k=50)[0]) for sort in ("price_up", "price_down"))
    priced = np.count_nonzero(~np.isnan(price))
    assert price[cheapest[:priced]].tolist() == sorted(price[~np.isnan(price)])
    assert price[dearest[:priced]].tolist() == sorted(price[~np.isnan(price)], reverse=True)
    assert np.isnan(price[cheapest[priced:]]).all() and np.isnan(price[dearest[priced:]]).all()
    newest = rows_of(index.search(None, k=50)[0])
    assert day[newest].tolist() == sorted(day, reverse=True)  # "" is the least
    pages = [row for offset in range(0, 15, 4) for row in rows_of(index.search(None, sort="price_up", k=4, offset=offset)[0])]
    assert pages == cheapest
    lamps = rows_of(index.search("lamp guitar", sort="price_down")[0])
    assert lamps == [row for row in dearest if row in {0, 2, 4, 5}]


def test_all_of_more_than_a_thousand_are_counted_and_those_alike_come_in_the_order_of_their_rows(tmp_path):
    table = named(*["Pine bed"] * 1001).assign(category="")
    keys = np.arange(1, 1002)
    words.write(tmp_path, [table[:500], table[500:]], [keys[:500], keys[500:]])
    index = words.WordIndex(tmp_path)
    assert index.search("bed", k=3)[1] == 1001 and index.match("bed", 3)[0].tolist() == [1, 2, 3]
    assert index.search("bed", Filters(min_price=0.0))[1] == sum(table["price"].notna())


def test_the_beginning_of_a_place_finds_all_of_many_places(tmp_path):
    table = named(*["Bed"] * 300)
    table["town"] = [f"Newtown {number}" for number in range(300)]
    words.write(tmp_path, [table], [np.arange(1, 301)])
    index, filters = words.WordIndex(tmp_path), Filters(location="newt")
    assert index.search(None, filters)[1] == 300 and len(index.counts(None, filters).towns) == 300


# Snippets.


def test_a_snippet_marks_the_words_that_were_looked_for(index):
    long = "Nothing here. " * 30 + "A café guitár &amp; two lam\u00adps, good <b>guitars</b>. " + "Nothing more. " * 30
    snippet = index.highlighter("guitar lamp").snippet(long)
    assert len(snippet.text) <= words.SNIPPET_CHARACTERS
    assert [snippet.text[start:end] for start, end in snippet.marks] == ["guitár", "lamps", "guitars"]
    assert "&" in snippet.text and "&amp;" not in snippet.text


def test_a_snippet_without_any_word_is_the_beginning(index):
    highlighter = index.highlighter("guitar")
    assert highlighter.snippet("Something else " * 50) == words.Snippet(("Something else " * 50)[:160], [])
    assert highlighter.snippet("") == words.Snippet("", [])


@pytest.mark.parametrize(
    ("typed", "name", "marked"),
    [
        ("guitar lamp", "Two GUITARS, one lamp-stand", ["GUITARS", "lamp"]),
        ("guitar", "Lamp &amp; gui\u00adtar &#163;5 &mdash; guitars", ["gui\u00adtar", "guitars"]),
        ("cafe chair", "Cafe\u0301 ch&aacute;irs", ["Cafe\u0301", "ch&aacute;irs"]),
        ("guitra bicyc", "Bicycle or guitar", ["Bicycle", "guitar"]),
        ("bed", "b&eacute;d", ["b&eacute;d"]),
        ("guitar", "Grand piano", []), ("guitar", "", []), ("", "Guitar", []), ("?", "Guitar", []),
    ],
)  # fmt: skip
def test_words_are_marked_in_a_name_as_it_is_written(index, typed, name, marked):
    assert [name[start:end] for start, end in index.highlighter(typed).marks(name)] == marked


SOLD = ["guitar", "Guitars", "g&uuml;itar", "lamp", "LAMPS", "sofa", "&amp;", "ta\u00adble", "a,b", "é"]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(SOLD)), st.sampled_from(["guitar", "lamp", "guitar lamp", "sofa"]))
def test_marks_lie_on_the_words_typed_and_on_all_of_them(index, sold, typed):
    text = " ".join(sold)
    expected = [word for word in sold if set(map(words._stem, words.split(word))) & set(typed.split()) and word != "sofa"]
    highlighter = index.highlighter(typed)
    assert [text[start:end] for start, end in highlighter.marks(text)] == expected
    snippet = highlighter.snippet(text, 10_000)
    assert [snippet.text[start:end] for start, end in snippet.marks] == [words.clean(word) for word in expected]


# Updates.


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / words.FOLDER).iterdir()}


QUERIES = ("guitar bed good lamp", "lovely number", "guitra", "bicyc", "camp 64GB", "gui", "iphone 8 washing", "frsh")


def answers(index: words.WordIndex) -> list:
    """What does not depend on when the listings came: which are found, counted and in what order where that is sorted by."""
    found = [(query, sorted(index.match(query, 100)[0].tolist()), index.counts(query)) for query in QUERIES]
    for sort in ("price_up", "price_down", "newest"):
        found.append(index.search(None, sort=sort, k=100)[0].tolist())
    for location in ("lond", "Stafford", "Hanley"):
        found.append(sorted(index.search(None, Filters(location=location), k=100)[0].tolist()))
    return found


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32))
def test_random_updates_give_the_answers_of_a_full_write(seed):
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        live = {int(key): row for key, row in zip(KEYS.tolist(), TABLE.to_dict("records"), strict=True)}
        first, later = dict(list(live.items())[:10]), list(live.items())[10:]
        live = first
        written(root / "0", pd.DataFrame(list(live.values())), np.array(list(live)))
        for number in range(1, chance.randrange(2, 5)):
            gone = chance.sample(sorted(live), chance.randrange(len(live)))
            changed = {key: live[key] | {"name": f"Fresh thing {number}"} for key in gone if chance.random() < 0.5}
            came = changed | dict(later[(number - 1) * 2 : number * 2])
            live = {key: row for key, row in live.items() if key not in gone} | came
            before = contents(root / str(number - 1))
            (root / str(number)).mkdir()
            blocks = [pd.DataFrame(list(came.values()))] if came else []
            keys = [np.array(list(came), np.int64)] if came else []
            words.update(root / str(number - 1), root / str(number), np.array(gone, np.int64), blocks, keys)
            assert contents(root / str(number - 1)) == before
        updated = words.WordIndex(root / str(number))
        once = written(root / "once", pd.DataFrame(list(live.values()), columns=TABLE.columns), np.array(list(live), np.int64))
        assert len(updated) == len(live)
        assert answers(updated) == answers(once)


def test_many_updates_leave_few_segments(tmp_path):
    words.write(folder_of(tmp_path, "0"), [TABLE], [KEYS])
    for number in range(1, 13):
        table, keys, published = named(f"Fresh thing {number}"), np.array([number]), tmp_path / str(number - 1)
        before = contents(published)
        words.update(published, folder_of(tmp_path, str(number)), np.empty(0, np.int64), [table], [keys])
        assert contents(published) == before
    index = words.WordIndex(tmp_path / "12")
    assert len(index) == len(TABLE) + 12 and index._searcher.num_segments < 9
    assert sorted(index.match("fresh", 50)[0].tolist()) == list(range(1, 13))
    assert len(contents(tmp_path / "12")) < 9 * 8  # nothing of segments that were merged


def test_a_generation_is_served_while_the_next_is_written_from_its_files(tmp_path):
    old = written(tmp_path / "old", TABLE)
    before, seen = contents(tmp_path / "old"), []
    (tmp_path / "new").mkdir()
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            seen.append(rows_of(old.match("guitar", 5)[0]))

    asker = threading.Thread(target=ask)
    asker.start()
    fresh = pd.DataFrame([listing(row, "Fresh guitar", "") for row in range(200)])
    words.update(tmp_path / "old", tmp_path / "new", KEYS[:1], [fresh], [np.arange(1, 201)])
    stop.set()
    asker.join()
    assert seen and all(rows == seen[0] for rows in seen) and contents(tmp_path / "old") == before
    linked = [name for name in before if (tmp_path / "new" / words.FOLDER / name).stat().st_nlink == 2]
    assert len(linked) == len(before) - 2  # what says which files belong to the index
    assert len(words.WordIndex(tmp_path / "new")) == len(TABLE) + 199


def test_an_open_index_needs_its_files_no_more_and_leaves_nothing_in_its_folder(tmp_path):
    index = written(tmp_path, TABLE)
    assert not list((tmp_path / words.FOLDER).glob("*.lock")) and len(list((tmp_path / words.FOLDER).iterdir())) >= 6
    expected = answers(index)
    shutil.rmtree(tmp_path / words.FOLDER)
    assert answers(index) == expected and index.highlighter("guitar").snippet("A guitar").marks == [(2, 8)]


def test_nothing_of_a_deleted_listing_is_in_an_index_written_anew(tmp_path):
    secret = pd.DataFrame([listing(0, "Zyxomma", "Her zephyrine") | {"town": "Qwertzstadt", "county": "Qwertzland"}])
    key = np.array([0x7A7978777675747])
    words.write(folder_of(tmp_path, "old"), [TABLE, secret], [KEYS, key])
    words.update(tmp_path / "old", folder_of(tmp_path, "new"), key, [], [])
    words.write(folder_of(tmp_path, "purged"), [TABLE], [KEYS])
    for name, is_there in (("old", True), ("new", True), ("purged", False)):
        held = b"".join(contents(tmp_path / name).values()).lower()
        assert (b"qwertzstadt" in held) == is_there and (b"qwertzland" in held) == is_there, name
        index = words.WordIndex(tmp_path / name)  # the words are compressed where the index holds them
        for field in ("name", "name_exact", "description", "description_exact"):
            terms = [term for letter in "hz" for term, _ in index._searcher.terms_with_prefix(field, letter)]
            assert any(term.startswith(("zyx", "zeph")) for term in terms) == is_there, name
    assert not len(words.WordIndex(tmp_path / "new").match("zyxomma", 5)[0])


@pytest.mark.parametrize("query", ["gutiar", "gutiars", "guti"])
def test_a_word_that_only_listings_hold_which_are_gone_stands_for_others(query, tmp_path):
    old = written(tmp_path / "old", named("Acoustic guitar", "Gutiar", "Gutierrez bag"))
    assert 1 in rows_of(old.match(query, 5)[0])
    (tmp_path / "new").mkdir()
    words.update(tmp_path / "old", tmp_path / "new", KEYS[1:2], [], [])
    assert rows_of(words.WordIndex(tmp_path / "new").match(query, 5)[0]) == ([2] if query == "guti" else [0])


def test_a_place_that_only_listings_hold_which_are_gone_is_the_beginning_of_others(tmp_path):
    table = named("One", "Two")
    table["town"], table["county"] = ["Staff", "Stafford"], ""
    assert written(tmp_path / "old", table).search(None, Filters(location="staff"))[1] == 1
    (tmp_path / "new").mkdir()
    words.update(tmp_path / "old", tmp_path / "new", KEYS[:1], [], [])
    assert words.WordIndex(tmp_path / "new").search(None, Filters(location="staff"))[0].tolist() == [KEYS[1]]


@pytest.mark.parametrize("gone", [np.array([5]), np.append(KEYS[:2], 5)])
def test_an_update_of_listings_that_are_not_there_is_refused(tmp_path, gone):
    written(tmp_path / "old", TABLE)
    (tmp_path / "new").mkdir()
    with pytest.raises(StageError) as error:
        words.update(tmp_path / "old", tmp_path / "new", gone, [], [])
    left = len(TABLE) - np.isin(gone, KEYS).sum()
    assert str(error.value) == (
        f"{tmp_path / 'old' / 'words'} does not hold the listings of its generation ({left} after the update, not {left - 1}):"
        " run python build_index.py --full"
    )


def test_a_missing_or_damaged_index_is_one_sentence(tmp_path):
    with pytest.raises(StageError, match=r"words is missing or damaged \(.*\): run python build_index.py --full"):
        words.WordIndex(tmp_path)
    written(tmp_path, TABLE)
    (tmp_path / words.FOLDER / "meta.json").write_text("{")
    with pytest.raises(StageError, match=r"words is missing or damaged \(.*\): run python build_index.py --full"):
        words.WordIndex(tmp_path)
    with pytest.raises(StageError, match=rf"^{tmp_path}/words is missing or damaged \(.*\): run python build_index.py --full$"):
        words.update(tmp_path, folder_of(tmp_path, "new"), KEYS[:1], [], [])


def test_the_same_answers_come_to_all_threads(index):
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(rows_of(index.match("lovely guitra", 9)[0]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(rows == found[0] for rows in found)


def test_days_before_1970_and_times_of_day_are_dates(tmp_path):
    table = named("One", "Two", "Three")
    table["posted_on"] = ["1969-12-31", "2020-01-01T23:59", datetime.date.max.isoformat()]
    assert rows_of(written(tmp_path, table).search(None, sort="newest")[0]) == [2, 1, 0]
