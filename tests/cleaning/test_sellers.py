"""cleaning/sellers.py: the site's own sentence goes, and sellers' names become a mark."""

import datetime
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.cleaning import redaction, sellers

LEAK_NAMES = ["Ann", "Joe Bloggs", "J. Smith", "O'Brien & Sons Ltd.", "Müller", "cars4u", "Mr. T"]


@pytest.mark.parametrize("seller", LEAK_NAMES)
@pytest.mark.parametrize(
    ("date", "posted_on"),
    [
        ("25 February 2022", "2022-02-25"),
        ("25. February 2022", "2022-02-25"),
        ("February 5, 2022", "2022-02-05"),
        ("1st Mar 2021", "2021-03-01"),
        ("31 February 2022", ""),
    ],
)
def test_the_leak_sentence_goes_and_its_date_stays(seller, date, posted_on):
    sentence = f"Posted by {seller} in Dining, Living Room Furniture, Mirrors in St. Albans. {date}"
    assert sellers.strip_leak(f"Nice mirror. {sentence}") == ("Nice mirror.", posted_on)
    assert sellers.strip_leak(f"Nice mirror{sentence} can deliver") == ("Nice mirror can deliver", posted_on)
    assert sellers.strip_leak(f"Nice mirror. {sentence}Offers welcome") == ("Nice mirror. Offers welcome", posted_on)
    assert sellers.strip_leak("Nice.\n" + sentence.replace(" ", "\n")) == ("Nice.", posted_on)


@pytest.mark.parametrize(
    ("sentence", "posted_on"),
    [
        ("Posted by Seller in Leeds. ", ""),
        ("Posted by Seller in Coats, Clothing in Leeds. ", ""),
        ("Posted by Seller in Sports, Bicycles in Leeds  9 October 2021", "2021-10-09"),
        ("Posted by Ann.Leeds. 25 February 2022", "2022-02-25"),
        ("Posted by Ann in Home & Garden, Beds in Leeds. 25 Febru", ""),
        ("Posted by Ann in Home & Garden, Be", ""),
        ("Posted by J. Smith", ""),
        ("Posted by", ""),
    ],
)
def test_a_leak_sentence_of_another_shape_goes_too(sentence, posted_on):
    assert sellers.strip_leak(f"Trestles. {sentence}") == ("Trestles.", posted_on)


@pytest.mark.parametrize("text", ["Can be posted by courier in a box.", "Posted by Royal Mail in UK.", "POSTED BY me in Leeds"])
def test_a_sellers_own_words_about_posting_stay(text):
    assert sellers.strip_leak(text) == (text, "")


def test_two_leak_sentences_go_and_what_stands_between_them_stays():
    text = "Posted by A in Bath. A chair. Posted by C in D, E in F. 2 May 2021 Thanks"
    assert sellers.strip_leak(text) == ("A chair. Thanks", "2021-05-02")


@pytest.mark.parametrize("seller", LEAK_NAMES)
@pytest.mark.parametrize("rest", [" in Beds, Home in Leeds. 2 May 2021", " in Leeds.", ""])
def test_the_sellers_name_in_a_raw_record_becomes_a_mark(seller, rest):
    raw = f'7,x,"Bed | in Leeds, Yorks | Gumtree",Home,"Bed. Posted by {seller}{rest}",,"Leeds, Yorks"'
    masked = redaction.redact(raw)
    assert "Posted by [name]" in masked and not any(word in masked for word in re.findall(r"\w{3,}", seller))
    assert masked.endswith(',,"Leeds, Yorks"')


@given(st.dates(datetime.date(1990, 1, 1), datetime.date(2060, 1, 1)))
def test_every_day_of_the_calendar_is_read(day):
    sentence = f"Posted by Ann in Home in Leeds. {day.day} {day:%B} {day.year}"
    assert sellers.strip_leak(f"Bed. {sentence}") == ("Bed.", day.isoformat())


@pytest.mark.parametrize(
    "words", ["Posted by", "posted by", "POSTED BY", "Posted By", "Posted by:", "Posted\xa0by", "Posted&nbsp;by"]
)
@pytest.mark.parametrize("place", ["Beds in Leeds", "beds in leeds", "BEDS IN LEEDS"])
def test_the_leak_sentence_goes_in_any_capitals(words, place):
    assert sellers.strip_leak(f"Oak bed. {words} Ann Smith in {place}. 25 February 2022") == ("Oak bed.", "2022-02-25")


@pytest.mark.parametrize(("date", "posted_on"), [("25/02/2022", "2022-02-25"), ("2022-02-25", "2022-02-25"), ("31/02/2022", "")])
def test_a_date_in_figures_is_read_too(date, posted_on):
    assert sellers.strip_leak(f"Bed. Posted by Ann in Beds in Leeds. {date}") == ("Bed.", posted_on)


def test_a_name_in_a_sentence_of_no_shape_of_the_sites_becomes_a_mark_and_the_rest_stays():
    text = "Oak bed. Posted by Ann Smith. Collect from Leeds"
    assert sellers.strip_leak(text) == (text, "")
    assert redaction.redact(text) == "Oak bed. Posted by [name]. Collect from Leeds"


@pytest.mark.parametrize("blanks", [" ", "\n", "\t", "\xa0", "\u2003"])
def test_blanks_without_end_hide_no_name(blanks):
    assert "Ann" not in redaction.redact(f"Posted by{blanks * 5000}Ann. Collect")
    assert sellers.strip_leak(f"Bed. Posted{blanks * 5000}by Ann in Beds in Leeds. 2 May 2021") == ("Bed.", "2021-05-02")


SENTENCES = st.lists(
    st.sampled_from(
        [
            "Posted by ",
            "posted by ",
            "Posted ",
            "by ",
            "Ann",
            " in ",
            "Beds",
            "Leeds",
            ". ",
            "2 May 2021",
            "\n",
            "[name]",
            "hand",
            "é ",
        ]
    )
    | st.text(max_size=4),
    max_size=20,
).map("".join)


@given(SENTENCES)
def test_what_is_left_of_a_text_is_of_the_text(text):
    left, posted_on = sellers.strip_leak(text)
    letters = iter(text)
    assert all(char in letters for char in left if char.strip())
    assert posted_on in ("", "2021-05-02") or re.search(r"\d", text)


@given(SENTENCES)
def test_names_are_found_in_order_within_the_text(text):
    spans = sellers.find(text)
    assert spans == sorted(spans) and all(start < stop <= len(text) for start, stop in spans)
    assert all(stop <= start for (_, stop), (start, _) in zip(spans, spans[1:], strict=False))
