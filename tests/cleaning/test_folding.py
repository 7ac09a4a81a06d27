"""cleaning/folding.py: a text as a person sees it, and where its characters came from."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.cleaning import folding

SHOWN = st.lists(
    st.sampled_from(
        ["a", " ", "5", "&amp;", "&#53;", "<br>", "</b>", "\u200b", "\u20e3", "５", "－", "\u2212", "é", "👍", "&nbsp;"]
    )
    | st.text(max_size=3)
).map("".join)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("0–7\u22127－1\u2043", "0-7-7-1-"),
        ("１２\u0663 ⓪⁵", "123 05"),
        ("a\u200bb\u00adc", "abc"),
        ("5\ufe0f\u20e37\ufe0f\u20e3", "57"),
        ("x<br>y</b>z", "x y z"),
        ("x < y <3 <07700>", "x < y <3 <07700>"),
        ("a&nbsp;b&#64;c&amp;amp;d", "a b@c&d"),
        ("a&shy;b", "ab"),
        ("a·b‧c。", "a•b•c."),
        ("ﷺ½", "ﷺ½"),
    ],
)
def test_a_folded_text_is_in_the_plainest_characters(text, plain):
    assert re.sub("\\s", " ", folding.fold(text).plain) == plain


@given(SHOWN)
def test_every_folded_character_knows_where_it_came_from(text):
    folded = folding.fold(text)
    begins = [folded.origin(place, place + 1)[0] for place in range(len(folded.plain))]
    assert begins == sorted(set(begins))
    for place, char in enumerate(folded.plain):
        begin, end = folded.origin(place, place + 1)
        assert 0 <= begin < end <= len(text)
        assert char in folding.fold(text[begin:end]).plain or text[begin] in "&<"


@given(SHOWN)
def test_a_text_of_which_nothing_is_replaced_stays_and_one_replaced_whole_goes(text):
    folded = folding.fold(text)
    assert folded.replace([]) == text
    if folded.plain:
        assert set(folded.replace([(0, len(folded.plain), "[all]")]).replace("[all]", "")) <= set(text)
        assert folding.fold(folded.replace([(0, len(folded.plain), "[all]")])).plain == "[all]"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Home &amp; Garden", "Home & Garden"),
        ("Home &amp;amp; Garden", "Home & Garden"),
        ("Home\xa0 \t Garden", "Home Garden"),
        ("\u200bHome\u200b \u200bGarden\ufeff", "Home Garden"),
        ("Fish & Chips; A&B", "Fish & Chips; A&B"),
        ("&#" + "9" * 5000 + ";", "&#" + "9" * 5000 + ";"),
        ("👨\u200d👩\u200d👧 ❤\ufe0f", "👨\u200d👩\u200d👧 ❤\ufe0f"),
    ],
)
def test_a_line_is_tidied_to_what_is_shown(text, shown):
    assert folding.tidy(text) == shown


@given(st.text(max_size=40))
def test_a_tidy_line_without_entities_stays_as_it_is(text):
    assert folding.tidy(folding.tidy(text)) == folding.tidy(text) or "&" in text


def test_accents_end_at_thirty_in_a_row_so_that_normalising_takes_linear_time():
    tower = "a" + "\u0315\u0316" * 1000
    assert folding.limit_marks(f"caf\u00e9 e\u0301 {tower} b {tower}") == f"caf\u00e9 e\u0301 {tower[:31]} b {tower[:31]}"


@given(st.text(max_size=60))
def test_what_people_write_has_no_more_accents_than_that(text):
    runs = re.findall("1{31,}", "".join("1" if unicodedata.combining(char) else "0" for char in text))
    assert runs or folding.limit_marks(text) == text
