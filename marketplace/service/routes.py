"""The routes of the API, its page, and its description."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import anyio
from fastapi import APIRouter, Body, Depends, FastAPI, File, HTTPException, Query, Request, UploadFile
from fastapi import Path as PathParameter
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response
from pydantic import AfterValidator, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from marketplace.cleaning.listings import canonical_id
from marketplace.files.hidden import UnknownIds
from marketplace.files.stages import StageError
from marketplace.retrieval import several
from marketplace.retrieval.catalogue import UnknownName
from marketplace.retrieval.filters import MAX_NAME
from marketplace.retrieval.recommender import Query as Evidence
from marketplace.retrieval.recommender import Recommender
from marketplace.retrieval.words import Counts
from marketplace.service import schemas
from marketplace.service.dependencies import (
    RETRY_AFTER,
    BodyFilters,
    BodyPage,
    CurrentGeneration,
    CurrentSettings,
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
    ServicePhotos,
    Upload,
    Words,
    check_key,
)  # fmt: skip
from marketplace.service.meters import Meters
from marketplace.service.photo_files import Unavailable
from marketplace.service.reload import Generations
from marketplace.service.schemas import ErrorMessage

WEB_DIR = Path(__file__).parents[2] / "web"
PHOTO_CACHE_S = 60  # that a photo may be shown after its listing was hidden, by who had it before
MAX_IDS = 100  # of all lists of one question together: each is a listing to read
MAX_HIDDEN_IDS = 1000  # at once
MAX_WEIGHT = 1000
EXACT_TOTAL = 1000  # a larger total is given as "at least"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
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
NOT_AN_IMAGE = {400: {"model": ErrorMessage, "description": "Not a usable image, or not a multipart form"}}
TOO_LARGE = {413: {"model": ErrorMessage, "description": "Too large"}}
UNKNOWN = {404: {"model": ErrorMessage, "description": "Unknown id"}}
BAD_VALUE = {422: {"model": ErrorMessage, "description": "A bad value"}}
BUSY = {503: {"model": ErrorMessage, "description": "Busy, or not ready: try again after the seconds in Retry-After"}}
NO_KEY = {401: {"model": ErrorMessage, "description": "The key is missing or wrong"}}
Id = Annotated[  # no limit would let halves of surrogate pairs through
    str, Field(max_length=MAX_NAME), AfterValidator(canonical_id)
]
HiddenIds = Annotated[list[Id], Body(embed=True, min_length=1, max_length=MAX_HIDDEN_IDS, description="Listings' ids.")]
Weight = Annotated[float, Field(ge=0, le=MAX_WEIGHT, allow_inf_nan=False)]
UPLOAD_ERRORS = NOT_AN_IMAGE | TOO_LARGE | BAD_VALUE
PHOTO_ANSWERS = {
    200: {"content": {"image/jpeg": {}}},
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

router = APIRouter()


@router.get("/healthcheck", response_model=schemas.Health)
async def healthcheck(recommender: CurrentGeneration):
    """Whether the service answers, and what it serves."""
    return {
        "message": "API is up and running!",
        "model": recommender.photo_model.description.backbone,
        "rows": len(recommender.catalogue.shown_photos),
        "listings": len(recommender.catalogue.shown_rows),
        "dimension": recommender.dimension,
        "generation": recommender.generation,
    }


@router.get("/readyz", response_model=schemas.Ready)
async def readyz(recommender: CurrentGeneration):
    """Whether the models are loaded and warm: 503 until then."""
    return {"generation": recommender.generation}


@router.post("/predict/feature_embedding", response_model=schemas.FeatureEmbedding, responses=UPLOAD_ERRORS)
async def feature_embedding(recommender: CurrentGeneration, photos: Photos, image: Upload):
    """The vector of a photo."""
    vector, _ = await photos.embed(recommender, image)
    return {
        "features": vector.tolist(),
        "dimension": len(vector),
        "model": recommender.photo_model.description.backbone,
    }


@router.post("/predict/similar_images", response_model=schemas.SimilarImages, responses=UPLOAD_ERRORS)
async def similar_images(
    recommender: CurrentGeneration,
    photos: Photos,
    meters: ServiceMeters,
    image: Upload,
    filters: FormFilters,
    page: FormPage,
    text: Words = None,
):
    """The listings most like a photo, and the words beside it."""
    if not recommender.takes_photos:
        raise HTTPException(503, "the index holds vectors that no photo can be compared with: search by words or by listing")
    vector, probabilities = await photos.embed(recommender, image)

    def rank() -> list[dict]:
        return recommend(recommender, recommender.query(vector, text, probabilities), page, filters, meters)

    results = await anyio.to_thread.run_sync(rank)
    return {"similar_index": [result["image_id"] for result in results if result["image_id"]], "results": results}


@router.post("/predict/listing", response_model=schemas.ListingPrediction, responses=UPLOAD_ERRORS)
async def predict_listing(
    recommender: CurrentGeneration,
    photos: Photos,
    image: Annotated[UploadFile | None, File(description="A photo of the thing.")] = None,
    text: Words = None,
):
    """The likely categories of a new listing, and a price range."""
    vector, probabilities = (None, None) if image is None else await photos.embed(recommender, image)
    try:
        return await anyio.to_thread.run_sync(recommender.predict, vector, probabilities, text)
    except ValueError:
        raise HTTPException(422, "give a photo as `image`, words as `text`, or both") from None


@router.get("/search", response_model=schemas.SearchResults, responses=BAD_VALUE)
def search(
    recommender: CurrentGeneration,
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
    found = recommender.search(
        query,
        k=page.k,
        filters=filters,
        offset=page.offset,
        min_score=page.min_score,
        sort=None if sort == "relevance" else sort,
        with_counts=counts,
        step=meters.step,
    )
    return {
        "results": found.results,
        "total": min(found.total, EXACT_TOTAL),
        "total_is_at_least": found.total > EXACT_TOTAL,
        "counts": found.counts and counts_for_client(found.counts, recommender.catalogue.currency),
        "nearest": found.nearest,
        "corrections": found.corrections,
    }


@router.get("/products/{product_id}", response_model=schemas.Product, responses=UNKNOWN | BAD_VALUE)
def product(recommender: CurrentGeneration, product_id: ProductId):
    """One listing and its photos."""
    row = row_of(recommender, product_id)
    image_ids = recommender.catalogue.image_ids(recommender.catalogue.photos_of(row))
    shown = [{"image_id": image_id, "photo_url": f"/images/{image_id}.jpg"} for image_id in image_ids]
    return recommender.catalogue.product(row) | {"currency": recommender.catalogue.currency, "photos": shown}


@router.get("/products/{product_id}/similar", response_model=schemas.Recommendations, responses=UNKNOWN | BAD_VALUE)
def similar_products(
    recommender: CurrentGeneration, meters: ServiceMeters, product_id: ProductId, filters: QueryFilters, page: QueryPage
):
    """The listings most like one of the catalogue's, itself left out."""
    query = recommender.query_of(row_of(recommender, product_id))
    return {"results": recommend(recommender, query, page, filters, meters)}


@router.post("/recommend", response_model=schemas.Recommendations, responses=UNKNOWN | BAD_VALUE)
def recommend_by_several(
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
        results = recommend(recommender, replace(query, weights=weights), page, filters, meters, diversity)
    except ValueError:
        raise HTTPException(422, "weights: let at least one kind of what is asked with count") from None
    return {"results": results}


@router.get("/filters", response_model=schemas.Choices)
def filters(recommender: CurrentGeneration):
    """What the filters can be set to."""
    return recommender.catalogue.choices()


@router.get("/images/{image_id}.jpg", response_class=FileResponse, responses=UNKNOWN | BAD_VALUE | PHOTO_ANSWERS)
async def photo(
    request: Request,
    recommender: CurrentGeneration,
    settings: CurrentSettings,
    photos: ServicePhotos,
    image_id: Annotated[str, PathParameter(description="A photo's id.")],
):
    """A photo, cleaned."""
    image_id = canonical_id(image_id)
    try:
        # An id never holds a separator: nothing outside the folder can be named.
        place = await photos.find(recommender, image_id) if re.fullmatch(r"[\w-]{1,64}", image_id) else None
    except Unavailable:
        raise HTTPException(503, "the photo cannot be had now: try again", RETRY_AFTER) from None
    if place is None:
        raise HTTPException(404, f"no photo has the id {image_id[:64]}")
    if isinstance(place, str):
        response = RedirectResponse(place)
    else:
        response = request.app.state.photo_files.file_response(place, place.stat(), request.scope)
    if not settings.private:
        response.headers["Cache-Control"] = f"public, max-age={PHOTO_CACHE_S}"
    return response


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(meters: ServiceMeters):
    """Figures for Prometheus."""
    return Response(meters.text(), media_type=meters.media_type)


@router.post("/admin/reload", response_model=schemas.Reloaded, responses=RELOAD_ERRORS, dependencies=[Depends(check_key)])
def reload(generations: ServiceGenerations):
    """Switch to what is published now, without waiting for the next look at it; other workers follow in a second."""
    try:
        switched = generations.look()
    except StageError as error:
        raise HTTPException(409, str(error)) from None
    return {"generation": generations.current.generation, "switched": switched}


@router.post("/admin/hide", response_model=schemas.Hidden, responses=HIDE_ERRORS, dependencies=[Depends(check_key)])
def hide(generations: ServiceGenerations, ids: HiddenIds):
    """Take listings down: they are in no answer of this worker from now on, nor of any other in two seconds."""
    return change_hidden(generations, ids, True)


@router.post("/admin/unhide", response_model=schemas.Hidden, responses=HIDE_ERRORS, dependencies=[Depends(check_key)])
def unhide(generations: ServiceGenerations, ids: HiddenIds):
    """Show listings again that were taken down; those that were not stay as they are."""
    return change_hidden(generations, ids, False)


@router.get("/", include_in_schema=False)
async def page(photos: ServicePhotos):
    images = "img-src 'self'" + (f" {photos.origin}" if photos.origin else "")
    return FileResponse(
        WEB_DIR / "index.html", headers={"Content-Security-Policy": PAGE_POLICY.replace("img-src 'self'", images)}
    )


@router.get("/docs", include_in_schema=False)
async def docs():
    return FileResponse(WEB_DIR / "docs.html", headers={"Content-Security-Policy": DOCS_POLICY})


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
) -> list[dict]:
    check_names(recommender, filters)
    return recommender.recommend(
        query,
        k=page.k,
        offset=page.offset,
        min_score=page.min_score,
        filters=filters,
        diversity=diversity,
        step=meters.step,
    )


def row_of(recommender: Recommender, product_id: str) -> int:
    """The row of a listing; raises HTTPException where there is none."""
    row = recommender.catalogue.product_row(product_id)
    if row is None:
        raise HTTPException(404, f"no listing has the id {product_id[:64]}")
    return row


async def answer_bad_value(request: Request, error: RequestValidationError) -> Response:
    """422, with the first thing wrong with the request: where, and what."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("query", "body", "path"))
    message = "send it as a file" if "UploadFile" in first["msg"] else first["msg"]
    return JSONResponse({"detail": f"{where}: {message}" if where else message}, 422)


async def answer_refusal(request: Request, error: StarletteHTTPException) -> Response:
    if error.status_code == 400 and "exceeded maximum size" in error.detail:  # starlette's, of a part that is no file
        error = HTTPException(413, "a text field is larger than 1 MB: shorten it")
    return await http_exception_handler(request, error)


async def answer_bug(request: Request, error: Exception) -> Response:
    """500; the exception is raised again behind it, for the log."""
    return JSONResponse({"detail": "the service failed: try again, or tell who runs it"}, 500)


EXCEPTION_HANDLERS = {
    RequestValidationError: answer_bad_value,
    StarletteHTTPException: answer_refusal,
    Exception: answer_bug,
}


def describe(app: FastAPI) -> dict:
    """FastAPI's OpenAPI description, with ids that exist as the examples of ids."""
    description = FastAPI.openapi(app)
    generation = app.state.generations.current
    if generation is None:
        return description
    catalogue = generation.catalogue
    examples = {
        "product_id": [product["product_id"] for product in catalogue.products(catalogue.shown_rows[:1])],
        "image_id": catalogue.image_ids(catalogue.shown_photos[:1]),
    }
    for path in description["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] in examples:
                    parameter.pop("example", None)  # FastAPI keeps the description: its listing may be hidden now
                    parameter.update(("example", one) for one in examples[parameter["name"]])
    return description
