import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dataset import listings_with_splits
from marketplace.files import generations
from marketplace.files.stages import StageError
from marketplace.retrieval import search_quality
from marketplace.retrieval.filters import Filters
from marketplace.retrieval.questions import ListingWords, Question, ask
from marketplace.retrieval.recommender import Recommender
from marketplace.retrieval.search_quality import Found, PlainBM25

NAMES = ["oak table", "oak chair", "pine table lamp", "lamp", "lamp", "garden gnome"]
DESCRIPTIONS = ["a table of oak", "for the table", "", "with a shade", "", "oak"]
PATHS = ["Home / Tables", "Home / Chairs", "Home / Lighting", "Home / Lighting", "Home / Lighting", "Garden / Gnomes"]
NOTHING = Found(np.empty(0, np.int64), np.empty(0))


@pytest.fixture
def words():
    return ListingWords(NAMES, DESCRIPTIONS, PATHS, np.arange(6))


def answering(rows: list[int], scores: list[float] | None = None):
    """A search that always gives the same."""
    return lambda words, filters: Found(np.array(rows, np.int64), np.array(scores or [0.5] * len(rows)))


def bm25_by_hand(query: list[str]) -> list[float]:
    texts = [f"{name} {name} {description}".split() for name, description in zip(NAMES, DESCRIPTIONS, strict=True)]
    mean_length = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        score = 0.0
        for word in query:
            held = sum(word in other for other in texts)
            idf = math.log(1 + (len(texts) - held + 0.5) / (held + 0.5))
            score += idf * text.count(word) * 2.2 / (text.count(word) + 1.2 * (0.25 + 0.75 * len(text) / mean_length))
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", [["oak"], ["oak", "table"], ["lamp", "shade"]])
def test_plain_bm25_is_the_formula(words, query):
    expected = bm25_by_hand(query)
    found = PlainBM25(words)(" ".join(query).upper())
    assert set(found.rows) == {row for row, score in enumerate(expected) if score > 0}
    np.testing.assert_allclose(found.scores, [expected[row] for row in found.rows])
    assert (np.diff(found.scores) <= 0).all()


def test_plain_bm25_knows_no_stems_and_answers_unknown_words_by_nothing(words):
    assert len(PlainBM25(words)("tables zebra").rows) == len(PlainBM25(words)("!").rows) == 0
    assert len(PlainBM25(words, k=1)("oak").rows) == 1


def test_a_known_item_counts_by_its_rank_and_one_of_its_title_counts_as_well(words):
    asked = [Question("rarest_1", "lamp", ("lamp",), 3), Question("title", "lamp", ("lamp",), 3)]
    table, answers = search_quality.answer_questions(answering([0, 4, 3]), answering([3]), words, asked)
    assert table[["ours", "bm25"]].to_numpy().tolist() == [[0.5, 1.0], [0.0, 1.0]]
    assert table["figure"].tolist() == ["mrr_at_10", "first"] and table["answers"].tolist() == [3, 3]
    assert answers["right"].tolist() == [False, True, True] * 2 and answers["question"].tolist() == [0, 0, 0, 1, 1, 1]


def test_a_question_answered_by_nothing_scores_0_and_is_counted(words):
    asked = ask(words, range(6))
    table, answers = search_quality.answer_questions(lambda *_: NOTHING, PlainBM25(words), words, asked)
    assert (table["ours"] == 0).all() and not len(answers)
    answered = search_quality.Answered(table, answers, np.ones(3), np.empty(0))
    figures = answered.figures(seed=0)
    assert figures["good_question_answered_by_nothing"]["value"] == figures["nonsense_answered_by_nothing"]["value"] == 1
    assert figures["impossible_filter_answered_by_nothing"] is figures["score_calibration_error"] is None
    assert answered.reliability() == []


def test_graded_questions_get_1_for_the_best_order_and_less_for_another(words):
    asked = [Question("words", "oak", ("oak",), 1)]
    grades = words.grades(asked[0])
    best, worst = np.argsort(-grades, kind="stable"), np.argsort(grades, kind="stable")
    table, _ = search_quality.answer_questions(answering(best.tolist()), answering(worst.tolist()), words, asked)
    assert table["ours"][0] == pytest.approx(1) and table["bm25"][0] < 0.9


def write_queries(path, rows: list[str]):
    path.write_text("\n".join(["kind,query,category_pattern,title_pattern", *rows]) + "\n")
    return path


def test_typed_queries_are_right_by_either_pattern_whatever_the_case(tmp_path):
    path = write_queries(tmp_path / "queries.csv", ["synonym,desk,home / tables$,LAMP", "plain,gnome,,gnome"])
    queries = search_quality.read_queries(path)
    rights = list(search_quality.right_answers(queries, NAMES, PATHS))
    assert [np.flatnonzero(right).tolist() for right in rights] == [[0, 2, 3, 4], [5]]
    table, answers = search_quality.answer_queries(answering([0, 1, 5]), answering([]), queries, rights)
    assert table["ours"].tolist() == [1 / 4, 1.0] and table["bm25"].tolist() == [0, 0]
    assert table["kind"].tolist() == ["typed synonym", "typed plain"]
    assert answers["right"].tolist() == [True, False, False, False, False, True]


def test_a_typed_query_that_nothing_could_answer_is_left_out_of_its_figure(tmp_path):
    queries = search_quality.read_queries(write_queries(tmp_path / "q.csv", ["plain,boat,Boats,boat"]))
    table, answers = search_quality.answer_queries(lambda *_: NOTHING, answering([]), queries, [np.zeros(6, bool)])
    assert table["ours"].isna().all()
    figures = search_quality.Answered(table, answers, np.ones(1), np.ones(1)).figures(seed=0)
    assert figures["typed_plain_p_at_10"] is figures["good_question_answered_by_nothing"] is None


def test_a_catalogue_in_another_alphabet_asks_by_category_at_most_and_nothing_fails():
    words = ListingWords(["диван", "стол"], ["", "дуб"], ["Дом / Sofas", "Дом / Столы"], np.arange(2))
    asked = ask(words, range(2))
    assert [question.words for question in asked] == ["Sofas", "Столы"]
    table, answers = search_quality.answer_questions(PlainBM25(words), PlainBM25(words), words, asked)
    assert table["answers"].tolist() == [0, 0] and answers.empty
    table, answers = search_quality.answer_questions(PlainBM25(words), PlainBM25(words), words, [])
    assert search_quality.Answered(table, answers, np.empty(0), np.empty(0)).figures(seed=0) == dict.fromkeys(
        search_quality.TARGETS
    )


def test_a_file_without_a_query_is_one_sentence(tmp_path):
    path = write_queries(tmp_path / "queries.csv", [])
    with pytest.raises(StageError) as error:
        search_quality.read_queries(path)
    assert str(error.value) == f"{path} holds no query: give at least one"


def test_a_pattern_that_is_none_is_one_sentence(tmp_path):
    path = write_queries(tmp_path / "queries.csv", ["plain,sofa,(sofa,sofa"])
    with pytest.raises(StageError) as error:
        search_quality.read_queries(path)
    assert str(error.value).startswith(f'{path} holds "(sofa", which is no pattern: mend it (')


def test_nonsense_is_near_to_no_word_of_the_catalogue(words):
    assert search_quality.nonsense(words) == list(search_quality.NONSENSE)
    near = ListingWords(["glompfuz", "skwibel"], ["", ""], ["A", "A"], np.arange(2))
    assert set(search_quality.NONSENSE) - set(search_quality.nonsense(near)) == {"glompfuzz", "skwibbel dronquaff"}


def test_what_is_impossible_passes_listings_but_none_of_the_word_or_its_kind():
    names = ["guitar"] * 5 + ["piano"] * 5
    words = ListingWords(names, [""] * 10, ["Music / Guitars"] * 5 + ["Music / Pianos"] * 5, np.arange(10))
    prices = np.array([10.0, 20, 30, 40, 50, 100, 200, 300, 400, 500])
    ((word, filters),) = search_quality.impossible(words, prices, range(10), seed=0)  # pianos are the dearest
    assert (word, filters) == ("guitar", Filters(min_price=51.0))
    assert search_quality.answered_by_nothing(lambda *_: NOTHING, [(word, filters)]).tolist() == [1]
    assert search_quality.answered_by_nothing(answering([5]), [(word, filters)]).tolist() == [0]


def test_the_calibration_error_is_the_gap_between_score_and_share_and_0_for_an_honest_score():
    questions = pd.DataFrame({"kind": "words", "figure": "ndcg_at_10", "ours": [1.0] * 4, "bm25": 1.0, "answers": 5})
    answers = pd.DataFrame({"question": np.repeat(range(4), 5), "score": 0.8, "right": [True, True, True, True, False] * 4})
    answered = search_quality.Answered(questions, answers, np.ones(1), np.ones(1))
    assert answered.figures(seed=0)["score_calibration_error"]["value"] == pytest.approx(0, abs=1e-6)
    certain = search_quality.Answered(questions, answers.assign(score=1.0), np.ones(1), np.ones(1))
    assert certain.figures(seed=0)["score_calibration_error"]["value"] == pytest.approx(0.2, abs=1e-6)


def test_the_search_that_is_measured_is_the_one_that_is_served(demo_dir):
    recommender = Recommender(generations.current_generation(demo_dir / "index"))
    listings = listings_with_splits(demo_dir)
    search = search_quality.search_by(recommender, listings["product_id"])
    for name in listings["name"][:5]:
        served = recommender.search(recommender.typed(name), 10).results
        found = search(name)
        assert listings["product_id"].iloc[found.rows].tolist() == [result["product_id"] for result in served]
        assert found.scores.tolist() == [result["score"] for result in served]
        assert len(search(name, Filters(min_price=1e9)).rows) == 0


def test_what_holds_no_word_is_answered_by_nothing():
    wordless = SimpleNamespace(typed=lambda words: SimpleNamespace(typed=None), search=None)
    found = search_quality.search_by(wordless, pd.Series(["a"]))("[phone]")
    assert (len(found.rows), len(found.scores)) == (0, 0)
