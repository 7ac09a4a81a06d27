"""cleaning/export_csv.py: the records of an export in any state, none of them lost."""

import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from marketplace.cleaning import export_csv, folding, records, redaction, tables
from marketplace.cleaning.schema import EXPORT
from tests.cleaning.raw_exports import HEADER, STATES, TEXTS, as_exported, listing, make_id


def read(text: str | bytes, tmp_path) -> tuple[list[dict], list[dict]]:
    """Rows and rejects of a file of listings."""
    path = tmp_path / "Products.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    table = tables.open_table(path, EXPORT)
    cleaner = records.ListingCleaner(EXPORT, records.extra_columns(table.columns, EXPORT))
    rows, rejects = records.clean_records(table, "Products.csv", "id", cleaner.clean, cleaner.is_id)
    return rows.to_dict("records"), rejects


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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_every_encoding_gives_the_same_listing(encoding, tmp_path):
    text = as_exported([listing(1, product_name="Café “chair” – £5", product_description="naïve\r€5")])
    ((row,), _) = read(text.encode(encoding), tmp_path)
    assert (row["name"], row["description"], row["price"]) == ("Café “chair” – £5", "naïve\n€5", 20.0)


def test_stray_windows_1252_bytes_in_utf_8_are_read_as_such(tmp_path):
    data = as_exported([listing(number, product_description=f"Café 👍 X{number}") for number in range(1, 6)]).encode()
    rows, _ = read(data.replace(b"X3", b"\x93X3\x94 \xa35"), tmp_path)
    assert [row["description"] for row in rows[1:3]] == ["Café 👍 X2", "Café 👍 “X3” £5"]


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_bytes_that_no_encoding_has_cost_no_listing(encoding, tmp_path):
    data = as_exported([listing(1, product_description="£££ café"), listing(2)]).encode(encoding)
    rows, _ = read(data.replace(b"good", b"\x81\x8d"), tmp_path)
    assert rows[1]["description"] == "A \ufffd\ufffd chair, number 2"


def test_columns_may_stand_in_any_order(tmp_path):
    order = ["price", "", "location", "id", "product_description", "url", "category", "product_name"]
    texts = ["a\rb", f"x\n£5.00,3,Leeds,{make_id(9)},d,u,c,n\ny", 'say "hi", all']
    rows = [
        {name: (listing(number + 1, product_description=text) | {"url": "u"})[name] for name in order}
        for number, text in enumerate(texts)
    ]
    for state in STATES.values():
        cleaned, _ = read(state(rows), tmp_path)
        assert [row["description"] for row in cleaned] == ["\n".join(text.splitlines()) for text in texts]
        assert [row["name"] for row in cleaned] == ["Chair 1", "Chair 2", "Chair 3"]


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
def test_a_line_that_a_tool_appended_costs_no_listing(tmp_path, state, footer):
    rows = [listing(number, product_description=f"Solid oak\rno {number}, as new") for number in range(3)]
    text = STATES[state](rows)
    kept, rejects = read(text + footer + text[-1], tmp_path)
    assert [row["product_id"] for row in kept] == [make_id(number) for number in range(3)]
    assert [reject["raw"] for reject in rejects] == [footer]


@pytest.mark.parametrize("footer", ["Total,3 rows,,,,,", ",,,,,,"])
def test_a_line_that_a_tool_appended_does_not_mend_a_bad_price(tmp_path, footer):
    kept, rejects = read(as_exported([listing(1), listing(2, price="free")]) + footer + "\n", tmp_path)
    assert [row["product_id"] for row in kept] == [make_id(1)]
    assert [(reject["reason"], reject["id"]) for reject in rejects[:1]] == [("bad_price", make_id(2))]
    assert rejects[1]["raw"] == footer


def test_a_bad_price_does_not_swallow_the_record_after_it(tmp_path):
    rows = [listing(1, price="free", product_description="a, b\nc"), listing(2, id=""), listing(3)]
    for numbered in (True, False):
        kept, rejects = read(as_exported([{name: row[name] for name in row if name or numbered} for row in rows]), tmp_path)
        assert [row["product_id"] for row in kept] == [make_id(3)]
        assert [(reject["reason"], reject["id"]) for reject in rejects] == [("bad_price", make_id(1)), ("null_id", "")]


def test_two_halves_of_a_quote_that_could_hold_records_are_rejected_not_merged(tmp_path):
    plain = {"product_name": "Chair", "category": "Home", "location": "Leeds"}
    texts = ["one", '"two, open', "three", 'four, close"', "five"]
    lines = [
        ",".join((listing(number, product_description=text) | plain).values()) + "\n"
        for number, text in enumerate(texts, start=1)
    ]
    rows, rejects = read(",".join(HEADER) + "\n" + "".join(lines), tmp_path)
    assert [row["description"] for row in rows] == ["one", "five"]
    assert [(reject["reason"], reject["id"]) for reject in rejects] == [("bad_record", make_id(number)) for number in (2, 3, 4)]


def unquoted(number: int, **changes: str) -> str:
    """A line of an export that quotes nothing."""
    plain = {
        "product_name": "Table",
        "category": "Home & Garden / Tables",
        "product_description": "Solid oak",
        "location": "Leeds",
    }
    return ",".join((listing(number) | plain | changes).values()) + "\n"


FIRST = as_exported([listing(1)])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"product_name": "Table, chairs"}, {"name": "Table, chairs"}),
        ({"product_name": "Table, chairs, | in Leeds, West Yorkshire | Gumtree"}, {"name": "Table, chairs,"}),
        ({"price": "£1,200"}, {"price": 1200.0}),
        ({"price": "£1,200,300.50"}, {"price": 1_200_300.5}),
        ({"location": "Leeds, West Yorkshire"}, {"town": "Leeds", "county": "West Yorkshire"}),
        ({"product_description": "Oak, 5 £ and, more,or less"}, {"description": "Oak, 5 £ and, more,or less"}),
        (
            {"product_name": "Table, chairs", "product_description": "a, b", "price": "£1,200", "location": "Leeds, W"},
            {"price": 1200.0},
        ),
    ],
)
def test_an_unquoted_comma_is_part_of_its_field_where_that_is_certain(change, expected, tmp_path):
    rows, rejects = read(FIRST + unquoted(2, **change) + unquoted(3), tmp_path)
    assert rejects == [] and [row["product_id"] for row in rows] == [make_id(number) for number in (1, 2, 3)]
    usual = {"name": "Table", "category": "Home & Garden / Tables", "description": "Solid oak", "price": 20.0, "town": "Leeds"}
    named = {"product_name": "name", "product_description": "description"}
    usual |= {named[column]: change[column] for column in named if column in change and column != "product_name"}
    usual |= {"name": "Table, chairs"} if "product_name" in change else {}
    assert {name: rows[1][name] for name in usual | expected} == usual | expected


@pytest.mark.parametrize(
    "change",
    [
        {"product_name": "Table,chairs"},
        {"product_name": "Table,red / blue"},
        {"category": "Sports, Leisure & Travel / Bicycles"},
        {"category": "Sports / Bicycles, Skates"},
        {"category": "Tables", "product_description": "a, b"},
        {"price": "1,200"},
        {"location": "Leeds, West, Yorkshire"},
        {"location": "Leeds,West Yorkshire"},
    ],
)
def test_an_unquoted_comma_that_could_be_of_two_fields_rejects_the_record_alone(change, tmp_path):
    rows, rejects = read(FIRST + unquoted(2, **change) + unquoted(3), tmp_path)
    assert [row["product_id"] for row in rows] == [make_id(1), make_id(3)]
    assert [(reject["reason"], reject["id"]) for reject in rejects] == [("bad_record", make_id(2))]
    assert rejects[0]["raw"] == unquoted(2, **change).strip()


def test_a_price_cut_at_its_comma_is_rejected_though_the_columns_are_as_many(tmp_path):
    header = as_exported([listing(1) | {"url": "u"}])
    rows, rejects = read(header + unquoted(2, price="£1,200"), tmp_path)
    assert [row["product_id"] for row in rows] == [make_id(1)] and [reject["reason"] for reject in rejects] == ["bad_record"]


@given(
    parts=st.lists(st.sampled_from(["Oak", " ", ",", ", ", "£5", "1", "200", " / ", "Table", "\xa0", "x"]), max_size=8).map(
        "".join
    ),
    column=st.sampled_from(["product_name", "category", "price", "location", "product_description"]),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_unquoted_comma_shifts_a_column(parts, column, tmp_path):
    rows, _ = read(FIRST + unquoted(2, **{column: f"{listing(2)[column] if column == 'category' else ''}{parts}"}), tmp_path)
    if len(rows) == 2 and column not in ("product_name", "category"):
        assert (rows[1]["name"], rows[1]["category"]) == ("Table", "Home & Garden / Tables")
    if len(rows) == 2 and column not in ("price", "location"):
        assert (rows[1]["price"], rows[1]["town"]) == (20.0, "Leeds")


@pytest.mark.parametrize("state", STATES)
def test_rows_that_excel_left_without_their_empty_last_columns_are_kept(state, tmp_path):
    rows = [listing(number) | {"url": "", "page_id": ""} for number in (1, 2, 3)]
    text = STATES[state](rows).replace('Yorkshire",,', 'Yorkshire"')
    kept, rejects = read(text, tmp_path)
    assert text.count(",,") == 0 and rejects == []
    assert [(row["town"], row["url"], row["page_id"]) for row in kept] == [("Leeds", "", "")] * 3


def test_a_record_without_its_last_columns_does_not_take_the_next_ones_text(tmp_path):
    text = as_exported([listing(number) | {"url": f"u{number}"} for number in (1, 2, 3)])
    kept, rejects = read(text.replace(",u2\n", "\nand, more\n"), tmp_path)
    assert [row["product_id"] for row in kept] == [make_id(1), make_id(3)] and rejects[0]["id"] == make_id(2)


def test_a_quoted_field_of_forty_thousand_lines_is_one_record(tmp_path):
    rows, rejects = read(as_exported([listing(1, product_description="a, b\n" * 40_000), listing(2)]), tmp_path)
    assert len(rows) == 2 and rejects == [] and rows[0]["description"].count("\n") == 39_999


def test_lines_that_start_no_record_are_not_looked_through_again_and_again(tmp_path, monkeypatch):
    looked_at = []
    monkeypatch.setattr(
        export_csv, "parse_fields", lambda text, parse=export_csv.parse_fields: looked_at.append(text) or parse(text)
    )
    sizes = []
    for lines in (500, 5000):
        looked_at.clear()
        read(f'{FIRST}2,{make_id(2)},N,A / B,"' + 'a, "b\n' * lines, tmp_path)
        sizes.append(sum(map(len, looked_at)))
    assert sizes[1] < 13 * sizes[0]


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
    expected_name = redaction.redact(" ".join(folding.tidy(" ".join(name.splitlines())).split(" ")))
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
    layout = export_csv.Layout(export_csv.read_header(lines), EXPORT.used())
    found = list(export_csv.read_records(lines, layout))
    assert "".join("".join(raw for _, raw in found).split()) == "".join(text.split())
    assert all(fields is None or len(fields) == len(HEADER) for fields, _ in found)


@pytest.mark.parametrize("column", EXPORT.used())
@pytest.mark.parametrize("value", ["", " ", "\r"])
@pytest.mark.parametrize("state", STATES)
def test_a_listing_with_a_null_is_rejected_with_its_reason(column, value, state, tmp_path):
    rows, rejects = read(STATES[state]([listing(1), listing(2, **{column: value}), listing(3)]), tmp_path)
    assert [row["product_id"] for row in rows] == [make_id(1), make_id(3)]
    assert [(reject["record"], reject["reason"]) for reject in rejects] == [(2, f"null_{column}")]
    assert rejects[0]["id"] == ("" if column == "id" else make_id(2))


def test_the_second_of_two_equal_ids_is_kept_when_the_first_is_rejected(tmp_path):
    rows, rejects = read(as_exported([listing(1, price=""), listing(2, id=make_id(1))]), tmp_path)
    assert [row["product_id"] for row in rows] == [make_id(1)] and [reject["reason"] for reject in rejects] == ["null_price"]


@given(st.text(st.sampled_from('ab,"\n\t\x0b\x85 £'), max_size=12))
def test_a_line_without_quotes_is_parted_as_the_csv_module_parts_it(text):
    assert export_csv.plain_fields(text) in (None, export_csv.parse_fields(text))
    assert (export_csv.plain_fields(text) is None) == (not text.strip("\n") or '"' in text or "\n" in text.removesuffix("\n"))


@pytest.mark.parametrize("together", [1, 2, 3, 5, 6])
def test_records_that_are_taken_some_at_a_time_give_the_same_rows(together, tmp_path, monkeypatch):
    export = as_exported([listing(number, price=f"£{number}.50") for number in (1, 2, 2, 3, 4, 5, 6)])
    expected = read(export, tmp_path)
    monkeypatch.setattr(records, "ROWS_AT_A_TIME", together)
    assert read(export, tmp_path) == expected and len(expected[0]) == 6
