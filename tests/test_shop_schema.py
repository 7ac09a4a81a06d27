"""clean_tabular_data.py --schema: a shop's own table becomes the same files as the course's export."""

import io
import json
import re
import stat
from pathlib import Path

import pytest
from PIL import Image

import build_index
import clean_images
import clean_tabular_data
from marketplace.cleaning import listings
from marketplace.cleaning.schema import EXAMPLE
from marketplace.files import reading
from marketplace.files.stages import StageError
from tests.cleaning import raw_exports

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
        ({"sku": ".."}, "bad_id"),
        ({"sku": "a\x1fb"}, "bad_id"),
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


@pytest.mark.parametrize("sku", ["x" * 128, "Ä/ö?#%&=+", "007", "null", "07700 900123", 'a,b"c'.replace('"', "'"), "...", " A "])
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


def test_a_shop_without_categories_has_one_for_all(shop):
    assert shop([{}, {"sku": "2"}], schema=SCHEMA.replace('category = "path"\n', ""))[0] == 0
    assert shop.read("products.csv")["category"].tolist() == ["Other", "Other"]


def test_a_schema_without_photos_and_no_table_of_them_is_one_sentence(shop, tmp_path):
    shop([{}])
    path = shop.data_dir / "raw" / "Images.csv"
    path.unlink()
    given = ["--data", shop.data_dir, "--schema", tmp_path / "shop.toml", "--products", tmp_path / "shop.csv"]
    with pytest.raises(StageError) as caught:
        clean_tabular_data.run(clean_tabular_data.parse_args(list(map(str, given))))
    assert str(caught.value) == (
        f"{tmp_path / 'shop.toml'} does not tell which photos a listing has, and {path} does not exist: "
        "give photos or photo_pattern there, or --images-csv"
    )


def test_the_shop_of_the_docs_is_read_as_they_say(shop):
    page = (Path(__file__).resolve().parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    schema, table = re.search("```toml\n(.*?)```.*?```\n(sku;.*?)```", page, re.DOTALL).groups()
    write_photos(shop.data_dir / "raw" / "images", "1001_1.jpg", "1001_2.jpg")
    assert shop([], schema=schema, text=table)[0] == 0
    products = shop.read("products.csv")
    assert products[["product_id", "name", "category", "price", "description", "photos"]].values.tolist() == [
        ["1001", "Oak bed frame", "Home / Beds", "1249.0", "Solid oak, 160 x 200", "2"],
        ["1002", "Road bike", "Sport / Bikes", "480.0", "", "0"],
    ]


# The currency


def test_the_currency_is_the_schemas_and_without_one_pounds(shop, tmp_path):
    shop([{}])
    assert listings.read_currency(shop.folder) == "EUR"
    shop([{"price": "12,50"}], schema=SCHEMA.replace("EUR", "CHF"))
    assert listings.read_currency(shop.folder) == "CHF"
    for name, rows in (("Products.csv", [raw_exports.listing(1)]), ("Images.csv", [raw_exports.photo(1, 1)])):
        (shop.data_dir / "raw" / name).write_text(raw_exports.as_exported(rows), encoding="utf-8")
    assert clean_tabular_data.main(["--data", str(shop.data_dir)]) == 0
    assert listings.read_currency(shop.folder) == "GBP"


def test_an_index_of_prices_that_the_model_does_not_know_is_refused(shop):
    shop([{}])
    model_dir = shop.data_dir / "model"
    model_dir.mkdir()
    (model_dir / "price_model.json").write_text(json.dumps({"first": {"currency": "GBP"}}))
    with pytest.raises(StageError) as caught:
        build_index.checked_currency(shop.data_dir)
    assert str(caught.value) == f"{model_dir} knows prices in GBP, and the table has EUR: run python train.py first"
    (model_dir / "price_model.json").write_text(json.dumps({"first": {"currency": "EUR"}}))
    assert build_index.checked_currency(shop.data_dir) == "EUR"


# Photos


def write_photos(folder, *names):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        Image.linear_gradient("L").rotate(20 * number).save(file, "JPEG")
        path.write_bytes(file.getvalue())


def clean_photos(shop, capsys, *flags) -> dict:
    assert clean_images.main(["--data", str(shop.data_dir), "--workers", "1", "--size", "16", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def kept_files(shop) -> dict[str, str]:
    """File -> the listing whose photo it is, of the photos that were cleaned."""
    listed = shop.read("images.csv").set_index("image_id")
    cleaned = reading.read_csv(shop.data_dir / "images" / "photos.csv").query("status == 'ok'")
    assert all((shop.data_dir / "images" / f"{image_id}.jpg").is_file() for image_id in cleaned["image_id"])
    return {row.source: listed.loc[row.image_id, "product_id"] for row in cleaned.itertuples()}


def test_photos_in_a_column_are_cleaned_under_safe_ids(shop, capsys):
    rows = [{"vendor": "x 1.jpg|sub/y.jpg"}, {"sku": "b", "vendor": ""}, {"sku": "c", "vendor": "x 1.jpg|gone.jpg"}]
    write_photos(shop.data_dir / "raw" / "images", "x 1.jpg", "sub/y.jpg", "nobody.jpg")
    code, out, _ = shop(rows, schema=SCHEMA.replace("seller =", "photos ="), photos="")
    assert code == 0 and json.loads(out)["photos"] == 4
    assert shop.read("products.csv")["photos"].tolist() == ["2", "0", "2"]
    assert clean_images.main(["--data", str(shop.data_dir), "--workers", "1", "--size", "16"]) == 0
    said = capsys.readouterr()
    folder = shop.data_dir / "raw" / "images"
    assert f"1 of 4 photos that the table names are not in {folder}, such as gone.jpg\n" in said.err
    summary = json.loads(said.out)
    assert (summary["seen"], summary["kept"], summary["skipped"], summary["ignored"]) == (4, 3, 1, 0)
    files = shop.read("images.csv")
    assert files[["product_id", "file"]].values.tolist() == [
        *(["A/1 x", "x 1.jpg"], ["A/1 x", "sub/y.jpg"], ["c", "x 1.jpg"], ["c", "gone.jpg"])
    ]
    assert kept_files(shop) == {"x 1.jpg": "c", "sub/y.jpg": "A/1 x"}
    assert clean_photos(shop, capsys)["unchanged"]


def test_photos_are_found_by_a_pattern(shop, capsys):
    write_photos(shop.data_dir / "raw" / "images", "7_2.jpg", "7_1.jpg", "B_1.jpg", "9_1.jpg", "logo.jpg")
    schema = SCHEMA.replace("[missing]", 'photo_pattern = "{id}_{n}.jpg"\n[missing]')
    code, out, _ = shop([{"sku": "7"}, {"sku": "B"}, {"sku": "none"}], schema=schema, photos="")
    assert code == 0 and json.loads(out)["photos"] == 3
    assert shop.read("images.csv")["file"].tolist() == ["7_1.jpg", "B_1.jpg", "7_2.jpg"]
    rejects = shop.read("rejected.csv")
    assert rejects[["source", "reason", "raw"]].values.tolist() == [
        *(["photos", "bad_name", "logo.jpg"], ["photos", "no_listing", "9_1.jpg"])
    ]
    assert clean_photos(shop, capsys)["kept"] == 3
    assert kept_files(shop) == {"7_1.jpg": "7", "7_2.jpg": "7", "B_1.jpg": "B"}


def test_a_new_photo_of_the_pattern_is_another_run(shop):
    folder = shop.data_dir / "raw" / "images"
    write_photos(folder, "7_1.jpg")
    schema = SCHEMA.replace("[missing]", 'photo_pattern = "{id}_{n}.jpg"\n[missing]')
    shop([{"sku": "7"}], schema=schema)
    assert json.loads(shop([{"sku": "7"}], schema=schema)[1])["unchanged"]
    write_photos(folder, "7_2.jpg")
    assert json.loads(shop([{"sku": "7"}], schema=schema)[1])["photos"] == 2


def test_photos_that_img2dataset_fetched_are_found_by_their_addresses(shop, capsys):
    urls = ["https://cdn.example/a/1.jpg?w=9", "https://cdn.example/b/1.jpg"]
    folder = shop.data_dir / "raw" / "images"
    write_photos(folder, "00000/000000000.jpg", "00000/000000001.jpg")
    for number, url in enumerate(urls):
        (folder / "00000" / f"00000000{number}.json").write_text(json.dumps({"url": url, "status": "success"}))
    (folder / "00000_stats.json").write_text("{}")
    rows = [{"vendor": urls[1]}, {"sku": "b", "vendor": urls[0]}]
    shop(rows, schema=SCHEMA.replace("seller =", "photos ="), photos="")
    assert clean_photos(shop, capsys)["kept"] == 2
    assert kept_files(shop) == {"000000000.jpg": "b", "000000001.jpg": "A/1 x"}


def test_photos_that_are_called_otherwise_than_the_table_says_are_one_sentence(shop, capsys):
    folder = shop.data_dir / "raw" / "images"
    write_photos(folder, "a.png", "b.png")
    shop([{"vendor": "a.jpg"}], schema=SCHEMA.replace("seller =", "photos ="), photos="")
    assert clean_images.main(["--data", str(shop.data_dir), "--workers", "1"]) == 1
    assert capsys.readouterr().err == (
        f"error: no listing in {shop.folder} has one of the 2 photos of {folder}: they are not called as the table names them, "
        "such as a.jpg; give their folder\n"
    )


def test_a_table_of_photos_beside_a_schema_that_names_them_is_one_sentence(shop, tmp_path):
    schema = SCHEMA.replace("seller =", "photos =")
    code, out, err = shop([{}], "--images-csv", "x.csv", schema=schema)
    sentence = f"{tmp_path / 'shop.toml'} says itself how photos are called: leave out --images-csv, or vendor there"
    assert (code, out, err) == (1, "", f"error: {sentence}\n")


# --dry-run


def test_a_dry_run_shows_three_rejects_of_each_reason_and_writes_nothing(shop):
    rows = [{"sku": str(number), "price": "free"} for number in range(5)] + [
        {},
        {"sku": "k", "body": "07700 900123", "price": ""},
    ]
    code, out, err = shop(rows, "--dry-run", photos="id,product_id\nimg_1,A/1 x\n")
    assert code == 0
    assert json.loads(out) == {
        **{"stage": "tabular", "listings": 1, "listings_rejected": 6, "photos": 1, "photos_rejected": 0, "labels": 1},
        "dry_run": True,
    }
    text = "Bed;Home>Beds;free;Oak;27.11.2026;Ann;https://shop/a;new;x"
    assert [line for line in err.splitlines() if line.startswith(("shop.csv", "  record"))] == [
        "shop.csv, bad_price: 5",
        *(f"  record {number + 1}: {number};{text}" for number in range(3)),
        "shop.csv, null_price: 1",
        f"  record 7: k;{text.replace('free', '').replace('Oak', '[phone]')}",
    ]
    assert sorted(path.name for path in shop.data_dir.iterdir()) == ["raw"]


def test_a_dry_run_in_which_nothing_can_be_kept_shows_why(shop, tmp_path):
    code, out, err = shop([{"price": "free"}], "--dry-run")
    assert (code, out) == (1, "") and "  record 1: A/1 x;Bed;" in err
    sentence = (
        f"error: {tmp_path / 'shop.csv'} holds no listing that can be kept (bad_price: 1): see the examples above; "
        'bad_price rejects 1 of 1 listings: is decimal = "," and encoding = "utf-8" meant in --schema?\n'
    )
    assert err.endswith(sentence)


@pytest.mark.parametrize("times", [1, 2])
def test_a_key_by_which_a_fifth_of_the_listings_are_rejected_is_doubted(shop, times):
    rows = [{"price": "USD 5"}] * times + [{"added": "2026-11-27"}] * times + [{}] * (10 - 2 * times)
    code, _, err = shop([{"sku": str(number)} | row for number, row in enumerate(rows)])
    doubts = [
        'warning: bad_added rejects 2 of 10 listings: is created_format = "%d.%m.%Y" meant in --schema?',
        'warning: other_currency rejects 2 of 10 listings: is currency = "EUR" meant in --schema?',
    ]
    assert code == 0 and [line for line in err.splitlines() if line.startswith("warning: ")] == (doubts if times == 2 else [])


@pytest.mark.parametrize("text", ["", "\n"])
def test_a_file_without_columns_is_told(shop, tmp_path, text):
    expected = f"error: {tmp_path / 'shop.csv'} is empty, or no CSV: give another file, or say with format in --schema what it is"
    code, _, err = shop([], text=text)
    assert (code, err.splitlines()[-1]) == (1, expected)
