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
