"""Write a small synthetic marketplace, in the raw export's form and with all its traps, for the demo and the tests.

Reads   nothing
Writes  <out>/Products.csv, <out>/Images.csv, <out>/images/<image id>.jpg
Run     python -m demo.sample --out data/demo/raw --listings 390 --seed 0
"""

import argparse
import io
import os
import random
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from demo import drawings, wording
from marketplace.files import cli
from marketplace.files.stages import StageError

SIDES_PX = (300, 640)  # range of a photo's longer side
ASPECTS = (1.0, 4 / 3, 3 / 4, 5 / 4, 4 / 5, 3 / 2)  # width / height
TRAPS_FROM = 40  # listings: with fewer than these, rare traps are left out
JOKE_PRICES = ("£0.00", "£1,234,567.00", "£0.00", "£10,000,000.00", "£0.00", "£123,456.00")
SAME_TEXT_WORDS = 10  # words at least in a description that is posted again
NAME_TAIL = " | in {place} | Gumtree"
BROKEN = ("truncated", "empty", "text")
ODD = ("oriented", "png", "oriented", "cmyk", "oriented", "grayscale")
IN_TURN = wording.ALL_KINDS[0::2] + wording.ALL_KINDS[1::2]  # a kind of every category, then the other kind of every category
SAME_OFFER_EVERY = 6  # reposts: among those of the same photos, every other one
REJECT_REASONS = ("null_price", "bad_price", "duplicate_id", "bad_id")
ORIENTATION_TAG = 0x0112  # EXIF 2.32, table 4
ORIENTATIONS = (  # value of the tag -> how the stored pixels are turned: the other way than the value tells a reader to
    (3, Image.Transpose.ROTATE_180),
    (6, Image.Transpose.ROTATE_90),
    (8, Image.Transpose.ROTATE_270),
)


@dataclass(frozen=True)
class Listing:
    """One record of Products.csv; `object_seed` decides the thing on its photos."""

    product_id: str
    kind: wording.Kind
    object_seed: str
    title: str
    description: str
    price: str
    place: str

    def fields(self) -> tuple[str, ...]:
        """The record's fields after the row number; line breaks are bare carriage returns, as in the export."""
        name = self.title + NAME_TAIL.format(place=self.place)
        return self.product_id, name, self.kind.category, self.description.replace("\n", "\r"), self.price, self.place


@dataclass(frozen=True)
class Photo:
    """One file of images/ and one record of Images.csv.

    form: "jpeg", "oriented" (by EXIF), "png", "cmyk", "grayscale"; "same" (the bytes of `source`), "near" (`source`, smaller and
    compressed again); "truncated", "empty", "text" (broken).
    """

    image_id: str
    product_id: str
    kind: str
    object_seed: str
    view: int
    form: str = "jpeg"
    source: "Photo | None" = None


@dataclass(frozen=True)
class Repost:
    """A listing posted again: with the "same photos", and now and then the same text too, the "same text" or a "near photo"."""

    first: Listing
    again: Listing
    how: str


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _share(total: int, share: float, listings: int) -> int:
    """How many of `total` get a trap: at least one in a marketplace that is large enough for rare traps."""
    return max(int(listings >= TRAPS_FROM), round(share * total))


def _new_listing(kind: wording.Kind, rng: random.Random) -> Listing:
    product_id = _uuid(rng)
    colour = wording.colour_word(drawings.palette(random.Random(product_id))["body"])
    title, description = wording.title_and_description(kind, colour, rng)
    return Listing(product_id, kind, product_id, title, description, wording.price(kind, rng), rng.choice(wording.PLACES))


def _leak(listing: Listing, rng: random.Random) -> Listing:
    """The listing with the phrase some pages add to the description: it names the seller and the category."""
    levels = [level for level in listing.kind.category.split(" / ") if level != "Private"][-2:]
    posted = f"Posted by {rng.choice(wording.SELLERS)} in {', '.join(levels)} in {listing.place.split(',')[0]}"
    return replace(listing, description=f"{listing.description} {listing.title}. {posted}. {rng.choice(wording.DATES)}")


def _contact(listing: Listing, what: str, number: int, rng: random.Random) -> Listing:
    """The listing with a phone number, a postcode or an e-mail address, spelt in one of many ways, in its text or its name."""
    if what == "phone":
        detail = wording.PHONES[number % len(wording.PHONES)].format(n=f"{rng.randrange(1000):03d}")
        lead = (" call ", " Tel:", " whatsapp me on ", " text")[number % 4]
    elif what == "postcode":
        detail = wording.POSTCODES[number % len(wording.POSTCODES)]
        lead = (" collect from ", " postcode ", " near ")[number % 3]
    else:
        seller = rng.choice(wording.SELLERS).lower().replace(" ", ".").replace("'", "")
        detail, lead = f"{seller}{rng.randint(1, 99)}@example.com", (" mail ", " e-mail:")[number % 2]
    if what != "email" and number % 5 == 4:
        return replace(listing, title=f"{listing.title} {detail}")
    return replace(listing, description=f"{listing.description}{lead}{detail}{('', ' thanks', '.')[number % 3]}")


def _with_pipes(listing: Listing, number: int) -> Listing:
    return replace(listing, title=f"{listing.title} | {('RRP £99', 'NEW ✅')[number % 2]} | QUICK SALE")


def _plan_listings(count: int, rng: random.Random) -> tuple[list[Listing], list[Repost], dict[str, int]]:
    """The listings to be kept, those among them that are reposts, and how many have which trap in their texts."""
    reposted = max(3, count // 20) if count >= TRAPS_FROM else 0
    listings = [_new_listing(IN_TURN[number % len(IN_TURN)], rng) for number in range(count - reposted)]
    traps: tuple[tuple[str, float, Callable[[Listing, int], Listing]], ...] = (
        ("names_with_pipes", 0.01, _with_pipes),
        ("listings_with_phone", 0.06, lambda one, number: _contact(one, "phone", number, rng)),
        ("listings_with_postcode", 0.05, lambda one, number: _contact(one, "postcode", number, rng)),
        ("listings_with_email", 0.02, lambda one, number: _contact(one, "email", number, rng)),
        ("posted_by", 0.08, lambda one, _: _leak(one, rng)),
        ("implausible_prices", 0.02, lambda one, number: replace(one, price=JOKE_PRICES[number % len(JOKE_PRICES)])),
    )
    trapped: dict[str, set[str]] = {}
    for trap, share, changed in traps:
        places = rng.sample(range(len(listings)), _share(len(listings), share, count))
        for number, place in enumerate(places):
            listings[place] = changed(listings[place], number)
        trapped[trap] = {listings[place].product_id for place in places}

    reposts = _plan_reposts(listings, reposted, rng)
    for repost in reposts:
        for ids in trapped.values():
            if repost.again.description == repost.first.description and repost.first.product_id in ids:
                ids.add(repost.again.product_id)
    return listings + [repost.again for repost in reposts], reposts, {trap: len(ids) for trap, ids in trapped.items()}


def _plan_reposts(listings: list[Listing], count: int, rng: random.Random) -> list[Repost]:
    reposts: list[Repost] = []
    wordy = [listing for listing in listings if len(listing.description.split()) >= SAME_TEXT_WORDS]
    for number in range(count):
        how = ("same photos", "same text", "near photo")[number % 3]
        earlier = [repost.first for repost in reposts if repost.how == how]
        first = rng.choice(earlier if earlier and rng.random() < 0.3 else wordy if how == "same text" else listings)
        again = _new_listing(first.kind, rng)
        if how != "same text":
            again = replace(again, object_seed=first.object_seed)
        if how == "same text" or number % SAME_OFFER_EVERY == 0:
            again = replace(again, title=first.title, description=first.description, price=first.price)
        reposts.append(Repost(first, again, how))
    return reposts


def _plan_photos(listings: list[Listing], reposts: list[Repost], rng: random.Random) -> list[Photo]:
    """The photos of the listings: two each, of some one or none."""
    count, photos = len(listings), {}
    reposted = {listing.product_id for repost in reposts for listing in (repost.first, repost.again)}
    free = [listing.product_id for listing in listings if listing.product_id not in reposted]
    rng.shuffle(free)

    def take(share: float, forms: Sequence[str]) -> dict[str, str]:
        """Some listings that nothing was done to yet, and one of the forms for each, by turns; every form once at least."""
        number = _share(count, share, count)
        number = max(number, len(forms)) if count >= TRAPS_FROM else number
        taken, free[:] = free[:number], free[number:]
        return {product_id: forms[at % len(forms)] for at, product_id in enumerate(taken)}

    bare, single, repeated = take(0.015, ["none"]), take(0.06, ["one"]), take(0.015, ["same"])
    second_form = take(0.02, BROKEN) | take(0.06, ODD)
    for listing in listings:
        product_id = listing.product_id
        views = 0 if product_id in bare else 1 if product_id in single else 2
        own = [Photo(_uuid(rng), product_id, listing.kind.name, listing.object_seed, view) for view in range(views)]
        if product_id in repeated:
            own[1] = replace(own[1], form="same", source=own[0])
        elif product_id in second_form:
            own[1] = replace(own[1], form=second_form[product_id])
        photos[product_id] = own
    for repost in reposts:
        own, theirs = photos[repost.again.product_id], photos[repost.first.product_id]
        if repost.how == "same photos":
            own[:] = [replace(one, form="same", source=other) for one, other in zip(own, theirs, strict=True)]
        elif repost.how == "near photo":
            own[:] = [replace(own[0], form="near", source=theirs[0]), replace(own[1], view=2)]
    return [photo for own in photos.values() for photo in own]


def _plan_rejects(listings: list[Listing], rng: random.Random) -> list[tuple[str, Listing]]:
    """(reason, record) of the records that no marketplace can keep."""
    rejects = []
    for _ in range(1 + len(listings) // 250 if len(listings) >= TRAPS_FROM else 0):
        unpriced, swapped, repeated, misnumbered = (_new_listing(rng.choice(IN_TURN), rng) for _ in REJECT_REASONS)
        records = (
            replace(unpriced, price=""),
            replace(swapped, price="Swap"),
            replace(repeated, product_id=rng.choice(listings).product_id),
            replace(misnumbered, product_id=misnumbered.product_id[:-3]),
        )
        rejects += zip(REJECT_REASONS, records, strict=True)
    return rejects


def _csv_line(fields: Iterable[object]) -> str:
    """One record as pandas writes it, which leaves a bare carriage return unquoted."""
    texts = [str(field) for field in fields]
    return (
        ",".join('"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n') else text for text in texts) + "\n"
    )


def _csv(header: Sequence[str], records: Iterable[Sequence[str]], rng: random.Random) -> bytes:
    """Records after their row number; the numbers have gaps, as an export's have after rows were dropped from it."""
    lines, number = [_csv_line(["", *header])], 0
    for record in records:
        lines.append(_csv_line([number, *record]))
        number += 1 if rng.random() < 0.9 else rng.randint(2, 4)
    return "".join(lines).encode()


def encode(photo: Photo) -> bytes:
    """The bytes of one photo's file, the same whenever they are asked for."""
    if photo.source is not None:
        original = encode(photo.source)
        if photo.form == "same":
            return original
        image = Image.open(io.BytesIO(original))
        size = round(image.width * 0.9), round(image.height * 0.9)
        return _encoded(image.resize(size, Image.Resampling.LANCZOS), "JPEG", quality=62)
    rng = random.Random(f"{photo.image_id} file")
    if photo.form == "empty":
        return b""
    if photo.form == "text":
        return f"<html><body>404: {photo.image_id}.jpg is gone</body></html>\n".encode()
    side, aspect = rng.randint(*SIDES_PX), rng.choice(ASPECTS)
    size = (side, round(side / aspect)) if aspect >= 1 else (round(side * aspect), side)
    image = drawings.draw(photo.kind, random.Random(photo.object_seed), photo.view, size)
    if photo.form == "png":
        return _encoded(image, "PNG")
    if photo.form in ("cmyk", "grayscale"):
        image = image.convert({"cmyk": "CMYK", "grayscale": "L"}[photo.form])
    exif = Image.Exif()
    if photo.form == "oriented":
        orientation, turn = rng.choice(ORIENTATIONS)
        exif[ORIENTATION_TAG] = orientation
        image = image.transpose(turn)
    data = _encoded(image, "JPEG", quality=rng.randint(72, 93), exif=exif)
    return data[: len(data) // 2] if photo.form == "truncated" else data


def _encoded(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def write(out_dir: Path, listings: int = 390, seed: int = 0) -> dict:
    """Write a marketplace of `listings` listings below `out_dir`; the same arguments give the same bytes.

    From 26 listings on every kind is there, and from 40 on every trap at least once. The records to be rejected come on top of
    `listings`. Returns the true counts; a duplicate group is a set of photos with the same bytes, broken files left out, and
    `photos_without_listing` includes `photos_of_rejected_records`.
    Raises StageError when `out_dir` holds files that this run would not write: they may be a user's own.
    """
    rng = random.Random(f"marketplace {seed}")
    kept, reposts, trapped = _plan_listings(listings, rng)
    photos, rejects = _plan_photos(kept, reposts, rng), _plan_rejects(kept, rng)
    unlisted = [_new_listing(rng.choice(IN_TURN), rng) for _ in range(_share(listings, 0.008, listings))]
    unpriced = [record for reason, record in rejects if reason == "null_price"]
    orphans, of_rejects = (
        [Photo(_uuid(rng), one.product_id, one.kind.name, one.object_seed, 0) for one in group] for group in (unlisted, unpriced)
    )
    records = _in_file_order(kept, rejects, rng)
    order = {record.product_id: position for position, record in enumerate(records)}
    files = sorted(photos + of_rejects, key=lambda photo: order[photo.product_id])
    for orphan in orphans:
        files.insert(rng.randrange(len(files) + 1), orphan)
    header = ("id", "product_name", "category", "product_description", "price", "location")
    tables = {
        "Products.csv": _csv(header, [record.fields() for record in records], rng),
        "Images.csv": _csv(("id", "product_id"), [(photo.image_id, photo.product_id) for photo in files], rng),
    }
    _write_all(Path(out_dir), tables, files)
    rejected = Counter(reason for reason, _ in rejects)
    without = {"photos_without_listing": len(orphans) + len(of_rejects), "photos_of_rejected_records": len(of_rejects)}
    return _count(kept, files) | {"records": len(records), "rejected": dict(sorted(rejected.items()))} | without | trapped


def _count(kept: list[Listing], files: list[Photo]) -> dict:
    forms = Counter(photo.form for photo in files)
    groups = Counter(photo.source.image_id for photo in files if photo.form == "same")
    texts = Counter((listing.title, listing.description) for listing in kept)
    return {
        "listings": len(kept),
        "categories": dict(sorted(Counter(listing.kind.category.split(" / ")[0] for listing in kept).items())),
        "kinds": len({listing.kind.name for listing in kept}),
        "photos": len(files),
        "forms": dict(sorted(forms.items())),
        "broken_files": sum(forms[form] for form in BROKEN),
        "listings_without_photo": len(kept) - len({listing.product_id for listing in kept} & {one.product_id for one in files}),
        "duplicate_groups": len(groups),
        "duplicate_photos": len(groups) + groups.total(),
        "near_duplicate_photos": forms["near"],
        "same_text_listings": len(kept) - len(texts),
        "carriage_returns": sum(listing.description.count("\n") for listing in kept),
    }


def _in_file_order(kept: list[Listing], rejects: list[tuple[str, Listing]], rng: random.Random) -> list[Listing]:
    """All records mixed, a repeated id after the one it repeats."""
    records = list(kept)
    rng.shuffle(records)
    for reason, record in rejects:
        first = next((at for at, other in enumerate(records) if other.product_id == record.product_id), -1)
        records.insert(rng.randint(first + 1, len(records)) if reason == "duplicate_id" else rng.randrange(len(records)), record)
    return records


def _write_all(out_dir: Path, tables: dict[str, bytes], photos: list[Photo]) -> None:
    images_dir, names = out_dir / "images", {f"{photo.image_id}.jpg" for photo in photos}
    for name, data in tables.items():
        if (out_dir / name).exists() and (out_dir / name).read_bytes() != data:
            raise StageError(f"{out_dir / name} holds other data: give an empty folder with --out")
    if images_dir.exists() and (others := {path.name for path in images_dir.iterdir()} - names):
        raise StageError(f"{images_dir} holds {len(others)} other files: give an empty folder with --out")
    images_dir.mkdir(parents=True, exist_ok=True)
    for photo in tqdm(photos, desc="photos", unit="photo", file=sys.stderr, disable=None):
        _write_file(out_dir, images_dir / f"{photo.image_id}.jpg", encode(photo))
    for name, data in tables.items():
        _write_file(out_dir, out_dir / name, data)


def _write_file(temporary_dir: Path, path: Path, data: bytes) -> None:
    temporary = temporary_dir / ".sample.tmp"
    temporary.write_bytes(data)
    os.replace(temporary, path)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo.sample", description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="data/demo/raw", type=Path, help="folder to write to (default: %(default)s)")
    parser.add_argument("--listings", default=390, type=int, help="listings to be kept by the cleaning (default: %(default)s)")
    parser.add_argument("--seed", default=0, type=int, help="another seed, another marketplace (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.listings < 1:
        parser.error("--listings must be at least 1")
    return args


def run(args: argparse.Namespace) -> dict:
    return write(args.out, args.listings, args.seed)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
