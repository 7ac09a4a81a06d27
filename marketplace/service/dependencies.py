"""What routes depend on: the generation that answers, the filters and the page asked for, the queue of photos, the key."""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import anyio
import numpy as np
from fastapi import Body, Depends, File, Form, HTTPException, Query, Request, Response, Security, UploadFile
from fastapi import Path as PathParameter
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from marketplace.cleaning.decoders import CannotStart, Decoders, Limits
from marketplace.cleaning.photos import CleanedPhoto, CleanSettings, PhotoRejected
from marketplace.retrieval.filters import MAX_NAME, Filters
from marketplace.retrieval.recommender import Recommender
from marketplace.service import middleware
from marketplace.service.meters import Meters
from marketplace.service.reload import Generations
from marketplace.service.settings import KEY_VARIABLE

RETRY_AFTER = {"Retry-After": "1"}  # seconds
LIMITS = Limits(cpu_s=2, pixels=24_000_000)  # of an upload; a JPEG is decoded smaller than it is, so 48 megapixels pass
SLICE_CPU_S = 0.08  # a 12-megapixel JPEG takes 0.05
MAX_SLOW_WAITING = 8  # photos that take longer; together they may wait for 16 seconds
MAX_PHOTOS = 8  # of one question; they are looked at one after the other
MAX_K = 100
MAX_OFFSET = 1000  # who pages further wants an export

CATEGORY = "A category at any level, or a path such as 'Home & Garden / Beds'."
LOWEST, HIGHEST = "The lowest price, in the listings' currency.", "The highest price, in the listings' currency."
LOCATION = "A town, a county, 'Town, County', or the beginning of one."
K = "How many listings to return."
OFFSET = "How many of the best listings to leave out: for further pages the next_offset of the page before."
PHOTOS = f"Photos of one thing, at most {MAX_PHOTOS}: JPEG, PNG, WebP, AVIF, HEIC, GIF, BMP or TIFF."
BINARY = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
MIN_SCORE = "Leave out listings that score less, where listings have a score."
PROGRAM_DIR = Path(__file__).parents[1]
# An empty field of a form or an address is none. It is the example too: what "Try it out" sends must leave nothing out.
Pounds = Annotated[
    Annotated[float, Field(ge=0, allow_inf_nan=False)] | None, BeforeValidator(lambda value: None if value == "" else value)
]


@dataclass(frozen=True)
class Page:
    """Which of the ranked listings are wanted."""

    k: int
    offset: int
    min_score: float


def filters_from(source: Callable) -> Callable:
    """A dependency that reads the filters from `source`: Query, Form or Body."""

    async def read(  # async, or each would be run in a thread of its own
        category: Annotated[str | None, source(description=CATEGORY, max_length=MAX_NAME, examples=[""])] = None,
        min_price: Annotated[Pounds, source(description=LOWEST, examples=[""])] = None,
        max_price: Annotated[Pounds, source(description=HIGHEST, examples=[""])] = None,
        location: Annotated[str | None, source(description=LOCATION, max_length=MAX_NAME, examples=[""])] = None,
    ) -> Filters:
        if min_price is not None and max_price is not None and min_price > max_price:
            raise HTTPException(422, f"min_price {min_price:g} is above max_price {max_price:g}: swap them")
        return Filters((category or "").strip() or None, min_price, max_price, (location or "").strip() or None)

    return read


def page_from(source: Callable) -> Callable:
    """A dependency that reads the page from `source`: Query, Form or Body."""

    async def read(
        k: Annotated[int, source(ge=1, le=MAX_K, description=K, examples=[10])] = 10,
        offset: Annotated[int, source(ge=0, le=MAX_OFFSET, description=OFFSET, examples=[0])] = 0,
        min_score: Annotated[float, source(ge=0, le=1, allow_inf_nan=False, description=MIN_SCORE, examples=[0])] = 0.0,
    ) -> Page:
        return Page(k, offset, min_score)

    return read


async def current_generation(request: Request) -> Recommender:
    """The generation that answers this request, from its beginning to its end."""
    recommender = request.app.state.generations.current
    if recommender is None:
        raise HTTPException(503, "the models are not loaded yet: try again", RETRY_AFTER)
    request.state.generation = recommender.generation
    return recommender


@functools.cache
def program_version() -> str:
    """A digest of this program: another version may answer the same question in another way."""
    sources = (path.read_bytes() for path in sorted(PROGRAM_DIR.rglob("*.py")))
    return hashlib.blake2b(b"".join(sources), digest_size=4).hexdigest()


async def unchanged_generation(request: Request, response: Response) -> Recommender:
    """current_generation() for a GET call, whose answer is the same as long as this, and what is hidden, are the same.

    Raises HTTPException with 304 for a client that has the answer, before anything is looked for.
    """
    recommender = await current_generation(request)
    tag = f'"{recommender.version}-{program_version()}"'
    # no-cache: a client may keep the answer, and asks whether it still holds each time, as listings are taken down at once.
    headers = {"ETag": f"W/{tag}"} | ({} if request.app.state.settings.private else {"Cache-Control": "no-cache"})
    kept = request.headers.get("if-none-match", "")
    if tag in (one.strip().removeprefix("W/") for one in kept.split(",")):
        raise HTTPException(304, headers=headers)
    response.headers.update(headers)
    return recommender


class PhotoQueue:
    """Photos in work and waiting; one more than `max_pending` is told to come back.

    A photo is decoded in a process apart and gets SLICE_CPU_S of it, which is enough for nearly all. One that takes longer is
    begun again among its like, one for two cores: however many of them there are, the others pass them by. A photo that waits
    uses neither thread nor process: the rest goes on being answered.
    """

    def __init__(self, meters: Meters, max_pending: int, cores: int):
        self._meters, self._max_pending, self._pending = meters, max_pending, 0
        n_slow = max(1, cores // 2)
        self._quick, self._slow, self._embedding = map(anyio.CapacityLimiter, (cores, n_slow, cores))
        self._n_decoders = cores + n_slow
        self._decoders: Decoders | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """The processes that decode, from their start to their end; raises CannotStart."""
        with Decoders(self._n_decoders, LIMITS) as self._decoders:
            self._decoders.wait_until_ready()
            yield

    async def embed(self, recommender: Recommender, images: Sequence[UploadFile]) -> tuple[np.ndarray, np.ndarray]:
        """(n, D) vectors and the mean of (C,) category probabilities of the photos of one upload; raises HTTPException.

        They take one place in the queue and one core, as they are looked at one after the other.
        """
        if self._pending >= self._max_pending:
            raise _busy()
        self._pending += 1
        try:
            with self._meters.pending.track_inprogress():
                embedded = []
                for number, image in enumerate(images, start=1):
                    which = f"photo {number} of {len(images)}: " if len(images) > 1 else ""
                    embedded.append(await self._embed_one(recommender, image, which))
        except CannotStart as error:
            raise HTTPException(503, f"{error}: try again", RETRY_AFTER) from None
        finally:
            self._pending -= 1
        vectors, probabilities = zip(*embedded, strict=True)
        return np.stack(vectors), np.mean(probabilities, axis=0)

    async def _embed_one(self, recommender: Recommender, image: UploadFile, which: str) -> tuple[np.ndarray, np.ndarray]:
        """(D,) vector and (C,) probabilities of a photo, cleaned as the pipeline cleans; which: begins the sentence of a 400."""
        try:
            jpeg = await self._clean(await image.read(), recommender.photo_model.settings)
        except PhotoRejected as error:
            raise HTTPException(400, f"{which}not a usable image ({error.reason}): {error}") from None
        return await anyio.to_thread.run_sync(self._embed, recommender, jpeg, limiter=self._embedding)

    async def _clean(self, data: bytes, settings: CleanSettings) -> bytes:
        """The cleaned photo's JPEG."""
        decode = functools.partial(anyio.to_thread.run_sync, self._decode, data, settings)
        cleaned = await decode(SLICE_CPU_S, limiter=self._quick)
        if cleaned is None:
            if self._slow.statistics().tasks_waiting >= MAX_SLOW_WAITING:
                raise _busy()
            cleaned = await decode(None, limiter=self._slow)
        return cleaned.jpeg

    def _decode(self, data: bytes, settings: CleanSettings, patience_cpu_s: float | None) -> CleanedPhoto | None:
        with self._meters.step("decode"), self._decoders.one() as decoder:
            decoder.begin(data, settings)
            cleaned = decoder.finish(patience_cpu_s)
            if cleaned is None:
                decoder.abandon()
            return cleaned

    def _embed(self, recommender: Recommender, jpeg: bytes) -> tuple[np.ndarray, np.ndarray]:
        with self._meters.step("embed"):
            return recommender.embed(jpeg)


def _busy() -> HTTPException:
    return HTTPException(503, "too many photos are being looked at: try again in a second", RETRY_AFTER)


def _state(name: str) -> Callable:
    """A dependency that gives what the application holds under `name`."""

    async def read(request: Request) -> object:
        return getattr(request.app.state, name)

    return read


async def check_key(
    request: Request,
    header: Annotated[str | None, Security(APIKeyHeader(name="X-API-Key", auto_error=False))],
    bearer: Annotated[object, Security(HTTPBearer(auto_error=False))],
) -> None:
    """Refuses a call of /admin/ without the key; the two parameters describe how it is given."""
    key = request.app.state.settings.api_key
    if key is None:
        raise HTTPException(403, f"this service has no key: start it with --api-key or {KEY_VARIABLE}")
    if not middleware.holds_key(request.headers, key):
        raise HTTPException(401, "give the key as X-API-Key or as a bearer token", {"WWW-Authenticate": "Bearer"})


CurrentGeneration = Annotated[Recommender, Depends(current_generation)]
UnchangedGeneration = Annotated[Recommender, Depends(unchanged_generation)]
ServiceMeters = Annotated[Meters, Depends(_state("meters"))]
ServiceGenerations = Annotated[Generations, Depends(_state("generations"))]
Photos = Annotated[PhotoQueue, Depends(_state("photo_queue"))]
QueryFilters = Annotated[Filters, Depends(filters_from(Query))]
FormFilters = Annotated[Filters, Depends(filters_from(Form))]
BodyFilters = Annotated[Filters, Depends(filters_from(Body))]
QueryPage = Annotated[Page, Depends(page_from(Query))]
FormPage = Annotated[Page, Depends(page_from(Form))]
BodyPage = Annotated[Page, Depends(page_from(Body))]
# FastAPI gives contentMediaType alone, by which generated clients cannot tell a file from text.
Photo = Annotated[UploadFile, WithJsonSchema(BINARY)]
Uploads = Annotated[list[Photo], File(description=PHOTOS, max_length=MAX_PHOTOS)]
Words = Annotated[str | None, Form(max_length=2000, description="Words about the listing.", examples=[""])]
ProductId = Annotated[
    str,
    AfterValidator(middleware.with_slashes),
    PathParameter(description="A listing's id, percent-encoded, slashes included; a UUID in either case."),
]
