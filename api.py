"""Serve recommendations over HTTP: photos, words or listings in, ranked and explained listings out.

Reads   data/index/ (the published generation, again whenever a new one is), data/images/ (the photos it shows), web/
Run     python api.py                  then open http://127.0.0.1:8080
        python api.py --host 0.0.0.0   to be reached from other machines
        python api.py --workers 4      processes that share the files of the index
"""

import argparse
import contextlib
import functools
import gc
import importlib.util
import io
import math
import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import Annotated

import anyio
import threadpoolctl
import uvicorn
from fastapi import Depends, FastAPI, File, Form, HTTPException, Query, Request, Security, UploadFile
from fastapi import Path as PathParameter
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.security import APIKeyHeader, HTTPBearer
from fastapi.staticfiles import StaticFiles
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BeforeValidator, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.formparsers import MultiPartParser
from uvicorn.config import STARTUP_FAILURE

from marketplace.cleaning.photos import PhotoRejected
from marketplace.files import cli
from marketplace.files import generations as generation_files
from marketplace.files.stages import StageError
from marketplace.models import photo_model
from marketplace.retrieval.catalogue import Filters
from marketplace.retrieval.recommender import Recommender
from marketplace.service import schemas
from marketplace.service import server as service
from marketplace.service.schemas import ErrorMessage

WEB_DIR = Path(__file__).parent / "web"
MAX_UPLOAD_BYTES = 20 * 2**20  # a 50-megapixel JPEG from a phone is about 15 MB
MAX_PENDING = 64  # photo queries in work (one a core) or waiting, a few hundred KB each; one more is told to come back
RETRY_AFTER_S = 1
MAX_K = 100
MAX_OFFSET = 1000  # who pages further wants an export
PHOTO_CACHE_S = 3600
KEY_VARIABLE = "MARKETPLACE_API_KEY"

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


def one_sentence(error: RequestValidationError) -> str:
    """The first thing wrong with a request: where, and what."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("query", "body", "path"))
    message = "send it as a file" if "UploadFile" in first["msg"] else first["msg"]
    return f"{where}: {message}" if where else message


CATEGORY = "A category at any level, or a path such as 'Home & Garden / Beds'."
LOCATION = "A town, a county, or 'Town, County'."
K = "How many listings to return."
OFFSET = "How many of the best listings to leave out: k, 2k, ... for further pages, whose order stays the same."
MIN_SCORE = "Leave out listings that score less."
# An empty field of a form or an address is none.
Pounds = Annotated[
    Annotated[float, Field(ge=0, allow_inf_nan=False)] | None, BeforeValidator(lambda value: None if value == "" else value)
]


def filters_from(source):
    """A dependency that reads the filters from `source`: Query or Form."""

    async def read(  # async, or each would be run in a thread of its own
        category: Annotated[str | None, source(description=CATEGORY, max_length=200)] = None,
        min_price: Annotated[Pounds, source(description="Pounds.", examples=[5])] = None,
        max_price: Annotated[Pounds, source(description="Pounds.", examples=[500])] = None,
        location: Annotated[str | None, source(description=LOCATION, max_length=200)] = None,
    ) -> Filters:
        if min_price is not None and max_price is not None and min_price > max_price:
            raise HTTPException(422, f"min_price {min_price:g} is above max_price {max_price:g}: swap them")
        return Filters((category or "").strip() or None, min_price, max_price, (location or "").strip() or None)

    return read


def page_from(source):
    """A dependency that reads from `source` which of the ranked listings are wanted."""

    async def read(
        k: Annotated[int, source(ge=1, le=MAX_K, description=K, examples=[10])] = 10,
        offset: Annotated[int, source(ge=0, le=MAX_OFFSET, description=OFFSET, examples=[0])] = 0,
        min_score: Annotated[float, source(ge=0, le=1, allow_inf_nan=False, description=MIN_SCORE, examples=[0.1])] = 0.0,
    ) -> dict:
        return {"k": k, "offset": offset, "min_score": min_score}

    return read


QueryFilters = Annotated[Filters, Depends(filters_from(Query))]
FormFilters = Annotated[Filters, Depends(filters_from(Form))]
QueryPage = Annotated[dict, Depends(page_from(Query))]
FormPage = Annotated[dict, Depends(page_from(Form))]
Upload = Annotated[UploadFile, File(description="A photo: JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF.")]
Words = Annotated[str | None, Form(max_length=2000, description="Words about the listing.", examples=["guitar with case"])]
ProductId = Annotated[str, PathParameter(description="A listing's id, in either case.")]

NOT_AN_IMAGE = {400: {"model": ErrorMessage, "description": "Not a usable image, or not a multipart form"}}
TOO_LARGE = {413: {"model": ErrorMessage, "description": "Too large"}}
UNKNOWN = {404: {"model": ErrorMessage, "description": "Unknown id"}}
BAD_VALUE = {422: {"model": ErrorMessage, "description": "A bad value"}}
BUSY = {503: {"model": ErrorMessage, "description": "Busy, or not ready: try again after the seconds in Retry-After"}}
NO_KEY = {401: {"model": ErrorMessage, "description": "The key is missing or wrong"}}
UPLOAD_ERRORS = NOT_AN_IMAGE | TOO_LARGE | BAD_VALUE


def open_generation(folder: Path, runtime: str, device: str | None) -> Recommender:
    """A generation that has answered once to each kind of query, so that no client waits for what is loaded late."""
    recommender = Recommender(folder, runtime, device)
    photo = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(photo, "PNG")
    recommender.embed(recommender.clean(photo.getvalue()))
    first = recommender.catalogue.first_product
    recommender.recommend(recommender.query(text=recommender.catalogue.product(first)["name"]), 1)
    recommender.recommend(recommender.query_of(first), 1)
    return recommender


def create_app(
    data_dir: Path,
    runtime: str = "auto",
    device: str | None = None,
    max_upload_bytes: int = MAX_UPLOAD_BYTES,
    max_pending: int = MAX_PENDING,
    on_failure=None,
    api_key: str | None = None,
    private: bool = False,
    cors_origins: tuple[str, ...] = (),
    workers: int = 1,
) -> FastAPI:
    """The application over the generation that `data_dir`/index publishes; its models are loaded when it starts.

    on_failure: called with the StageError when they cannot be, instead of raising it. api_key: for /admin/, and for every
    call when `private`. workers: processes that share the cores.
    """
    meters = service.Meters()
    generations = service.Generations(
        data_dir / "index", functools.partial(open_generation, runtime=runtime, device=device), meters
    )
    # A large photo takes half a gigabyte while it is decoded. Who waits for a core holds no thread: the rest goes on being
    # answered.
    photo_threads = anyio.CapacityLimiter(max(1, len(os.sched_getaffinity(0)) // workers))
    pending = 0
    busy = {"Retry-After": str(RETRY_AFTER_S)}

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        if workers > 1:
            gc.freeze()  # what is imported stays: looking through it for garbage would copy what they share
        service.keep_memory_compact()
        # A query's matrices are small: BLAS threads that wait for each other double what a title query costs.
        threadpoolctl.threadpool_limits(1, user_api="blas")
        try:
            await anyio.to_thread.run_sync(generations.reload)
        except StageError as error:
            if on_failure is None:
                raise
            on_failure(error)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(generations.watch)
            yield
            tasks.cancel_scope.cancel()
        generations.current = None

    app = FastAPI(
        title="Marketplace recommendations",
        description="Given a photo, some words, or a listing: the listings most like it, ranked and explained.",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=BUSY | (NO_KEY if private else {}),
    )
    # The last one added is the outermost.
    app.add_middleware(service.BodyLimit, max_bytes=max_upload_bytes)
    if private:
        app.add_middleware(service.Private, key=api_key)
    headers = dict(service.SECURITY_HEADERS)
    if cors_origins:
        headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["X-API-Key", "Authorization", "X-Request-ID"],
            expose_headers=["X-Request-ID", "X-Generation", "Retry-After"],
        )
    app.add_middleware(service.Envelope, meters=meters, headers=headers)
    MultiPartParser.spool_max_size = max_upload_bytes  # an upload stays in memory: photos do not touch the disk

    async def ready(request: Request) -> Recommender:
        """The generation that answers this request, from its beginning to its end."""
        recommender = generations.current
        if recommender is None:
            raise HTTPException(503, "the models are not loaded yet: try again", busy)
        request.state.generation = recommender.generation
        return recommender

    Ready = Annotated[Recommender, Depends(ready)]

    @app.exception_handler(RequestValidationError)
    async def bad_value(request: Request, error: RequestValidationError):
        return JSONResponse({"detail": one_sentence(error)}, 422)

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException):
        if error.status_code == 400 and "exceeded maximum size" in error.detail:  # starlette's, of a part that is no file
            error = HTTPException(413, "a text field is larger than 1 MB: shorten it")
        return await http_exception_handler(request, error)

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception):  # which is raised again behind it, for the log
        return JSONResponse({"detail": "the service failed: try again, or tell who runs it"}, 500)

    async def embed(recommender: Recommender, image: UploadFile):
        """Vector and category probabilities of an upload, cleaned as the pipeline cleans; raises HTTPException."""
        nonlocal pending

        def work():
            with meters.step("decode"):
                jpeg = recommender.clean(image.file.read())
            with meters.step("embed"):
                return recommender.embed(jpeg)

        if pending >= max_pending:
            raise HTTPException(503, "too many photos are being looked at: try again in a second", busy)
        pending += 1
        try:
            with meters.pending.track_inprogress():
                return await anyio.to_thread.run_sync(work, limiter=photo_threads)
        except PhotoRejected as error:
            raise HTTPException(400, f"not a usable image ({error.reason}): {error}") from None
        finally:
            pending -= 1

    def known_row(recommender: Recommender, product_id: str) -> int:
        row = recommender.catalogue.product_row(product_id)
        if row is None:
            raise HTTPException(404, f"no listing has the id {product_id[:64]}")
        return row

    def recommend(recommender: Recommender, query, page: dict, filters: Filters) -> list[dict]:
        return recommender.recommend(query, filters=filters, step=meters.step, **page)

    @app.get("/healthcheck", response_model=schemas.Health)
    async def healthcheck(recommender: Ready):
        """Whether the service answers, and what it serves."""
        return {
            "message": "API is up and running!",
            "model": recommender.photo_model.description.backbone,
            "rows": recommender.catalogue.n_photos,
            "listings": recommender.catalogue.n_products,
            "dimension": recommender.dimension,
            "generation": recommender.generation,
        }

    @app.get("/readyz", response_model=schemas.Ready)
    async def readyz(recommender: Ready):
        """Whether the models are loaded and warm: 503 until then."""
        return {"generation": recommender.generation}

    @app.post("/predict/feature_embedding", response_model=schemas.FeatureEmbedding, responses=UPLOAD_ERRORS)
    async def feature_embedding(recommender: Ready, image: Upload):
        """The vector of a photo."""
        vector, _ = await embed(recommender, image)
        return {
            "features": vector.tolist(),
            "dimension": len(vector),
            "model": recommender.photo_model.description.backbone,
        }

    @app.post("/predict/similar_images", response_model=schemas.SimilarImages, responses=UPLOAD_ERRORS)
    async def similar_images(recommender: Ready, image: Upload, filters: FormFilters, page: FormPage, text: Words = None):
        """The listings most like a photo, and the words beside it."""
        if not recommender.takes_photos:
            raise HTTPException(503, "the index holds vectors that no photo can be compared with: search by words or by listing")
        vector, probabilities = await embed(recommender, image)
        ask = lambda: recommend(recommender, recommender.query(vector, text, probabilities), page, filters)  # noqa: E731
        results = await anyio.to_thread.run_sync(ask)
        return {"similar_index": [result["image_id"] for result in results if result["image_id"]], "results": results}

    @app.post("/predict/listing", response_model=schemas.ListingPrediction, responses=UPLOAD_ERRORS)
    async def predict_listing(
        recommender: Ready,
        image: Annotated[UploadFile | None, File(description="A photo of the thing.")] = None,
        text: Words = None,
    ):
        """The likely categories of a new listing, and a price range."""
        vector, probabilities = (None, None) if image is None else await embed(recommender, image)
        try:
            return await anyio.to_thread.run_sync(recommender.predict, vector, probabilities, text)
        except ValueError:
            raise HTTPException(422, "give a photo as `image`, words as `text`, or both") from None

    @app.get("/search", response_model=schemas.Recommendations, responses=BAD_VALUE)
    def search(
        recommender: Ready,
        filters: QueryFilters,
        page: QueryPage,
        q: Annotated[str, Query(min_length=1, max_length=500, description="Words to look for.", examples=["classical guitar"])],
    ):
        """The listings that words describe. A word that no listing holds finds those that begin so, or are spelt much alike."""
        if not q.strip():
            raise HTTPException(422, "q: give at least one word")
        return {"results": recommend(recommender, recommender.query(text=q), page, filters)}

    @app.get("/products/{product_id}", response_model=schemas.Product, responses=UNKNOWN | BAD_VALUE)
    def product(recommender: Ready, product_id: ProductId):
        """One listing and its photos."""
        row = known_row(recommender, product_id)
        image_ids = recommender.catalogue.image_ids(recommender.catalogue.photos_of(row))
        shown = [{"image_id": image_id, "photo_url": f"/images/{image_id}.jpg"} for image_id in image_ids]
        return recommender.catalogue.product(row) | {"photos": shown}

    @app.get("/products/{product_id}/similar", response_model=schemas.Recommendations, responses=UNKNOWN | BAD_VALUE)
    def similar_products(recommender: Ready, product_id: ProductId, filters: QueryFilters, page: QueryPage):
        """The listings most like one of the catalogue's, itself left out."""
        query = recommender.query_of(known_row(recommender, product_id))
        return {"results": recommend(recommender, query, page, filters)}

    @app.get("/filters", response_model=schemas.Choices)
    def filters(recommender: Ready):
        """What the filters can be set to."""
        return recommender.catalogue.choices()

    photo_files = StaticFiles(directory=data_dir / "images", check_dir=False)
    photo_answers = {200: {"content": {"image/jpeg": {}}}, 206: {"description": "The bytes of the Range asked for"}}
    photo_answers |= {304: {"description": "The photo of If-None-Match, unchanged"}, 416: {"description": "No such Range"}}

    @app.get("/images/{image_id}.jpg", response_class=FileResponse, responses=UNKNOWN | BAD_VALUE | photo_answers)
    def photo(request: Request, recommender: Ready, image_id: Annotated[str, PathParameter(description="A photo's id.")]):
        """A photo, cleaned."""
        path = data_dir / "images" / f"{image_id}.jpg"
        # An id never holds a separator: nothing outside the folder can be named.
        if not re.fullmatch(r"[\w-]{1,64}", image_id) or not recommender.catalogue.has_photo(image_id) or not path.is_file():
            raise HTTPException(404, f"no photo has the id {image_id[:64]}")
        response = photo_files.file_response(path, path.stat(), request.scope)
        response.headers["Cache-Control"] = f"{'private' if private else 'public'}, max-age={PHOTO_CACHE_S}"
        return response

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics():
        """Figures for Prometheus."""
        return Response(meters.text(), media_type=CONTENT_TYPE_LATEST)

    async def check_key(
        request: Request,
        header: Annotated[str | None, Security(APIKeyHeader(name="X-API-Key", auto_error=False))],
        bearer: Annotated[object, Security(HTTPBearer(auto_error=False))],
    ) -> None:
        if api_key is None:
            raise HTTPException(403, f"this service has no key: start it with --api-key or {KEY_VARIABLE}")
        if not service.holds_key(request.headers, api_key):
            raise HTTPException(401, "give the key as X-API-Key or as a bearer token", {"WWW-Authenticate": "Bearer"})

    admin_errors = NO_KEY | {
        403: {"model": ErrorMessage, "description": "The service has no key"},
        409: {"model": ErrorMessage, "description": "What is published cannot be served; the old generation goes on"},
    }

    @app.post("/admin/reload", response_model=schemas.Reloaded, responses=admin_errors, dependencies=[Depends(check_key)])
    def reload():
        """Switch to what is published now, without waiting for the next look at it; other workers follow in a second."""
        try:
            switched = generations.reload()
        except StageError as error:
            raise HTTPException(409, str(error)) from None
        return {"generation": generations.current.generation, "switched": switched}

    def openapi() -> dict:
        """FastAPI's description, with ids that exist as the examples of ids."""
        description = FastAPI.openapi(app)
        if generations.current is None:
            return description
        catalogue = generations.current.catalogue
        examples = {
            "product_id": catalogue.product(catalogue.first_product)["product_id"],
            "image_id": catalogue.image_ids([catalogue.first_photo])[0],
        }
        for path in description["paths"].values():
            for operation in path.values():
                for parameter in operation.get("parameters", []):
                    if parameter["name"] in examples:
                        parameter["example"] = examples[parameter["name"]]
        return description

    app.openapi = openapi

    @app.get("/", include_in_schema=False)
    async def page():
        return FileResponse(WEB_DIR / "index.html", headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/docs", include_in_schema=False)
    async def docs():
        return FileResponse(WEB_DIR / "docs.html", headers={"Content-Security-Policy": DOCS_POLICY})

    app.mount("/web", StaticFiles(directory=WEB_DIR), name="web")
    # Only its files are used: Swagger UI, which would otherwise come from another host.
    swagger_dir = Path(importlib.util.find_spec("fastapi_offline").origin).parent / "static"
    app.mount("/swagger", StaticFiles(directory=swagger_dir), name="swagger")
    return app


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", type=Path, help="folder of all stages (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (default: %(default)s)")
    parser.add_argument("--port", default=8080, type=cli.not_negative, help="port to listen on (default: %(default)s)")
    cli.add_runtime(parser, photo_model.RUNTIMES)
    parser.add_argument(
        "--max-upload-bytes",
        default=MAX_UPLOAD_BYTES,
        type=cli.positive,
        help="largest request accepted (default: %(default)s)",
    )
    parser.add_argument("--workers", default=1, type=cli.positive, help="processes (default: %(default)s)")
    parser.add_argument("--api-key", help=f"key of /admin/ (default: the environment's {KEY_VARIABLE}, which ps does not show)")
    parser.add_argument("--private", action="store_true", help="answer nothing without the key")
    parser.add_argument(
        "--cors-origin", action="append", default=[], help="origin whose pages may call this service; repeatable (default: none)"
    )
    args = parser.parse_args(argv)
    if args.port > 65535:
        parser.error(f"argument --port: {args.port} is above 65535")
    if args.api_key is None:
        args.api_key = os.environ.get(KEY_VARIABLE)
    if args.api_key is not None and not re.fullmatch(r"[!-~]{16,}", args.api_key):
        parser.error(f"argument --api-key or {KEY_VARIABLE}: give at least 16 ASCII characters without blanks")
    if args.private and args.api_key is None:
        parser.error(f"argument --private: give a key with --api-key or {KEY_VARIABLE}")
    for origin in args.cors_origin:
        if not re.fullmatch(r"https?://[^/\s*]+", origin):
            parser.error(f"argument --cors-origin: {origin!r} is not of the form https://host")
    return args


def listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        connection = socket.create_server((host, port), family=family)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]  # without the address, which Python adds
        raise StageError(f"cannot listen on {host} port {port} ({reason}): give another --port or --host") from None
    # Inherited by every connection; asyncio leaves it out, and the second packet of an answer would wait 40 ms for the client.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def end_worker(error: StageError) -> None:
    """What a worker that cannot start does: its reason in one sentence, and the exit code its supervisor knows."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(STARTUP_FAILURE)  # it holds nothing yet, and leaving by an exception would print a traceback


def run(args: argparse.Namespace) -> dict:
    failures: list[StageError] = []

    def give_up(error: StageError) -> None:
        failures.append(error)
        server.should_exit = True

    settings = {
        "data_dir": args.data,
        "runtime": args.runtime,
        "device": args.device,
        "max_upload_bytes": args.max_upload_bytes,
        "api_key": args.api_key,
        "private": args.private,
        "cors_origins": tuple(args.cors_origin),
        "workers": args.workers,
    }
    serving = {"lifespan": "on", "log_config": service.LOG_CONFIG, "access_log": False, "server_header": False}
    with listen(args.host, args.port) as connection:
        print(f"loading, then answering on http://{args.host}:{connection.getsockname()[1]}", file=sys.stderr)
        started_s = time.time()
        if args.workers == 1:
            server = uvicorn.Server(uvicorn.Config(create_app(on_failure=give_up, **settings), **serving))
            server.run(sockets=[connection])
        else:
            generation_files.current_generation(args.data / "index")
            app = functools.partial(create_app, on_failure=end_worker, **settings)
            patience = {"timeout_worker_healthcheck": service.WORKER_START_S}
            config = uvicorn.Config(app, factory=True, workers=args.workers, **serving, **patience)
            service.run_workers(config, [connection])
    if failures:
        raise failures[0]
    return {"served_seconds": math.floor(time.time() - started_s)}


def main(argv=None) -> int:
    return cli.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
