"""clean_tabular_data.py --schema: a shop's own table becomes the same files as the course's export."""

import json
import stat

import pytest

import clean_tabular_data
from marketplace.cleaning.schema import EXAMPLE
from marketplace.files import reading

SCHEMA = """
id = "sku"
name = "title"
category = "path"
price = "price"
description = "body"
created = "added"
created_format = "%d.%m.%Y"
seller = "vendor"
extra = ["url", "label"]
separator = ">"
currency = "EUR"
decimal = ","
delimiter = ";"
may_be_empty = ["description"]
[missing]
category = "Other"
place = "Online"
"""
HEADER = ["sku", "title", "path", "price", "body", "added", "vendor", "url", "label", "secret"]
ROW = dict(
    zip(
        HEADER,
        ["A/1 x", "Bed", "Home>Beds", "1.234,50 €", "Oak", "27.11.2026", "Ann", "https://shop/a", "new", "x"],
        strict=True,
    )
)


@pytest.fixture
def shop(tmp_path, capsys):
    """A function that writes a shop's files, runs the stage and gives (exit code, standard output, standard error)."""
    data_dir = tmp_path / "data"

    def run(rows, *flags, schema=SCHEMA, photos="id,product_id\n", name="shop.csv", text=None):
        raw_dir = data_dir / "raw"
        raw_dir.mkdir(parents=True, exist_ok=True)
        (tmp_path / "shop.toml").write_text(schema, encoding="utf-8")
        lines = [";".join(HEADER), *(";".join((ROW | row).values()) for row in rows)]
        (tmp_path / name).write_text("\n".join(lines) + "\n" if text is None else text, encoding="utf-8")
        (raw_dir / "Images.csv").write_text(photos, encoding="utf-8")
        given = ["--data", data_dir, "--schema", tmp_path / "shop.toml", "--products", tmp_path / name]
        code = clean_tabular_data.main([*map(str, given), *flags])
        return code, *capsys.readouterr()

    run.data_dir, run.folder = data_dir, data_dir / "tabular"
    run.read = lambda name: reading.read_csv(run.folder / name)
    return run


def test_a_shops_listing_becomes_a_row_of_the_same_columns(shop):
    photos = "id,product_id\nimg_1,A/1 x\nimg 2,A/1 x\nimg_3,a/1 x\n"
    code, out, err = shop([{"body": "Ring 07700 900123"}, {"sku": "b"}], photos=photos)
    assert code == 0 and json.loads(out)["listings"] == 2
    row = shop.read("products.csv").iloc[0].to_dict()
    seller = row.pop("seller")
    assert row == {
        **{"product_id": "A/1 x", "name": "Bed", "description": "Ring [phone]", "category": "Home / Beds"},
        **{"main_category": "Home", "leaf_category": "Beds", "label": "0", "price": "1234.5", "price_plausible": "true"},
        **{"town": "Online", "county": "", "posted_on": "2026-11-27", "photos": "1", "url": "https://shop/a"},
        **{"raw_label": "new"},
    }
    assert len(seller) == 32 and "Ann" not in (shop.folder / "products.csv").read_text()
    assert shop.read("images.csv").values.tolist() == [["img_1", "A/1 x", "0"]]
    assert shop.read("rejected.csv")[["source", "id", "reason"]].values.tolist() == [
        ["Images.csv", "img 2", "bad_id"],
        ["Images.csv", "img_3", "no_listing"],
    ]
    assert "plausible prices: 0% EUR 1,234.50" in err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"price": "12.50"}, "bad_price"),
        ({"price": "£5"}, "other_currency"),
        ({"price": ""}, "null_price"),
        ({"title": " "}, "null_title"),
        ({"sku": ""}, "null_sku"),
        ({"sku": "x" * 129}, "bad_id"),
        ({"sku": "A/1 x"}, "duplicate_id"),
        ({"added": "2026-11-27"}, "bad_added"),
        ({"path": ">".join("abcdefghijklm")}, "bad_category"),
        ({"url": "a;b"}, "bad_record"),
    ],
)
def test_a_bad_listing_of_a_shop_is_rejected_with_its_reason(change, reason, shop):
    code, out, _ = shop([{}, {"sku": "2"} | change, {"sku": "3"}])
    assert code == 0 and json.loads(out)["listings"] == 2
    assert shop.read("rejected.csv")[["record", "reason"]].values.tolist() == [["2", reason]]


def test_what_may_be_empty_is_and_constants_stand_for_the_rest(shop):
    shop([{"body": "", "path": "", "added": "", "vendor": ""}, {"sku": "2", "path": "N/A"}])
    products = shop.read("products.csv")
    assert products[["description", "category", "posted_on", "seller"]].values.tolist()[0] == ["", "Other", "", ""]
    assert products["category"].tolist() == ["Other", "Other"]


@pytest.mark.parametrize("sku", ["x" * 128, "Ä/ö?#%&=+", "007", "null", "07700 900123", 'a,b"c'.replace('"', "'"), "..", " A "])
def test_any_text_is_an_id_and_stays_exactly_as_it_is(sku, shop):
    assert shop([{"sku": sku}])[0] == 0
    assert shop.read("products.csv")["product_id"].tolist() == [sku.strip()]


def test_ids_that_differ_in_capitals_are_two_and_uuids_are_one(shop):
    uuid = "1C58D3F9-8D0B-4E4F-9D2B-0C8E5A8F7E11"
    shop([{"sku": "ab"}, {"sku": "AB"}, {"sku": uuid}, {"sku": uuid.lower()}])
    assert shop.read("products.csv")["product_id"].tolist() == ["ab", "AB", uuid.lower()]


def test_a_seller_has_one_hash_in_every_run_of_one_key_and_another_under_another(shop):
    def sellers() -> list[str]:
        shop([{"vendor": "Ann"}, {"sku": "2", "vendor": " Ann "}, {"sku": "3", "vendor": "Bob"}])
        return shop.read("products.csv")["seller"].tolist()

    first = sellers()
    assert first[0] == first[1] != first[2]
    key = shop.data_dir / "seller.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    (shop.folder / "manifest.json").unlink()
    assert sellers() == first
    key.unlink()
    assert not set(sellers()) & set(first)


def test_a_sellers_key_that_was_emptied_is_one_sentence(shop):
    shop([{}])
    (shop.data_dir / "seller.key").write_text("\n")
    sentence = f"{shop.data_dir / 'seller.key'} holds no key of at least 32 characters"
    assert shop([{}])[::2] == (1, f"error: {sentence}: put the old one back, or delete it to make another\n")


def test_another_schema_is_another_run_and_the_same_one_is_not(shop):
    shop([{}])
    assert json.loads(shop([{}])[1])["unchanged"]
    assert "unchanged" not in json.loads(shop([{}], schema=SCHEMA.replace("Online", "Web"))[1])
    assert shop.read("products.csv")["town"].tolist() == ["Web"]


def test_json_lines_give_the_same_products_as_a_csv(shop):
    rows = [{}, {"sku": "2", "price": "12,50"}]
    shop(rows)
    expected = (shop.folder / "products.csv").read_bytes()
    objects = [ROW | {"path": ["Home", "Beds"], "price": price, "sku": sku} for sku, price in (("A/1 x", 1234.5), ("2", 12.5))]
    code, _, _ = shop(rows, name="shop.jsonl", text="\n".join(map(json.dumps, objects)))
    assert code == 0 and (shop.folder / "products.csv").read_bytes() == expected


def test_a_schema_that_does_not_fit_is_one_sentence(shop, tmp_path):
    code, out, err = shop([{}], schema=SCHEMA.replace('"title"', '"Titel"'))
    assert (code, out) == (1, "")
    assert err == (
        f"error: {tmp_path / 'shop.csv'} lacks the column Titel of --schema {tmp_path / 'shop.toml'}: it has sku, title, path, "
        "price, body, added, vendor, url, label, secret (nearest: title for Titel)\n"
    )


def test_the_example_is_printed_and_nothing_is_read(tmp_path, capsys):
    assert clean_tabular_data.main(["--schema-example", "--data", str(tmp_path / "none")]) == 0
    assert capsys.readouterr() == (EXAMPLE, "")
    assert not (tmp_path / "none").exists()
