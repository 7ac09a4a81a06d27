"""How much of a typed query's words each listing holds: in its name or anywhere, as typed or by what they mean."""

from dataclasses import dataclass

import numpy as np

from marketplace.retrieval import forward
from marketplace.retrieval.forward import ListingWords
from marketplace.retrieval.typed import FUNCTION_WEIGHT, TypedQuery
from marketplace.retrieval.words import Alternative

# BM25 over a text whose name counts twice. Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework".
K1, B, NAME_TIMES = 1.2, 0.75, 2
CATEGORY_CREDIT = 0.8  # of a word that only a listing's category holds


@dataclass(frozen=True)
class Matches:
    """Of N listings, each (N,) in [0, 1].

    name_typed, name_meant, text_typed, text_meant: the share of the words' rarity that the name, or name and description, hold as
    typed, or by the best of their alternatives. all_...: 1 where every content word is held as typed; by alternatives, the least
    credit among them. bm25: of the best that the query's words could score. coverage: the share of the name's words that the
    query means. same_title: 1 where the name is the query. held: the share of the rarity, words that nothing holds among it, of
    content words that name, description or category hold. required: (words, N) bool, which of TypedQuery.required these hold.
    """

    name_typed: np.ndarray
    name_meant: np.ndarray
    text_typed: np.ndarray
    text_meant: np.ndarray
    all_name_typed: np.ndarray
    all_name_meant: np.ndarray
    all_text_typed: np.ndarray
    all_text_meant: np.ndarray
    bm25: np.ndarray
    coverage: np.ndarray
    same_title: np.ndarray
    held: np.ndarray
    required: np.ndarray


def match(
    query: TypedQuery, listing: ListingWords, categories: np.ndarray, category_stems: list[frozenset[int]], mean_length: float
) -> Matches:
    """categories: (N,) codes of the listings' own, -1 for none; category_stems: of each code the codes of its stems; mean_length:
    of all listings' texts, in words, the name's counted NAME_TIMES."""
    n = len(listing.lengths)
    exact_codes = forward.codes_of([word.exact for word in query.words])
    in_name, anywhere = _counts(listing.exact, exact_codes, listing, n)
    all_stems = sorted({stem for word in query.words for alternative in word.alternatives for stem in alternative.stems})
    stem_codes = forward.codes_of(all_stems)
    stems_in_name, stems_anywhere = _counts(listing.stems, stem_codes, listing, n)
    different, which = np.unique(categories, return_inverse=True)
    said = [category_stems[code] if code >= 0 else frozenset() for code in different.tolist()]
    of_category = np.array([[code in stems for stems in said] for code in stem_codes.tolist()], bool)
    of_category = of_category.reshape(len(all_stems), len(said))[:, which]
    place_of = {stem: place for place, stem in enumerate(all_stems)}

    name_credit, text_credit, category_credit = (
        _credits(query, place_of, presence) for presence in (stems_in_name > 0, stems_anywhere > 0, of_category)
    )
    rarity = np.array([word.rarity * (FUNCTION_WEIGHT if word.is_function else 1) for word in query.words], np.float32)
    is_held = np.array([word.is_held for word in query.words])
    content = np.zeros(len(query.words), bool)
    content[query.content] = True
    wanted = content & is_held
    weights = rarity * is_held / max(float(rarity @ is_held), 1e-9)
    content_weights = rarity * content / max(float(rarity @ content), 1e-9)

    anywhere_credit = np.maximum(text_credit, CATEGORY_CREDIT * category_credit)

    def all_of(credit: np.ndarray) -> np.ndarray:
        return credit[wanted].min(axis=0) if wanted.any() else np.zeros(n, np.float32)

    return Matches(
        name_typed=weights @ (in_name > 0),
        name_meant=weights @ name_credit,
        text_typed=weights @ (anywhere > 0),
        text_meant=weights @ text_credit,
        all_name_typed=all_of((in_name > 0).astype(np.float32)),
        all_name_meant=all_of(name_credit),
        all_text_typed=all_of((anywhere > 0).astype(np.float32)),
        all_text_meant=all_of(text_credit),
        bm25=_bm25(in_name, anywhere, listing, weights, mean_length),
        coverage=_coverage(listing, stem_codes, n),
        same_title=_same_title(query, listing, n),
        held=content_weights @ anywhere_credit,
        required=anywhere_credit[wanted] > 0,
    )


def explain(query: TypedQuery, listing: ListingWords) -> list[dict[str, Alternative]]:
    """For each listing the content words that its name or description holds, and by which alternative: the best."""
    held: list[set[int]] = [set() for _ in listing.lengths]
    options_of = {
        word.text: [(set(forward.codes_of(one.stems).tolist()), one) for one in sorted(word.alternatives, key=_by_credit)]
        for word in query.required
    }
    wanted = np.array(sorted({code for options in options_of.values() for codes, _ in options for code in codes}), np.uint32)
    near = np.flatnonzero(np.isin(listing.stems, wanted))
    for row, stem in zip(listing.listing[near].tolist(), listing.stems[near].tolist(), strict=True):
        held[row].add(stem)
    explained: list[dict[str, Alternative]] = [{} for _ in held]
    for text, options in options_of.items():
        for found, stems in zip(explained, held, strict=True):
            if (best := next((one for codes, one in options if codes <= stems), None)) is not None:
                found[text] = best
    return explained


def _by_credit(alternative: Alternative) -> float:
    return -alternative.credit


def _counts(codes: np.ndarray, wanted: np.ndarray, listing: ListingWords, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(wanted, n) how often each wanted code is in each listing's name, and in its whole text."""
    # Of many words few are wanted: their last 16 bits tell most others apart in a table that fits the processor's cache.
    maybe = np.zeros(1 << 16, bool)
    maybe[wanted & 0xFFFF] = True
    near = np.flatnonzero(maybe[codes & 0xFFFF])
    order = np.argsort(wanted)
    places = np.minimum(np.searchsorted(wanted, codes[near], sorter=order), len(wanted) - 1)
    found = wanted[order][places] == codes[near]
    near = near[found]
    cells = order[places[found]] * n + listing.listing[near]
    size, shape = len(wanted) * n, (len(wanted), n)
    return tuple(np.bincount(some, minlength=size).reshape(shape) for some in (cells[listing.in_name[near]], cells))


def _credits(query: TypedQuery, place_of: dict[str, int], presence: np.ndarray) -> np.ndarray:
    """(words, n) the credit of the best alternative of each word whose stems are all there. presence: (stems, n) bool."""
    found = np.zeros((len(query.words), presence.shape[1]), np.float32)
    for row, word in zip(found, query.words, strict=True):
        for alternative in word.alternatives:
            every = presence[[place_of[stem] for stem in alternative.stems]].all(axis=0)
            np.maximum(row, alternative.credit * every, out=row)
    return found


def _bm25(
    in_name: np.ndarray, anywhere: np.ndarray, listing: ListingWords, weights: np.ndarray, mean_length: float
) -> np.ndarray:
    frequency = anywhere + (NAME_TIMES - 1) * in_name
    length = listing.lengths @ [NAME_TIMES, 1]
    # As a share of K1 + 1, which a word's weight is multiplied with at most.
    return weights @ (frequency / (frequency + K1 * (1 - B + B * length / mean_length)))


def _coverage(listing: ListingWords, stem_codes: np.ndarray, n: int) -> np.ndarray:
    names = listing.listing[listing.in_name]
    meant = np.isin(listing.stems[listing.in_name], stem_codes)
    return np.bincount(names[meant], minlength=n) / np.maximum(listing.lengths[:, 0], 1)


def _same_title(query: TypedQuery, listing: ListingWords, n: int) -> np.ndarray:
    sequence = forward.codes_of(query.sequence)
    same = np.zeros(n)
    starts = np.concatenate([[0], listing.lengths.sum(axis=1).cumsum()])
    alike = np.flatnonzero(listing.lengths[:, 0] == len(sequence))
    for row in alike[listing.exact[starts[alike]] == sequence[0]]:
        same[row] = (listing.exact[starts[row] : starts[row] + len(sequence)] == sequence).all()
    return same
