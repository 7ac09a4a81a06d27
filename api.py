"""Serve recommendations over HTTP: photos, words or listings in, ranked and explained listings out.

Reads   data/index/ (the published generation, again whenever a new one is), data/images/ (the photos it shows), web/
Run     python api.py                               then open http://127.0.0.1:8080
        python api.py --host 0.0.0.0                to be reached from other machines
        python api.py --workers 4                   processes that share the files of the index
        python api.py --data s3://my-bucket/index   what build_index.py --publish brought there
"""

import argparse
import functools
import importlib.util
import ipaddress
import math
import os
import re
import socket
import sys
import time
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.staticfiles import StaticFiles
from starlette.formparsers import MultiPartParser
from starlette.middleware.gzip import GZipMiddleware

from marketplace.files import cli, generations, s3
from marketplace.files.mirror import Mirror
from marketplace.files.stages import StageError
from marketplace.models import photo_model
from marketplace.retrieval import milvus
from marketplace.service import description, middleware, photo_files, reload, routes, workers
from marketplace.service.dependencies import PhotoQueue
from marketplace.service.meters import Meters
from marketplace.service.settings import HEADLINE, KEY_VARIABLE, MAX_UPLOAD_BYTES, PHOTO_CACHE_BYTES, SHOP_NAME, Settings

GZIP_FROM_BYTES = 1400  # what is smaller goes in one packet anyway
GZIP_LEVEL = 4  # an answer of 16 KB in 0.08 ms; the highest level saves 1% more in half as much time again
OPEN_PATHS = {"/healthcheck", "/readyz", "/metrics"}  # of a private service: who watches it has no key


def create_app(settings: Settings) -> FastAPI:
    """The application over the generation that is published; its models are loaded when it starts."""
    app = FastAPI(
        title=f"{settings.shop_name} recommendations",
        description="Given a photo, some words, or a listing: the listings most like it, ranked and explained.",
        version="1",
        lifespan=reload.lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_tags=routes.TAGS,
        generate_unique_id_function=lambda route: route.name,
        exception_handlers=routes.EXCEPTION_HANDLERS,
        responses=routes.BUSY | (routes.NO_KEY if settings.private else {}),
    )
    open_generation = functools.partial(
        reload.open_generation, runtime=settings.runtime, device=settings.device, server=settings.vectors
    )
    app.state.settings = settings
    app.state.meters = Meters()
    app.state.generations = reload.Generations(
        settings.index_dir, open_generation, app.state.meters, mirror_of(settings, settings.workers > 1)
    )
    app.state.photo_queue = PhotoQueue(app.state.meters, settings.max_pending, max(1, cli.cores() // settings.workers))
    app.state.photos = photo_files.photos_of(settings)
    app.state.photo_files = StaticFiles(directory=settings.images_dir, check_dir=False)
    for router in (routes.router, routes.photo_router, routes.photo_files, routes.watched, routes.admin, routes.moderators):
        app.include_router(router)
    app.mount("/web", StaticFiles(directory=routes.WEB_DIR), name="web")
    # Only its files are used: Swagger UI, which would otherwise come from another host.
    swagger_dir = Path(importlib.util.find_spec("fastapi_offline").origin).parent / "static"
    app.mount("/swagger", StaticFiles(directory=swagger_dir), name="swagger")
    app.openapi = functools.partial(description.describe, app)
    MultiPartParser.spool_max_size = settings.max_upload_bytes  # an upload stays in memory: photos do not touch the disk
    add_middleware(app, settings)
    return app


def mirror_of(settings: Settings, is_begun: bool = False) -> Mirror | None:
    return None if settings.bucket is None else Mirror(settings.bucket, settings.index_dir, settings.photos_dir, is_begun)


def add_middleware(app: FastAPI, settings: Settings) -> None:
    """What is around the routes; the last one added is the outermost."""
    app.add_middleware(GZipMiddleware, minimum_size=GZIP_FROM_BYTES, compresslevel=GZIP_LEVEL)
    app.add_middleware(middleware.EncodedSlashMiddleware)
    app.add_middleware(middleware.HeadMiddleware)
    app.add_middleware(middleware.RelativeRedirectMiddleware, photo_origin=app.state.photos.origin)
    app.add_middleware(
        middleware.BodyLimitMiddleware,
        max_bytes=settings.max_upload_bytes,
        max_total_bytes=max(settings.max_upload_bytes, settings.max_bodies_bytes // settings.workers),
        max_seconds=settings.body_timeout_s,
    )
    headers = dict(middleware.SECURITY_HEADERS)
    if settings.private:
        open_paths = OPEN_PATHS - ({"/metrics"} if settings.private_metrics else set())
        app.add_middleware(middleware.AuthenticationMiddleware, key=settings.api_key, open_paths=open_paths)
        headers["Cache-Control"] = "private, no-store"
    if settings.cors_origins:
        headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["X-API-Key", "Authorization", "X-Request-ID", "If-None-Match"],
            expose_headers=["X-Request-ID", "X-Generation", "Retry-After", "ETag"],
        )
    app.add_middleware(middleware.SecurityHeadersMiddleware, headers=headers)
    app.add_middleware(middleware.RequestLoggingMiddleware, meters=app.state.meters)


def parse_args(argv=None) -> Settings:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_flags(parser)
    args = parser.parse_args(argv)
    if args.api_key is None:
        args.api_key = os.environ.get(KEY_VARIABLE)
    check_flags(parser, args)
    bucket = args.data.rstrip("/") if s3.is_s3(args.data) else None
    return Settings(
        data_dir=Path(args.data) if bucket is None else args.cache,
        host=args.host,
        port=args.port,
        runtime=args.runtime,
        device=args.device,
        workers=args.workers,
        max_upload_bytes=args.max_upload_bytes,
        api_key=args.api_key,
        private=args.private,
        private_metrics=args.private_metrics,
        cors_origins=tuple(args.cors_origin),
        bucket=bucket,
        photo_cache_bytes=args.photo_cache_bytes,
        photo_redirects=args.photo_redirects,
        vectors=None if args.vectors is None else milvus.Server.parse(args.vectors),
        shop_name=args.shop_name,
        headline=args.headline,
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", default="data", help="folder of all stages, or s3:// URI of an index (default: %(default)s)")
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
    parser.add_argument(
        "--private", action="store_true", help="answer nothing without the key but /healthcheck, /readyz and /metrics"
    )
    parser.add_argument("--private-metrics", action="store_true", help="with --private: nor /metrics")
    parser.add_argument(
        "--cors-origin", action="append", default=[], help="origin whose pages may call this service; repeatable (default: none)"
    )
    parser.add_argument(
        "--cache", default="data/serving", type=Path, help="folder for copies of what an s3:// URI holds (default: %(default)s)"
    )
    parser.add_argument(
        "--photo-cache-bytes",
        default=PHOTO_CACHE_BYTES,
        type=cli.positive,
        help="of its photos that are kept there (default: %(default)s)",
    )
    parser.add_argument(
        "--photo-redirects", action="store_true", help="send clients to the bucket for photos, by addresses signed for 5 minutes"
    )
    parser.add_argument(
        "--vectors",
        type=milvus.uri,
        metavar="URI",
        help="milvus://host:port of an index whose vectors are in Milvus (default: as it was built with)",
    )
    parser.add_argument(
        "--shop-name", default=SHOP_NAME, help="name on the page and in the API's description (default: %(default)s)"
    )
    parser.add_argument("--headline", default=HEADLINE, help="what the page's home is headed with (default: %(default)s)")


def check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with one sentence where a flag is wrong, or goes with another that is not there."""
    if args.photo_redirects and not s3.is_s3(args.data):
        parser.error("argument --photo-redirects: goes with an s3:// URI as --data")
    if args.port > 65535:
        parser.error(f"argument --port: {args.port} is above 65535")
    for flag, text in (("--shop-name", args.shop_name), ("--headline", args.headline)):
        if not text.strip() or not text.isprintable():
            parser.error(f"argument {flag}: give a line of text")
    if args.api_key is not None and not re.fullmatch(r"[!-~]{16,}", args.api_key):
        parser.error(f"argument --api-key or {KEY_VARIABLE}: give at least 16 ASCII characters without blanks")
    if args.private and args.api_key is None:
        parser.error(f"argument --private: give a key with --api-key or {KEY_VARIABLE}")
    if args.private_metrics and not args.private:
        parser.error("argument --private-metrics: goes with --private")
    for origin in args.cors_origin:
        if not re.fullmatch(r"https?://[^/\s*]+", origin):
            parser.error(f"argument --cors-origin: {origin!r} is not of the form https://host")


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


def tell(settings: Settings, listening: socket.socket) -> None:
    """Say on stderr where the service will answer, and to whom."""
    address, port = listening.getsockname()[:2]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"loading, then answering on http://{host}:{port}", file=sys.stderr)
    if not settings.private and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        print(
            f"every machine that reaches this one on port {port} may search, see listings and photos, upload photos and read "
            "/metrics: give a key and --private to close it",
            file=sys.stderr,
        )


def run(settings: Settings) -> dict:
    with listen(settings.host, settings.port) as listening:
        tell(settings, listening)
        started_s = time.time()
        if settings.workers > 1:
            if mirror := mirror_of(settings):
                mirror.begin()
            _ = photo_files.photos_of(settings).origin  # where it cannot be told, each worker would end with a traceback
            generations.current_generation(settings.index_dir)  # without one, no worker needs to be started to say so
            workers.run(functools.partial(create_app, settings), settings, listening)
        else:
            app = create_app(settings)
            app.state.generations.open_first()  # here, a failure is one sentence; uvicorn would print its traceback
            uvicorn.Server(uvicorn.Config(app, log_config=middleware.LOG_CONFIG, **workers.SERVING)).run(sockets=[listening])
    return {"served_seconds": math.floor(time.time() - started_s)}


def main(argv=None) -> int:
    return cli.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
