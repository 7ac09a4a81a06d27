"""What routes depend on: the generation that answers, the filters and the page asked for, the queue of photos, the key."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import anyio
import numpy as np
from fastapi import Body, Depends, File, Form, HTTPException, Query, Request, Security, UploadFile
from fastapi import Path as PathParameter
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import AfterValidator, BeforeValidator, Field

from marketplace.cleaning.decoders import CannotStart, Decoders, Limits
from marketplace.cleaning.photos import CleanedPhoto, CleanSettings, PhotoRejected
from marketplace.retrieval.filters import MAX_NAME, Filters
from marketplace.retrieval.recommender import Recommender
from marketplace.service import middleware
from marketplace.service.meters import Meters
from marketplace.service.photo_files import Photos as PhotoPlaces
from marketplace.service.reload import Generations
from marketplace.service.settings import KEY_VARIABLE, Settings

RETRY_AFTER = {"Retry-After": "1"}  # seconds
LIMITS = Limits(cpu_s=2, pixels=24_000_000)  # of an upload; a JPEG is decoded smaller than it is, so 48 megapixels pass
SLICE_CPU_S = 0.08  # a 12-megapixel JPEG takes 0.05
MAX_SLOW_WAITING = 8  # photos that take longer; together they may wait for 16 seconds
MAX_K = 100
MAX_OFFSET = 1000  # who pages further wants an export

CATEGORY = "A category at any level, or a path such as 'Home & Garden / Beds'."
LOCATION = "A town, a county, 'Town, County', or the beginning of one."
K = "How many listings to return."
OFFSET = "How many of the best listings to leave out: k, 2k, ... for further pages, whose order stays the same."
MIN_SCORE = "Leave out listings that score less, where listings have a score."
# An empty field of a form or an address is none.
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
        category: Annotated[str | None, source(description=CATEGORY, max_length=MAX_NAME)] = None,
        min_price: Annotated[Pounds, source(description="Pounds.", examples=[5])] = None,
        max_price: Annotated[Pounds, source(description="Pounds.", examples=[500])] = None,
        location: Annotated[str | None, source(description=LOCATION, max_length=MAX_NAME)] = None,
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
        min_score: Annotated[float, source(ge=0, le=1, allow_inf_nan=False, description=MIN_SCORE, examples=[0.1])] = 0.0,
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

    async def embed(self, recommender: Recommender, image: UploadFile) -> tuple[np.ndarray, np.ndarray]:
        """(D,) vector and (C,) category probabilities of an upload, cleaned as the pipeline cleans; raises HTTPException."""
        if self._pending >= self._max_pending:
            raise _busy()
        self._pending += 1
        try:
            with self._meters.pending.track_inprogress():
                jpeg = await self._clean(await image.read(), recommender.photo_model.settings)
                return await anyio.to_thread.run_sync(self._embed, recommender, jpeg, limiter=self._embedding)
        except PhotoRejected as error:
            raise HTTPException(400, f"not a usable image ({error.reason}): {error}") from None
        except CannotStart as error:
            raise HTTPException(503, f"{error}: try again", RETRY_AFTER) from None
        finally:
            self._pending -= 1

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
CurrentSettings = Annotated[Settings, Depends(_state("settings"))]
ServiceMeters = Annotated[Meters, Depends(_state("meters"))]
ServicePhotos = Annotated[PhotoPlaces, Depends(_state("photos"))]
ServiceGenerations = Annotated[Generations, Depends(_state("generations"))]
Photos = Annotated[PhotoQueue, Depends(_state("photo_queue"))]
QueryFilters = Annotated[Filters, Depends(filters_from(Query))]
FormFilters = Annotated[Filters, Depends(filters_from(Form))]
BodyFilters = Annotated[Filters, Depends(filters_from(Body))]
QueryPage = Annotated[Page, Depends(page_from(Query))]
FormPage = Annotated[Page, Depends(page_from(Form))]
BodyPage = Annotated[Page, Depends(page_from(Body))]
Upload = Annotated[UploadFile, File(description="A photo: JPEG, PNG, WebP, AVIF, HEIC, GIF, BMP or TIFF.")]
Words = Annotated[str | None, Form(max_length=2000, description="Words about the listing.", examples=["guitar with case"])]
ProductId = Annotated[
    str,
    AfterValidator(middleware.with_slashes),
    PathParameter(description="A listing's id, percent-encoded, slashes included; a UUID in either case."),
]
