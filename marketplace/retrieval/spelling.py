"""Misspelt words of a query -> the words of the catalogue's names that were meant."""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable

from rapidfuzz import process
from rapidfuzz.distance import OSA

MIN_LETTERS, MAX_LETTERS = 4, 24  # shorter words have too many neighbours; longer ones are not typed from memory
TWO_EDITS_LETTERS = 7  # from here on a word that nothing holds may differ by two edits, the first letter right
RARE_LISTINGS = 5  # a word that as many listings hold is no misspelling; at least, and
RARE_SHARE = 1 / 2000  # of the listings
COMMON_NAMES = 3  # a correction is a word that as many names hold, and as many listings as a rare word's;
COMMON_TIMES = 10  # and so many times as many as hold the word that was typed


class Spelling:
    """Corrections by the words that names hold; safe to use from many threads."""

    def __init__(self, name_words: Callable[[], Iterable[tuple[str, int]]], frequency: Callable[[str], int], listings: int):
        """name_words: words of names in their exact form, those of deleted listings among them, with the number of names that
        hold each, asked for once, when a word is first looked up; frequency: in how many listings a word is; listings: how many
        there are."""
        self._name_words, self._frequency = name_words, frequency
        self._rare = max(RARE_LISTINGS, int(listings * RARE_SHARE))
        self.correct = functools.lru_cache(maxsize=10_000)(self._correct)

    @functools.cached_property
    def _by_length(self) -> dict[int, dict[str, int]]:
        grouped: dict[int, dict[str, int]] = defaultdict(dict)
        for word, count in self._name_words():
            if word.isalpha() and MIN_LETTERS - 1 <= len(word) <= MAX_LETTERS + 2:
                grouped[len(word)][word] = count
        return grouped

    def _correct(self, word: str) -> str | None:
        """The word that was meant: the nearest, then one of the same letters, then the commonest; None where the word stands.

        Edits are counted as optimal string alignment: a neighbouring pair of letters turned round is one.
        """
        if not (MIN_LETTERS <= len(word) <= MAX_LETTERS and word.isalpha()) or (held := self._frequency(word)) >= self._rare:
            return None
        if not held and self._is_begun(word):
            return None
        edits = 2 if len(word) >= TWO_EDITS_LETTERS and not held else 1
        near = self._near(word, edits)
        least = max(self._rare, COMMON_TIMES * held)
        common = [entry for entry in near if near[entry][2] <= -COMMON_NAMES and self._frequency(entry) >= least]
        if not common and not held:  # a brand that few sell
            common = [entry for entry in near if near[entry][0] == 1 and len(entry) >= MIN_LETTERS and self._frequency(entry)]
        return min(common, key=near.__getitem__, default=None)

    def _is_begun(self, word: str) -> bool:
        """Whether a word that names commonly hold begins so: then it is not misspelt, but unfinished."""
        longer = (counts.items() for letters, counts in self._by_length.items() if letters > len(word))
        begun = (other for other, count in itertools.chain(*longer) if count >= COMMON_NAMES and other.startswith(word))
        return any(self._frequency(other) >= COMMON_NAMES for other in begun)  # of those that are not gone

    def _near(self, word: str, edits: int) -> dict[str, tuple]:
        """Words within some edits -> what they are ordered by: edits, whether letters differ, minus the names that hold them."""
        near = {}
        for letters in range(len(word) - edits, len(word) + edits + 1):
            counts = self._by_length.get(letters, {})
            for other, distance, _ in process.extract(word, counts.keys(), scorer=OSA.distance, score_cutoff=edits, limit=None):
                if distance == 1 or other[0] == word[0]:
                    near[other] = (distance, sorted(other) != sorted(word), -counts[other], other)
        near.pop(word, None)
        return near
