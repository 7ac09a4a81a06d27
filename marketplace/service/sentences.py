"""What is wrong with a value, as a sentence that says what to give instead."""

import re
from collections.abc import Mapping, Sequence

SAID = {  # pydantic's types of errors -> what to do; names in braces are those of the error's context
    "missing": "give it, as this call cannot do without",
    "int_parsing": "give a whole number",
    "int_type": "give a whole number",
    "int_from_float": "give a whole number",
    "int_parsing_size": "give a smaller number",
    "float_parsing": "give a number",
    "float_type": "give a number",
    "finite_number": "give a number that is finite",
    "greater_than_equal": "give {ge:g} or more",
    "less_than_equal": "give {le:g} or less",
    "bool_parsing": "give true or false",
    "bool_type": "give true or false",
    "literal_error": "give {expected}",
    "string_type": "give text",
    "string_unicode": "give text that is valid Unicode",
    "string_too_short": "give at least {min_length} characters",
    "string_too_long": "give at most {max_length} characters",
    "list_type": "give a list",
    "too_short": "give at least {min_length} items",
    "too_long": "give at most {max_length} items",
    "dict_type": "give an object of names and numbers",
}
ONE_OF_MANY = re.compile("(at least 1 (?:item|character))s")
IN_REQUEST = ("query", "body", "path", "header")
KEY = "[key]"  # the last of an error's location where a name in an object is wrong, and not what it stands for
MAX_TOLD = 64  # characters of a client's own words
NO_PHOTO = "send a photo as a file of the form, or as the body with its Content-Type, such as image/jpeg"
PHOTO_FIELD = "image"  # of a form


def sentence(error: Mapping) -> str:
    """One of pydantic's errors: the field, and what to do."""
    where = [part for part in error["loc"] if part not in IN_REQUEST]
    if where and where[0] == PHOTO_FIELD and error["type"] in ("missing", "value_error"):
        return f"{PHOTO_FIELD}: {NO_PHOTO}"
    if error["type"] == "json_invalid":
        return f"the body is not JSON: {error['ctx']['error']} at character {where[0]}"
    said = SAID.get(error["type"], error["msg"].removeprefix("Value error, "))
    told = ONE_OF_MANY.sub(r"\1", said.format_map(error.get("ctx", {})))
    return f"{_field(where)}: {told}" if where else told


def _field(where: Sequence[str | int]) -> str:
    """The name of a field, and which part of it is meant."""
    name, *parts = where
    if parts and parts[-1] == KEY:
        return f"the name {parts[0][:MAX_TOLD]!r} in {name}"
    return "".join(f"item {part + 1} of " if isinstance(part, int) else f"{part} in " for part in reversed(parts)) + str(name)
