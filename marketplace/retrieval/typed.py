"""What a shopper typed -> the words he means: their stems, corrected spellings, synonyms, joined and split forms."""

import csv
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from marketplace.files.stages import StageError
from marketplace.retrieval import analysis
from marketplace.retrieval.spelling import Spelling
from marketplace.retrieval.words import Alternative, WordIndex

SYNONYMS = Path(__file__).with_name("synonyms.csv")
MAX_WORDS = 32  # different ones of a query; the rest is noise
PHRASE_WORDS = 6  # longer queries describe a thing in words of their own: no synonyms, no joined or split words
# Words that tell nothing of what is wanted: the Glasgow list of stop words, as scikit-learn has it, without those that name
# things and their parts ("back", "bottom", "fire", "top"), and with those by which people ask.
FUNCTION_WORDS = frozenset(Path(__file__).with_name("function_words.txt").read_text(encoding="utf-8").split())
FUNCTION_WEIGHT = 0.1  # of such a word's rarity
SYNONYM, CORRECTED, BEGUN = 0.8, 0.7, 0.5  # what a listing that holds it gets, against the word that was typed
COMPOUND_NAMES = 3  # that hold a joined or split form, for it to be one
SPLIT_LETTERS, PART_LETTERS = 7, 3
BEGUN_LETTERS, BEGUN_WORDS = 3, 8
# Endings that make another form of a word that the encoder reads, such as "sharpener": not misspelt.
SUFFIXES = {"##" + ending for ending in re.findall(r"\w+", "s es er ers or ors ing ed y ly less able ful ness ment")}


@dataclass(frozen=True)
class TypedWord:
    """text: as typed; exact: the form that is looked for, the corrected one where nothing holds what was typed; rarity: its
    inverse document frequency; is_held: whether any listing holds one of its alternatives; is_function: a word such as "for";
    alternatives: the first is the word's own stem."""

    text: str
    exact: str
    rarity: float
    is_held: bool
    is_function: bool
    alternatives: tuple[Alternative, ...]


@dataclass(frozen=True)
class TypedQuery:
    """words: different ones, in order; sequence: all exact forms as typed; meanings: texts that mean the query, for an encoder,
    its own first."""

    words: tuple[TypedWord, ...]
    sequence: tuple[str, ...]
    meanings: tuple[str, ...]

    @property
    def content(self) -> list[int]:
        """Places of the words that tell what is wanted: all but function words, unless there are no others."""
        found = [place for place, word in enumerate(self.words) if not word.is_function]
        return found or list(range(len(self.words)))

    @property
    def required(self) -> list[TypedWord]:
        """The content words that any listing holds."""
        return [self.words[place] for place in self.content if self.words[place].is_held]

    @property
    def held_share(self) -> float:
        """The share of the content words' rarity that is of words which any listing holds."""
        rarity = sum(self.words[place].rarity for place in self.content)
        return sum(word.rarity for word in self.required) / max(rarity, 1e-9)

    @property
    def corrections(self) -> dict[str, str]:
        """Misspelt words -> what was read instead."""
        return {
            word.text: alternative.text
            for word in self.words
            for alternative in word.alternatives
            if alternative.how == "corrected"
        }


class Synonyms:
    """Groups of words and phrases that mean the same."""

    def __init__(self, groups: Sequence[Sequence[str]]):
        self._others: dict[tuple[str, ...], list[str]] = defaultdict(list)
        self.words: set[str] = set()
        for group in groups:
            phrases = {phrase: _stems(analysis.split(phrase)) for phrase in group}
            for phrase, stems in phrases.items():
                self.words.update(analysis.split(phrase))
                others = [other for other in group if other != phrase and other not in self._others[stems]]
                self._others[stems] += others
        self._longest = max(map(len, self._others), default=0)

    @classmethod
    def read(cls, *paths: Path) -> "Synonyms":
        """Of CSV files, each line a group. Raises StageError for a file that is none, or a word alone on its line."""
        return cls([group for path in paths for group in _groups(path)])

    def of_phrase(self, stems: tuple[str, ...]) -> list[str]:
        return self._others.get(stems, [])

    def found_in(self, stems: Sequence[str]) -> Iterator[tuple[int, int, str]]:
        """Start and end of each phrase that has synonyms, the longest first from the left, with each synonym."""
        start = 0
        while start < len(stems):
            ends = range(min(start + self._longest, len(stems)), start, -1)
            end = next((end for end in ends if tuple(stems[start:end]) in self._others), None)
            if end is not None:
                yield from ((start, end, synonym) for synonym in self.of_phrase(tuple(stems[start:end])))
            start = end or start + 1


def _groups(path: Path) -> Iterator[list[str]]:
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error):
        raise StageError(f"{path} is no CSV file in UTF-8: save it as one") from None
    for number, line in enumerate(lines, start=1):
        group = [cell.strip() for cell in line if cell.strip()]
        if len(group) == 1:
            raise StageError(f'{path} line {number} holds "{group[0][:100]}" alone: add what means the same, after a comma')
        if group:
            yield group


class Reader:
    """Reads queries by the words of one generation; safe to use from many threads."""

    def __init__(self, index: WordIndex, synonyms: Synonyms, pieces: Callable[[str], list[str]] | None = None):
        """pieces: of a word, as the encoder's tokenizer splits it; None without one."""
        self._index, self._synonyms, self._pieces = index, synonyms, pieces
        self._spelling = Spelling(index.name_words, index.frequency, len(index))

    def over(self, index: WordIndex) -> "Reader":
        """The same reader by the words of another view of the generation."""
        return Reader(index, self._synonyms, self._pieces)

    def read(self, text: str) -> TypedQuery:
        sequence = analysis.split(text)
        typed = list(dict.fromkeys(sequence))[:MAX_WORDS]
        corrected = {word: correction for word in typed if (correction := self._correct(word))}
        read = [corrected.get(word, word) for word in sequence]
        own = " ".join(word if self._index.frequency(word) else corrected.get(word, word) for word in sequence)
        more: dict[str, list[Alternative]] = defaultdict(list)
        meanings = [own]
        if len(sequence) <= PHRASE_WORDS:
            for start, end, alternative in [*self._phrases(read), *self._compounds(sequence, read)]:
                for word in sequence[start:end]:
                    more[word].append(alternative)
                meanings.append(" ".join([*read[:start], alternative.text, *read[end:]]))
        found = [self._word(word, corrected.get(word), more[word]) for word in typed]
        return TypedQuery(tuple(found), tuple(sequence), tuple(dict.fromkeys(meanings)))

    def _correct(self, word: str) -> str | None:
        """The word that was meant by a misspelt one; None for one that the encoder or the synonyms know."""
        if word in self._synonyms.words or self._is_read(word) or self._is_read(analysis.stem(word)):
            return None
        correction = self._spelling.correct(word)
        return None if correction is None or analysis.stem(correction) == analysis.stem(word) else correction

    def _is_read(self, word: str) -> bool:
        if self._pieces is None:
            return False
        pieces = self._pieces(word)
        return len(pieces) == 1 or (len(pieces) == 2 and len(pieces[0]) >= 4 and pieces[1] in SUFFIXES)

    def _phrases(self, read: list[str]) -> Iterator[tuple[int, int, Alternative]]:
        for start, end, synonym in self._synonyms.found_in(_stems(read)):
            yield start, end, Alternative(_stems(analysis.split(synonym)), SYNONYM, "synonym", synonym)

    def _compounds(self, sequence: list[str], read: list[str]) -> Iterator[tuple[int, int, Alternative]]:
        """Two words that names write as one, with its synonyms; one word that names write as two."""
        for place in range(len(read) - 1):
            joined = read[place] + read[place + 1]
            if self._index.names_with((analysis.stem(joined),)) >= COMPOUND_NAMES and self._index.frequency(joined):
                yield place, place + 2, Alternative((analysis.stem(joined),), SYNONYM, "joined", joined)
                for synonym in self._synonyms.of_phrase((analysis.stem(joined),)):
                    yield place, place + 2, Alternative(_stems(analysis.split(synonym)), SYNONYM, "synonym", synonym)
        for place, word in enumerate(sequence):
            if len(word) < SPLIT_LETTERS or not word.isalpha():
                continue
            for at in range(PART_LETTERS, len(word) - PART_LETTERS + 1):
                parts = (word[:at], word[at:])
                if all(map(self._index.frequency, parts)) and self._index.names_with(_stems(parts)) >= COMPOUND_NAMES:
                    yield place, place + 1, Alternative(_stems(parts), SYNONYM, "split", " ".join(parts))

    def _word(self, word: str, correction: str | None, more: list[Alternative]) -> TypedWord:
        stem, index = analysis.stem(word), self._index
        own_frequency = index.frequency(word)
        frequency = own_frequency or index.stem_frequency(stem)
        alternatives = [Alternative((stem,), 1.0, "", word)]
        if correction is not None:
            corrected_stem = analysis.stem(correction)
            alternatives.append(Alternative((corrected_stem,), CORRECTED if frequency else 1.0, "corrected", correction))
            frequency = frequency or index.stem_frequency(corrected_stem)
        alternatives += more
        if not frequency and len(word) >= BEGUN_LETTERS:
            for begun in index.words_beginning(word, BEGUN_WORDS):
                alternatives.append(Alternative((begun,), BEGUN, "begun", word))
        # What nothing holds is as rare as can be.
        n = len(index)
        rarity = math.log(1 + (n - frequency + 0.5) / (frequency + 0.5))
        is_held = any(map(self._index.holds, (alternative.stems for alternative in alternatives)))
        exact = word if own_frequency or correction is None else correction
        return TypedWord(word, exact, rarity, is_held, word in FUNCTION_WORDS, tuple(alternatives))


def _stems(some: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(analysis.stem, some))
