import dataclasses
import math
import re
import threading

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from marketplace.retrieval import analysis, forward
from marketplace.retrieval.matching import K1, NAME_TIMES, B
from marketplace.retrieval.typed import MAX_WORDS
from marketplace.retrieval.typed_search import ENOUGH, FAR_COSINE, FLOOR_HELD, NEAR_COSINE
from tests.retrieval import typed_catalogue

SHOP = [
    ("Grey pushchair", "Folds flat", "Baby / Prams & Strollers"),
    ("Mobility scooter", "Red, new battery", "Health / Mobility"),
    ("Mobile phone Nokia", "Unlocked", "Phones / Nokia"),
    ("Laptop 8GB RAM", "Fast", "Computers / Laptops"),
    ("Two seater sofa", "Brown leather", "Home / Sofas"),
    ("HP monitor with touch screen", "22 inch", "Computers / Monitors"),
    ("Touch lamp", "Bedside", "Home / Lighting"),
    ("Touch phone", "Works", "Phones / Other"),
    ("High heels size 5", "Running late sale, shoes", "Clothes / Heels"),
    ("Running shoes Nike", "Size 9", "Clothes / Trainers"),
    ("iiyama monitor white", "24 inch", "Computers / Monitors"),
    ("White desk", "For a monitor", "Home / Desks"),
    ("Fridge freezer Bosch", "Tall", "Appliances / Fridge freezers"),
    ("Fridge freezer Beko", "Small", "Appliances / Fridge freezers"),
    ("Fridge freezer", "White", "Appliances / Fridge freezers"),
    *[("Pine mattress frame", f"Number {number}", "Home / Beds") for number in range(6)],
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    typed_catalogue.write(folder, SHOP)
    return typed_catalogue.opened(folder)


@pytest.mark.parametrize(
    ("typed", "best"),
    [
        ("pram", 0),  # no letters of RAM
        ("stroller", 0),
        ("settee", 4),
        ("couch", 4),  # no touch screen
        ("mobile", 2),  # one stem with mobility
        ("mobility", 1),
        ("white iiyama", 10),
        ("running shoes", 9),
        ("ruNNing-Shoes", 9),
        ("matress", 15),
        ("fridgefreezer", 14),
    ],
)
def test_what_was_typed_comes_first(shop, typed, best):
    assert typed_catalogue.ranked(shop, typed)[0] == best


@pytest.mark.parametrize("typed", ["zzkrtplm flurbington", "qwxzvbn", "helicopter"])
def test_nothing_close_is_an_answer(shop, typed):
    assert typed_catalogue.ranked(shop, typed) == []


def test_a_text_without_words_is_no_query(shop):
    assert shop.read(" - !?") is None


def test_the_reading_tells_corrections_and_synonyms(shop):
    assert shop.read("matress").query.corrections == {"matress": "mattress"}
    held = shop.explain(shop.read("grey pram"), np.array([0]))[0]
    assert (held["grey"].how, held["pram"].how, held["pram"].text) == ("", "synonym", "pushchair")


THINGS = [
    ("Acoustic guitar", "", "Music"),
    ("Guitar stand", "", "Music"),
    ("Brass lamp", "", "Lighting"),
    ("Camp chair", "", "Outdoors"),
    ("iPhone 6s 64GB", "", "Phones"),
    ("iPhone 7", "", "Phones"),
    ("Racing bicycle", "", "Sports"),
    ("Washing machine", "", "Appliances"),
    ("Bed", "", "Beds"),
]


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    folder = tmp_path_factory.mktemp("things")
    typed_catalogue.write(folder, THINGS, synonyms="")
    return typed_catalogue.opened(folder)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("guitra", "guitar"), ("giutar", "guitar"), ("guittar", "guitar"), ("gitar", "guitar"), ("Guitär", "guitar"),
        ("guitars", "guitar"), ("acoustc guitar", "acoustic guitar"), ("guit", "guitar"), ("gui", "guitar"),
        ("bicylce", "bicycle"), ("wahsing mashine", "washing machine"), ("bicyc", "bicycle"),
    ],
)  # fmt: skip
def test_a_misspelt_or_unfinished_word_finds_what_was_meant(things, typed, meant):
    assert typed_catalogue.ranked(things, typed) == typed_catalogue.ranked(things, meant) != []


@pytest.mark.parametrize(
    ("typed", "meant", "share"), [("bicylce", "bicycle", 1), ("bicyc", "bicycle", 0.5), ("guitars", "guitar", 1)]
)
def test_a_corrected_word_counts_as_the_right_one_and_an_unfinished_one_half(things, typed, meant, share):
    every = np.arange(len(THINGS))
    right, guessed = (things.evidence(things.read(text), every).matches.name_meant for text in (meant, typed))
    assert right.any()
    np.testing.assert_allclose(guessed, share * right, rtol=1e-5)


@pytest.mark.parametrize(
    ("typed", "rows"),
    [
        ("lamp", [2]), ("camp", [3]), ("chair lamp", [2, 3]),  # a word that is there is not taken for another
        ("9s", []), ("648GB", []), ("68GB", []),  # a number is no misspelt number
        ("bxd", []), ("bef", []), ("lam", [2]), ("be", []),  # nor a short word another; as a beginning it has three letters
    ],
)  # fmt: skip
def test_a_word_that_is_there_a_number_and_a_short_word_are_taken_for_no_other(things, typed, rows):
    assert sorted(typed_catalogue.ranked(things, typed)) == rows
    assert things.read(typed).query.corrections == {}


def test_beside_a_number_that_nothing_holds_the_other_words_are_looked_for(things):
    typed = things.read("iphone 8")
    assert [word.text for word in typed.query.required] == ["iphone"]
    assert things.candidates(typed).rows.tolist() == [4, 5]


ODD = ["\0", "\ud800 bed", "x" * 70_000, "bed " * 500, '"bed lamp', "name:bed", "NOT bed", "bed)^5", "[a TO z]"]


@settings(max_examples=300)
@given(st.text(max_size=80) | st.sampled_from(ODD))
def test_whatever_is_typed_is_words(things, text):
    typed = things.read(text)
    if typed is None:
        assert analysis.split(text) == []
        return
    words = [word.text for word in typed.query.words]
    assert words == list(dict.fromkeys(analysis.split(text)))[:MAX_WORDS]
    assert all(word.rarity > 0 for word in typed.query.words) and set(typed.query.corrections) <= set(words)
    candidates = things.candidates(typed)
    for part in things.score(typed, candidates).values():
        assert (np.isfinite(part) & (part >= 0)).all()
    result = things.result(typed, candidates, None)
    assert result.total == things.is_in(result, candidates).sum() <= len(THINGS)
    share = things.share(typed, candidates.rows)
    assert ((share >= 0) & (share <= 1)).all()
    for held in things.explain(typed, candidates.rows):
        assert set(held) <= set(words)


def test_the_same_answers_come_to_all_threads(tmp_path):
    typed_catalogue.write(tmp_path, THINGS, synonyms="")
    search, answers = typed_catalogue.opened(tmp_path), []  # which has not read any word yet
    threads = [
        threading.Thread(target=lambda: answers.append(typed_catalogue.ranked(search, "acoustic guitra"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [[0, 1]] * 8


def test_own_synonyms_are_read(tmp_path):
    typed_catalogue.write(tmp_path, SHOP, "gubbins,iiyama\n")
    assert typed_catalogue.ranked(typed_catalogue.opened(tmp_path), "gubbins")[0] == 10


@pytest.mark.parametrize("text", ["zither lamp", "lamp zither"])
def test_a_result_without_its_commonest_word_is_found_whole_by_the_others(tmp_path, text):
    # No listing holds both; by BM25 a name with the common word comes before a description with the rare one.
    names = [("Lamp", "", "Home")] * 200 + [("Old box", "with a zither in it " + "and much more " * 30, "Home")] * 100
    typed_catalogue.write(tmp_path, names, synonyms="")
    search = typed_catalogue.opened(tmp_path)
    typed = search.read(text)
    candidates = search.candidates(typed, 10)
    assert candidates.rows.max() < 200
    result = search.result(typed, candidates, None)
    assert ([typed.query.required[place].text for place in result.words], result.total) == (["zither"], 100)
    for depth in (10, 50, 100, 1000):
        members = search.members(typed, result, candidates, depth)
        belongs = search.is_in(result, members)
        assert belongs.sum() == min(depth, 100) and members.rows[belongs].min() >= 200


def test_a_very_long_description_is_counted_for_the_words_that_ranking_sees(tmp_path):
    long = "word " * forward.MAX_WORDS
    typed_catalogue.write(tmp_path, [("Brass lamp", f"zither {long}", ""), ("Oak table", f"{long} zither", "")], synonyms="")
    search = typed_catalogue.opened(tmp_path)
    typed = search.read("zither")
    candidates = search.candidates(typed)
    assert search.result(typed, candidates, None).total == 1
    assert typed_catalogue.ranked(search, "zither") == [0]


WORDS = ["oak", "pine", "table", "lamp", "brass", "round", "small"]


@settings(max_examples=25)
@given(st.lists(st.sampled_from(WORDS), min_size=2, max_size=3, unique=True), st.data())
def test_of_two_listings_alike_in_all_else_the_one_that_holds_more_of_the_typed_words_comes_first(tmp_path_factory, typed, data):
    more = data.draw(st.integers(1, len(typed)))
    fewer = data.draw(st.integers(0, more - 1))
    fill = ["thing"] * len(typed)
    names = [" ".join(typed[:count] + fill[count:]) for count in (fewer, more)]
    order = data.draw(st.permutations([0, 1]))
    folder = tmp_path_factory.mktemp("pair")
    others = [(word, "", "Home") for word in WORDS]  # each word is as rare as another
    typed_catalogue.write(folder, [(names[i], "", "Home") for i in order] + others, synonyms="")
    ranked = typed_catalogue.ranked(typed_catalogue.opened(folder), " ".join(typed))
    richer = order.index(1)
    assert (richer in ranked) == (more / len(typed) >= FLOOR_HELD)  # so little is not close to what was typed
    assert order.index(0) not in ranked or ranked.index(richer) < ranked.index(order.index(0))


@settings(max_examples=25)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3, unique=True), st.data())
def test_a_name_with_all_words_comes_before_one_with_none(tmp_path_factory, typed, data):
    rest = [word for word in WORDS if word not in typed]
    without = data.draw(st.lists(st.sampled_from(rest), min_size=1, max_size=3))
    padding = data.draw(st.lists(st.sampled_from(rest), max_size=3))
    folder = tmp_path_factory.mktemp("pair")
    text = " ".join(typed)
    typed_catalogue.write(folder, [(" ".join(without), text, "Home"), (" ".join([*typed, *padding]), "", "Home")], synonyms="")
    assert typed_catalogue.ranked(typed_catalogue.opened(folder), text)[0] == 1


@given(st.lists(st.text("ab ", min_size=1, max_size=6), min_size=1, max_size=5), st.text("ab ", min_size=1, max_size=5))
def test_shares_and_bm25_equal_a_plain_count(tmp_path_factory, names, typed):
    assume(typed.split())
    folder = tmp_path_factory.mktemp("counts")
    typed_catalogue.write(folder, [(name, "a", "") for name in names], synonyms="")
    search = typed_catalogue.opened(folder)
    query = search.read(typed)
    found = search.evidence(query, np.arange(len(names))).matches
    stems = list(dict.fromkeys(typed.split()))
    assume(len({analysis.stem(word) for word in stems}) == len(stems) and not query.query.corrections)
    frequency = {word: max(sum(word in name.split() for name in names), len(names) * (word == "a")) for word in stems}
    by_stem = {word: any(analysis.stem(word) in map(analysis.stem, [*name.split(), "a"]) for name in names) for word in stems}
    rarity = {word: math.log(1 + (len(names) - frequency[word] + 0.5) / (frequency[word] + 0.5)) for word in stems}
    assume(all(frequency[word] or not by_stem[word] for word in stems))
    assume(all(not word.is_function and word.is_held == bool(frequency[word.text]) for word in query.query.words))
    weights = {word: rarity[word] for word in stems if frequency[word]}
    total = sum(weights.values()) or 1
    lengths = [NAME_TIMES * len(name.split()) + 1 for name in names]
    mean = max(sum(lengths) / len(lengths), 1)
    for row, name in enumerate(names):
        assert found.name_typed[row] == pytest.approx(sum(weights[w] for w in weights if w in name.split()) / total, abs=1e-5)
        score = 0.0
        for word, weight in weights.items():
            count = NAME_TIMES * name.split().count(word) + (word == "a")
            score += weight * count / (count + K1 * (1 - B + B * lengths[row] / mean))
        assert found.bm25[row] == pytest.approx(score / total, abs=1e-5)
        assert bool(found.same_title[row]) == (re.findall(r"\w+", name) == re.findall(r"\w+", typed))


def test_marks_of_redaction_are_no_words(tmp_path):
    listings = [
        ("Brass lamp [phone]", "Call [phone] or write to [email], [postcode]", "Home"),
        ("Mobile phone", "Unlocked", "Phones"),
    ]
    typed_catalogue.write(tmp_path / "index", listings)
    search = typed_catalogue.opened(tmp_path / "index")
    assert typed_catalogue.ranked(search, "phone") == [1]
    assert typed_catalogue.ranked(search, "email") == typed_catalogue.ranked(search, "postcode") == []
    assert typed_catalogue.ranked(search, "brass lamp [phone]")[0] == 0


def test_no_mark_of_redaction_is_marked_as_found(tmp_path):
    typed_catalogue.write(tmp_path / "index", [("Phone, call [phone]", "A phone: call [phone] about the phone", "Phones")])
    search = typed_catalogue.opened(tmp_path / "index")
    words = search._catalogue.words
    marked = words.highlighter([word.alternatives for word in search.read("phone").query.required])
    assert marked.marks("Phone, call [phone]") == [(0, 5)]
    snippet = marked.snippet("A phone: call [phone] about the phone")
    assert [snippet.text[start:end] for start, end in snippet.marks] == ["phone", "phone"] and snippet.marks[0] == (2, 7)


def test_a_result_of_enough_listings_holds_none_that_are_only_far_alike(tmp_path):
    names = [*(f"Sofa number {number}" for number in range(ENOUGH)), "Armchair", "Coffee table"]
    typed_catalogue.write(tmp_path / "index", [(name, "", "Home") for name in names], synonyms="")
    search = typed_catalogue.opened(tmp_path / "index")
    typed = dataclasses.replace(search.read("sofa"), vector=np.zeros(3, np.float32))
    candidates = search.evidence(dataclasses.replace(typed, vector=None), np.arange(len(names)))
    far = np.where(np.arange(len(names)) < ENOUGH, 0.0, (FAR_COSINE + NEAR_COSINE) / 2)
    candidates = dataclasses.replace(candidates, cosines={"name": far, "text": far, "category": far})
    assert search.result(typed, candidates, None).total == ENOUGH
    few = dataclasses.replace(search.read("armchair"), vector=np.zeros(3, np.float32))
    few_candidates = search.evidence(dataclasses.replace(few, vector=None), np.arange(len(names)))
    few_candidates = dataclasses.replace(few_candidates, cosines=candidates.cosines)
    assert search.result(few, few_candidates, None).total == 2
