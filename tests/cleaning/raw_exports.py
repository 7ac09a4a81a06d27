"""Raw exports for tests: rows, and every state in which a file of them reaches a user."""

import re
import uuid

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
