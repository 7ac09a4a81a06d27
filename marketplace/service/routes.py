"""The routes of the API, its page, and its description."""

import html
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Literal

import anyio
import numpy as np
from fastapi import APIRouter, Body, Depends, HTTPException, Query, Request
from fastapi import Path as PathParameter
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from pydantic import AfterValidator, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.staticfiles import NotModifiedResponse

from marketplace.cleaning.listings import canonical_id
from marketplace.cleaning.photos import CARD, DISPLAY, SQUARE
from marketplace.files.hidden import UnknownIds
from marketplace.files.stages import StageError
from marketplace.retrieval import moderation, several
from marketplace.retrieval import vectors as vector_search
from marketplace.retrieval.catalogue import UnknownName
from marketplace.retrieval.filters import MAX_NAME
from marketplace.retrieval.open_index import WINDOW
from marketplace.retrieval.recommender import Query as Evidence
from marketplace.retrieval.recommender import Recommender
from marketplace.retrieval.words import Counts
from marketplace.service import exports, schemas
from marketplace.service.calls import Call, PhotoCall, refuse_unknown_fields
from marketplace.service.dependencies import (
    BINARY,
    MAX_K,
    MAX_OFFSET,
    RETRY_AFTER,
    BodyFilters,
    BodyPage,
    CurrentGeneration,
    Filters,
    FormFilters,
    FormPage,
    Page,
    Photos,
    ProductId,
    QueryFilters,
    QueryPage,
    ServiceGenerations,
    ServiceMeters,
    UnchangedGeneration,
    Uploads,
    Words,
    check_key,
)  # fmt: skip
from marketplace.service.meters import Meters
from marketplace.service.photo_files import InShard, Unavailable
from marketplace.service.reload import Generations
from marketplace.service.schemas import ErrorMessage
from marketplace.service.sentences import sentence
from marketplace.service.settings import HEADLINE, SHOP_NAME

WEB_DIR = Path(__file__).parents[2] / "web"
log = logging.getLogger("marketplace")
PHOTO_CACHE_S = 60  # that a photo may be shown after its listing was hidden, by who had it before
MAX_IDS = 100  # of all lists of one question together: each is a listing to read
MAX_HIDDEN_IDS = 1000  # at once
MAX_WEIGHT = 1000
EXACT_TOTAL = 1000  # a larger total is given as "at least"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src {photos}; connect-src {photos}; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)

SORT = "The order of the listings. By default relevance with words, and newest without, as relevance is then too."
IDS = "Listings that were viewed or liked: the answers are like what these have in common."
NOT_IDS = "Counter-examples: the answers are less like these."
EXCLUDE_IDS = "Listings that are only left out."
WEIGHTS = "By kind of evidence, how much it counts against what it does by default; 0 leaves it out."
DIVERSITY = "How unlike each other the first 100 answers are to be: from 0, the best first, to 1, the most unlike first."
TAGS = [
    {"name": "search", "description": "Words and filters in, listings out."},
    {"name": "photos", "description": "Photos in: their vector, listings like them, what a new listing is and could ask."},
    {"name": "listings", "description": "One listing, and those like one or several."},
    {"name": "service", "description": "Whether it answers, and its figures."},
    {"name": "admin", "description": "For who holds the key."},
    {"name": "moderation", "description": "For who holds the key: what a moderator may want to look at."},
]
NOT_AN_IMAGE = {400: {"model": ErrorMessage, "description": "Not a usable image, or not a multipart form"}}
TOO_LARGE = {413: {"model": ErrorMessage, "description": "Too large"}}
UNKNOWN = {404: {"model": ErrorMessage, "description": "Unknown id"}}
BAD_VALUE = {422: {"model": ErrorMessage, "description": "A bad value"}}
BUSY = {503: {"model": ErrorMessage, "description": "Busy, or not ready: try again after the seconds in Retry-After"}}
NO_KEY = {401: {"model": ErrorMessage, "description": "The key is missing or wrong"}}
Id = Annotated[  # no limit would let halves of surrogate pairs through
    str, Field(max_length=MAX_NAME), AfterValidator(canonical_id)
]
PhotoId = Annotated[str, PathParameter(description="A photo's id.")]
HiddenIds = Annotated[list[Id], Body(embed=True, min_length=1, max_length=MAX_HIDDEN_IDS, description="Listings' ids.")]
Weight = Annotated[float, Field(ge=0, le=MAX_WEIGHT, allow_inf_nan=False)]
UPLOAD_ERRORS = NOT_AN_IMAGE | TOO_LARGE | BAD_VALUE
GENERATION_HEADER = {"X-Generation": {"schema": {"type": "string"}, "description": "The published index that answered."}}
ETAG_HEADER = {"ETag": {"schema": {"type": "string"}, "description": "Sent back as If-None-Match: 304 while nothing changed."}}
ANSWERED = {200: {"headers": GENERATION_HEADER}}
KEPT = {
    200: {"headers": GENERATION_HEADER | ETAG_HEADER},
    304: {"description": "The answer of If-None-Match, unchanged", "headers": GENERATION_HEADER | ETAG_HEADER},
}
BARE_PHOTO = {"requestBody": {"content": {"application/octet-stream": {"schema": BINARY}}}}
PHOTO_ANSWERS = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
    206: {"description": "The bytes of the Range asked for"},
    307: {"description": "Where the photo is, with --photo-redirects"},
    304: {"description": "The photo of If-None-Match, unchanged"},
    416: {"description": "No such Range"},
}
NO_ADMIN = NO_KEY | {403: {"model": ErrorMessage, "description": "The service has no key"}}
RELOAD_ERRORS = NO_ADMIN | {
    409: {"model": ErrorMessage, "description": "What is published cannot be served; the old generation goes on"}
}
NOT_CHANGED = "The file of hidden listings is damaged or cannot be written: nothing was changed"
HIDE_ERRORS = NO_ADMIN | UNKNOWN | BAD_VALUE | {409: {"model": ErrorMessage, "description": NOT_CHANGED}}

photo_files = APIRouter(
    prefix="/images",
    route_class=Call,
    default_response_class=FileResponse,
    responses=UNKNOWN | BAD_VALUE | PHOTO_ANSWERS,
    tags=["listings"],
)
# Who watches the service may add to the query what it likes.
watched = APIRouter(tags=["service"])
router = APIRouter(route_class=Call)
photo_router = APIRouter(route_class=PhotoCall, tags=["photos"])
# The key is checked first.
admin = APIRouter(
    prefix="/admin", route_class=Call, tags=["admin"], dependencies=[Depends(check_key), Depends(refuse_unknown_fields)]
)
moderators = APIRouter(prefix="/moderate", route_class=Call, tags=["moderation"], dependencies=[Depends(check_key)])


@watched.get("/healthcheck", response_model=schemas.Health, responses=ANSWERED)
async def check_health(recommender: CurrentGeneration):
    """Whether the service answers, and what it serves."""
    return {
        "message": "API is up and running!",
        "model": recommender.photo_model.description.backbone,
        "rows": len(recommender.catalogue.shown_photos),
        "listings": len(recommender.catalogue.shown_rows),
        "dimension": recommender.dimension,
        "generation": recommender.generation,
    }


@watched.get("/readyz", response_model=schemas.Ready, responses=ANSWERED)
async def check_readiness(recommender: CurrentGeneration):
    """Whether the models are loaded and warm, and vectors that are on another machine can be searched: 503 until then."""
    if recommender.photo_index.is_remote:
        await anyio.to_thread.run_sync(recommender.photo_index.check)
    return {"generation": recommender.generation}


# Its bare photo is not described: of two kinds of bodies and no parameter openapi-python-client 0.29 makes what cannot run.
@photo_router.post("/predict/feature_embedding", response_model=schemas.FeatureEmbedding, responses=ANSWERED | UPLOAD_ERRORS)
async def embed_photo(recommender: CurrentGeneration, photos: Photos, image: Uploads):
    """The vector of a photo, or the mean direction of several photos' vectors."""
    vectors, _ = await photos.embed(recommender, image)
    vector = mean_vector(vectors)
    if vector is None:
        raise HTTPException(422, "the photos' vectors cancel each other: send the photos one by one")
    return {
        "features": vector.tolist(),
        "dimension": len(vector),
        "model": recommender.photo_model.description.backbone,
    }


@photo_router.post(
    "/predict/similar_images",
    response_model=schemas.SimilarImages,
    responses=ANSWERED | UPLOAD_ERRORS,
    openapi_extra=BARE_PHOTO,
)
async def find_similar_images(
    recommender: CurrentGeneration,
    photos: Photos,
    meters: ServiceMeters,
    image: Uploads,
    filters: FormFilters,
    page: FormPage,
    text: Words = None,
):
    """The listings most like a photo, or any of several photos, and the words beside it."""
    if not recommender.takes_photos:
        raise HTTPException(503, "the index holds vectors that no photo can be compared with: search by words or by listing")
    vectors, probabilities = await photos.embed(recommender, image)

    def rank() -> dict:
        return recommend(recommender, recommender.query(vectors, text, probabilities), page, filters, meters)

    answer = await anyio.to_thread.run_sync(rank)
    return answer | {"similar_index": [result["image_id"] for result in answer["results"] if result["image_id"]]}


@photo_router.post(
    "/predict/listing",
    response_model=schemas.ListingPrediction,
    responses=ANSWERED | UPLOAD_ERRORS,
    openapi_extra=BARE_PHOTO,
)
async def predict_listing(
    recommender: CurrentGeneration,
    photos: Photos,
    image: Uploads = [],  # noqa: B006
    text: Words = None,
):
    """The likely categories of a new listing, a price range, and the listings to compare its price with."""
    vectors, probabilities = await photos.embed(recommender, image) if image else (None, None)
    vector = None if vectors is None else mean_vector(vectors)
    try:
        return await anyio.to_thread.run_sync(recommender.predict, vector, probabilities, text)
    except ValueError:
        raise HTTPException(422, "give a photo as `image`, words as `text`, or both") from None


@router.get("/search", response_model=schemas.SearchResults, responses=KEPT | BAD_VALUE, tags=["search"])
def search(
    recommender: UnchangedGeneration,
    meters: ServiceMeters,
    filters: QueryFilters,
    page: QueryPage,
    q: Annotated[
        str | None, Query(min_length=1, max_length=500, description="Words to look for.", examples=["classical guitar"])
    ] = None,
    sort: Annotated[schemas.Sort | None, Query(description=SORT)] = None,
    counts: Annotated[bool, Query(description="Whether to count the whole result by category, place and price.")] = False,
):
    """The listings that words describe, or without words all that pass the filters; none where nothing is close."""
    check_names(recommender, filters)
    query = recommender.typed(q) if q is not None else Evidence()
    if q is not None and query.typed is None:
        raise HTTPException(422, "q: give at least one word")
    k = k_and_one_more(page)
    found = recommender.search(
        query,
        k=k,
        filters=filters,
        offset=page.offset,
        min_score=page.min_score,
        sort=None if sort == "relevance" else sort,
        with_counts=counts,
        step=meters.step,
    )
    return one_page(found.results, page, k) | {
        "total": min(found.total, EXACT_TOTAL),
        "total_is_at_least": found.total > EXACT_TOTAL,
        "counts": found.counts and counts_for_client(found.counts, recommender.catalogue.currency),
        "nearest": found.nearest,
        "corrections": found.corrections,
    }


@router.get("/products/{product_id}", response_model=schemas.Product, responses=KEPT | UNKNOWN | BAD_VALUE, tags=["listings"])
def get_product(recommender: UnchangedGeneration, product_id: ProductId):
    """One listing: its photos, what it could ask, its duplicates, and more of the same seller."""
    return recommender.product(row_of(recommender, product_id))


@router.get(
    "/products/{product_id}/similar",
    response_model=schemas.Recommendations,
    responses=KEPT | UNKNOWN | BAD_VALUE,
    tags=["listings"],
)
def find_similar_products(
    recommender: UnchangedGeneration, meters: ServiceMeters, product_id: ProductId, filters: QueryFilters, page: QueryPage
):
    """The listings most like one of the catalogue's, itself left out."""
    query = recommender.query_of(row_of(recommender, product_id))
    return recommend(recommender, query, page, filters, meters)


@router.post(
    "/recommend",
    response_model=schemas.Recommendations,
    responses=ANSWERED | UNKNOWN | BAD_VALUE,
    dependencies=[Depends(refuse_unknown_fields)],
    tags=["listings"],
)
def recommend_products(
    recommender: CurrentGeneration,
    meters: ServiceMeters,
    filters: BodyFilters,
    page: BodyPage,
    ids: Annotated[list[Id], Body(max_length=MAX_IDS, description=IDS)] = [],  # noqa: B006
    not_ids: Annotated[list[Id], Body(max_length=MAX_IDS, description=NOT_IDS)] = [],  # noqa: B006
    exclude_ids: Annotated[list[Id], Body(max_length=MAX_IDS, description=EXCLUDE_IDS)] = [],  # noqa: B006
    text: Annotated[str | None, Body(max_length=2000, description="Words that the answers are to fit too.")] = None,
    weights: Annotated[dict[schemas.Kind, Weight], Body(description=WEIGHTS, examples=[{"photo": 2, "price": 0}])] = {},  # noqa: B006
    diversity: Annotated[float, Body(ge=0, le=1, allow_inf_nan=False, description=DIVERSITY)] = 0.0,
):
    """The listings most like several of the catalogue's, words, or both; all listings that are named are left out."""
    if len(ids) + len(not_ids) + len(exclude_ids) > MAX_IDS:
        raise HTTPException(422, f"ids, not_ids and exclude_ids: give at most {MAX_IDS} together")
    rows, not_rows, left_out = ([row_of(recommender, one) for one in dict.fromkeys(some)] for some in (ids, not_ids, exclude_ids))
    if both := set(rows) & set(not_rows):
        raise HTTPException(422, f"not_ids: {recommender.catalogue.product(min(both))['product_id']} is in ids too")
    by_words = recommender.query(None, text)
    if not rows and by_words.typed is None:
        raise HTTPException(422, "give listings as `ids`, words as `text`, or both")
    query = several.query_of_several(recommender, by_words, rows, not_rows, left_out)
    try:
        return recommend(recommender, replace(query, weights=weights), page, filters, meters, diversity)
    except ValueError:
        raise HTTPException(422, "weights: let at least one kind of what is asked with count") from None


@router.get("/filters", response_model=schemas.Choices, responses=KEPT, tags=["search"])
def get_filters(recommender: UnchangedGeneration):
    """What the filters can be set to."""
    return recommender.catalogue.choices()


@photo_files.get("/{image_id}.jpg")
async def get_photo(request: Request, recommender: CurrentGeneration, image_id: PhotoId):
    """A photo, cleaned: the square that the model sees."""
    return await answer_photo(request, recommender, image_id, [SQUARE])


@photo_files.get("/{image_id}/display")
async def get_display(request: Request, recommender: CurrentGeneration, image_id: PhotoId):
    """A photo to look at: whole, at most 800 pixels a side; the cleaned square where none was kept."""
    return await answer_photo(request, recommender, image_id, [DISPLAY, SQUARE])


@photo_files.get("/{image_id}/card")
async def get_card(request: Request, recommender: CurrentGeneration, image_id: PhotoId):
    """A photo for a list: whole, at most 400 pixels a side; the larger copy, or the cleaned square, where none was kept."""
    return await answer_photo(request, recommender, image_id, [CARD, DISPLAY, SQUARE])


async def answer_photo(request: Request, recommender: Recommender, image_id: str, folders: Sequence[str]) -> Response:
    """The photo of the first of some PHOTO_FOLDERS that has it.

    Raises HTTPException where none has, where its listing is hidden, and where it is in a bucket that does not answer.
    """
    image_id, state = canonical_id(image_id), request.app.state
    try:
        # An id never holds a separator: nothing outside the folders can be named.
        place = await state.photos.find(recommender, image_id, folders) if re.fullmatch(r"[\w-]{1,64}", image_id) else None
        status = place.stat() if isinstance(place, Path) else None
    except (Unavailable, FileNotFoundError):  # the latter: a copy that gave way to others just now
        raise HTTPException(503, "the photo cannot be had now: try again", RETRY_AFTER) from None
    if place is None:
        raise HTTPException(404, f"no photo has the id {image_id[:64]}")
    if isinstance(place, str):
        response = RedirectResponse(place)
    else:
        if isinstance(place, InShard):
            response = Response(place.data, media_type="image/jpeg", headers={"ETag": f'"{place.tag}"'})
        else:
            # Of copies from a bucket, which many servers make, each at its own time, the name tells the content.
            tag = {"ETag": f'"{place.stem}"'} if state.settings.bucket else {}
            response = FileResponse(place, stat_result=status, headers=tag)
        if state.photo_files.is_not_modified(response.headers, request.headers):
            response = NotModifiedResponse(response.headers)
    if not state.settings.private:
        response.headers["Cache-Control"] = f"public, max-age={PHOTO_CACHE_S}"
    return response


@watched.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def get_metrics(meters: ServiceMeters):
    """Figures for Prometheus."""
    return Response(meters.text(), media_type=meters.media_type)


@admin.post("/reload", response_model=schemas.Reloaded, responses=RELOAD_ERRORS)
def reload_index(generations: ServiceGenerations):
    """Switch to what is published now, without waiting for the next look at it; other workers follow in a second."""
    try:
        switched = generations.look()
    except StageError as error:
        raise HTTPException(409, str(error)) from None
    return {"generation": generations.current.generation, "switched": switched}


@admin.post("/hide", response_model=schemas.Hidden, responses=HIDE_ERRORS)
def hide_products(generations: ServiceGenerations, ids: HiddenIds):
    """Take listings down: they are in no answer of this worker from now on, nor of any other in two seconds."""
    return change_hidden(generations, ids, True)


@admin.post("/unhide", response_model=schemas.Hidden, responses=HIDE_ERRORS)
def unhide_products(generations: ServiceGenerations, ids: HiddenIds):
    """Show listings again that were taken down; those that were not stay as they are."""
    return change_hidden(generations, ids, False)


@moderators.get("/counts", response_model=schemas.ModerationCounts, responses=NO_ADMIN)
def get_moderation_counts(recommender: CurrentGeneration):
    """How many entries each list for moderators has, by reason."""
    counts = recommender.moderation.counts()
    return {"lists": [{"list": name, "total": sum(found.values()), "reasons": found} for name, found in counts.items()]}


@moderators.get(
    "/{list}",
    response_model=schemas.ModerationPage,
    responses=NO_ADMIN | BAD_VALUE | {200: {"content": {"text/csv": {}}}},
)
def get_moderation_list(
    recommender: CurrentGeneration,
    name: Annotated[moderation.List, PathParameter(alias="list", description="The list.")],
    reason: Annotated[str | None, Query(max_length=MAX_NAME, description="Entries of this reason alone.")] = None,
    k: Annotated[int, Query(ge=1, le=MAX_K, description="How many entries.")] = 50,
    offset: Annotated[int, Query(ge=0, le=2**31, description="How many entries to leave out before.")] = 0,
    format: Annotated[Literal["json", "csv"], Query(description="json: a page; csv: the whole list.")] = "json",
):
    """One of the lists for moderators, hidden listings among them and marked."""
    found = recommender.moderation
    if format == "csv":
        headers = {"Content-Disposition": f'attachment; filename="{name}.csv"', "Cache-Control": "private, no-store"}
        lines = exports.csv_lines(recommender.catalogue, found, name, reason)
        return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)
    reasons = found.counts()[name]
    total = sum(reasons.values()) if reason is None else reasons.get(reason, 0)
    entries = exports.describe(recommender.catalogue, found.page(name, reason, k, offset))
    return {"list": name, "total": total, "reasons": reasons, "results": entries}


@watched.get("/", include_in_schema=False)
def page(request: Request):
    return answer_page("index.html", request)


@watched.get("/moderate", include_in_schema=False)
def moderators_page(request: Request):
    return answer_page("moderate.html", request)


def answer_page(file: str, request: Request, policy: str = PAGE_POLICY) -> Response:
    """A page under the shop's name, which may show and read photos from where they are."""
    settings, origin = request.app.state.settings, request.app.state.photos.origin
    policy = policy.format(photos=f"'self' {origin}" if origin else "'self'")
    text = (WEB_DIR / file).read_text(encoding="utf-8")
    text = text.replace(SHOP_NAME, html.escape(settings.shop_name)).replace(HEADLINE, html.escape(settings.headline))
    return HTMLResponse(text, headers={"Content-Security-Policy": policy})


@watched.get("/docs", include_in_schema=False)
def docs(request: Request):
    return answer_page("docs.html", request, DOCS_POLICY)


def check_names(recommender: Recommender, filters: Filters) -> None:
    """Raises HTTPException for a category or place that no listing has."""
    try:
        recommender.catalogue.check(filters)
    except UnknownName as error:
        raise HTTPException(422, str(error)) from None


def change_hidden(generations: Generations, ids: list[str], hide: bool) -> dict:
    """Raises HTTPException where an id is unknown, or the file of hidden listings cannot be read or written."""
    if generations.current is None:
        raise HTTPException(503, "the models are not loaded yet: try again", RETRY_AFTER)
    try:
        return {"hidden": generations.hide(ids, hide)}
    except UnknownIds as error:
        raise HTTPException(404, str(error)) from None
    except StageError as error:
        raise HTTPException(409, str(error)) from None
    except OSError as error:
        raise HTTPException(409, f"the file of hidden listings cannot be written ({error.strerror})") from None


def counts_for_client(counts: Counts, currency: str) -> dict:
    prices = [
        {"min": low, "max": high, "currency": currency, "listings": listings} for (low, high), listings in counts.prices.items()
    ]
    return {"categories": counts.categories, "towns": counts.towns, "counties": counts.counties, "prices": prices}


def recommend(
    recommender: Recommender, query: Evidence, page: Page, filters: Filters, meters: Meters, diversity: float = 0.0
) -> dict:
    """A page of listings, as one_page() gives it."""
    check_names(recommender, filters)
    k = k_and_one_more(page)
    results = recommender.recommend(
        query,
        k=k,
        offset=page.offset,
        min_score=page.min_score,
        filters=filters,
        diversity=diversity,
        step=meters.step,
    )
    return one_page(results, page, k)


def k_and_one_more(page: Page) -> int:
    """How many listings to look for, to know whether the page is the last one; no more where that would be ten times the work."""
    end = page.offset + page.k
    return page.k if end in (WINDOW, 10 * WINDOW) else page.k + 1


def one_page(found: list[dict], page: Page, k: int) -> dict:
    """The results of a page, and where the next one begins; None where there is none, or it is too far to be asked for.

    k: how many were looked for.
    """
    end = page.offset + page.k
    return {"results": found[: page.k], "next_offset": end if len(found) == k and end <= MAX_OFFSET else None}


def mean_vector(vectors: np.ndarray) -> np.ndarray | None:
    """(D,) of unit length, of photos' vectors (n, D); one photo's is its own. None where they cancel each other."""
    return vectors[0] if len(vectors) == 1 else several.mean_photo(vectors)


def row_of(recommender: Recommender, product_id: str) -> int:
    """The row of a listing; raises HTTPException where there is none."""
    row = recommender.catalogue.product_row(product_id)
    if row is None:
        raise HTTPException(404, f"no listing has the id {product_id[:64]}")
    return row


async def answer_bad_value(request: Request, error: RequestValidationError) -> Response:
    """422, with the first thing wrong with the request."""
    return JSONResponse({"detail": sentence(error.errors()[0])}, 422)


NO_ADDRESS = "nothing is at this address: GET /docs shows what there is, and a / within an id is written %2F"
NO_METHOD = "this address is not asked so: GET /docs shows how"


async def answer_refusal(request: Request, error: StarletteHTTPException) -> Response:
    if error.status_code == 400 and "exceeded maximum size" in error.detail:  # starlette's, of a part that is no file
        error = HTTPException(413, "a text field is larger than 1 MB: shorten it")
    elif error.detail == HTTPStatus(error.status_code).phrase and error.status_code in (404, 405):  # starlette's own words
        error = HTTPException(error.status_code, NO_ADDRESS if error.status_code == 404 else NO_METHOD, error.headers)
    return await http_exception_handler(request, error)


async def answer_outage(request: Request, error: vector_search.Unavailable) -> Response:
    """503, with the sentence in the log, which names the machine."""
    log.error("%s", error)
    return JSONResponse({"detail": "the vectors cannot be searched now: try again"}, 503, RETRY_AFTER)


async def answer_bug(request: Request, error: Exception) -> Response:
    """500; the exception is raised again behind it, for the log."""
    return JSONResponse({"detail": "the service failed: try again, or tell who runs it"}, 500)


EXCEPTION_HANDLERS = {
    RequestValidationError: answer_bad_value,
    StarletteHTTPException: answer_refusal,
    vector_search.Unavailable: answer_outage,
    Exception: answer_bug,
}
