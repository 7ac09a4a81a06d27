"""Take listings down at once, whatever is served, or show them again.

Reads   data/index/ (the published generation, whose listings are named by their ids)
Writes  data/index/hidden.json, which a running API follows within two seconds
Run     python hide.py ID ID ...            in no answer from now on, until they are shown again or gone from the table
        python hide.py --unhide ID ID ...
        python hide.py --list
        python hide.py --data s3://my-bucket/index ID   of what build_index.py --publish brought there, wherever it is served
"""

import argparse
import functools
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from marketplace.cleaning.listings import canonical_id
from marketplace.files import bucket, cli, generations, hidden, s3
from marketplace.files.stages import StageError
from marketplace.retrieval import catalogue


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", help="folder of all stages, or s3:// URI of an index (default: %(default)s)")
    parser.add_argument("ids", nargs="*", type=canonical_id, metavar="ID", help="a listing's id")
    parser.add_argument("--unhide", action="store_true", help="show these listings again")
    parser.add_argument("--list", action="store_true", help="print the ids of all hidden listings, one a line")
    args = parser.parse_args(argv)
    if args.list and (args.ids or args.unhide):
        parser.error("argument --list: goes with neither ids nor --unhide")
    if not args.list and not args.ids:
        parser.error("give at least one id, or --list")
    return args


def run(args: argparse.Namespace) -> dict:
    uri = args.data.rstrip("/") if s3.is_s3(args.data) else None
    index_dir = Path(args.data) / "index"
    if args.list:
        bucket.read_served(uri) if uri else generations.current_generation(index_dir)  # a mistyped place hides nothing either
        for product_id in sorted(bucket.read_hidden(uri)[0] if uri else hidden.read(index_dir)):
            print(product_id)
        return {}
    try:
        if uri:
            left = bucket.change_hidden(uri, args.ids, not args.unhide, functools.partial(find_in_bucket, uri))
        else:
            find = functools.partial(catalogue.find_ids, generations.current_generation(index_dir))
            left = hidden.change(index_dir, args.ids, not args.unhide, find)
    except hidden.UnknownIds as error:
        raise StageError(f"{error}: nothing was changed") from None
    return {"hidden": len(left)}


def find_in_bucket(uri: str, ids: Collection[str]) -> set[str]:
    """Those of some ids that the listings served from a bucket have."""
    contents, _ = bucket.read_served(uri)
    with tempfile.TemporaryDirectory() as folder:
        digest = contents.generations[contents.generation].files[catalogue.DATABASE]
        s3.download(bucket.blob_uri(uri, digest), Path(folder) / catalogue.DATABASE)
        return catalogue.find_ids(Path(folder), ids)


def main(argv=None) -> int:
    return cli.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
