"""What a bucket serves, copied to a folder of this machine that follows it: current.json, the generation, hidden.json."""

import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from marketplace.files import atomic, bucket, generations, hidden, locks, progress, reading, s3, stages
from marketplace.files.stages import StageError

AT_ONCE = 4  # files; boto3 copies each in parts, over ten threads
MOST_SKIPPED = 30  # polls after failures

log = logging.getLogger("marketplace")


class Mirror:
    """A copy of what the bucket at `uri` serves in `index_dir`, which several processes of one machine may share.

    photos_dir: of copies of photos, of which those go that the served generation has not. is_begun: whether another process has
    called begin(), whose copy is taken as it is.
    """

    def __init__(self, uri: str, index_dir: Path, photos_dir: Path, is_begun: bool = False):
        self._uri, self._index_dir, self._photos_dir, self._is_begun = uri, index_dir, photos_dir, is_begun
        self._seen: str | None = None  # ETag of current.json
        self._hidden_seen: str | None = None
        self._told: dict[str, str] = {}  # what is followed -> the last sentence about a failure
        self._failures, self._skipped, self._failure = 0, 0, ""

    def begin(self) -> None:
        """Copy what is served; where the bucket cannot be read, an earlier copy will do. Raises StageError when there is none."""
        if self._is_begun and self._current() is not None:
            return
        if (self._index_dir / stages.MANIFEST).exists():
            raise StageError(f"{self._index_dir} is where build_index.py writes: give another --cache")
        self._index_dir.mkdir(parents=True, exist_ok=True)
        try:
            with locks.wait_for(self._index_dir / locks.LOCK):
                self._follow_hidden()
                self._follow(is_first=True)
        except StageError as error:
            if self._current() is None:
                raise
            self._tell("generation", f"{error}; generation {self._current()}, copied earlier, is served")

    def poll(self) -> bool:
        """Follow the generation, unless another process is about it; False, and once a sentence in the log, where that fails."""
        failure = ""
        try:
            with locks.hold(self._index_dir, exclusive=True):
                try:
                    self._follow_with_pauses()
                except (StageError, OSError) as error:
                    failure = f"{error}; what was copied goes on being served"
        except locks.Locked:
            return True
        except OSError as error:  # the folder has been taken away
            failure = f"{error}; what was copied cannot follow {self._uri}: start the service again"
        self._tell("generation", failure)
        return not failure

    def poll_hidden(self) -> bool:
        """As poll() which listings are hidden, also while a generation is being copied, which may take minutes."""
        failure = ""
        try:
            self._follow_hidden()
        except (StageError, OSError) as error:
            failure = f"{error}; the same listings as before stay hidden"
        self._tell("hidden", failure)
        return not failure

    def look(self) -> None:
        """Follow both now, whatever failed before; raises StageError where that cannot be."""
        try:
            self._follow_hidden()
            with locks.hold(self._index_dir, exclusive=True):
                self._follow()
        except locks.Locked:
            raise StageError(
                f"another process of this machine is copying from {self._uri}: it will be served by itself"
            ) from None
        except OSError as error:
            raise StageError(f"{error}; what was copied goes on being served") from None

    def _follow_with_pauses(self) -> None:
        """After failures wait for more and more polls: a copy that fails at its end would take the whole of it each time."""
        if self._skipped < min(self._failures, MOST_SKIPPED):
            self._skipped += 1
            raise StageError(self._failure)
        try:
            self._follow()
        except (StageError, OSError) as error:
            self._failures, self._skipped, self._failure = 2 * self._failures + 1, 0, str(error)
            raise
        self._failures = 0

    def change_hidden(self, ids: list[str], hide: bool, find: hidden.Find) -> frozenset[str]:
        """Hide listings, or show them again, in the bucket and in this copy."""
        left = bucket.change_hidden(self._uri, ids, hide, find)
        try:
            self._copy_hidden()
        except StageError:  # the bucket is gone since, and has it
            with hidden.locked(self._index_dir):
                hidden.write(self._index_dir, left)
        return left

    def _tell(self, followed: str, failure: str) -> None:
        if failure and failure != self._told.get(followed):
            log.error("%s", failure)
        self._told[followed] = failure

    def _follow_hidden(self) -> None:
        with contextlib.suppress(s3.Unchanged):
            bucket.read_hidden(self._uri, self._hidden_seen)
            self._copy_hidden()

    def _follow(self, is_first: bool = False) -> None:
        with contextlib.suppress(s3.Unchanged):
            contents, etag = bucket.read_served(self._uri, self._seen)
            self._copy(contents, is_first)
            generations.keep_only(self._index_dir, contents.generations)
            self._keep_photos_of(contents.generation)
            self._seen = etag

    def _copy_hidden(self) -> None:
        """Under the lock of who writes the copy: what one of them read earlier must not take the place of what came later."""
        with hidden.locked(self._index_dir):
            ids, etag = bucket.read_hidden(self._uri)
            if etag is None:
                bucket.read_served(self._uri)  # where all is gone, nobody has shown every listing again
                (self._index_dir / hidden.FILE).unlink(missing_ok=True)
            else:
                hidden.write(self._index_dir, ids)
            self._hidden_seen = etag

    def _copy(self, contents: bucket.Contents, checks: bool) -> None:
        """checks: whether a generation that is there may be damaged, as nobody has looked at it since."""
        name = contents.generation
        folder, files = self._index_dir / name, contents.generations[name].files
        if folder.is_dir() and checks and not _is_whole(folder, files):
            generations.remove(folder)
        if not folder.is_dir():
            progress.begin(f"copy generation {name} from {self._uri}")
            with generations.new_generation(self._index_dir, name) as temporary:
                self._fill(temporary, files)
                with contextlib.suppress(StageError):  # it must not show for a moment what was hidden while it was copied
                    self._follow_hidden()
            return
        if stages.digest(folder / bucket.PHOTO_DIGESTS) != files[bucket.PHOTO_DIGESTS]:  # published again, with other photos
            with atomic.atomic_path(folder / bucket.PHOTO_DIGESTS) as temporary:
                self._download(files[bucket.PHOTO_DIGESTS], temporary)
        if self._current() != name:
            generations.publish(self._index_dir, name)

    def _keep_photos_of(self, generation: str) -> None:
        paths = [path for path in self._photos_dir.glob("*.jpg") if bucket.SHA256.fullmatch(path.stem)]
        digests = reading.read_array(self._index_dir / generation / bucket.PHOTO_DIGESTS)
        copied = np.array([bytes.fromhex(path.stem) for path in paths], "S32")
        for gone in np.flatnonzero(~np.isin(copied, digests.reshape(-1, 32).view("S32"))):
            paths[gone].unlink(missing_ok=True)

    def _current(self) -> str | None:
        """The generation that the copy serves."""
        with contextlib.suppress(StageError):
            return generations.current_generation(self._index_dir).name
        return None

    def _fill(self, folder: Path, files: dict[str, str]) -> None:
        """Link what the generation before has, and copy the rest. Raises StageError where a copy is not what it should be."""
        there = {}
        with contextlib.suppress(StageError):
            before = generations.current_generation(self._index_dir)
            names = [path for path in generations.files_of(before) if path in files]
            there = {digest: before / path for path, digest in stages.digests(before, *names).items()}

        def bring(path: str) -> None:
            target, digest = folder / path, files[path]
            target.parent.mkdir(parents=True, exist_ok=True)
            if digest in there:
                generations.link(there[digest], target)
                return
            self._download(digest, target)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(bring, files))

    def _download(self, digest: str, target: Path) -> None:
        s3.download(bucket.blob_uri(self._uri, digest), target)
        if stages.digest(target) != digest:
            raise StageError(f"{bucket.blob_uri(self._uri, digest)} is damaged: delete it, and publish again")


def _is_whole(folder: Path, files: dict[str, str]) -> bool:
    try:
        return stages.digests(folder, *files) == files
    except StageError:
        return False
