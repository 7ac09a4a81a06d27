"""Ten thousand broken, hostile and odd requests, and photos made to take time and memory: good ones answered beside them, no
5xx but "come back", no crash, no memory kept.

Reads   a finished data folder (make demo)
Run     python benchmarks/fuzz.py --quick
        python benchmarks/fuzz.py               the ten thousand, and two thousand uploads of attacks.py
"""

import argparse
import collections
import io
import json
import random
import string
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import attacks
import results
from PIL import Image
from serving import ROOT, Client, Server, load, percentile_ms, show

sys.path.insert(0, str(ROOT))
from marketplace.files import reading

CLIENTS = 4
ATTACKERS, GOOD_CLIENTS = 16, 2
UPLOADS = ("/predict/similar_images", "/predict/feature_embedding", "/predict/listing")
HOSTILE = (
    '"', "a* OR NEAR(b c, 3)", "name:x AND", "^", "'; DROP TABLE products; --", "' OR '1'='1", "%00", "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd", "/etc/passwd", "C:\\windows\\win.ini", "{{7*7}}", "${jndi:ldap://x}", "<script>alert(1)</script>",
    "\u202e\u0000\ufeff", "🪑" * 60, "e\u0301" * 100, "NaN", "-1", "1e309", "0x10", "1;2", "null", "true", "[]", "{}",
    "\r\nX-Injected: 1",
)  # fmt: skip
NOT_PHOTOS = (
    b"", b"\0" * 1000, b"%PDF-1.7\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<html></html>", b"PK\x03\x04", b"GIF89a",
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBPVP8 ", b"\0\0\0\x1cftypheic", b"MZ", b"\x1f\x8b\x08",
)  # fmt: skip


def bombs() -> list[bytes]:
    """Small files that say they are huge, or become so."""
    files = []
    for mode, size in (("1", (60_000, 60_000)), ("L", (9_000, 9_000)), ("RGB", (8_000, 7_000))):
        picture = io.BytesIO()
        Image.new(mode, size).save(picture, "PNG", compress_level=9)
        files.append(picture.getvalue())
    frames = io.BytesIO()
    Image.new("P", (500, 500)).save(
        frames, "GIF", save_all=True, append_images=[Image.new("P", (500, 500), n) for n in range(60)]
    )
    return [*files, frames.getvalue()]


def mutate(photo: bytes, chance: random.Random) -> bytes:
    """A photo with bytes changed, cut off, repeated or put in."""
    data = bytearray(photo)
    for _ in range(chance.choice((1, 3, 30, 300))):
        data[chance.randrange(len(data))] = chance.randrange(256)
    how = chance.randrange(4)
    if how == 1:
        del data[chance.randrange(len(data)) :]
    elif how == 2:
        start = chance.randrange(len(data))
        data[start:start] = data[start : start + chance.randrange(5000)]
    elif how == 3:
        data[:0] = bytes(chance.randrange(256) for _ in range(chance.randrange(20)))
    return bytes(data)


def words(chance: random.Random) -> str:
    letters = string.printable + "äßЖ漢字\u0301\u2028"
    return chance.choice(
        (chance.choice(HOSTILE), "".join(chance.choices(letters, k=chance.randrange(1, 3000))), chance.choice(HOSTILE) * 3)
    )


def query(chance: random.Random, ids: list[str]):
    """A job: a GET whose path or parameters are not what they should be."""
    names = ("q", "k", "category", "min_price", "max_price", "location", "offset", "min_score", "unknown")
    parameters = "&".join(f"{chance.choice(names)}={quote(words(chance), safe='')[:6000]}" for _ in range(chance.randrange(5)))
    one = chance.choice((chance.choice(ids), quote(words(chance), safe="")[:2000], "..%2f" * 9, "../" * 5))
    path = chance.choice(("/search", f"/products/{one}", f"/products/{one}/similar", f"/images/{one}.jpg", "/filters", f"/{one}"))
    return lambda client: client.get(f"{path}?{parameters}")


def upload(chance: random.Random, photos: list[bytes], bomb_files: list[bytes]):
    """A job: a POST of a broken photo, something else, or a broken form."""
    path = chance.choice(UPLOADS)
    kind = chance.random()
    if kind < 0.7:
        data = mutate(chance.choice(photos), chance)
    elif kind < 0.9:
        data = chance.choice(NOT_PHOTOS) + bytes(chance.randrange(256) for _ in range(chance.randrange(200)))
    else:
        data = chance.choice(bomb_files)
    fields = {
        name: words(chance).replace("\r", " ").replace("\n", " ") for name in ("text", "k", "category") if chance.random() < 0.2
    }
    if chance.random() < 0.9:
        return lambda client: client.upload(
            path, data, **{name: text.encode("utf-8", "ignore").decode() for name, text in fields.items()}
        )
    types = ("multipart/form-data", "multipart/form-data; boundary=x", "application/json", "text/plain", "image/jpeg")
    headers = {"Content-Type": chance.choice(types)}
    return lambda client: client.send(chance.choice(("POST", "PUT", "DELETE", "PATCH")), path, data, headers)


def measure_attacks(server: Server, files: dict[str, bytes], beside_pillow: bool) -> dict[str, dict]:
    """Each alone: the answer, its seconds, and megabytes that it adds to the peak of what decodes; and so with plain Pillow."""
    table = {}
    for name, data in files.items():
        pids = server.decoders()
        before_kb = {pid: attacks.memory_kb(pid, "VmRSS") for pid in pids}
        for pid in pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
        start_s = time.perf_counter()
        status, _, body = Client(server.port).upload(UPLOADS[1], data)
        seconds = time.perf_counter() - start_s
        idle_kb = min(before_kb.values())  # of a worker that came in place of one that ended
        peaks_kb = [attacks.memory_kb(pid, "VmHWM") - before_kb.get(pid, idle_kb) for pid in server.decoders()]
        table[name] = {
            "bytes": len(data),
            "status": status,
            "answer": json.loads(body)["detail"] if status != 200 else "cleaned",
            "seconds": round(seconds, 2),
            "mb": round(max(0, *peaks_kb) / 1024),
        }
        if beside_pillow:
            table[name]["plain_pillow"] = attacks.with_plain_pillow(data)
        print(name, table[name], file=sys.stderr)
    return table


def measure_beside(server: Server, files: list[bytes], photos: list[bytes], uploads: int, chance: random.Random) -> dict:
    """Good photos while hostile ones are uploaded: how long they take, what came of each kind, the memory before and after."""
    weights = [1 / (1 + len(data) / 2**20) for data in files]  # mostly the small ones, which take least to send
    statuses: dict[str, collections.Counter] = {"hostile": collections.Counter(), "good": collections.Counter()}
    under_attack = True

    def upload_one(kind: str, data: bytes):
        def send(client):
            status, headers, body = client.upload(UPLOADS[1], data)
            statuses[kind][status] += 1
            return 200, headers, body

        return send

    def be_good() -> list[float]:
        client, seconds = Client(server.port), []
        while under_attack:
            start_s = time.perf_counter()
            upload_one("good", photos[len(seconds) % len(photos)])(client)
            seconds.append(time.perf_counter() - start_s)
        return seconds

    jobs = [upload_one("hostile", data) for data in chance.choices(files, weights, k=uploads)]
    load(server.port, ATTACKERS, jobs[: max(ATTACKERS, uploads // 10)])  # what is needed to look at them at all
    before, decoders_before = server.memory()[0], sum(server.memory("Pss", server.decoders()))
    statuses["hostile"].clear()
    with ThreadPoolExecutor(GOOD_CLIENTS) as pool:
        good = [pool.submit(be_good) for _ in range(GOOD_CLIENTS)]
        _, dropped, attack_s = load(server.port, ATTACKERS, jobs)
        under_attack = False
        seconds = [second for client in good for second in client.result()]
    return {
        "hostile_uploads": len(jobs),
        "hostile_per_second": round(len(jobs) / attack_s, 1),
        "hostile_statuses": dict(sorted(statuses["hostile"].items())),
        "hostile_dropped": len(dropped),
        "good_beside_them": len(seconds),
        "good_refused": sum(count for status, count in statuses["good"].items() if status != 200),
        "good_p50_ms": percentile_ms(seconds, 50),
        "good_p99_ms": percentile_ms(seconds, 99),
        "hostile_rss_growth": round(server.memory()[0] / before, 3),
        "decoders_pss_growth": round(sum(server.memory("Pss", server.decoders())) / decoders_before, 3),
        "decoders": len(server.decoders()) // 2,
        "decoder_pss_mb": round(2 * sum(server.memory("Pss", server.decoders())) / len(server.decoders()) / 1e6, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/demo", type=Path, help="a finished data folder (default: %(default)s)")
    parser.add_argument("--port", default=8098, type=int, help="a free port (default: %(default)s)")
    parser.add_argument("--seed", default=0, type=int, help="of what is sent (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="five hundred requests")
    args = parser.parse_args()
    requests, chance = 500 if args.quick else 10_000, random.Random(args.seed)
    photos = [path.read_bytes() for path in sorted((args.data / "images").glob("*.jpg"))[:20]]
    ids = reading.read_csv(args.data / "tabular" / "products.csv")["product_id"].tolist()[:50]
    bomb_files, statuses, failed = bombs(), collections.Counter(), []

    def watched(job):
        def send(client):
            status, headers, body = job(client)
            statuses[status] += 1
            if status >= 500 and "retry-after" not in headers:
                failed.append(f"{status} {body[:200]!r}")
            return 200, headers, body

        return send

    calm = {
        "query": [lambda client, one=one: client.get(f"/products/{one}/similar") for one in ids * 4],
        "upload": [lambda client, photo=photo: client.upload(UPLOADS[0], photo) for photo in photos * 10],
    }
    fuzzed = {
        "query": [watched(query(chance, ids)) for _ in range(requests // 2)],
        "upload": [watched(upload(chance, photos, bomb_files)) for _ in range(requests // 2)],
    }
    with tempfile.TemporaryDirectory(prefix="marketplace-fuzz-") as folder:
        for name in ("index", "images"):
            (Path(folder) / name).symlink_to((args.data / name).resolve())
        with Server(folder, args.port) as server:
            seconds = {kind: load(args.port, CLIENTS, jobs)[0] for kind, jobs in calm.items()}
            for job in bomb_files * 2:  # the largest that are decoded belong to what the service needs
                load(args.port, CLIENTS, [lambda client, job=job: client.upload(UPLOADS[0], job)])
            before = server.memory()[0]
            answers = {kind: load(args.port, CLIENTS, jobs) for kind, jobs in fuzzed.items()}
            figures = {"requests": sum(len(jobs) for jobs in fuzzed.values()), "server_errors": len(failed)}
            figures["dropped"] = sum(len(failures) for _, failures, _ in answers.values())
            for kind in calm:
                figures[f"calm_{kind}_p99_ms"] = percentile_ms(seconds[kind], 99)
                figures[f"{kind}_p99_ms"] = percentile_ms(answers[kind][0], 99)
            worst = max(figures[f"{kind}_p99_ms"] / figures[f"calm_{kind}_p99_ms"] for kind in calm)
            figures |= {"p99_over_calm": round(worst, 2), "rss_growth": round(server.memory()[0] / before, 3)}
            hostile = attacks.make()
            table = measure_attacks(server, hostile, beside_pillow=not args.quick)
            figures |= measure_beside(server, list(hostile.values()), photos, 200 if args.quick else 2000, chance)
            figures["crashed"] = not server.alive()
    for failure in [*failed[:5], *(failure for _, failures, _ in answers.values() for failure in failures[:5])]:
        print(failure, file=sys.stderr)
    print(dict(sorted(statuses.items())), file=sys.stderr)
    if not args.quick:
        results.save("fuzz", figures | {"attacks": table}, results.command())
    return show(figures)


if __name__ == "__main__":
    sys.exit(main())
