import io
from types import SimpleNamespace

import pytest

from marketplace.files import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.seconds)
    return now


def test_without_a_terminal_a_line_tells_of_the_beginning_and_then_one_every_ten_seconds(clock, capsys):
    seen = []
    for item in progress.progress(range(100), "clean photos", "photo"):
        seen.append(item)
        clock.seconds += 1
    assert seen == list(range(100))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "clean photos: begins, 100 in all"
    assert len(lines) == 10
    assert lines[1].startswith("clean photos:  10%") and "10/100 [00:10<01:30,  1.00photo/s]" in lines[1]


def test_a_quick_step_is_one_line_and_what_cannot_be_counted_has_no_total(clock, capsys):
    assert list(progress.progress(iter("ab"), "read", "row")) == ["a", "b"]
    assert list(progress.progress(iter("ab"), "read", "row", total=2)) == ["a", "b"]
    assert capsys.readouterr().err.splitlines() == ["read: begins", "read: begins, 2 in all"]


def test_on_a_terminal_it_is_a_bar(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(progress.sys, "stderr", screen)
    assert list(progress.progress([1, 2], "read", "row")) == [1, 2]
    assert "\r" in screen.getvalue() and "2/2" in screen.getvalue()
