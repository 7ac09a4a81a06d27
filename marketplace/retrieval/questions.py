"""The questions that shoppers ask, made from a catalogue's own listings, and how right each listing is as an answer."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

from marketplace.cleaning.listings import category_levels

WORD = "[a-z0-9]+"
RAREST = ("rarest_1", "rarest_2", "rarest_3")  # how the one listing is looked for: the rarest words of its title
KINDS = (*RAREST, "title", "words", "category", "misspelt")
ASKED_FOR, ALIKE, SAME_MAIN = 3, 2, 1  # the grades of answers, above 0
RIGHT = ALIKE  # a shopper calls an answer right from this grade on
MOST_WORDS = 4  # of a title, in a question of some of its words
COMMON = 5  # names that hold a word at least, for a person to mean it by a misspelt one
MISSPELT_LETTERS = 4  # of a word at least: shorter ones with an error in them are other words
ATTEMPTS = 10  # to misspell one word as no name spells it
KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
NEIGHBOURS = {row[i]: row[max(i - 1, 0) : i] + row[i + 1 : i + 2] for row in KEYBOARD for i in range(len(row))}


@dataclass(frozen=True)
class Question:
    """What a shopper types, and what for.

    kind: one of KINDS, or another name for a question without words (a photo, a listing); words: as typed; meant: the words that
    a right answer holds, spelt right; row: of the listing asked for, None where a leaf category is; category: that one's name.
    """

    kind: str
    words: str
    meant: tuple[str, ...] = ()
    row: int | None = None
    category: str | None = None


def split(text: str) -> list[str]:
    """The words of a text, as the plainest search has them."""
    return re.findall(WORD, text.lower())


class ListingWords:
    """The words, categories and folds of a catalogue's P listings."""

    def __init__(self, names: Sequence[str], descriptions: Sequence[str], categories: Sequence[str], folds: np.ndarray):
        """categories: paths "A / B / C"; folds: (P,) codes, one for the listings that answers show as one."""
        self.titles = [list(dict.fromkeys(split(name))) for name in names]
        self.names = list(names)
        counter = CountVectorizer(token_pattern=WORD, dtype=np.int32)
        # A last text with a word: the counter refuses texts of which none has any, such as those in another alphabet.
        counts = counter.fit_transform([*names, *descriptions, "0"]).tocsr()[:-1]
        self.vocabulary: dict[str, int] = counter.vocabulary_
        self.in_name, self.in_description = counts[: len(names)].tocsc(), counts[len(names) :].tocsc()
        self._anywhere = (self.in_name + self.in_description).tocsc()
        self._names_holding, self._holding = (np.diff(held.indptr) for held in (self.in_name, self._anywhere))
        levels = [category_levels(path) for path in categories]
        self._leaves = np.array([level[-1] for level in levels], object)
        self._paths, self._mains = _codes(categories), _codes(level[0] for level in levels)
        self._same_title = _codes(" ".join(split(name)) for name in names)
        self._folds = np.asarray(folds)

    def __len__(self) -> int:
        return len(self.names)

    def holding(self, word: str) -> int:
        """How many listings hold a word, in their name or description."""
        return int(self._holding[self.vocabulary[word]]) if word in self.vocabulary else 0

    def names_holding(self, word: str) -> int:
        return int(self._names_holding[self.vocabulary[word]]) if word in self.vocabulary else 0

    def holders(self, words: Collection[str]) -> np.ndarray:
        """Rows of the listings that hold all the words, in their name or description, ascending."""
        if not words or not all(word in self.vocabulary for word in words):
            return np.empty(0, np.int64)
        chosen = self._anywhere[:, [self.vocabulary[word] for word in set(words)]]
        return np.flatnonzero(chosen.astype(bool).sum(axis=1) == len(set(words)))

    def asked_for(self, question: Question) -> np.ndarray:
        """(P,) bool: the listing asked for, those folded into it and those of its title; or those of the category's name."""
        if question.row is None:
            return self._leaves == question.category
        return (self._folds == self._folds[question.row]) | (self._same_title == self._same_title[question.row])

    def grades(self, question: Question) -> np.ndarray:
        """(P,) int8 of every listing as an answer: ASKED_FOR; ALIKE, another that holds all the words meant or is of the same
        leaf category; SAME_MAIN, of the same main category; 0."""
        grades = np.zeros(len(self), np.int8)
        asked_for = self.asked_for(question)
        own = asked_for if question.row is None else [question.row]
        grades[np.isin(self._mains, self._mains[own])] = SAME_MAIN
        grades[np.isin(self._paths, self._paths[own])] = ALIKE
        grades[self.holders(question.meant)] = ALIKE
        grades[asked_for] = ASKED_FOR
        return grades

    def leaf_names(self, rows: Sequence[int]) -> list[str]:
        """The leaf categories of some listings by name, sorted, without "Other ...", which nobody types."""
        return sorted({name for name in self._leaves[list(rows)] if not name.lower().startswith("other")})


def _codes(values: Iterable[str]) -> np.ndarray:
    return pd.factorize(np.array(list(values), object))[0]


def ask(listings: ListingWords, rows: Sequence[int], seed: int = 0, kinds: Collection[str] = KINDS) -> list[Question]:
    """Questions for the listings of `rows`: at most one of each kind for each listing, and one for each of their leaf categories.

    words: 1 to MOST_WORDS of the title's, drawn, rare or common; rarest_N: its N rarest words, for titles of so many; title: all
    of it; category: the leaf's name; misspelt: a word that names commonly hold, with an error, sometimes with a word beside it.
    What a kind asks depends on the seed, not on the other kinds.
    """
    questions = []
    for kind in (kind for kind in KINDS if kind in kinds):
        generator = np.random.default_rng([seed, KINDS.index(kind)])
        if kind == "category":
            names = listings.leaf_names(rows)
            questions += [Question(kind, name, tuple(dict.fromkeys(split(name))), category=name) for name in names]
            continue
        for row in rows:
            typed, meant = _words_of(kind, listings, int(row), generator)
            if typed:
                questions.append(Question(kind, typed, meant, int(row)))
    return questions


def _words_of(kind: str, listings: ListingWords, row: int, generator: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    """What a question of one kind for a listing types, and the words meant; "" where its title gives no such question."""
    title = listings.titles[row]
    if kind == "misspelt":
        return _misspelt(listings, title, generator)
    if kind == "title":
        return (listings.names[row] if title else ""), tuple(title)
    if kind == "words":
        telling = [word for word in title if word not in ENGLISH_STOP_WORDS] or title
        size = min(int(generator.integers(1, MOST_WORDS + 1)), len(telling))
        chosen = [telling[i] for i in np.sort(generator.permutation(len(telling))[:size])]
    else:
        size = RAREST.index(kind) + 1
        by_rarity = sorted(title, key=listings.holding)  # of equally rare ones the first
        chosen = [word for word in title if word in by_rarity[:size]] if len(title) >= size else []
    return " ".join(chosen), tuple(chosen)


def _misspelt(listings: ListingWords, title: list[str], generator: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    common = [
        i
        for i, word in enumerate(title)
        if len(word) >= MISSPELT_LETTERS
        and word.isalpha()
        and word not in ENGLISH_STOP_WORDS
        and listings.names_holding(word) >= COMMON
    ]
    if not common:
        return "", ()
    position = int(generator.choice(common))
    for _ in range(ATTEMPTS):
        typed = misspell(title[position], generator)
        if not listings.names_holding(typed) and typed not in ENGLISH_STOP_WORDS:
            break
    else:
        return "", ()
    meant = title[position : position + 1 + int(generator.integers(2))]
    return " ".join([typed, *meant[1:]]), tuple(meant)


def misspell(word: str, generator: np.random.Generator) -> str:
    """A word of two letters at least with one error after its first letter: two letters swapped, one dropped, one doubled, or
    the key beside the right one. The first letter is right, as it nearly always is."""
    i = int(generator.integers(1, len(word)))
    swapped = word[: i - 1] + word[i] + word[i - 1] + word[i + 1 :] if i > 1 else word
    dropped, doubled = word[:i] + word[i + 1 :], word[:i] + word[i] + word[i:]
    beside = NEIGHBOURS.get(word[i], "")
    mistyped = word[:i] + beside[int(generator.integers(len(beside)))] + word[i + 1 :] if beside else word
    wrong = [other for other in (swapped, dropped, doubled, mistyped) if other != word]
    return wrong[int(generator.integers(len(wrong)))]
