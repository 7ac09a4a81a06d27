"""Whether a regular expression takes linear time, by its structure."""

import re
from collections.abc import Iterator
from re import _compiler, _constants, _parser

SAMPLE = [chr(number) for number in range(0x250)] + ["\u2003", "\u2022", "\ufeff", "張", "👍"]
CHARACTERS = (_constants.LITERAL, _constants.NOT_LITERAL, _constants.IN, _constants.ANY)
REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT)
INSIDE = {_constants.SUBPATTERN: 3, _constants.ASSERT: 1, _constants.ASSERT_NOT: 1}


def faults(pattern: re.Pattern) -> Iterator[str]:
    """What can make a search quadratic or worse.

    An unbounded repeat is fine when it never gives back (possessive), or when nothing that follows can begin with what it takes;
    when no other one is within it; and when a search cannot fail after it once from each of the characters that it takes.
    """
    tree = _parser.parse(pattern.pattern, pattern.flags)
    yield from _faults(list(tree), [], pattern)
    if _begins_unbounded(list(tree)):
        yield f"begins with a repeat that later parts may reject: {pattern.pattern}"


def _faults(items: list, following: list, pattern: re.Pattern) -> Iterator[str]:
    for number, (kind, value) in enumerate(items):
        rest = items[number + 1 :] + following
        if _is_unbounded(kind, value):
            body = list(value[2])
            if any(inner[0] not in CHARACTERS for inner in body) or len(body) > 1:
                yield f"repeats more than one character without end: {pattern.pattern}"
            elif both := _first(body, pattern.flags) & _first(rest, pattern.flags):
                yield f"{sorted(both)[:3]} may be taken by a repeat or by what follows it: {pattern.pattern}"
        elif kind in REPEATS:
            yield from _faults(list(value[2]), rest, pattern)
        elif kind in (_constants.ATOMIC_GROUP, _constants.POSSESSIVE_REPEAT):
            yield from _faults(list(value if kind is _constants.ATOMIC_GROUP else value[2]), [], pattern)
        elif kind in INSIDE:
            yield from _faults(list(value[INSIDE[kind]]), rest if kind is _constants.SUBPATTERN else [], pattern)
        elif kind is _constants.BRANCH:
            for branch in value[1]:
                yield from _faults(list(branch), rest, pattern)


def _begins_unbounded(items: list) -> bool:
    """Whether an unbounded repeat, with more after it, can come before all that must be there."""
    for number, (kind, value) in enumerate(items):
        rest = items[number + 1 :]
        if _is_unbounded(kind, value):
            return bool(rest)
        bodies = []
        if kind in (*REPEATS, _constants.POSSESSIVE_REPEAT):
            bodies = [value[2]]
        elif kind is _constants.SUBPATTERN:
            bodies = [value[3]]
        elif kind is _constants.BRANCH:
            bodies = value[1]
        if any(_begins_unbounded([*body, *rest]) for body in bodies):
            return True
        if kind not in REPEATS or value[0] > 0:
            return False
    return False


def _is_unbounded(kind, value) -> bool:
    return kind in REPEATS and value[1] is _constants.MAXREPEAT


def _first(items: list, flags: int) -> set[str]:
    """The sample's characters that the items can begin with, up to the first of them that must be there."""
    found = set()
    for kind, value in items:
        if kind in CHARACTERS:
            return found | taken(kind, value, flags)
        if kind in (*REPEATS, _constants.POSSESSIVE_REPEAT):
            found |= _first(list(value[2]), flags)
            if value[0] > 0:
                return found
        elif kind is _constants.SUBPATTERN:
            return found | _first(list(value[3]), flags)
        elif kind is _constants.BRANCH:
            return found.union(*(_first(list(branch), flags) for branch in value[1]))
        elif kind is _constants.ATOMIC_GROUP:
            return found | _first(list(value), flags)
    return found


def taken(kind, value, flags: int) -> set[str]:
    """The sample's characters that one part of a pattern takes."""
    state = _parser.State()
    state.flags = flags
    one = _compiler.compile(_parser.SubPattern(state, [(kind, value)]), flags)
    return {char for char in SAMPLE if one.match(char)}
