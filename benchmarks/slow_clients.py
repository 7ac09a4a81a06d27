"""What clients that send half a request, or half a photo, take from others: answers, memory, and the time to stop.

Reads   a finished data folder (make demo)
Run     python benchmarks/slow_clients.py
        python benchmarks/slow_clients.py --before ../other-checkout     and the same of another checkout's api.py
"""

import argparse
import contextlib
import resource
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

import results
from serving import ROOT, Client, Server, show

HALF_OPEN = 1100  # connections, more than a process may usually have files
FILES = 1024  # that one may usually have
UPLOADS, UPLOAD_BYTES = 60, 19_000_000
ASKED = 10
STOP_S = 60  # after which the service is killed
HEADERS = b"GET /healthcheck HTTP/1.1\r\nHost: x\r\nX-A: "
BODY = (
    b"POST /predict/similar_images HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Content-Length: 20000000\r\n\r\n"
    b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
)


def connect(port: int, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(data)
    return connection


def answered(port: int, photo: bytes) -> int:
    """How many of somebody else's ASKED photos get their answers, each over a connection of its own."""
    count = 0
    for _ in range(ASKED):
        with contextlib.suppress(OSError):
            count += Client(port).upload("/predict/similar_images", photo)[0] == 200
    return count


def measure(root: Path, data_dir: Path, port: int, photo: bytes) -> dict:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))  # of the service, which inherits it
    with Server(data_dir, port, root=root) as server, contextlib.ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4 * FILES), hard))
        assert answered(port, photo) == ASKED
        half_open = [stack.enter_context(connect(port, HEADERS)) for _ in range(HALF_OPEN)]
        figures = {"answers_beside_half_open": answered(port, photo)}
        for connection in half_open:
            connection.close()
        for _ in range(UPLOADS):
            stack.enter_context(connect(port, BODY)).sendall(bytes(UPLOAD_BYTES))
        figures |= {"answers_beside_half_photos": answered(port, photo), "half_photos_mb": round(server.memory()[0] / 1e6)}
        started_s = time.monotonic()
        stopped = server.stop(STOP_S)
        figures["stop"] = f"{time.monotonic() - started_s:.1f} s" if stopped else f"never in {STOP_S} s"
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/demo", type=Path, help="a finished data folder (default: %(default)s)")
    parser.add_argument("--before", type=Path, help="another checkout whose api.py is measured too (default: none)")
    parser.add_argument("--port", default=8097, type=int, help="a free port (default: %(default)s)")
    args = parser.parse_args()
    photo = next((args.data / "images").glob("*.jpg")).read_bytes()
    figures = {}
    with tempfile.TemporaryDirectory(prefix="marketplace-slow-") as temporary:
        shutil.copytree(args.data / "index", Path(temporary) / "index")
        for name, root in {"before": args.before, "now": ROOT}.items():
            if root is not None:
                figures |= {f"{name}_{key}": value for key, value in measure(root, Path(temporary), args.port, photo).items()}
    results.save("slow_clients", figures, results.command(args.data, args.before))
    return show(figures)


if __name__ == "__main__":
    sys.exit(main())
