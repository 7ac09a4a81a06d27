"""What redaction finds of personal data, and which innocent texts it leaves, beside phonenumbers where that is installed.

Reads   tests/cleaning/spellings.py
Run     python benchmarks/redaction.py
"""

import json
import sys
from pathlib import Path

import results

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from marketplace.cleaning import redaction
from tests.cleaning import spellings


def measure_redaction() -> dict:
    """What becomes exactly the mark it should, by mark, and which innocent texts stay."""
    found = {mark: [0, 0] for mark in spellings.BLOCKS}
    for mark, case in spellings.SPELLINGS:
        found[mark][0] += redaction.redact(spellings.plain(case)) == spellings.marked(case, mark)
        found[mark][1] += 1
    innocent = spellings.cases(spellings.INNOCENT)
    figures = {"found": found, "innocent": [sum(redaction.redact(text) == text for text in innocent), len(innocent)]}
    return figures | measure_phonenumbers(innocent)


def measure_phonenumbers(innocent: list[str]) -> dict:
    """The same for telephone numbers with Google's library, strict and lenient; nothing where it is not installed.

    Numbers for drama are not valid ones to it, so it gets the spellings with a mobile prefix that is in use.
    """
    try:
        import phonenumbers
    except ImportError:
        return {}
    figures = {}
    for name in ("VALID", "POSSIBLE"):
        leniency = getattr(phonenumbers.Leniency, name)

        def mark(text: str, leniency=leniency) -> str:
            for match in reversed(list(phonenumbers.PhoneNumberMatcher(text, "GB", leniency=leniency))):
                text = f"{text[: match.start].removesuffix('+')}[phone]{text[match.end :]}"
            return text

        cases = [case.replace("7700", "7400") for case in spellings.cases(spellings.PHONES)]
        hits = sum(mark(spellings.plain(case)) == spellings.marked(case, "[phone]") for case in cases)
        figures[name.lower()] = {
            "found": [hits, len(cases)],
            "innocent": [sum(mark(text) == text for text in innocent), len(innocent)],
        }
    return {"phonenumbers": figures}


def main() -> int:
    figures = measure_redaction()
    print(json.dumps(figures))
    results.save("redaction", figures, results.command())
    return 0


if __name__ == "__main__":
    sys.exit(main())
