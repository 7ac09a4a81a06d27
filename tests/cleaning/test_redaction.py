"""cleaning/redaction.py: personal data becomes a mark."""

import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from marketplace.cleaning import redaction
from tests.cleaning.spellings import INNOCENT, SPELLINGS, cases, marked, plain

PHONES = [
    "07700 900123",
    "07700900123",
    "+447700900123",
    "+44 7700 900 123",
    "+44 (0)7700 900123",
    "+44(0)20 7946 0958",
    "(+44) 7700 900123",
    "+ 44 7700 900123",
    "0044 7700 900123",
    "00 44 20 7946 0958",
    "44 7700 900123",
    "447700900123",
    "(020) 7946-0958",
    "020.7946.0958",
    "0121-496-0123",
    "07700–900–123",
    "0 7 7 0 0 9 0 0 1 2 3",
    "07700  900   123",
    "07700\xa0900\xa0123",
    "07700\n900123",
    "07700\u200b900\u200b123",
    "\u202a07700 900123\u202c",
    "0️⃣7️⃣7️⃣0️⃣0️⃣9️⃣0️⃣0️⃣1️⃣2️⃣3️⃣",
    "０７７００９００１２３",
    "o7700 900123",
    "(01204) 62345",
    "01204 62345",
    "0800 111 111",
    "0300 123 4567",
    "05600 123456",
    "0909 879 0123",
]

KEPT = [
    "Size 10 12 14 16 18 20 22 24",
    "0-3 3-6 6-9 9-12 months",
    "200 x 150 x 60 cm",
    "H745 x W600 x D580",
    "0.75 x 1.20 m, 0.7 0.8 0.9 1.0 1.1",
    "01.12.2022 10:30",
    "01/12/2022",
    "2022-02-26 14:05:03.123456",
    "£1,234.56",
    "£10,000,000",
    "ISBN 0747532699",
    "ISBN 978-0-7475-3269-9",
    "EAN 4006381333931",
    "EAN 0123456789012",
    "0 12345 67890 5",
    "SKU 036000291452",
    "Item number 012345678905",
    "company 1234567, 2345",
    "ref 07 123 4567 8901",
    "i7 8GB",
    "i5 6th generation",
    "S7 8GB",
    "M2 8GB",
    "S24FE",
    "M3 2DR",
    "W4 6FT",
    "S3 4WD",
    "PS4 1TB",
    "DDR3 2GB 1600MHz",
    "iPhone SE2 2nd hand",
    "XX-S4 3WE",
    "RTX3060 12GB",
    "UE40D5003BW",
    "205/55R16 91V",
    "Core i5-1234G7 8GB 256GB SSD",
    "tyres @ £15 each",
    "CPU @1.80GHz",
    "follow @blue_bikes_of_leeds",
    "12c0b5e6-0160-4295-8034-120745327946",
    "12c0b5e6-a016-4295-8034-120745327946",
    "no parking at sky level",
]

POSTCODES = [
    "BS4 1AB",
    "bs4 1ab",
    "BS41AB",
    "EC1A 1BB",
    "W1A 0AX",
    "M1 1AE",
    "B33 8TH",
    "CR2 6XH",
    "DN55 1PT",
    "N1\xa09GU",
    "ZZ99 9ZZ",
]

EMAILS = [
    "joe@example.com",
    "joe.o'neil+x@mail.example.co.uk",
    "joe(at)example.com",
    "joe [at] gmail [dot] com",
    "joe at gmail dot com",
    "joe @ hotmail.co.uk",
]


@pytest.mark.parametrize("phone", PHONES)
def test_a_uk_telephone_number_becomes_a_mark(phone):
    assert re.fullmatch("Ring \u202a?\\[phone\\]\u202c? today", redaction.redact(f"Ring {phone} today"))


@pytest.mark.parametrize("phone", [phone for phone in PHONES if phone[0] in "0+(4"])
def test_a_telephone_number_glued_to_words_becomes_a_mark(phone):
    assert redaction.redact(f"contact{phone}Items can be delivered") == "contact[phone]Items can be delivered"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0121-496012307700900123", "[phone]"),
        ("07700 900123.07700 900123", "[phone].[phone]"),
        ("07700 900123 / 020 7946 0958", "[phone] / [phone]"),
        ("£42507700900123", "£425[phone]"),
        ("(07700 900123)", "([phone])"),
        ("TownNE9 9XX07700 900123", "Town[postcode][phone]"),
        ("Call us; 01 2345 678 now", "Call us; [phone] now"),
        ("joe@example.com07700 900123", "[email][phone]"),
    ],
)
def test_personal_data_glued_together_becomes_marks(text, expected):
    assert redaction.redact(text) == expected


@pytest.mark.parametrize("text", KEPT)
def test_sizes_dates_prices_codes_and_model_numbers_survive(text):
    assert redaction.redact(text) == text
    assert redaction.redact(f"Nice ({text}), used") == f"Nice ({text}), used"


@pytest.mark.parametrize("postcode", POSTCODES)
def test_a_uk_postcode_becomes_a_mark(postcode):
    assert redaction.redact(f"from {postcode}, or") == "from [postcode], or"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ValleyBS4 1AB", "Valley[postcode]"),
        ("BS4 1ABCollection", "[postcode]Collection"),
        ("HarbourBS19ZZPlease", "Harbour[postcode]Please"),
        ("LaneSl9 9XX,", "Lane[postcode],"),
        ("gateLs99xxThanks", "gate[postcode]Thanks"),
        ("GreenB79 9ZZNear", "Green[postcode]Near"),
        ("LONG ROADB45 9XEWAREHOUSE", "LONG ROAD[postcode]WAREHOUSE"),
        ("Come LS9 9XXBLUE", "Come [postcode]BLUE"),
        ("745 x ZZ99 9ZZ6", "745 x [postcode]6"),
    ],
)
def test_a_postcode_glued_to_words_becomes_a_mark(text, expected):
    assert redaction.redact(text) == expected


@pytest.mark.parametrize("email", EMAILS)
def test_an_email_address_becomes_a_mark(email):
    assert redaction.redact(f"write to {email} please") == "write to [email] please"


NOT_FOUND = {  # what nothing short of reading would find
    "Ring zero seven seven hundred, nine hundred, «one two three»",
    "Ring «07seven00 900123» today",
    "Ring «0 double 7 00 900123» today",
    "Ring «07700 and 900123» today",
    "Tel: «960001»",
    "write to «joe at g mail dot com» please",
    "write to «joe gmail com» please",
    "write to «joe@exa mple.com» please",
    "from «S W 1 A 1 A A», or",
    "from «SW1A 1 AA», or",
    "from «W1A OAX», or",
    "from «M2 8GB», or",
    "Posted by «Air Force» in Beds in Leeds. Nice",
    "The seller is «Ann Smith». Collect soon",
}

FOUND_BY_MISTAKE = {"Spitfire MK1 1HD print"}


def test_there_are_enough_spellings_and_innocent_texts_to_judge_by():
    assert len({case for _, case in SPELLINGS}) == len(SPELLINGS) >= 200 and len(set(cases(INNOCENT))) >= 200


@pytest.mark.parametrize(("mark", "case"), SPELLINGS)
def test_personal_data_becomes_a_mark_in_the_spellings_that_people_use(mark, case):
    assert (redaction.redact(plain(case)) == marked(case, mark)) == (case not in NOT_FOUND)


@pytest.mark.parametrize("text", cases(INNOCENT))
def test_an_innocent_text_stays(text):
    assert (redaction.redact(text) == text) == (text not in FOUND_BY_MISTAKE)


@pytest.mark.parametrize("invisible", ["\u200b", "\u2060", "\ufeff", "\u00ad", "\u200d", "\u202a", "&shy;", "&#8203;"])
def test_an_invisible_character_hides_nothing(invisible):
    for mark, secret in (("[phone]", "07700 900123"), ("[email]", "joe@example.com"), ("[postcode]", "SW1A 1AA")):
        text = f"from {invisible.join(secret)}, please"
        assert redaction.redact(text) == f"from {mark}, please"


PERSONAL = st.lists(
    st.one_of(
        st.sampled_from([*PHONES, *POSTCODES, *EMAILS, *KEPT, "[phone]", "[postcode]", "[email]", "[name]"]),
        st.text(alphabet="0123456789+44 ()-.\n@oO" + string.ascii_letters, max_size=12),
    ),
    max_size=8,
).map("".join)


@given(PERSONAL | st.text(max_size=60))
@example("07700 90012307700 900123 +4407700900123(020) 7946 0958")
@example("e16anE1 6ANe16anE1 6AN/E2 7BB/E1 6AN")
@example("Posted Posted by A in B. by A in B. 2 May 2021")
def test_redacting_twice_is_redacting_once(text):
    once = redaction.redact(text)
    assert redaction.redact(once) == once


@given(st.integers(0, 999_999_999), st.lists(st.sampled_from(["", " ", "-", ".", "\u200b", ") "]), min_size=10, max_size=10))
def test_no_mobile_number_survives_whatever_stands_between_its_digits(number, gaps):
    digits = f"07{number:09d}"
    spelled = digits[0] + "".join(gap + digit for gap, digit in zip(gaps, digits[1:], strict=True))
    if not re.match(r"0\.7(?!\.)|\d{1,2}([.-])\d{1,2}\1(?:19|20)\d\d(?!\d)", spelled):  # written like a decimal or a date
        assert redaction.redact(f"call {spelled} now") == "call [phone] now"


@given(st.text(alphabet=string.ascii_letters + " \n.,!?'\"£€éü👍-()|", max_size=200))
def test_words_without_digits_or_addresses_come_through_redaction_unchanged(text):
    assert redaction.redact(text) == text or re.search(r"\bat\b", text)
