"""cleaning/schema.py: a shop's own table, described in a file of its own."""

import dataclasses
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.cleaning import schema as schemas
from marketplace.cleaning.schema import EXAMPLE, EXPLAIN, EXPORT, Schema
from marketplace.files.stages import StageError

FOUR = 'id = "sku"\nname = "title"\ncategory = "path"\nprice = "price"\n'


def load(text: str, tmp_path) -> Schema:
    path = tmp_path / "shop.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return schemas.load(path)


def test_the_example_is_a_schema_that_names_every_key(tmp_path):
    schema = load(EXAMPLE, tmp_path)
    named = set(tomllib.loads(EXAMPLE)) | {line.split()[1] for line in EXAMPLE.splitlines() if line.startswith("# photo_pattern")}
    assert named >= {field.name for field in dataclasses.fields(Schema)} - {"photo_pattern"}
    assert (schema.id, schema.separator, schema.currency, schema.decimal, schema.delimiter) == ("sku", ">", "EUR", ",", ";")
    assert schema.missing == {"category": "Other"} and schema.may_be_empty == ("description", "place")


def test_four_columns_are_enough_and_the_rest_is_as_the_export_writes_it(tmp_path):
    schema = load(FOUR, tmp_path)
    assert schema == Schema(id="sku", name="title", category="path", price="price")
    assert (schema.separator, schema.currency, schema.decimal, schema.delimiter) == (" / ", "GBP", ".", ",")
    assert not schema.required("place") and not schema.required("description") and schema.required("category")


def test_a_shop_without_categories_has_one_for_all(tmp_path):
    schema = load(FOUR.replace("category", "# category") + '[missing]\ncategory = "Things"\n', tmp_path)
    assert schema.used() == ["sku", "title", "price"]
    assert schema.fields({"sku": "1", "title": "Bed", "price": "2"})["category"] == "Things"


def test_the_export_needs_all_its_columns():
    assert EXPORT.used() == ["id", "product_name", "category", "product_description", "price", "location"]
    assert all(map(EXPORT.required, schemas.FIELDS))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (FOUR.replace("price =", "prise ="), "has a key that there is not, prise: did you mean price?"),
        (FOUR + 'colour = "c"\n', "has a key that there is not, colour"),
        (FOUR.replace('id = "sku"\n', ""), 'lacks the key id: add id = "NAME OF ITS COLUMN"'),
        (FOUR.replace('"sku"', '""'), "has a bad value: id: give the name of a column"),
        (FOUR.replace('"sku"', "7"), "has a bad value: id: Input should be a valid string"),
        (FOUR + 'currency = "€"\n', "has a bad value: currency: '€' is not an ISO 4217 code, such as EUR"),
        (FOUR + 'decimal = ";"\n', "has a bad value: decimal: Input should be '.' or ','"),
        (FOUR + 'delimiter = "||"\n', 'has a bad value: delimiter: \'||\' is not one character, such as ";" or "\\t"'),
        (FOUR + 'encoding = "utf-9"\n', "has a bad value: encoding: 'utf-9' is not an encoding that Python has, such as utf-8"),
        (FOUR + 'separator = " "\n', "has a bad value: separator: give a character that is not a blank"),
        (
            FOUR.replace('"path"', '""'),
            "has a bad value: category: give the name of a column, or a category for all below",
        ),
        (FOUR + 'may_be_empty = ["price"]\n', "has a bad value: may_be_empty: Input should be 'description' or 'place'"),
        (FOUR + '[missing]\nplace = " "\n', "has a bad value: missing: give a text for place, or name it in may_be_empty"),
        (FOUR + 'seller = "s"\nextra = ["s"]\n', "has a bad value: extra: s is the seller, of whom only a keyed hash is kept"),
        (FOUR + 'format = "export"\n', ": format export is read without --schema: leave one of the two out"),
        ("id = sku\n", "is not TOML (Invalid value"),
    ],
)
def test_a_wrong_schema_is_one_sentence_that_names_the_key(text, fault, tmp_path):
    with pytest.raises(StageError) as caught:
        load(text, tmp_path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{tmp_path / 'shop.toml'}{'' if fault.startswith(':') else ' '}{fault}")
    assert sentence.endswith(f"; {EXPLAIN}") and "\n" not in sentence


def test_a_schema_that_is_missing_is_one_sentence(tmp_path):
    with pytest.raises(StageError) as caught:
        schemas.load(tmp_path / "none.toml")
    assert str(caught.value) == f"{tmp_path / 'none.toml'} does not exist: give a TOML file with --schema; {EXPLAIN}"


def test_columns_that_a_table_lacks_are_named_with_those_it_has_and_the_nearest(tmp_path):
    schema = Schema(id="sku", name="titel", category="path", price="Price", extra=("url",))
    with pytest.raises(StageError) as caught:
        schemas.check_columns("shop.csv", ["sku", "title", "path", "price", "x\x00y"], schema, "shop.toml")
    assert str(caught.value) == (
        "shop.csv lacks the columns titel, Price, url of --schema shop.toml: it has sku, title, path, price, x?y "
        "(nearest: title for titel, price for Price)"
    )


def test_another_delimiter_is_recognised_where_the_whole_header_is_one_column():
    with pytest.raises(StageError) as caught:
        schemas.check_columns("shop.csv", ["sku;title;path;price"], Schema("sku", "title", "path", "price"), "shop.toml")
    assert str(caught.value).endswith(': it has sku;title;path;price (is delimiter = ";" meant?)')


@pytest.mark.parametrize(
    ("form", "text", "day"),
    [
        ("iso", "2026-11-27", "2026-11-27"),
        ("iso", " 2026-11-27T23:30:00+02:00 ", "2026-11-27"),
        ("iso", "2026-11-27T23:30:00Z", "2026-11-27"),
        ("unix", "1764201600", "2025-11-27"),
        ("unix", "1764201600.5", "2025-11-27"),
        ("unix", "1764201600500", "2025-11-27"),
        ("%d.%m.%Y %H:%M", "27.11.2026 10:05", "2026-11-27"),
        ("iso", "", ""),
    ],
)
def test_the_day_of_a_time_is_read_as_it_was_written(form, text, day):
    assert Schema("a", "b", "c", "d", created="e", created_format=form).date(text) == day


@given(st.text(max_size=20), st.sampled_from(["iso", "unix", "%d.%m.%Y"]))
def test_any_text_is_a_day_or_none(text, form):
    try:
        day = Schema("a", "b", "c", "d", created="e", created_format=form).date(text)
        assert day == "" if not text.strip() else len(day) == 10
    except (ValueError, OverflowError, OSError):
        pass
