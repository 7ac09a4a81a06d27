"""Serve recommendations over HTTP: photos, words or listings in, ranked and explained listings out.

Reads   data/index/ (the published generation), data/images/ (the photos it shows), web/ (the page at /)
Run     python api.py                  then open http://127.0.0.1:8080
        python api.py --host 0.0.0.0   to be reached from other machines
"""

import argparse
import contextlib
import copy
import math
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, File, Form, HTTPException, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from pydantic import BaseModel, Field
from starlette.formparsers import MultiPartParser
from starlette.types import ASGIApp, Receive, Scope, Send

from marketplace import errors, flags, model, storage
from marketplace.catalogue import Filters
from marketplace.errors import StageError
from marketplace.photos import PhotoRejected
from marketplace.recommender import Recommender

WEB_DIR = Path(__file__).parent / "web"
MAX_UPLOAD_BYTES = 20 * 2**20  # a 50-megapixel JPEG from a phone is about 15 MB
MAX_PENDING = 16  # photo queries in work (one a core) or waiting; one more is told to come back
RETRY_AFTER_S = 1
MAX_K = 100
PHOTO_CACHE_S = 3600


class ErrorMessage(BaseModel):
    detail: str = Field(description="One sentence that says what is wrong.")


class Recommendation(BaseModel):
    product_id: str
    name: str
    category: str = Field(description="Path of the category, its levels separated by ' / '.")
    price: float | None = Field(description="Pounds.")
    price_plausible: bool = Field(description="False for 0 and for joke prices.")
    town: str
    county: str
    image_id: str | None = Field(description="Its photo nearest to the query's, or its first one; null when it has none.")
    photo_url: str | None
    score: float = Field(description="From 0 to 1; the sum of the parts.")
    parts: dict[str, float] = Field(description="What each kind of evidence contributed: photo, text, words.")


class Recommendations(BaseModel):
    results: list[Recommendation]


class SimilarImages(Recommendations):
    similar_index: list[str] = Field(description="The photo ids of the results, best first.")


class FeatureEmbedding(BaseModel):
    features: list[float] = Field(description="The photo's vector, of unit length.")
    dimension: int
    model: str


class CategoryProbability(BaseModel):
    category: str
    probability: float


class PriceRange(BaseModel):
    low: float = Field(description="One listing in ten is cheaper.")
    median: float
    high: float = Field(description="One listing in ten is dearer.")
    currency: str


class ListingPrediction(BaseModel):
    categories: list[CategoryProbability]
    price: PriceRange


class Photo(BaseModel):
    image_id: str
    photo_url: str


class Product(BaseModel):
    product_id: str
    name: str
    description: str
    category: str
    price: float | None = Field(description="Pounds.")
    price_plausible: bool
    town: str
    county: str
    posted_on: str = Field(description="ISO date, or empty.")
    photos: list[Photo]


class Choices(BaseModel):
    categories: dict[str, int] = Field(description="Path of each category and the number of its listings.")
    towns: dict[str, int]
    counties: dict[str, int]
    price: dict[str, float] | None = Field(description="The lowest and highest price, in pounds.")


class Health(BaseModel):
    message: str
    model: str
    rows: int = Field(description="Photos in the index.")
    listings: int
    dimension: int
    generation: str


class BodyLimit:
    """ASGI middleware that ends a request with 413 as soon as its body is known to be too large."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        received = 0

        async def limited():
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes or (declared.isdigit() and int(declared) > self.max_bytes):
                raise HTTPException(413, f"the request is larger than {self.max_bytes} bytes: send a smaller photo")
            return message

        await self.app(scope, limited, send)


class Meters:
    """Prometheus figures of one application."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.requests = Counter("marketplace_requests", "Requests answered", ["path", "status"], registry=self.registry)
        self.seconds = Histogram("marketplace_step_seconds", "Duration of each step", ["step"], registry=self.registry)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        with self.seconds.labels(name).time():
            yield


def one_sentence(error: RequestValidationError) -> str:
    """The first thing wrong with a request: where, and what."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("query", "body", "path"))
    return f"{where}: {first['msg']}" if where else first["msg"]


CATEGORY = "A category at any level, or a path such as 'Home & Garden / Beds'."
LOCATION = "A town, a county, or 'Town, County'."
K = "How many listings to return."


def filters_from(source):
    """A dependency that reads the filters from `source`: Query or Form."""

    def read(
        category: Annotated[str | None, source(description=CATEGORY, max_length=200)] = None,
        min_price: Annotated[float | None, source(description="Pounds.", ge=0, allow_inf_nan=False)] = None,
        max_price: Annotated[float | None, source(description="Pounds.", ge=0, allow_inf_nan=False)] = None,
        location: Annotated[str | None, source(description=LOCATION, max_length=200)] = None,
    ) -> Filters:
        if min_price is not None and max_price is not None and min_price > max_price:
            raise HTTPException(422, f"min_price {min_price:g} is above max_price {max_price:g}: swap them")
        return Filters((category or "").strip() or None, min_price, max_price, (location or "").strip() or None)

    return read


QueryFilters = Annotated[Filters, Depends(filters_from(Query))]
FormFilters = Annotated[Filters, Depends(filters_from(Form))]
QueryK = Annotated[int, Query(ge=1, le=MAX_K, description=K)]
FormK = Annotated[int, Form(ge=1, le=MAX_K, description=K)]
Upload = Annotated[UploadFile, File(description="A photo: JPEG, PNG, WebP, GIF, TIFF or BMP.")]
Words = Annotated[str | None, Form(max_length=2000, description="Words about the listing.")]


def create_app(
    data_dir: Path,
    runtime: str = "auto",
    device: str | None = None,
    max_upload_bytes: int = MAX_UPLOAD_BYTES,
    max_pending: int = MAX_PENDING,
    on_failure=None,
) -> FastAPI:
    """The application over the generation that `data_dir`/index publishes; its models are loaded when it starts.

    on_failure: called with the StageError when they cannot be, instead of raising it.
    """
    state: dict[str, Recommender] = {}
    meters = Meters()
    slots = threading.BoundedSemaphore(max_pending)
    cores = threading.BoundedSemaphore(os.cpu_count() or 1)  # a large photo takes half a gigabyte while it is decoded

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        try:
            state["recommender"] = Recommender(storage.current_generation(data_dir / "index"), runtime, device)
        except StageError as error:
            if on_failure is None:
                raise
            on_failure(error)
        yield
        state.clear()

    app = FastAPI(
        title="Marketplace recommendations",
        description="Given a photo, some words, or a listing: the listings most like it, ranked and explained.",
        version="1",
        lifespan=lifespan,
        responses={
            422: {"model": ErrorMessage, "description": "A bad value"},
            503: {"model": ErrorMessage, "description": "Busy, or not ready"},
        },
    )
    app.add_middleware(BodyLimit, max_bytes=max_upload_bytes)
    MultiPartParser.spool_max_size = max_upload_bytes  # an upload stays in memory: photos do not touch the disk

    def ready() -> Recommender:
        if "recommender" not in state:
            raise HTTPException(503, "the models are not loaded yet: try again", {"Retry-After": str(RETRY_AFTER_S)})
        return state["recommender"]

    Ready = Annotated[Recommender, Depends(ready)]
    not_an_image = {400: {"model": ErrorMessage, "description": "Not a usable image"}}
    too_large = {413: {"model": ErrorMessage, "description": "Too large"}}
    unknown = {404: {"model": ErrorMessage, "description": "Unknown id"}}
    busy = {"Retry-After": str(RETRY_AFTER_S)}

    @app.middleware("http")
    async def count(request: Request, call_next):
        response = await call_next(request)
        route = request.scope.get("route")
        meters.requests.labels(getattr(route, "path", "other"), response.status_code).inc()
        return response

    @app.exception_handler(RequestValidationError)
    async def bad_value(request: Request, error: RequestValidationError):
        return JSONResponse({"detail": one_sentence(error)}, 422)

    def embed(recommender: Recommender, image: UploadFile):
        """Vector and category probabilities of an upload, cleaned as the pipeline cleans; raises HTTPException."""
        if not slots.acquire(blocking=False):
            raise HTTPException(503, "too many photos are being looked at: try again in a second", busy)
        try:
            with cores, meters.step("clean"):
                jpeg = recommender.clean(image.file.read())
            with cores, meters.step("embed"):
                return recommender.embed(jpeg)
        except PhotoRejected as error:
            raise HTTPException(400, f"not a usable image ({error.reason}): {error}") from None
        finally:
            slots.release()

    def known_row(recommender: Recommender, product_id: str) -> int:
        row = recommender.catalogue.product_row(product_id)
        if row is None:
            raise HTTPException(404, f"no listing has the id {product_id[:64]}")
        return row

    def recommend(recommender: Recommender, query, k: int, filters: Filters) -> list[dict]:
        with meters.step("rank"):
            return recommender.recommend(query, k, filters)

    @app.get("/healthcheck", response_model=Health)
    def healthcheck(recommender: Ready):
        """Whether the service answers, and what it serves."""
        return {
            "message": "API is up and running!",
            "model": recommender.photo_model.description.backbone,
            "rows": recommender.catalogue.n_photos,
            "listings": recommender.catalogue.n_products,
            "dimension": recommender.dimension,
            "generation": recommender.generation,
        }

    @app.post("/predict/feature_embedding", response_model=FeatureEmbedding, responses=not_an_image | too_large)
    def feature_embedding(recommender: Ready, image: Upload):
        """The vector of a photo."""
        vector, _ = embed(recommender, image)
        return {
            "features": vector.tolist(),
            "dimension": len(vector),
            "model": recommender.photo_model.description.backbone,
        }

    @app.post("/predict/similar_images", response_model=SimilarImages, responses=not_an_image | too_large)
    def similar_images(recommender: Ready, image: Upload, filters: FormFilters, text: Words = None, k: FormK = 10):
        """The listings most like a photo, and the words beside it."""
        if not recommender.takes_photos:
            raise HTTPException(503, "the index holds vectors that no photo can be compared with: search by words or by listing")
        vector, _ = embed(recommender, image)
        results = recommend(recommender, recommender.query(vector, text), k, filters)
        return {"similar_index": [result["image_id"] for result in results if result["image_id"]], "results": results}

    @app.post("/predict/listing", response_model=ListingPrediction, responses=not_an_image | too_large)
    def predict_listing(
        recommender: Ready,
        image: Annotated[UploadFile | None, File(description="A photo of the thing.")] = None,
        text: Words = None,
    ):
        """The likely categories of a new listing, and a price range."""
        probabilities = None if image is None else embed(recommender, image)[1]
        try:
            return recommender.predict(probabilities, text)
        except ValueError:
            raise HTTPException(422, "give a photo as `image`, words as `text`, or both") from None

    @app.get("/search", response_model=Recommendations)
    def search(
        recommender: Ready,
        filters: QueryFilters,
        q: Annotated[str, Query(min_length=1, max_length=500, description="Words to look for.")],
        k: QueryK = 10,
    ):
        """The listings that words describe."""
        if not q.strip():
            raise HTTPException(422, "q: give at least one word")
        return {"results": recommend(recommender, recommender.query(text=q), k, filters)}

    @app.get("/products/{product_id}", response_model=Product, responses=unknown)
    def product(recommender: Ready, product_id: str):
        """One listing and its photos."""
        row = known_row(recommender, product_id)
        image_ids = recommender.catalogue.image_ids(recommender.catalogue.photos_of(row))
        shown = [{"image_id": image_id, "photo_url": f"/images/{image_id}.jpg"} for image_id in image_ids]
        return recommender.catalogue.product(row) | {"photos": shown}

    @app.get("/products/{product_id}/similar", response_model=Recommendations, responses=unknown)
    def similar_products(recommender: Ready, product_id: str, filters: QueryFilters, k: QueryK = 10):
        """The listings most like one of the catalogue's, itself left out."""
        query = recommender.query_of(known_row(recommender, product_id))
        return {"results": recommend(recommender, query, k, filters)}

    @app.get("/filters", response_model=Choices)
    def filters(recommender: Ready):
        """What the filters can be set to."""
        return recommender.catalogue.choices()

    @app.get("/images/{image_id}.jpg", response_class=FileResponse, responses=unknown)
    def photo(recommender: Ready, image_id: str):
        """A photo, cleaned."""
        path = data_dir / "images" / f"{image_id}.jpg"
        # An id never holds a separator: nothing outside the folder can be named.
        if not re.fullmatch(r"[\w-]{1,64}", image_id) or not recommender.catalogue.has_photo(image_id) or not path.is_file():
            raise HTTPException(404, f"no photo has the id {image_id[:64]}")
        return FileResponse(path, media_type="image/jpeg", headers={"Cache-Control": f"public, max-age={PHOTO_CACHE_S}"})

    @app.get("/metrics", response_class=Response)
    def metrics():
        """Figures for Prometheus."""
        return Response(generate_latest(meters.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    def page():
        return FileResponse(WEB_DIR / "index.html")

    app.mount("/web", StaticFiles(directory=WEB_DIR), name="web")
    return app


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", type=Path, help="folder of all stages (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (default: %(default)s)")
    parser.add_argument("--port", default=8080, type=flags.not_negative, help="port to listen on (default: %(default)s)")
    flags.add_runtime(parser, model.RUNTIMES)
    parser.add_argument(
        "--max-upload-bytes",
        default=MAX_UPLOAD_BYTES,
        type=flags.positive,
        help="largest request accepted (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.port > 65535:
        parser.error(f"argument --port: {args.port} is above 65535")
    return args


def listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]  # without the address, which Python adds
        raise StageError(f"cannot listen on {host} port {port} ({reason}): give another --port or --host") from None


def run(args: argparse.Namespace) -> dict:
    failures: list[StageError] = []

    def give_up(error: StageError) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(args.data, args.runtime, args.device, args.max_upload_bytes, on_failure=give_up)
    log_config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    log_config["handlers"]["access"]["stream"] = "ext://sys.stderr"  # stdout is for the summary
    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=log_config))
    with listen(args.host, args.port) as connection:
        print(f"loading, then answering on http://{args.host}:{connection.getsockname()[1]}", file=sys.stderr)
        started_s = time.time()
        server.run(sockets=[connection])
    if failures:
        raise failures[0]
    return {"served_seconds": math.floor(time.time() - started_s)}


def main(argv=None) -> int:
    return errors.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
