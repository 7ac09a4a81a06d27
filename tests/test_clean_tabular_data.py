"""clean_tabular_data.py: cleaning, rejecting, labelling, reporting."""

import csv
import json
import re

import pytest

import clean_tabular_data
from marketplace.cleaning import listings, records
from marketplace.files import reading, stages
from tests.cleaning.raw_exports import (
    HEADER,
    PHOTO_HEADER,
    TEXTS,
    as_converted,
    as_exported,
    as_quoted,
    listing,
    make_id,
    photo,
)


@pytest.fixture
def stage(tmp_path, capsys):
    """A function that writes the raw files, runs the stage and gives (exit code, standard output, standard error)."""

    def run(products, photos=(), *flags):
        raw_dir = tmp_path / "data" / "raw"
        raw_dir.mkdir(parents=True, exist_ok=True)
        text = products if isinstance(products, str | bytes) else as_exported(products)
        (raw_dir / "Products.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        photos = photos if isinstance(photos, str) else as_exported(list(photos), PHOTO_HEADER if not photos else None)
        (raw_dir / "Images.csv").write_bytes(photos.encode())
        code = clean_tabular_data.main(["--data", str(tmp_path / "data"), *flags])
        return code, *capsys.readouterr()

    run.folder = tmp_path / "data" / "tabular"
    run.raw_dir = tmp_path / "data" / "raw"
    run.products = lambda: reading.read_csv(run.folder / "products.csv")
    run.photos = lambda: reading.read_csv(run.folder / "images.csv")
    run.rejects = lambda: reading.read_csv(run.folder / "rejected.csv")
    run.report = lambda: json.loads((run.folder / "report.json").read_text())
    return run


# What a listing becomes.


def test_a_listing_becomes_a_row_with_every_column(stage):
    description = "Oak\rtable. Posted by Ann in Tables, Home & Garden in Leeds. 5 May 2021"
    table = listing(
        2, product_name="Table | oak | in Leeds, West Yorkshire | Gumtree", product_description=description, price="£1,234.56"
    )
    code, out, _ = stage([table, listing(3, category="Appliances / Ovens")], [photo(1, 2), photo(2, 2)])
    assert code == 0
    assert json.loads(out) | {"seconds": 0} == {
        **{"stage": "tabular", "listings": 2, "listings_rejected": 0, "photos": 2, "photos_rejected": 0, "labels": 2},
        "seconds": 0,
    }
    products = stage.products()
    assert list(products.columns) == records.CLEAN_LISTING_COLUMNS
    assert products.iloc[0].to_dict() == {
        "product_id": make_id(2),
        "name": "Table | oak",
        "description": "Oak\ntable.",
        "category": "Home & Garden / Dining, Living Room Furniture / Chairs",
        "main_category": "Home & Garden",
        "leaf_category": "Chairs",
        "label": "1",
        "price": "1234.56",
        "price_plausible": "true",
        "town": "Leeds",
        "county": "West Yorkshire",
        "posted_on": "2021-05-05",
        "photos": "2",
    }
    assert products["photos"].tolist() == ["2", "0"] and products["price"].tolist() == ["1234.56", "20.0"]
    assert stage.photos().to_dict("list") == {
        "image_id": [make_id(10_001), make_id(10_002)],
        "product_id": [make_id(2)] * 2,
        "label": ["1", "1"],
    }


def test_labels_json_holds_encoder_and_decoder_of_the_sorted_main_categories(stage):
    stage(
        [listing(1, category=f"{name} / x") for name in ["Cars"]]
        + [listing(2, category="Appliances / y"), listing(3, category="Books")]
    )
    assert json.loads((stage.folder / "labels.json").read_text()) == {
        "depth": 1,
        "encoder": {"Appliances": 0, "Books": 1, "Cars": 2},
        "decoder": {"0": "Appliances", "1": "Books", "2": "Cars"},
    }
    assert stage.products()["label"].tolist() == ["2", "0", "1"]


def test_category_depth_labels_by_a_deeper_level_and_keeps_shorter_paths(stage):
    rows = [listing(1, category="A / B / C"), listing(2, category="A / B / D"), listing(3, category="A")]
    code, out, _ = stage(rows, [photo(1, 2)], "--category-depth", "2")
    assert code == 0 and json.loads(out)["labels"] == 2
    assert json.loads((stage.folder / "labels.json").read_text())["encoder"] == {"A": 0, "A / B": 1}
    assert stage.products()["label"].tolist() == ["1", "1", "0"] and stage.photos()["label"].tolist() == ["1"]


def test_extra_columns_are_kept_redacted_under_their_own_or_a_raw_name(stage):
    extra = {"url": "u\r\nv", "page_id": "7", "description": "ring 07700 900123", "label": "x", "sender_id": make_id(7)}
    stage([listing(1) | extra], [photo(1, 1) | {"bucket_link": "s3://b/BS4 1AB", "label": "y"}])
    row = stage.products().iloc[0].to_dict()
    assert list(row)[-5:] == ["url", "page_id", "raw_description", "raw_label", "sender_id"]
    assert [row[name] for name in list(row)[-5:]] == ["u\nv", "7", "ring [phone]", "x", make_id(7)]
    assert stage.photos().iloc[0].to_dict() == {
        "image_id": make_id(10_001),
        "product_id": make_id(1),
        "label": "0",
        "bucket_link": "s3://b/[postcode]",
        "raw_label": "y",
    }


def test_words_that_look_null_and_upper_case_ids_are_kept(stage):
    words = {"product_name": "null | in Leeds, X | Gumtree", "product_description": "NA", "location": "None"}
    stage([listing(1, id=make_id(1).upper(), **words)], [photo(1, make_id(1).upper(), id=make_id(5).upper())])
    row = stage.products().iloc[0]
    assert (row["product_id"], row["name"], row["description"], row["town"], row["county"]) == (
        make_id(1),
        "null",
        "NA",
        "None",
        "",
    )
    assert stage.photos().values.tolist() == [[make_id(5), make_id(1), "0"]]


def test_personal_data_is_marked_in_every_file_the_stage_writes(stage):
    secrets = "07700 900999, joe@example.com, BS4 1AB"
    rows = [
        listing(
            1,
            product_name=f"Bed {secrets} | in Leeds, X | Gumtree",
            product_description=f"Bed {secrets}",
            location=f"{secrets}, X",
        )
        | {"note": secrets},
        listing(2, product_description=f"{secrets}. Posted by Zebedee in Beds, Home in Leeds. 2 May 2021", price=""),
        listing(3, id=secrets),
    ]
    stage(rows, [photo(1, secrets)])
    names = [*stages.STAGES["tabular"].writes, "manifest.json"]
    written = "".join((stage.folder / name).read_text(errors="replace") for name in names)
    assert written.count("[phone]") >= 7
    assert not re.search("900999|joe@|BS4|Zebedee", written)
    assert "Posted by [name] in Beds" in stage.rejects()["raw"][0]


# Rejecting.


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"price": "-5"}, "bad_price"),
        ({"price": "free"}, "bad_price"),
        ({"price": "nan"}, "bad_price"),
        ({"price": "£inf"}, "bad_price"),
        ({"id": "17"}, "bad_id"),
        ({"id": make_id(1)}, "duplicate_id"),
        ({"id": make_id(1).upper()}, "duplicate_id"),
        ({"product_name": "| in Leeds, West Yorkshire | Gumtree"}, "null_product_name"),
        ({"product_description": "Posted by Ann in Beds, Home in Leeds. 2 May 2021"}, "null_product_description"),
        ({"category": " / "}, "null_category"),
        ({"category": "N/A"}, "null_category"),
        ({"category": " / ".join("abcdefghijklm")}, "bad_category"),
        ({"category": "A / " * 3000 + "B"}, "bad_category"),
        ({"price": "$40"}, "other_currency"),
        ({"price": "€1.999"}, "other_currency"),
        ({"location": "\u200b&nbsp;", "product_name": "West Yorkshire"}, "null_location"),
    ],
)
def test_a_bad_listing_is_rejected_with_its_reason(change, reason, stage):
    code, out, _ = stage([listing(1), listing(2, **change), listing(3)])
    assert code == 0 and json.loads(out)["listings"] == 2
    rejects = stage.rejects()
    assert rejects[["source", "record", "reason"]].values.tolist() == [["Products.csv", "2", reason]]
    assert rejects["raw"][0].startswith("2,") and "West Yorkshire" in rejects["raw"][0]
    assert stage.report()["listings"] == {"read": 3, "kept": 2, "rejected": {reason: 1}}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (photo(2, 99), "no_listing"),
        (photo(2, "rubbish"), "no_listing"),
        (photo(2, 3), "no_listing"),
        (photo(2, ""), "null_product_id"),
        (photo(2, 1, id=""), "null_id"),
        (photo(2, 1, id="img7"), "bad_id"),
        (photo(2, 1, id=make_id(10_001)), "duplicate_id"),
    ],
)
def test_a_bad_photo_is_rejected_with_its_reason(row, reason, stage):
    code, out, _ = stage([listing(1), listing(3, price="")], [photo(1, 1), row, photo(3, 1)])
    assert code == 0 and json.loads(out)["photos"] == 2
    rejects = stage.rejects().query("source == 'Images.csv'")
    assert rejects[["record", "reason"]].values.tolist() == [["2", reason]]
    assert stage.report()["photos"] == {"read": 3, "kept": 2, "rejected": {reason: 1}}


# What is shown alike is one.


def test_names_categories_and_places_are_tidied_and_counted(stage):
    name = "Bed &amp; frame\u200b \xa0 oak | in Leeds, West Yorkshire | Gumtree"
    rows = [
        listing(1, product_name=name, category="Home &amp; Garden / Beds", location="Leeds,\xa0West  Yorkshire"),
        listing(2, category="Home & Garden  / Beds"),
        listing(3, category="Home & Garden / Beds", product_description="Oak &amp; pine"),
        listing(4, category="Home & garden / beds", price=""),
    ]
    _, _, err = stage(rows)
    first = stage.products().iloc[0]
    assert (first["name"], first["category"], first["town"], first["county"]) == (
        *("Bed & frame oak", "Home & Garden / Beds", "Leeds", "West Yorkshire"),
    )
    assert stage.report()["texts_tidied"] == {"product_name": 1, "category": 2, "location": 1}
    assert stage.report()["categories_joined"] == 0
    assert stage.products()["description"][2] == "Oak &amp; pine"
    assert "texts tidied: product_name 1, category 2, location 1; categories joined to a commoner spelling: 0\n" in err


def test_categories_that_differ_in_capitals_are_one_with_one_label(stage):
    spelt = ["Home / Beds", "home / Beds", "Home / beds", "Home / Beds", "Books"]
    stage([listing(number, category=category) for number, category in enumerate(spelt)])
    products = stage.products()
    assert products["category"].tolist() == ["Home / Beds"] * 4 + ["Books"]
    assert products["main_category"].tolist() == ["Home"] * 4 + ["Books"] and products["leaf_category"].tolist() == [
        "Beds"
    ] * 4 + ["Books"]
    assert products["label"].tolist() == ["1", "1", "1", "1", "0"] and stage.report()["categories_joined"] == 2


def test_formulas_stay_as_they_are(stage):
    formula = '=HYPERLINK("http://example.com","Bed")'
    stage([listing(1, product_name=formula, product_description=formula)])
    assert stage.products()[["name", "description"]].values.tolist() == [[formula, formula]]


def test_a_sellers_name_is_marked_in_every_kept_field(stage):
    leak = "posted by Zebedee Jones. Collect"
    row = listing(
        1, product_name=f"Bed {leak}", product_description=f"Bed. {leak}", location=f"{leak}, X", category=f"Home / {leak}"
    )
    stage([row | {"note": leak}])
    assert "Zebedee" not in (stage.folder / "products.csv").read_text()
    assert stage.products().iloc[0]["description"] == "Bed. posted by [name]. Collect"


def test_personal_data_in_a_columns_name_is_marked(stage):
    names = {"tel 07700 900123": "a", "tel 07700 900456": "b"}
    stage([listing(1) | names], [photo(1, 1) | {"joe@example.com": "c"}])
    assert stage.products().columns.tolist()[-2:] == ["tel [phone]", "tel [phone]_2"]
    assert stage.products().iloc[0].tolist()[-2:] == ["a", "b"] and stage.photos().columns[-1] == "[email]"


# Every state of the export.


def test_exported_and_converted_copies_give_byte_identical_products(stage):
    rows = [listing(number, product_description=text) for number, text in enumerate(TEXTS, start=1)]
    written = []
    for state in (
        as_exported,
        as_converted,
        as_quoted,
        lambda rows: "\ufeff" + as_exported(rows),
        lambda rows: as_exported(rows).rstrip("\n"),
    ):
        assert stage(state(rows))[0] == 0
        written.append((stage.folder / "products.csv").read_bytes())
    assert len(set(written)) == 1 and len(stage.products()) == len(TEXTS)


def test_an_export_without_a_row_number_is_read(stage):
    rows = [{name: value for name, value in listing(number).items() if name} for number in (1, 2, 3, 4)]
    rows[1]["product_description"] = "a, b\nc, d\ne"
    rows[2]["id"] = ""
    stage(rows, [{name: value for name, value in photo(1, 1).items() if name}])
    assert stage.products()["description"].tolist() == ["A good chair, number 1", "a, b\nc, d\ne", "A good chair, number 4"]
    assert stage.rejects()["reason"].tolist() == ["null_id"] and len(stage.photos()) == 1


# The report, reruns, failures.


def test_the_report_counts_reasons_prices_and_categories_and_a_summary_goes_to_stderr(stage):
    rows = [listing(number, price=f"£{number}0.00") for number in range(1, 5)] + [
        listing(5, price=""),
        listing(6, category="Books", price="£0.00"),
    ]
    _, out, err = stage(rows, [photo(1, 1), photo(2, 1), photo(3, 77)])
    report = stage.report()
    assert report["listings"] == {"read": 6, "kept": 5, "rejected": {"null_price": 1}}
    assert report["photos"] == {"read": 3, "kept": 2, "rejected": {"no_listing": 1}}
    assert (report["listings_without_photo"], report["photos_without_listing"], report["prices_implausible"]) == (4, 1, 1)
    assert report["price_quantiles"]["plausible"]["0.5"] == 25.0 and report["price_quantiles"]["all"]["0"] == 0.0
    assert report["rows_per_main_category"] == {"Books": 1, "Home & Garden": 4}
    assert report["rows_per_category"] == {"Books": 1, "Home & Garden / Dining, Living Room Furniture / Chairs": 4}
    assert "listings: 6 read, 5 kept; rejected: null_price 1\nphotos: 3 read, 2 kept; rejected: no_listing 1\n" in err
    assert out.count("\n") == 1


def test_a_rerun_with_the_same_inputs_is_unchanged_and_with_others_is_not(stage):
    rows, photos = [listing(1), listing(2, price="")], [photo(1, 1)]
    first = json.loads(stage(rows, photos)[1])
    files = {name: (stage.folder / name).stat().st_mtime_ns for name in stages.STAGES["tabular"].writes}
    again = json.loads(stage(rows, photos)[1])
    assert again == {name: value for name, value in first.items() if name != "seconds"} | {"unchanged": True}
    assert {name: (stage.folder / name).stat().st_mtime_ns for name in stages.STAGES["tabular"].writes} == files
    assert "unchanged" not in json.loads(stage(rows, photos, "--category-depth", "2")[1])
    (stage.folder / "images.csv").unlink()
    assert "unchanged" not in json.loads(stage(rows, photos, "--category-depth", "2")[1])
    assert "unchanged" not in json.loads(stage([listing(1)], photos, "--category-depth", "2")[1])


def test_a_table_that_lost_many_listings_fails_and_what_was_kept_stays(stage):
    rows = [listing(number) for number in range(1, clean_tabular_data.GUARDED + 1)]
    assert stage(rows)[0] == 0
    before = (stage.folder / "products.csv").read_bytes()
    for _ in range(2):  # a second try does not slip through
        code, _, error = stage(rows[:79])
        assert (code, error.splitlines()[-1]) == (
            1,
            f"error: 21 of 100 listings would be removed, more than --max-removed 0.2: see whether "
            f"{stage.raw_dir / 'Products.csv'} is whole, or allow it with --max-removed 1",
        )
    assert (stage.folder / "products.csv").read_bytes() == before
    assert stage(rows[:80])[0] == 0  # exactly the share is allowed
    assert stage(rows[:30])[0] == 0  # so few listings are not guarded
    (stage.folder / "products.csv").write_text("damaged")
    assert stage(rows)[0] == 0
    assert stage(rows[:20], (), "--max-removed", "1")[0] == 0 and len(stage.products()) == 20
    assert "--max-removed" not in stages.last_flags(stage.folder.parent, "tabular")


def test_a_share_that_is_none_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        clean_tabular_data.parse_args(["--max-removed", "20"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith("error: argument --max-removed: must be from 0 to 1, not 20.0\n")


def test_two_runs_write_the_same_bytes(stage):
    rows, photos = [listing(number, category=f"C{number % 3} / x") for number in range(1, 9)], [photo(1, 1), photo(2, 99)]
    written = []
    for _ in range(2):
        stage(rows, photos)
        written.append({name: (stage.folder / name).read_bytes() for name in stages.STAGES["tabular"].writes})
        (stage.folder / "manifest.json").unlink()
    assert written[0] == written[1]


ALL_MISSING = "columns id, product_name, category, product_description, price, location"


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        (b"", ALL_MISSING),
        (b"\n\n", ALL_MISSING),
        (b'PK\x03\x04\x14\x00\x06\x00\x08\x00\n\xff\xfe\x00,,"', ALL_MISSING),
        (bytes(range(256)) * 40, ALL_MISSING),
        (b'"' + b"x" * 100_000, ALL_MISSING),
        (b"id;product_name;category\n1;2;3\n", ALL_MISSING),
        (as_exported([listing(1)]).encode("utf-16"), ALL_MISSING),
        (b",id,product_name,category,product_description,location\n", "column price"),
        (b"a,b,price\n1,2,3\n", "columns id, product_name, category, product_description, location"),
    ],
)
def test_a_file_that_is_no_such_export_gets_one_sentence_that_names_the_missing_columns(content, missing, stage):
    code, out, err = stage(content)
    sentence = f"error: {stage.raw_dir / 'Products.csv'} is not such an export: its first line lacks the {missing}; it has "
    remedy = ": give a --schema that names yours, which --schema-example explains\n"
    assert (code, out) == (1, "") and err.startswith(sentence) and err.endswith(remedy)
    assert not (stage.folder / "manifest.json").exists()


def test_a_photo_table_without_ids_gets_one_sentence(stage):
    code, out, err = stage([listing(1)], ",image,product_id\n0,a,b\n")
    assert (code, out) == (1, "")
    assert err.endswith(f"error: {stage.raw_dir / 'Images.csv'} is not such an export: its first line lacks the column id\n")


def test_a_missing_file_gets_one_sentence(tmp_path, capsys):
    assert clean_tabular_data.main(["--data", str(tmp_path)]) == 1
    path = tmp_path / "raw" / "Products.csv"
    assert capsys.readouterr() == ("", f"error: {path} does not exist: give its path or s3:// URI\n")


@pytest.mark.parametrize(
    ("rows", "reasons"), [([], "no records"), ([listing(1, price=""), listing(2, id="")], "null_id: 1, null_price: 1")]
)
def test_an_export_of_which_nothing_can_be_kept_gets_one_sentence_and_its_rejects(rows, reasons, stage):
    code, out, err = stage(as_exported(rows, HEADER))
    path = stage.raw_dir / "Products.csv"
    sentence = f"error: {path} holds no listing that can be kept ({reasons}): see {stage.folder / 'rejected.csv'}\n"
    assert (code, out) == (1, "") and err.endswith(sentence)
    assert len(stage.rejects()) == len(rows) and not (stage.folder / "manifest.json").exists()


def test_paths_may_be_given(tmp_path, capsys):
    (tmp_path / "p.csv").write_text(as_exported([listing(1)]))
    (tmp_path / "i.csv").write_text(as_exported([photo(1, 1)]))
    flags = ["--data", str(tmp_path / "d"), "--products", str(tmp_path / "p.csv"), "--images-csv", str(tmp_path / "i.csv")]
    assert clean_tabular_data.main(flags) == 0
    assert json.loads(capsys.readouterr().out)["photos"] == 1


@pytest.mark.parametrize("depth", ["0", "-1", "x", "1.5", "²"])
def test_a_category_depth_that_is_no_positive_number_is_a_usage_error(depth, capsys):
    with pytest.raises(SystemExit) as exit_info:
        clean_tabular_data.main(["--category-depth", depth])
    assert exit_info.value.code == 2
    assert f"argument --category-depth: {depth!r} is not a whole number above 0" in capsys.readouterr().err


def test_pandas_reads_the_files_back_row_for_row(stage):
    rows = [listing(number, product_description=text) for number, text in enumerate(TEXTS, start=1)]
    stage(rows, [photo(1, 1)])
    with open(stage.folder / "products.csv", encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == stage.products().to_dict("records")
    assert listings.read_products(stage.folder)["price"].tolist() == [20.0] * len(TEXTS)
