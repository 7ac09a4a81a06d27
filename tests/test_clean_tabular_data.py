"""clean_tabular_data.py: recognising records, rejecting, labelling, reporting."""

import csv
import json
import re
import uuid

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import clean_tabular_data
from marketplace.cleaning import export_csv, listings, redaction
from marketplace.files import reading

HEADER = ["", "id", "product_name", "category", "product_description", "price", "location"]
PHOTO_HEADER = ["", "id", "product_id"]


def make_id(number: int) -> str:
    return str(uuid.UUID(int=0xABCDEF << 100 | number))


def listing(number: int, **changes: str) -> dict[str, str]:
    return {
        "": str(number),
        "id": make_id(number),
        "product_name": f"Chair {number} | in Leeds, West Yorkshire | Gumtree",
        "category": "Home & Garden / Dining, Living Room Furniture / Chairs",
        "product_description": f"A good chair, number {number}",
        "price": "£20.00",
        "location": "Leeds, West Yorkshire",
    } | changes


def photo(number: int, product: int | str, **changes: str) -> dict[str, str]:
    product_id = product if isinstance(product, str) else make_id(product)
    return {"": str(number), "id": make_id(10_000 + number), "product_id": product_id} | changes


def quote(field: str, specials: str) -> str:
    return '"' + field.replace('"', '""') + '"' if any(char in field for char in specials) else field


def as_exported(rows: list[dict], header: list[str] | None = None) -> str:
    """What the user's exporter writes: a bare carriage return does not make it quote a field."""
    header = header or list(rows[0])
    return "".join(
        ",".join(quote(field, ',"\n') for field in fields) + "\n" for fields in [header, *([*row.values()] for row in rows)]
    )


def as_converted(rows: list[dict]) -> str:
    return re.sub("\r\n|\r|\n", "\r\n", as_exported(rows))


def as_quoted(rows: list[dict]) -> str:
    return "".join(
        ",".join(quote(field, ',"\r\n') for field in fields) + "\n" for fields in [[*rows[0]], *([*row.values()] for row in rows)]
    )


STATES = {"exported": as_exported, "converted": as_converted, "quoted": as_quoted}


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


def read(text: str, tmp_path) -> tuple[list[dict], list[dict]]:
    path = tmp_path / "Products.csv"
    path.write_bytes(text.encode())
    taken = clean_tabular_data.CLEAN_PRODUCT_COLUMNS
    columns = clean_tabular_data.PRODUCT_COLUMNS
    return clean_tabular_data.clean_records(path, "Products.csv", columns, clean_tabular_data.clean_product, taken)


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
    assert list(products.columns) == clean_tabular_data.CLEAN_PRODUCT_COLUMNS
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
    names = [*clean_tabular_data.OUTPUTS, "manifest.json"]
    written = "".join((stage.folder / name).read_text(errors="replace") for name in names)
    assert written.count("[phone]") >= 7
    assert not re.search("900999|joe@|BS4|Zebedee", written)
    assert "Posted by [name] in Beds" in stage.rejects()["raw"][0]


# Rejecting.


@pytest.mark.parametrize("column", clean_tabular_data.PRODUCT_COLUMNS)
@pytest.mark.parametrize("value", ["", " ", "\r"])
@pytest.mark.parametrize("state", STATES)
def test_a_listing_with_a_null_is_rejected_with_its_reason(column, value, state, tmp_path):
    rows, rejects = read(STATES[state]([listing(1), listing(2, **{column: value}), listing(3)]), tmp_path)
    assert [row["product_id"] for row in rows] == [make_id(1), make_id(3)]
    assert [(reject["record"], reject["reason"]) for reject in rejects] == [(2, f"null_{column}")]
    assert rejects[0]["id"] == ("" if column == "id" else make_id(2))


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
    ],
)
def test_a_bad_listing_is_rejected_with_its_reason(change, reason, stage):
    code, out, _ = stage([listing(1), listing(2, **change), listing(3)])
    assert code == 0 and json.loads(out)["listings"] == 2
    rejects = stage.rejects()
    assert rejects[["source", "record", "reason"]].values.tolist() == [["Products.csv", "2", reason]]
    assert rejects["raw"][0].startswith("2,") and "West Yorkshire" in rejects["raw"][0]
    assert stage.report()["listings"] == {"read": 3, "kept": 2, "rejected": {reason: 1}}


def test_the_second_of_two_equal_ids_is_kept_when_the_first_is_rejected(tmp_path):
    rows, rejects = read(as_exported([listing(1, price=""), listing(2, id=make_id(1))]), tmp_path)
    assert [row["product_id"] for row in rows] == [make_id(1)] and [reject["reason"] for reject in rejects] == ["null_price"]


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


# Reading any state of the export.


TEXTS = [
    "one\rtwo\rthree",
    "line, with comma\rand more",
    '5" screen, "as new"',
    "list:\n1, one\n2, two\r3, three",
    "size\r4",
    "\r\r gap \r",
    f"look:\n5,{make_id(5)},Name,Cat,Desc,£3.00,Town\nend",
    f'look:\n5,{make_id(5)},"Name, x",Cat,"Desc"\nend',
    f"5,{make_id(5)},a\n6,{make_id(6)},b\n7,,c",
    '"',
    '""quoted""',
    "café £5 👍 “x”",
]


@pytest.mark.parametrize("description", TEXTS)
@pytest.mark.parametrize("state", STATES)
def test_a_description_comes_back_from_every_state_of_the_export(state, description, tmp_path):
    rows, rejects = read(STATES[state]([listing(1), listing(2, product_description=description), listing(3)]), tmp_path)
    assert [row["description"] for row in rows] == [
        "A good chair, number 1",
        "\n".join(description.splitlines()).strip(),
        "A good chair, number 3",
    ]
    assert rejects == []


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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_every_encoding_gives_the_same_listing(encoding, stage):
    stage(as_exported([listing(1, product_name="Café “chair” – £5", product_description="naïve\r€5")]).encode(encoding))
    row = stage.products().iloc[0]
    assert (row["name"], row["description"], row["price"]) == ("Café “chair” – £5", "naïve\n€5", "20.0")


def test_stray_windows_1252_bytes_in_utf_8_are_read_as_such(stage):
    data = as_exported([listing(number, product_description=f"Café 👍 X{number}") for number in range(1, 6)]).encode()
    stage(data.replace(b"X3", b"\x93X3\x94 \xa35"))
    assert stage.products()["description"].tolist()[1:3] == ["Café 👍 X2", "Café 👍 “X3” £5"]


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_bytes_that_no_encoding_has_do_not_stop_the_stage(encoding, stage):
    data = as_exported([listing(1, product_description="£££ café"), listing(2)]).encode(encoding)
    assert stage(data.replace(b"good", b"\x81\x8d"))[0] == 0
    assert stage.products()["description"][1] == "A \ufffd\ufffd chair, number 2"


def test_an_export_without_a_row_number_is_read(stage):
    rows = [{name: value for name, value in listing(number).items() if name} for number in (1, 2, 3, 4)]
    rows[1]["product_description"] = "a, b\nc, d\ne"
    rows[2]["id"] = ""
    stage(rows, [{name: value for name, value in photo(1, 1).items() if name}])
    assert stage.products()["description"].tolist() == ["A good chair, number 1", "a, b\nc, d\ne", "A good chair, number 4"]
    assert stage.rejects()["reason"].tolist() == ["null_id"] and len(stage.photos()) == 1


def test_columns_may_stand_in_any_order(stage):
    order = ["price", "", "location", "id", "product_description", "url", "category", "product_name"]
    texts = ["a\rb", f"x\n£5.00,3,Leeds,{make_id(9)},d,u,c,n\ny", 'say "hi", all']
    rows = [
        {name: (listing(number + 1, product_description=text) | {"url": "u"})[name] for name in order}
        for number, text in enumerate(texts)
    ]
    for state in STATES.values():
        stage(state(rows))
        assert stage.products()["description"].tolist() == ["\n".join(text.splitlines()) for text in texts]
    assert stage.products()["name"].tolist() == ["Chair 1", "Chair 2", "Chair 3"]


BROKEN = [
    ('"A "great" chair, cheap"', 'A "great" chair, cheap'),
    ('"A chair, missing end', "A chair, missing end"),
    ('A chair, missing start"', "A chair, missing start"),
    ('A chair, cheap, 5" wide', 'A chair, cheap, 5" wide'),
    ('"A ""chair", "sofa", etc', 'A "chair", "sofa", etc'),
    ('"first, line"\n"second, line', 'first, line"\n"second, line'),
    ('a "b", c\n4, d', 'a "b", c\n4, d'),
]


@pytest.mark.parametrize(("broken", "description"), BROKEN)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_broken_description_costs_no_listing_and_shifts_no_column(broken, description, ending, tmp_path):
    text = as_exported([listing(1), listing(2, product_description="BROKEN"), listing(3), listing(4)]).replace("BROKEN", broken)
    rows, rejects = read(text.replace("\n", ending), tmp_path)
    assert rejects == []
    assert [row["description"] for row in rows] == [
        "A good chair, number 1",
        description,
        *(f"A good chair, number {n}" for n in (3, 4)),
    ]
    assert {row["price"] for row in rows} == {20.0} and {row["town"] for row in rows} == {"Leeds"}


@pytest.mark.parametrize(("broken", "description"), BROKEN)
@pytest.mark.parametrize("bad_id", ["", "17", "not-a-uuid"])
def test_a_record_with_a_bad_id_is_its_own_reject_even_after_a_broken_description(broken, description, bad_id, tmp_path):
    rows = [
        listing(1, product_description="BROKEN"),
        listing(2, id=bad_id),
        listing(3, id=bad_id, product_description="a\nb"),
        listing(4),
    ]
    rows, rejects = read(as_exported(rows).replace("BROKEN", broken), tmp_path)
    assert [row["product_id"] for row in rows] == [make_id(1), make_id(4)] and rows[0]["description"] == description
    assert [reject["reason"] for reject in rejects] == ["bad_id" if bad_id else "null_id"] * 2


@pytest.mark.parametrize(
    "broken", [f"2,{make_id(2)},Chair", f'2,{make_id(2)},Chair,"Home, x","open', f"2,{make_id(2)},a,b,c,d,e,f,g", "2,,", "2,x"]
)
def test_a_damaged_record_is_rejected_with_its_raw_text_and_its_neighbours_stay(broken, tmp_path):
    first, last = as_exported([listing(1)]), as_exported([listing(3)]).split("\n", 1)[1]
    rows, rejects = read(f"{first}{broken}\n{last}", tmp_path)
    assert [row["product_id"] for row in rows] == [make_id(1), make_id(3)]
    assert [(reject["reason"], reject["raw"]) for reject in rejects] == [("bad_record", broken)]
    assert rejects[0]["id"] == (make_id(2) if make_id(2) in broken else "")


def test_text_before_the_first_record_is_rejected_and_blank_lines_are_not_records(tmp_path):
    header, record = as_exported([listing(1)]).split("\n", 1)
    rows, rejects = read(f"\n{header}\n\nsome rubbish\n\n{record}\n\n", tmp_path)
    assert len(rows) == 1 and [(reject["record"], reject["reason"], reject["raw"]) for reject in rejects] == [
        (1, "bad_record", "some rubbish")
    ]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("footer", ["Total,3 rows,,,,,", "-,-,-", ",,,,,,", "exported on Monday, by a tool"])
def test_a_line_that_a_tool_appended_costs_no_listing(stage, tmp_path, state, footer):
    rows = [listing(number, product_description=f"Solid oak\rno {number}, as new") for number in range(3)]
    text = STATES[state](rows)
    code, _, _ = stage(text + footer + text[-1], [photo(0, 0)])
    products = reading.read_csv(tmp_path / "data" / "tabular" / "products.csv")
    rejected = reading.read_csv(tmp_path / "data" / "tabular" / "rejected.csv")
    assert code == 0 and products["product_id"].tolist() == [make_id(number) for number in range(3)]
    assert rejected["raw"].tolist() == [footer]


def test_two_halves_of_a_quote_that_could_hold_records_are_rejected_not_merged(tmp_path):
    plain = {"product_name": "Chair", "category": "Home", "location": "Leeds"}
    texts = ["one", '"two, open', "three", 'four, close"', "five"]
    records = [listing(number, product_description=text) | plain for number, text in enumerate(texts, start=1)]
    lines = [",".join(record.values()) + "\n" for record in records]
    rows, rejects = read(",".join(HEADER) + "\n" + "".join(lines), tmp_path)
    assert [row["description"] for row in rows] == ["one", "five"]
    assert [(reject["reason"], reject["id"]) for reject in rejects] == [("bad_record", make_id(number)) for number in (2, 3, 4)]


def test_a_very_long_field_is_read(tmp_path):
    rows, _ = read(as_exported([listing(1, product_description="long, " * 50_000)]), tmp_path)
    assert len(rows[0]["description"]) == 6 * 50_000 - 1


FRAGMENTS = st.sampled_from(
    [
        "\r",
        "\n",
        "\r\n",
        ",",
        '"',
        '""',
        '","',
        "1,",
        "2",
        f"7,{make_id(7)},",
        f'\n8,"{make_id(8)}",a',
        f"{make_id(9)},",
        "£5.00,Leeds",
        "\u2028",
    ]
    + [
        "\n9," + make_id(9) + ",Name,Cat,Desc,£3.00,Town\n",
        f"\n{make_id(9)},n",
        ',£7.00,"Leeds, X"\n',
        " | ",
        " / ",
        "é",
        "👍",
        "NA",
        " ",
    ]
)
TYPED = st.lists(
    FRAGMENTS | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8), max_size=12
).map("".join)
IMITATION = re.compile(f'(?:\\d|"\\d+"),"?{redaction.UUID.pattern}')


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=TYPED, description=TYPED, state=st.sampled_from(sorted(STATES)), numbered=st.booleans())
@example(name="x", description=f'x,£5.00,Leeds\n8,{make_id(8)},n,c,"d', state="quoted", numbered=True)
@example(name="x", description=f"x,£5.00,Leeds\n8,{make_id(8)},n,c,d", state="quoted", numbered=True)
@example(name=f"x\n8,{make_id(8)},y", description="x", state="exported", numbered=True)
def test_any_text_a_person_can_type_comes_back_and_never_touches_its_neighbours(name, description, state, numbered, tmp_path):
    changes = {"product_name": f"{name} | in Leeds, West Yorkshire | Gumtree", "product_description": description}
    raw = [listing(1), listing(2, **changes), listing(3)]
    if not numbered:
        raw = [{column: value for column, value in row.items() if column} for row in raw]
    rows, rejects = read(STATES[state](raw), tmp_path)
    found = {row["product_id"]: row for row in rows}
    expected_name = redaction.redact(" ".join(name.splitlines()).strip())
    expected = redaction.redact("\n".join(description.splitlines()).strip())
    assert [found[make_id(number)]["description"] for number in (1, 3)] == ["A good chair, number 1", "A good chair, number 3"]
    assert [found[make_id(number)]["name"] for number in (1, 3)] == ["Chair 1", "Chair 3"]
    assert set(found) <= {make_id(1), make_id(2), make_id(3)}
    assert {(row["price"], row["town"], row["county"]) for row in rows} == {(20.0, "Leeds", "West Yorkshire")}
    if make_id(2) in found:
        assert (found[make_id(2)]["name"], found[make_id(2)]["description"]) == (expected_name, expected)
    elif not (IMITATION if numbered else redaction.UUID).search(name + description):
        assert {reject["reason"] for reject in rejects} & {"null_product_name", "null_product_description"}
        assert not (expected_name and expected)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.lists(
        FRAGMENTS | st.sampled_from([*as_exported([listing(1), listing(2)]).splitlines(keepends=True)]), max_size=15
    ).map("".join)
)
def test_whatever_stands_below_the_header_is_kept_or_rejected_and_no_character_is_lost(text, tmp_path):
    path = tmp_path / "Products.csv"
    path.write_bytes((",".join(HEADER) + "\n" + text).encode())
    lines = export_csv.read_lines(path)
    layout = export_csv.read_layout(path, lines, clean_tabular_data.PRODUCT_COLUMNS)
    records = list(export_csv.read_records(lines, layout))
    assert "".join("".join(raw for _, raw in records).split()) == "".join(text.split())
    assert all(fields is None or len(fields) == len(HEADER) for fields, _ in records)


# Prices.


def test_zero_and_joke_prices_are_implausible_and_an_expensive_car_is_not():
    cars = pd.Series(
        [500.0, 900.0, 1500.0, 2000.0, 2500.0, 3000.0, 4000.0, 6000.0, 9000.0, 15000.0] * 5
        + [85_000.0, 0.0, 1_234_567.0, 1e7, 1.0]
    )
    plausible = clean_tabular_data.plausible_prices(cars, pd.Series(["Cars"] * len(cars)))
    assert plausible.tolist() == [True] * 51 + [False] * 4


def test_a_category_with_few_prices_is_judged_by_all_categories():
    prices = pd.Series([10.0, 20.0, 40.0, 80.0] * 10 + [99_999_999.0, 30.0])
    categories = pd.Series(["Books"] * 40 + ["Rare"] * 2)
    assert clean_tabular_data.plausible_prices(prices, categories).tolist() == [True] * 40 + [False, True]


def test_a_category_of_equal_prices_does_not_call_other_prices_jokes():
    prices = pd.Series([10.0] * 50 + [15.0, 60.0])
    assert clean_tabular_data.plausible_prices(prices, pd.Series(["Books"] * 52)).all()


def test_prices_that_are_all_zero_are_implausible():
    assert not clean_tabular_data.plausible_prices(pd.Series([0.0, 0.0]), pd.Series(["a", "b"])).any()


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
    files = {name: (stage.folder / name).stat().st_mtime_ns for name in clean_tabular_data.OUTPUTS}
    again = json.loads(stage(rows, photos)[1])
    assert again == {name: value for name, value in first.items() if name != "seconds"} | {"unchanged": True}
    assert {name: (stage.folder / name).stat().st_mtime_ns for name in clean_tabular_data.OUTPUTS} == files
    assert "unchanged" not in json.loads(stage(rows, photos, "--category-depth", "2")[1])
    (stage.folder / "images.csv").unlink()
    assert "unchanged" not in json.loads(stage(rows, photos, "--category-depth", "2")[1])
    assert "unchanged" not in json.loads(stage([listing(1)], photos, "--category-depth", "2")[1])


def test_two_runs_write_the_same_bytes(stage):
    rows, photos = [listing(number, category=f"C{number % 3} / x") for number in range(1, 9)], [photo(1, 1), photo(2, 99)]
    written = []
    for _ in range(2):
        stage(rows, photos)
        written.append({name: (stage.folder / name).read_bytes() for name in clean_tabular_data.OUTPUTS})
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
    sentence = f"error: {stage.raw_dir / 'Products.csv'} is not such an export: its first line lacks the {missing}\n"
    assert (code, out, err) == (1, "", sentence)
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
