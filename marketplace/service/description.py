"""The OpenAPI description: FastAPI's, with what it cannot know, and ids that exist as the examples of ids."""

import copy

from fastapi import FastAPI

from marketplace.retrieval.catalogue import Catalogue
from marketplace.service.sentences import PHOTO_FIELD

FORM, JSON = "multipart/form-data", "application/json"


def describe(app: FastAPI) -> dict:
    description = copy.deepcopy(FastAPI.openapi(app))  # which it keeps
    schemas = description["components"]["schemas"]
    operations = [operation for path in description["paths"].values() for operation in path.values()]
    for operation in operations:
        content = operation.get("requestBody", {}).get("content", {})
        if FORM in content:
            operation["parameters"] = _query_parameters(schemas[_name(content[FORM])])
        if JSON in content:
            schemas[_name(content[JSON])]["additionalProperties"] = False
    generation = app.state.generations.current
    if generation is not None:
        _set_examples(operations, generation.catalogue)
    return description


def _name(media: dict) -> str:
    """The name of the schema of a body."""
    return media["schema"]["$ref"].rpartition("/")[2]


def _query_parameters(form: dict) -> list[dict]:
    """The fields of a form as what may be in the query instead: beside a photo that is the body there is no other place.

    They have no defaults: a client that sends those too would contradict what it has put in the form.
    """
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": field["description"],
            "schema": {key: value for key, value in field.items() if key not in ("default", "description", "examples")},
        }
        for name, field in form["properties"].items()
        if name != PHOTO_FIELD
    ]


def _set_examples(operations: list[dict], catalogue: Catalogue) -> None:
    examples = {}
    if len(catalogue.shown_rows):
        examples["product_id"] = catalogue.product(catalogue.shown_rows[0])["product_id"]
    if len(catalogue.shown_photos):
        examples["image_id"] = catalogue.image_ids(catalogue.shown_photos[:1])[0]
    for operation in operations:
        for parameter in operation.get("parameters", []):
            if parameter["name"] in examples:
                parameter["example"] = examples[parameter["name"]]
        if JSON in operation.get("requestBody", {}).get("content", {}) and "product_id" in examples:
            operation["requestBody"]["content"][JSON]["example"] = {"ids": [examples["product_id"]]}
