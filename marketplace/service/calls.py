"""How a call is read: parameters that it does not take are refused, and a bare photo is read as the form that holds it."""

import re
import tempfile
from collections.abc import Callable, Collection, Iterator

from fastapi import HTTPException
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from rapidfuzz import fuzz, process
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from marketplace.service.sentences import MAX_TOLD, PHOTO_FIELD

LEAST_ALIKE = 65  # per cent of the letters that a name suggested for an unknown one shares with it
AS_ALIKE = 10  # per cent less than the nearest, up to which others are suggested beside it
BARE_PHOTO = ("image/", "application/octet-stream")  # how the Content-Type of a body that is a photo begins
JSON = re.compile(r"application/([\w.-]+\+)?json\b", re.IGNORECASE)


class Call(APIRoute):
    """A call whose query holds nothing but the parameters that it takes."""

    def get_route_handler(self) -> Callable:
        answer, names = super().get_route_handler(), self.query_names()

        async def handle(request: Request):
            refuse_unknown(request.query_params, names, "parameter")
            return await answer(self.read(request))

        return handle

    def query_names(self) -> list[str]:
        return list(_names(self.dependant, "query_params"))

    def read(self, request: Request) -> Request:
        """The request as the call takes it."""
        return request


class PhotoCall(Call):
    """A call that takes a form of photos and parameters, or a photo as its body and the parameters in the query."""

    def query_names(self) -> list[str]:
        return [name for name in _names(self.dependant, "body_params") if name != PHOTO_FIELD]

    def read(self, request: Request) -> Request:
        return PhotoRequest(request.scope, request.receive)


class PhotoRequest(Request):
    """Its form is what was sent as one, or the photo that is its body; the query's parameters are among the fields."""

    async def form(self, **limits) -> FormData:
        if self.headers.get("content-type", "").lower().startswith(BARE_PHOTO):
            file = tempfile.SpooledTemporaryFile()  # noqa: SIM115  # in memory; the form closes it
            file.write(await self.body())
            file.seek(0)
            fields = [(PHOTO_FIELD, UploadFile(file))]
        else:
            fields = (await super().form(**limits)).multi_items()
        given = dict(fields)
        for name, value in self.query_params.multi_items():
            if given.get(name, value) != value:
                raise HTTPException(422, f"{name}: it is in the form and in the query with another value: give it once")
        return FormData([*fields, *(pair for pair in self.query_params.multi_items() if pair[0] not in given)])


async def refuse_unknown_fields(request: Request) -> None:
    """A dependency that refuses a body which is no JSON object, or one with fields that the call does not take."""
    if not await request.body():
        return
    if not JSON.match(request.headers.get("content-type", "")):
        raise HTTPException(422, "send the fields as JSON, with the header Content-Type: application/json")
    fields = await request.json()
    if not isinstance(fields, dict):
        raise HTTPException(422, "send the fields as one JSON object, such as {}")
    refuse_unknown(fields, list(_names(request.scope["route"].dependant, "body_params")), "field")


def refuse_unknown(given: Collection[str], names: Collection[str], kind: str) -> None:
    """Raises HTTPException with the first name that is none of those taken, and the nearest of these."""
    unknown = next((name for name in given if name not in names), None)
    if unknown is None:
        return
    near = process.extract(unknown.lower(), names, scorer=fuzz.ratio, score_cutoff=LEAST_ALIKE)
    if near:
        advice = f"did you mean {' or '.join(name for name, alike, _ in near if alike > near[0][1] - AS_ALIKE)}?"
    else:
        advice = f"this call takes {', '.join(names)}" if names else "this call takes none"
    raise HTTPException(422, f"unknown {kind} {unknown[:MAX_TOLD]!r}: {advice}")  # escaped, as it may hold what cannot be written


def _names(dependant: Dependant, kind: str) -> Iterator[str]:
    """The names of parameters, those of dependencies last."""
    yield from (field.alias for field in getattr(dependant, kind))
    for other in dependant.dependencies:
        yield from _names(other, kind)
