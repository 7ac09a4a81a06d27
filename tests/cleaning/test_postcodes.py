"""cleaning/postcodes.py: which districts there are, and which codes are models."""

import pytest

from marketplace.cleaning import postcodes


@pytest.mark.parametrize(
    "outward", ["AB10", "B1", "EC1A", "W1A", "SW1A", "N1C", "E1W", "SE1P", "NW1W", "LS29", "ZE3", "BT94", "CF99"]
)
def test_a_district_that_there_is(outward):
    assert outward in postcodes.OUTWARD


@pytest.mark.parametrize("outward", ["AB50", "B81", "S15", "L41", "W15", "SW21", "LS30", "ZE4", "EC5A", "SW1B", "QQ1", "A1"])
def test_a_district_that_there_is_not(outward):
    assert outward not in postcodes.OUTWARD


def test_there_are_as_many_districts_as_royal_mail_lists_about():
    assert 2_900 < len(postcodes.OUTWARD - {f"ZZ{number}" for number in range(100)}) < 3_200


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("in LS1 4DY", ["LS1 4DY"]),
        ("LS30 4DY", []),
        ("Asus ROG GL503GE", []),
        ("Asus GL503GE", []),
        ("in GL503GE", ["GL503GE"]),
        ("GL50 3GE", ["GL50 3GE"]),
        ("BLIZZARD L400WH", []),
        ("LEEDS L400WH", ["L400WH"]),
        ("model GL50 3GE", []),
        ("E1 6AN/E2 7BB/E3 4AA", ["E1 6AN", "E2 7BB", "E3 4AA"]),
        ("[postcode]/E2 7BB", ["E2 7BB"]),
        ("XX/E2 7BB", []),
    ],
)
def test_a_postcode_is_told_from_a_model_by_its_district_and_the_word_before(text, found):
    assert [text[start:stop] for start, stop in postcodes.find(text)] == found
