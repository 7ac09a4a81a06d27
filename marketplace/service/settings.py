"""What a service is started with."""

from dataclasses import dataclass
from pathlib import Path

from marketplace.retrieval.milvus import Server

MAX_UPLOAD_BYTES = 20 * 2**20  # a 50-megapixel JPEG from a phone is about 15 MB
MAX_BODIES_BYTES = 256 * 2**20  # of all requests that are not answered yet, of all workers: a dozen of the largest uploads
BODY_TIMEOUT_S = 60.0  # for the largest upload over a slow phone's 3 megabits a second
MAX_PENDING = 64  # photo queries in work (one a core) or waiting, a few hundred KB each; one more is told to come back
PHOTO_CACHE_BYTES = 2 * 2**30  # of photos from a bucket: 20,000 with both copies to look at
KEY_VARIABLE = "MARKETPLACE_API_KEY"
# As the pages in web/ have them.
SHOP_NAME, HEADLINE = "Marketplace", "Second-hand, found by words or by a photo"


@dataclass(frozen=True)
class Settings:
    """One service.

    data_dir: its index/ and images/ are served; runtime, device: as PhotoModel takes them; workers: processes that share the
    cores; max_bodies_bytes: of all requests together; body_timeout_s: until one is whole; api_key: for /admin/, and for every
    call when `private`; private_metrics: whether /metrics is then among them; cors_origins: whose pages may call it. bucket: the
    s3:// URI of what is served, of which data_dir then holds a copy; photo_cache_bytes: of its photos at most; photo_redirects:
    whether clients are sent to the bucket for photos instead. vectors: the server of the vectors, in place of the one that the
    index tells of. shop_name, headline: of the page.
    """

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 8080
    runtime: str = "auto"
    device: str | None = None
    workers: int = 1
    max_upload_bytes: int = MAX_UPLOAD_BYTES
    max_bodies_bytes: int = MAX_BODIES_BYTES
    body_timeout_s: float = BODY_TIMEOUT_S
    max_pending: int = MAX_PENDING
    api_key: str | None = None
    private: bool = False
    private_metrics: bool = False
    cors_origins: tuple[str, ...] = ()
    bucket: str | None = None
    photo_cache_bytes: int = PHOTO_CACHE_BYTES
    photo_redirects: bool = False
    vectors: Server | None = None
    shop_name: str = SHOP_NAME
    headline: str = HEADLINE

    @property
    def index_dir(self) -> Path:
        return self.data_dir / "index"

    @property
    def images_dir(self) -> Path:
        return self.data_dir / "images"

    @property
    def photos_dir(self) -> Path:
        """Photos copied from a bucket."""
        return self.data_dir / "photos"
