"""Ask the API directly and through nginx, and end with 1 and a sentence where the two differ or a limit does not hold.

Run     python deploy/check_proxy.py DIRECT PROXIED PLAIN PHOTO API_LOG     (by deploy/check.sh)
"""

import http.client
import json
import ssl
import sys
import uuid
from pathlib import Path
from urllib.parse import urlsplit

MAX_BODY_BYTES = 20 * 2**20
UNVERIFIED = ssl._create_unverified_context()  # the certificate was made a moment ago, and signed itself


def connect(url: str) -> http.client.HTTPConnection:
    place = urlsplit(url)
    if place.scheme == "https":
        return http.client.HTTPSConnection(place.hostname, place.port, timeout=60, context=UNVERIFIED)
    return http.client.HTTPConnection(place.hostname, place.port, timeout=60)


def ask(url: str, method: str, path: str, body: bytes = b"", headers: dict | None = None) -> tuple[int, dict, bytes]:
    """Status, headers and body of an answer."""
    connection = connect(url)
    connection.request(method, path, body or None, headers or {})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.headers), content


def form_of(photo: bytes) -> tuple[bytes, dict]:
    """A multipart body that holds a photo, and its header."""
    mark = uuid.uuid4().hex
    head = f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="photo.jpg"\r\n\r\n'
    return head.encode() + photo + f"\r\n--{mark}--\r\n".encode(), {"Content-Type": f"multipart/form-data; boundary={mark}"}


def check(what: str, seen: object, wanted: object) -> None:
    if seen != wanted:
        sys.exit(f"error: {what}: {seen!r} instead of {wanted!r}")
    print(f"ok: {what}")


def main(direct: str, proxied: str, plain: str, photo: str, log: str) -> None:
    body, headers = form_of(Path(photo).read_bytes())
    for method, path, sent, kind in (
        ("GET", "/healthcheck", b"", {}),
        ("GET", "/search?q=guitar&k=3", b"", {}),
        ("GET", "/products/A%2F1%20x", b"", {}),
        ("GET", "/products//x", b"", {}),
        ("GET", "/", b"", {}),
        ("POST", "/predict/similar_images", body, headers),
        ("POST", "/admin/reload", b"", {}),
    ):
        here, through = ask(direct, method, path, sent, kind), ask(proxied, method, path, sent, kind)
        check(f"{method} {path} is the same through nginx", (through[0], through[2]), (here[0], here[2]))
    check(
        "HTTP leads to HTTPS",
        ask(plain, "GET", "/search?q=guitar", headers={"Host": "shop"})[1]["Location"],
        "https://shop/search?q=guitar",
    )

    too_large = form_of(b"\0" * MAX_BODY_BYTES)
    check("a body above the limit is 413", ask(proxied, "POST", "/predict/similar_images", *too_large)[0], 413)
    rest = MAX_BODY_BYTES - len(form_of(b"")[0])
    status, _, answer = ask(proxied, "POST", "/predict/similar_images", *form_of(b"\0" * rest))
    check("a body of just the limit reaches the API", (status, b"not a usable image" in answer), (400, True))

    def logged() -> int:
        return sum(
            json.loads(line)["route"] == "/predict/similar_images"
            for line in Path(log).read_text().splitlines()
            if line[:1] == "{"
        )

    before = logged()
    for _ in range(20):
        connection = connect(proxied)
        connection.putrequest("POST", "/predict/similar_images")
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            connection.putheader(name, value)
        connection.endheaders(body[: len(body) // 2])
        connection.close()
    check("a photo still finds an answer", ask(proxied, "POST", "/predict/similar_images", body, headers)[0], 200)
    check("uploads that are not whole never reach the API", logged() - before, 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
