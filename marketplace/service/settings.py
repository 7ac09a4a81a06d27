"""What a service is started with."""

from dataclasses import dataclass
from pathlib import Path

MAX_UPLOAD_BYTES = 20 * 2**20  # a 50-megapixel JPEG from a phone is about 15 MB
MAX_PENDING = 64  # photo queries in work (one a core) or waiting, a few hundred KB each; one more is told to come back
KEY_VARIABLE = "MARKETPLACE_API_KEY"


@dataclass(frozen=True)
class Settings:
    """One service.

    data_dir: its index/ and images/ are served; runtime, device: as PhotoModel takes them; workers: processes that share the
    cores; api_key: for /admin/, and for every call when `private`; cors_origins: whose pages may call it.
    """

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 8080
    runtime: str = "auto"
    device: str | None = None
    workers: int = 1
    max_upload_bytes: int = MAX_UPLOAD_BYTES
    max_pending: int = MAX_PENDING
    api_key: str | None = None
    private: bool = False
    cors_origins: tuple[str, ...] = ()

    @property
    def index_dir(self) -> Path:
        return self.data_dir / "index"

    @property
    def images_dir(self) -> Path:
        return self.data_dir / "images"
