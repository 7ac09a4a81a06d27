"""Write a small synthetic marketplace, in the raw export's form and with all its traps, for the demo and the tests.

Reads   nothing
Writes  <out>/Products.csv, <out>/Images.csv, <out>/images/<image id>.jpg
Run     python -m demo.sample --out data/demo/raw --listings 390 --seed 0
"""

import argparse
import colorsys
import io
import math
import os
import random
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from marketplace.files import cli
from marketplace.files.stages import StageError

SUPERSAMPLING = 2  # objects are drawn at this many times the photo's size and averaged down: smooth edges
SIDES_PX = (300, 640)  # range of a photo's longer side
ASPECTS = (1.0, 4 / 3, 3 / 4, 5 / 4, 4 / 5, 3 / 2)  # width / height
TRAPS_FROM = 40  # listings: with fewer than these, rare traps are left out
VAGUE_SHARE = 0.12  # of the listings: the text does not say what it is
PRICE_SPREAD = 0.5  # sigma of the logarithm of the price within a kind
JOKE_PRICES = ("£0.00", "£1,234,567.00", "£0.00", "£10,000,000.00", "£0.00", "£123,456.00")
SAME_TEXT_WORDS = 10  # words at least in a description that is posted again
NAME_TAIL = " | in {place} | Gumtree"

Colour = tuple[int, int, int]
Point = tuple[float, float]


# Drawing: objects in a unit square, x to the right and y down, seen through a homography.


@dataclass(frozen=True)
class Palette:
    """The colours of one object; any kind may have any of them."""

    body: Colour
    trim: Colour
    accent: Colour
    dark: Colour
    light: Colour
    wood: Colour


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _any_colour(rng: random.Random) -> Colour:
    if rng.random() < 0.3:
        return _hsv(rng.random(), 0.04, rng.choice((0.2, 0.35, 0.6, 0.8, 0.95)))
    return _hsv(rng.random(), rng.uniform(0.4, 0.9), rng.uniform(0.45, 0.95))


def _palette(rng: random.Random) -> Palette:
    body = _any_colour(rng)
    return Palette(
        body=body,
        trim=_unlike(body, rng, 110),
        accent=_unlike(body, rng, 160),
        dark=_hsv(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.1, 0.25)),
        light=_hsv(rng.random(), rng.uniform(0, 0.12), rng.uniform(0.86, 0.98)),
        wood=_hsv(rng.uniform(0.04, 0.11), rng.uniform(0.35, 0.75), rng.uniform(0.4, 0.85)),
    )


def _distance(one: Colour, other: Colour) -> float:
    return math.dist(one, other)


def _unlike(colour: Colour, rng: random.Random, distance: float) -> Colour:
    """A colour at least `distance` from `colour` (Euclidean, 0..255 RGB), or the farthest of 20."""
    tries = [_any_colour(rng) for _ in range(20)]
    return next((one for one in tries if _distance(one, colour) >= distance), max(tries, key=lambda one: _distance(one, colour)))


def _shade(colour: Colour, factor: float) -> Colour:
    """Darker for factor < 1, towards white for factor > 1."""
    if factor <= 1:
        return tuple(round(part * factor) for part in colour)
    return tuple(round(255 - (255 - part) * (2 - factor)) for part in colour)


class Pen:
    """Draws shapes given in unit coordinates onto an image, through a 3 x 3 homography (unit -> pixels).

    Lengths and widths are in units, angles in degrees, clockwise from the right; a fill is RGB or RGBA, 0..255.
    """

    def __init__(self, image: Image.Image, matrix: np.ndarray):
        self._image = image
        self._draw = ImageDraw.Draw(image, "RGBA")
        self._matrix = matrix
        self._unit_px = math.sqrt(abs(np.linalg.det(matrix[:2, :2])))  # pixels of one unit, near the centre

    def turned(self, degrees: float) -> "Pen":
        """A pen that draws everything turned clockwise about the centre of the unit square."""
        return Pen(self._image, self._matrix @ _shift(0.5, 0.5) @ _turn(degrees) @ _shift(-0.5, -0.5))

    def _pixels(self, points: Iterable[Point]) -> list[Point]:
        plane = np.asarray(list(points), float) @ self._matrix[:, :2].T + self._matrix[:, 2]
        return [tuple(point) for point in (plane[:, :2] / plane[:, 2:]).tolist()]

    def line(self, points: Iterable[Point], fill: Colour, width: float = 0.02) -> None:
        pixels = self._pixels(points)
        width_px = max(1, round(width * self._unit_px))
        self._draw.line(pixels, fill, width_px, joint="curve")
        if width_px > 3:
            for x, y in (pixels[0], pixels[-1]):
                self._draw.ellipse((x - width_px / 2, y - width_px / 2, x + width_px / 2, y + width_px / 2), fill)

    def poly(self, points: Sequence[Point], fill: tuple, edge: bool = True) -> None:
        """A filled polygon; its edge is a darker line, so that shapes stay apart on any background."""
        self._draw.polygon(self._pixels(points), fill)
        if edge:
            self.line([*points, points[0]], _shade(fill[:3], 0.55), 0.008)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: tuple, corner: float = 0.0, edge: bool = True) -> None:
        if corner == 0:
            return self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, edge)
        corner = min(corner, (x1 - x0) / 2, (y1 - y0) / 2)
        centres = (
            (x1 - corner, y1 - corner, 0),
            (x0 + corner, y1 - corner, 90),
            (x0 + corner, y0 + corner, 180),
            (x1 - corner, y0 + corner, 270),
        )
        self.poly([point for x, y, start in centres for point in _arc(x, y, corner, corner, start, start + 90, 6)], fill, edge)

    def oval(
        self, x: float, y: float, rx: float, ry: float | None = None, fill: tuple = (0, 0, 0), turn: float = 0, edge: bool = True
    ) -> None:
        self.poly(_arc(x, y, rx, rx if ry is None else ry, 0, 360, 44, turn)[:-1], fill, edge)

    def arc(self, x: float, y: float, rx: float, ry: float, start: float, end: float, fill: Colour, width: float = 0.02) -> None:
        self.line(_arc(x, y, rx, ry, start, end, 24), fill, width)


def _arc(x: float, y: float, rx: float, ry: float, start: float, end: float, steps: int, turn: float = 0) -> list[Point]:
    """Points of an elliptic arc; angles in degrees, clockwise from the right; `turn` turns the ellipse."""
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    angles = [math.radians(start + (end - start) * step / steps) for step in range(steps + 1)]
    local = [(rx * math.cos(angle), ry * math.sin(angle)) for angle in angles]
    return [(x + cos * dx - sin * dy, y + sin * dx + cos * dy) for dx, dy in local]


def _smooth(points: Sequence[Point], steps: int = 6) -> list[Point]:
    """A closed Catmull-Rom curve through the points."""
    p = np.asarray(points, float)
    before, after, last = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    a, b, c, d = (part[:, None, :] for part in (before, p, after, last))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return [tuple(point) for point in curve.reshape(-1, 2).tolist()]


def _shift(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], float)


def _turn(degrees: float) -> np.ndarray:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


# fmt: off
# The kinds of objects. Each function draws one object; what it takes from the random numbers is what makes this object its own.


def _screen_picture(p: Pen, r: random.Random, c: Palette, x0: float, y0: float, x1: float, y1: float) -> None:
    """What a switched-on screen shows: a sky, hills and a sun."""
    p.box(x0, y0, x1, y1, _shade(c.accent, 1.3), edge=False)
    w, h = x1 - x0, y1 - y0
    p.oval(x0 + w * r.uniform(0.2, 0.8), y0 + h * 0.3, min(w, h) * 0.12, fill=c.light, edge=False)
    peak = r.uniform(0.25, 0.7)
    p.poly([(x0, y1), (x0, y0 + h * 0.75), (x0 + w * peak, y0 + h * 0.45), (x1, y0 + h * 0.8), (x1, y1)], c.trim, edge=False)


def _washing_machine(p: Pen, r: random.Random, c: Palette) -> None:
    left, top = r.uniform(0.12, 0.18), r.uniform(0.04, 0.1)
    panel, door = top + r.uniform(0.14, 0.19), r.uniform(0.22, 0.26)
    p.box(left + 0.05, 0.93, left + 0.13, 0.97, c.dark)
    p.box(1 - left - 0.13, 0.93, 1 - left - 0.05, 0.97, c.dark)
    p.box(left, top, 1 - left, 0.94, c.body, 0.03)
    p.box(left, top, 1 - left, panel, _shade(c.body, 0.85), 0.02)
    p.box(left + 0.03, top + 0.03, left + 0.24, panel - 0.03, _shade(c.body, 1.3), 0.01)
    p.oval(r.uniform(0.52, 0.58), (top + panel) / 2, 0.05, fill=c.trim)
    for button in range(r.randint(2, 4)):
        p.oval(0.67 + 0.045 * button, (top + panel) / 2, 0.014, fill=c.accent)
    middle = (panel + 0.94) / 2 - 0.01
    p.oval(0.5, middle, door + 0.05, fill=c.light if r.random() < 0.5 else c.trim)
    p.oval(0.5, middle, door - 0.02, fill=c.dark)
    p.oval(0.5, middle + 0.05, door - 0.1, door - 0.14, fill=_shade(c.dark, 1.25), edge=False)
    p.arc(0.5, middle, door - 0.07, door - 0.07, 200, 260, _shade(c.dark, 1.6), 0.025)
    p.box(0.5 + door - 0.01, middle - 0.06, 0.5 + door + 0.035, middle + 0.06, _shade(c.light, 0.8), 0.02)


def _fridge(p: Pen, r: random.Random, c: Palette) -> None:
    left, split = r.uniform(0.26, 0.31), r.choice((0.34, 0.4, 0.58, 0.64))
    p.box(left + 0.03, 0.95, 1 - left - 0.03, 0.98, c.dark)
    p.poly([(1 - left, 0.03), (1 - left + 0.07, 0.06), (1 - left + 0.07, 0.93), (1 - left, 0.96)], _shade(c.body, 0.7))
    p.box(left, 0.03, 1 - left, split - 0.006, c.body, 0.02)
    p.box(left, split + 0.006, 1 - left, 0.96, c.body, 0.02)
    handle = left + 0.05
    p.line([(handle, split - 0.05), (handle, split - 0.21)], _shade(c.light, 0.75), 0.026)
    p.line([(handle, split + 0.05), (handle, split + 0.25)], _shade(c.light, 0.75), 0.026)
    p.poly([(left + 0.3, 0.05), (left + 0.36, 0.05), (left + 0.16, split - 0.03), (left + 0.1, split - 0.03)],
        (255, 255, 255, 60), False)
    p.poly([(left + 0.3, split + 0.03), (left + 0.36, split + 0.03), (left + 0.16, 0.93), (left + 0.1, 0.93)],
        (255, 255, 255, 60), False)
    if r.random() < 0.4:
        p.box(0.52, split - 0.26, 0.66, split - 0.12, c.dark, 0.01)
    p.box(0.56, 0.07, 0.64, 0.085, _shade(c.body, 0.6), edge=False)


def _kettle(p: Pen, r: random.Random, c: Palette) -> None:
    top, bottom = r.uniform(0.16, 0.22), r.uniform(0.28, 0.32)
    p.line([(0.62, 0.24), (0.86, 0.26), (0.9, 0.36), (0.82, 0.72), (0.66, 0.78)], _shade(c.dark, 1.1), 0.07)
    p.poly([(0.34, 0.25), (0.12, 0.2), (0.15, 0.3), (0.28, 0.5)], _shade(c.body, 0.85))
    p.poly(_smooth([(0.5 - top, 0.24), (0.5 + top, 0.24), (0.5 + bottom * 0.85, 0.55), (0.5 + bottom, 0.82), (0.5, 0.84),
        (0.5 - bottom, 0.82), (0.5 - bottom * 0.85, 0.55)]), c.body)
    p.poly([(0.38, 0.3), (0.44, 0.3), (0.38, 0.78), (0.29, 0.78)], (255, 255, 255, 90), False)
    p.box(0.56, 0.42, 0.61, 0.72, _shade(c.trim, 1.4), 0.02)
    p.oval(0.5, 0.235, top + 0.02, 0.045, fill=c.trim)
    p.oval(0.5, 0.2, 0.05, 0.045, fill=c.dark)
    p.box(0.5 - bottom - 0.03, 0.82, 0.5 + bottom + 0.03, 0.9, c.dark, 0.03)


def _cot(p: Pen, r: random.Random, c: Palette) -> None:
    wood = r.choice((c.wood, c.body, c.light))
    top, bars = r.uniform(0.24, 0.32), r.randint(9, 12)
    p.box(0.12, top - 0.08, 0.88, top - 0.04, _shade(wood, 0.75))
    for bar in range(1, bars):
        x = 0.12 + 0.76 * bar / bars
        p.line([(x, top - 0.05), (x, 0.7)], _shade(wood, 0.7), 0.016)
    p.box(0.1, 0.6, 0.9, 0.72, c.trim, 0.03)
    p.oval(0.24, 0.585, 0.09, 0.045, fill=c.light)
    for bar in range(1, bars):
        x = 0.08 + 0.84 * bar / bars
        p.line([(x, top), (x, 0.76)], wood, 0.024)
        p.line([(x + 0.012, top), (x + 0.012, 0.76)], _shade(wood, 0.6), 0.005)
    p.box(0.06, top, 0.94, top + 0.05, wood, 0.01)
    p.box(0.06, 0.74, 0.94, 0.81, wood, 0.01)
    for x in (0.06, 0.88):
        p.box(x, top - 0.12, x + 0.065, 0.9, wood, 0.02)
        p.oval(x + 0.032, 0.92, 0.03, fill=c.dark)


def _pram(p: Pen, r: random.Random, c: Palette) -> None:
    wheel = r.uniform(0.12, 0.155)
    p.line([(0.3, 0.82), (0.64, 0.52)], _shade(c.light, 0.6), 0.024)
    p.line([(0.72, 0.82), (0.36, 0.52)], _shade(c.light, 0.6), 0.024)
    p.line([(0.72, 0.5), (0.9, 0.28), (0.97, 0.27)], _shade(c.light, 0.5), 0.028)
    p.line([(0.9, 0.275), (0.975, 0.27)], c.dark, 0.042)
    p.poly([(0.12, 0.42), (0.8, 0.42), *_arc(0.46, 0.42, 0.34, 0.24, 0, 180, 20)], c.body)
    hood = [(0.44, 0.42), *_arc(0.44, 0.42, 0.33, 0.34, 180, 292, 16)]
    p.poly(hood, c.trim)
    for angle in (208, 236, 264):
        p.line([(0.44, 0.42), _arc(0.44, 0.42, 0.33, 0.34, angle, angle, 1)[0]], _shade(c.trim, 0.6), 0.009)
    p.box(0.11, 0.4, 0.82, 0.455, _shade(c.body, 0.75), 0.02)
    for x in (0.3, 0.72):
        p.oval(x, 0.8, wheel, fill=c.dark)
        p.oval(x, 0.8, wheel - 0.03, fill=c.light)
        for angle in range(0, 360, 45):
            p.line([(x, 0.8), _arc(x, 0.8, wheel - 0.03, wheel - 0.03, angle, angle, 1)[0]], _shade(c.dark, 1.3), 0.007)
        p.oval(x, 0.8, 0.028, fill=c.accent)


def _teddy(p: Pen, r: random.Random, c: Palette) -> None:
    fur = r.choice((c.wood, c.body))
    pale, head = _shade(fur, 1.45), r.uniform(0.2, 0.235)
    for side in (-1, 1):
        p.oval(0.5 + side * 0.2, 0.83, 0.13, 0.1, fur, side * 25)
        p.oval(0.5 + side * 0.25, 0.84, 0.06, 0.065, pale)
        p.oval(0.5 + side * 0.26, 0.57, 0.075, 0.15, fur, side * -38)
        p.oval(0.5 + side * head * 0.83, 0.28 - head * 0.75, 0.085, fill=fur)
        p.oval(0.5 + side * head * 0.83, 0.28 - head * 0.75, 0.05, fill=pale)
    p.oval(0.5, 0.66, 0.22, 0.245, fur)
    p.oval(0.5, 0.69, 0.13, 0.155, pale)
    p.oval(0.5, 0.28, head, head * 0.92, fur)
    p.oval(0.5, 0.35, 0.1, 0.08, pale)
    p.oval(0.5, 0.315, 0.035, 0.026, c.dark)
    p.line([(0.5, 0.33), (0.5, 0.37)], c.dark, 0.01)
    p.arc(0.5, 0.36, 0.04, 0.025, 20, 160, c.dark, 0.01)
    for side in (-1, 1):
        p.oval(0.5 + side * 0.085, 0.25, 0.024, fill=c.dark)
        p.oval(0.5 + side * 0.085 + 0.008, 0.243, 0.007, fill=c.light, edge=False)
        p.poly([(0.5, 0.475), (0.5 + side * 0.1, 0.43), (0.5 + side * 0.1, 0.53)], c.accent)
    p.oval(0.5, 0.478, 0.028, fill=c.accent)


def _tshirt(p: Pen, r: random.Random, c: Palette) -> None:
    hem, sleeve, waist = r.uniform(0.86, 0.94), r.uniform(0.4, 0.47), r.uniform(0.24, 0.27)
    body = [(0.37, 0.1), (0.63, 0.1), (0.76, 0.15), (0.97, sleeve - 0.06), (0.83, sleeve + 0.03), (0.74, 0.34),
        (0.5 + waist, hem), (0.5 - waist, hem), (0.26, 0.34), (0.17, sleeve + 0.03), (0.03, sleeve - 0.06), (0.24, 0.15)]
    p.poly(body, c.body)
    for side in (-1, 1):
        p.line([(0.5 + side * 0.24, 0.34), (0.5 + side * 0.26, 0.2)], _shade(c.body, 0.7), 0.008)
        p.line([(0.5 + side * 0.46, sleeve - 0.075), (0.5 + side * 0.325, sleeve + 0.01)], _shade(c.body, 0.7), 0.006)
        p.line([(0.5 + side * 0.2, 0.6), (0.5 + side * 0.15, 0.78)], _shade(c.body, 0.8), 0.006)
    p.poly([(0.37, 0.1), *_arc(0.5, 0.1, 0.13, 0.11, 180, 0, 14)], _shade(c.body, 0.55))
    p.arc(0.5, 0.1, 0.13, 0.11, 0, 180, _shade(c.body, 0.8), 0.025)
    pattern = r.randrange(4)
    if pattern == 0:
        for y in (0.4, 0.52, 0.64, 0.76):
            p.box(0.262, y, 0.738, y + 0.05, c.trim, edge=False)
    elif pattern == 1:
        p.oval(0.5, 0.45, 0.12, fill=c.trim)
        p.oval(0.5, 0.45, 0.06, fill=c.accent)
    elif pattern == 2:
        p.poly([_arc(0.5, 0.45, s, s, a, a, 1)[0] for a, s in zip(range(-90, 270, 36), (0.14, 0.06) * 5, strict=True)], c.accent)
    else:
        p.box(0.56, 0.3, 0.67, 0.43, _shade(c.body, 0.9))


def _trousers(p: Pen, r: random.Random, c: Palette) -> None:
    hip, hem, gap = r.uniform(0.21, 0.25), r.uniform(0.09, 0.14), r.uniform(0.03, 0.06)
    for side in (-1, 1):
        out = 0.5 + side * (gap + hem * 2 + 0.02)
        leg = [(0.5, 0.08), (0.5 + side * (hip - 0.03), 0.08), (0.5 + side * hip, 0.26), (out, 0.95),
            (0.5 + side * (gap + 0.02), 0.95), (0.5, 0.4)]
        p.poly(leg, c.body)
        p.line([(0.5 + side * hip * 0.55, 0.42), ((out + 0.5 + side * gap) / 2, 0.93)], _shade(c.body, 0.75), 0.008)
        p.line([(0.5 + side * (hip - 0.1), 0.15), (0.5 + side * (hip - 0.012), 0.25)], _shade(c.body, 0.5), 0.01)
        p.line([(0.5 + side * (gap + 0.03), 0.92), (out, 0.92)], _shade(c.body, 0.6), 0.008)
    p.box(0.5 - hip + 0.03, 0.05, 0.5 + hip - 0.03, 0.105, _shade(c.body, 0.8))
    for x in (-0.14, -0.06, 0.06, 0.14):
        p.box(0.5 + x - 0.01, 0.042, 0.5 + x + 0.01, 0.115, _shade(c.body, 0.7))
    p.line([(0.5, 0.1), (0.5, 0.4)], _shade(c.body, 0.5), 0.008)
    p.arc(0.5, 0.13, 0.06, 0.16, 90, 0, _shade(c.body, 0.6), 0.007)
    p.oval(0.5, 0.078, 0.016, fill=c.trim)
    if r.random() < 0.4:
        p.box(0.5 - hip - 0.03, 0.055, 0.5 + hip - 0.03, 0.095, c.trim)
        p.box(0.465, 0.045, 0.535, 0.105, c.light)


def _shoe(p: Pen, r: random.Random, c: Palette) -> None:
    high = r.uniform(0.24, 0.32)
    upper = _smooth([(0.06, 0.68), (0.07, high + 0.12), (0.1, high), (0.28, high + 0.03), (0.38, high + 0.02), (0.56, 0.5),
        (0.78, 0.58), (0.94, 0.65), (0.96, 0.74), (0.5, 0.75), (0.08, 0.75)])
    p.poly(upper, c.body)
    p.poly(_smooth([(0.74, 0.58), (0.93, 0.645), (0.955, 0.73), (0.72, 0.73)]), c.trim)
    p.poly([(0.07, 0.72), (0.07, high + 0.14), (0.1, high + 0.04), (0.17, high + 0.12), (0.2, 0.72)], c.trim)
    p.poly(_smooth([(0.1, high), (0.24, high + 0.04), (0.38, high + 0.01), (0.3, high + 0.09), (0.16, high + 0.07)]),
        _shade(c.body, 0.5))
    for stripe in range(r.randint(1, 3)):
        x = 0.36 + stripe * 0.075
        p.poly([(x, 0.5), (x + 0.04, 0.48), (x - 0.02, 0.72), (x - 0.06, 0.72)], c.accent)
    for lace in range(5):
        x, y = 0.42 + lace * 0.065, high + 0.07 + lace * (0.53 - high) / 6.5
        p.line([(x - 0.045, y + 0.075), (x + 0.04, y - 0.005)], c.light, 0.02)
    p.poly(_smooth([(0.04, 0.74), (0.5, 0.745), (0.97, 0.72), (0.98, 0.8), (0.9, 0.83), (0.1, 0.84), (0.04, 0.81)]), c.light)
    p.line([(0.06, 0.825), (0.5, 0.835), (0.93, 0.81)], c.dark, 0.025)


def _laptop(p: Pen, r: random.Random, c: Palette) -> None:
    tilt, hinge = r.uniform(0, 0.04), r.uniform(0.58, 0.63)
    case = r.choice((c.body, _shade(c.light, 0.8), c.dark))
    p.poly([(0.16 - tilt, 0.1), (0.84 + tilt, 0.1), (0.85, hinge), (0.15, hinge)], c.dark)
    _screen_picture(p, r, c, 0.185, 0.14, 0.815, hinge - 0.045)
    p.poly([(0.15, hinge), (0.85, hinge), (0.98, 0.88), (0.02, 0.88)], case)
    p.poly([(0.02, 0.88), (0.98, 0.88), (0.97, 0.915), (0.03, 0.915)], _shade(case, 0.7))
    depth = 0.88 - hinge
    for row in range(5):
        y0, y1 = hinge + depth * (0.08 + row * 0.11), hinge + depth * (0.17 + row * 0.11)
        spread0, spread1 = 0.35 + 0.13 * (y0 - hinge) / depth - 0.04, 0.35 + 0.13 * (y1 - hinge) / depth - 0.04
        for key in range(13):
            a, b = -1 + 2 * key / 13 + 0.015, -1 + 2 * (key + 1) / 13 - 0.015
            p.poly([(0.5 + a * spread0, y0), (0.5 + b * spread0, y0), (0.5 + b * spread1, y1), (0.5 + a * spread1, y1)],
                _shade(c.dark, 1.1), False)
    p.poly([(0.4, hinge + depth * 0.68), (0.6, hinge + depth * 0.68), (0.62, hinge + depth * 0.94),
        (0.38, hinge + depth * 0.94)], _shade(case, 0.85))


def _monitor(p: Pen, r: random.Random, c: Palette) -> None:
    top, bottom = r.uniform(0.12, 0.2), r.uniform(0.68, 0.72)
    case = r.choice((c.dark, c.body, c.light))
    p.poly([(0.44, bottom - 0.02), (0.56, bottom - 0.02), (0.58, 0.87), (0.42, 0.87)], _shade(case, 0.8))
    if r.random() < 0.5:
        p.oval(0.5, 0.88, 0.2, 0.045, _shade(case, 0.9))
    else:
        p.box(0.3, 0.86, 0.7, 0.9, _shade(case, 0.9), 0.02)
    p.box(0.03, top, 0.97, bottom, case, 0.02)
    chin = r.uniform(0.03, 0.07)
    _screen_picture(p, r, c, 0.055, top + 0.025, 0.945, bottom - chin)
    p.poly([(0.6, top + 0.025), (0.75, top + 0.025), (0.5, bottom - chin), (0.35, bottom - chin)], (255, 255, 255, 40), False)
    p.oval(0.92, bottom - chin / 2, 0.008, fill=c.accent, edge=False)


def _keyboard(p: Pen, r: random.Random, c: Palette) -> None:
    case, keys = r.choice(((c.dark, _shade(c.dark, 1.35)), (c.light, _shade(c.light, 0.85)), (c.body, c.light), (c.body, c.dark)))
    numbers = r.random() < 0.6
    top, bottom = 0.32, 0.7
    p.box(0.015, top, 0.985, bottom, case, 0.025)
    p.box(0.015, bottom - 0.02, 0.985, bottom + 0.01, _shade(case, 0.6), 0.01)
    columns = 18 if numbers else 15
    step = 0.93 / columns
    for row in range(5):
        y = top + 0.03 + row * 0.066
        for column in range(columns):
            if (numbers and column == 14) or (row == 4 and 3 < column < 11):
                continue
            x = 0.035 + column * step
            p.box(x + 0.003, y, x + step - 0.003, y + 0.054, c.accent if (row, column) == (0, 0) else keys, 0.006)
    p.box(0.035 + 4 * step, top + 0.294, 0.035 + 11 * step - 0.003, top + 0.348, keys, 0.006)
    if r.random() < 0.5:
        p.line([(0.5, top), (0.5, 0.22), (0.62, 0.16), (0.7, 0.04)], c.dark, 0.016)


def _hammer(p: Pen, r: random.Random, c: Palette) -> None:
    p = p.turned(r.uniform(25, 55))
    handle, grip = r.choice((c.wood, c.body)), r.uniform(0.62, 0.7)
    steel = _shade(c.light, r.uniform(0.55, 0.75))
    p.poly(_smooth([(0.465, 0.2), (0.535, 0.2), (0.53, 0.5), (0.55, 0.8), (0.545, 0.99), (0.455, 0.99), (0.45, 0.8),
        (0.47, 0.5)]), handle)
    p.box(0.445, grip, 0.555, 1.0, c.trim, 0.03)
    for line in range(4):
        p.line([(0.455, grip + 0.06 + line * 0.06), (0.545, grip + 0.06 + line * 0.06)], _shade(c.trim, 0.6), 0.01)
    claw = [(0.56, 0.08), (0.68, 0.07), (0.8, 0.12), (0.9, 0.26), (0.78, 0.2), (0.68, 0.19), (0.56, 0.2)]
    p.poly(_smooth(claw), steel)
    p.line([(0.7, 0.13), (0.86, 0.23)], _shade(steel, 0.5), 0.012)
    p.box(0.42, 0.06, 0.58, 0.22, steel, 0.02)
    p.box(0.3, 0.085, 0.43, 0.195, _shade(steel, 0.9))
    p.box(0.19, 0.05, 0.31, 0.23, steel, 0.02)
    p.box(0.44, 0.075, 0.56, 0.1, _shade(steel, 1.5), edge=False)


def _drill(p: Pen, r: random.Random, c: Palette) -> None:
    grip, battery = r.uniform(0.02, 0.1), r.uniform(0.13, 0.17)
    p.poly([(0.02, 0.285), (0.2, 0.27), (0.2, 0.31), (0.02, 0.295)], _shade(c.light, 0.6))
    p.poly([(0.17, 0.25), (0.24, 0.22), (0.34, 0.2), (0.34, 0.38), (0.24, 0.36), (0.17, 0.33)], c.dark)
    for x in (0.25, 0.28, 0.31):
        p.line([(x, 0.23), (x, 0.35)], _shade(c.dark, 1.5), 0.008)
    p.poly([(0.6, 0.38), (0.8, 0.38), (0.8 + grip, 0.8), (0.6 + grip, 0.8)], c.body)
    p.poly([(0.66, 0.42), (0.79, 0.42), (0.79 + grip, 0.76), (0.68 + grip, 0.76)], c.dark)
    p.poly([(0.56, 0.41), (0.63, 0.41), (0.635, 0.52), (0.59, 0.5)], c.accent)
    p.poly(_smooth([(0.34, 0.18), (0.6, 0.14), (0.84, 0.16), (0.92, 0.22), (0.92, 0.34), (0.84, 0.42), (0.6, 0.43),
        (0.34, 0.4)]), c.body)
    p.box(0.34, 0.19, 0.42, 0.395, c.trim, 0.02)
    for x in (0.76, 0.8, 0.84):
        p.line([(x, 0.22), (x, 0.34)], c.dark, 0.014)
    p.box(0.67 + grip - battery, 0.78, 0.72 + grip + battery, 0.93, c.dark, 0.03)
    p.box(0.67 + grip - battery, 0.78, 0.72 + grip + battery, 0.83, c.trim, 0.02)


def _ladder(p: Pen, r: random.Random, c: Palette) -> None:
    metal, steps, spread = r.choice((_shade(c.light, 0.75), c.wood, c.body)), r.randint(4, 6), r.uniform(0.2, 0.26)
    for side in (-1, 1):
        p.line([(0.56 + side * 0.09, 0.08), (0.72 + side * (spread - 0.02), 0.9)], _shade(metal, 0.6), 0.022)
    p.line([(0.55, 0.62), (0.86, 0.62)], _shade(metal, 0.6), 0.018)
    p.line([(0.25, 0.6), (0.7, 0.55)], c.dark, 0.01)
    for side in (-1, 1):
        x0, x1 = 0.46 + side * 0.11, 0.36 + side * spread
        p.poly([(x0 - 0.02, 0.08), (x0 + 0.02, 0.08), (x1 + 0.024, 0.95), (x1 - 0.024, 0.95)], metal)
        p.box(x1 - 0.035, 0.93, x1 + 0.035, 0.97, c.dark, 0.01)
    for step in range(1, steps + 1):
        t = step / (steps + 0.6)
        x, half, y = 0.46 - 0.1 * t, 0.11 + (spread - 0.11) * t, 0.08 + 0.87 * t
        p.box(x - half, y - 0.02, x + half, y + 0.025, _shade(metal, 0.85))
        p.line([(x - half + 0.02, y - 0.014), (x + half - 0.02, y - 0.014)], _shade(metal, 1.4), 0.008)
    p.poly([(0.33, 0.04), (0.67, 0.04), (0.69, 0.11), (0.31, 0.11)], c.accent)


def _hairdryer(p: Pen, r: random.Random, c: Palette) -> None:
    p.line([(0.62, 0.92), (0.7, 0.98), (0.84, 0.93), (0.9, 0.8), (0.97, 0.78)], c.dark, 0.02)
    lean = r.uniform(-0.04, 0.06)
    p.poly(_smooth([(0.56, 0.42), (0.74, 0.42), (0.7 + lean, 0.7), (0.68 + lean, 0.93), (0.58 + lean, 0.93),
        (0.57 + lean, 0.7)]), _shade(c.body, 0.85))
    p.box(0.61 + lean, 0.55, 0.66 + lean, 0.67, c.trim, 0.02)
    barrel = _smooth([(0.3, 0.2), (0.55, 0.12), (0.76, 0.08), (0.93, 0.2), (0.95, 0.32), (0.88, 0.45), (0.7, 0.52), (0.5, 0.46),
        (0.3, 0.41)])
    p.poly(barrel, c.body)
    p.poly([(0.06, 0.16), (0.14, 0.18), (0.31, 0.205), (0.31, 0.405), (0.14, 0.43), (0.06, 0.45)], c.dark)
    p.line([(0.145, 0.18), (0.145, 0.43)], _shade(c.dark, 1.4), 0.01)
    p.box(0.31, 0.195, 0.36, 0.415, c.trim, 0.01)
    p.oval(0.8, 0.3, 0.1, 0.15, _shade(c.dark, 1.1))
    for ring in (0.07, 0.045, 0.02):
        p.oval(0.8, 0.3, ring, ring * 1.5, _shade(c.dark, 1.1 + ring * 5))
    p.line([(0.4, 0.22), (0.62, 0.15)], _shade(c.body, 1.6), 0.022)


def _lipstick(p: Pen, r: random.Random, c: Palette) -> None:
    p = p.turned(r.uniform(-18, 18))
    metal = r.choice((_shade(c.wood, 1.3), _shade(c.light, 0.8)))
    shade = _hsv(r.uniform(0.88, 1.06), r.uniform(0.55, 0.95), r.uniform(0.5, 0.95))
    x = r.uniform(0.3, 0.36)
    p.box(x - 0.13, 0.6, x + 0.13, 0.97, c.body, 0.02)
    p.box(x - 0.11, 0.4, x + 0.11, 0.6, metal, 0.01)
    p.line([(x - 0.06, 0.42), (x - 0.06, 0.58)], _shade(metal, 1.6), 0.03)
    p.poly([(x - 0.085, 0.4), (x - 0.085, 0.2), *_arc(x - 0.02, 0.16, 0.1, 0.12, 190, 330, 10), (x + 0.085, 0.14),
        (x + 0.085, 0.4)], shade)
    p.poly(_smooth([(x - 0.08, 0.2), (x - 0.03, 0.06), (x + 0.07, 0.07), (x + 0.085, 0.14), (x + 0.03, 0.24)]),
        _shade(shade, 1.25))
    p.line([(x - 0.09, 0.63), (x - 0.09, 0.94)], _shade(c.body, 1.5), 0.025)
    cap = r.uniform(0.4, 0.46)
    p.box(0.59, 0.97 - cap, 0.85, 0.97, c.body, 0.025)
    p.line([(0.63, 1.01 - cap), (0.63, 0.93)], _shade(c.body, 1.5), 0.025)
    p.box(0.59, 0.91, 0.85, 0.97, metal, 0.01)


def _perfume(p: Pen, r: random.Random, c: Palette) -> None:
    wide, top, level = r.uniform(0.22, 0.32), r.uniform(0.38, 0.44), r.uniform(0.5, 0.7)
    glass = _shade(c.body, 1.65)
    cap = r.choice((c.dark, _shade(c.wood, 1.3), c.trim))
    if r.random() < 0.5:
        p.box(0.5 - wide, top, 0.5 + wide, 0.95, glass, 0.06)
        p.box(0.5 - wide + 0.035, level, 0.5 + wide - 0.035, 0.915, _shade(c.body, 1.2), 0.04)
    else:
        p.poly(_smooth([(0.42, top), (0.58, top), (0.5 + wide, top + 0.2), (0.5 + wide, 0.8), (0.6, 0.95), (0.4, 0.95),
            (0.5 - wide, 0.8), (0.5 - wide, top + 0.2)]), glass)
        p.poly(_smooth([(0.5 - wide + 0.04, level + 0.05), (0.5 + wide - 0.04, level + 0.05), (0.5 + wide - 0.05, 0.8),
            (0.59, 0.915), (0.41, 0.915), (0.5 - wide + 0.05, 0.8)]), _shade(c.body, 1.2))
    p.box(0.4, 0.6, 0.6, 0.8, c.light)
    for y in (0.66, 0.7, 0.74):
        p.line([(0.44, y), (0.56, y)], _shade(c.dark, 1.3), 0.01)
    p.line([(0.5 - wide + 0.06, top + 0.12), (0.5 - wide + 0.06, 0.8)], (255, 255, 255), 0.02)
    p.box(0.43, top - 0.07, 0.57, top + 0.01, _shade(c.light, 0.75))
    p.box(0.385, 0.1, 0.615, top - 0.06, cap, r.choice((0.02, 0.1)))
    p.line([(0.43, 0.14), (0.43, top - 0.1)], _shade(cap, 1.5), 0.025)


def _sofa(p: Pen, r: random.Random, c: Palette) -> None:
    seats, arm, top = r.randint(2, 3), r.uniform(0.1, 0.14), r.uniform(0.24, 0.3)
    for x in (0.1, 0.86):
        p.box(x, 0.78, x + 0.04, 0.87, c.wood)
    p.box(0.07, top, 0.93, 0.76, _shade(c.body, 0.85), 0.06)
    width = (0.94 - 2 * arm) / seats
    for seat in range(seats):
        x = 0.03 + arm + seat * width
        p.box(x + 0.004, top + 0.03, x + width - 0.004, 0.6, c.body, 0.05)
    for seat in range(seats):
        x = 0.03 + arm + seat * width
        p.box(x + 0.002, 0.54, x + width - 0.002, 0.66, _shade(c.body, 1.15), 0.04)
    p.box(0.05, 0.65, 0.95, 0.79, _shade(c.body, 0.9), 0.02)
    for x in (0.02, 0.98 - arm):
        p.box(x, 0.43, x + arm, 0.8, c.body, 0.05)
    for cushion in range(r.randint(0, 2)):
        x = 0.24 if cushion == 0 else 0.76
        p.poly([(x - 0.08, 0.42), (x + 0.06, 0.4), (x + 0.08, 0.54), (x - 0.06, 0.56)], c.accent)


def _lamp(p: Pen, r: random.Random, c: Palette) -> None:
    top, bottom, low = r.uniform(0.12, 0.18), r.uniform(0.26, 0.33), r.uniform(0.4, 0.46)
    base = r.choice((c.trim, c.wood, c.dark))
    p.line([(0.5, low - 0.02), (0.5, 0.9)], _shade(base, 0.8), 0.03)
    if r.random() < 0.6:
        p.poly(_smooth([(0.46, 0.52), (0.54, 0.52), (0.64, 0.68), (0.6, 0.84), (0.54, 0.9), (0.46, 0.9), (0.4, 0.84),
            (0.36, 0.68)]), base)
        p.line([(0.42, 0.64), (0.41, 0.78)], _shade(base, 1.5), 0.025)
    else:
        p.line([(0.5, low), (0.5, 0.9)], base, 0.05)
        p.oval(0.5, 0.7, 0.06, fill=base)
    p.oval(0.5, 0.92, 0.17, 0.04, _shade(base, 0.85))
    p.poly([(0.5 - top, 0.05), (0.5 + top, 0.05), (0.5 + bottom, low), *_arc(0.5, low, bottom, 0.035, 0, 180, 12)],
        _shade(c.body, 1.35))
    p.poly([(0.46, 0.06), (0.54, 0.06), (0.62, low + 0.03), (0.38, low + 0.03)], (255, 250, 215, 120), False)
    p.line([(0.5 - top, 0.06), (0.5 + top, 0.06)], c.accent, 0.02)
    p.arc(0.5, low - 0.01, bottom, 0.035, 0, 180, c.accent, 0.02)


def _plant(p: Pen, r: random.Random, c: Palette) -> None:
    green = _hsv(r.uniform(0.22, 0.4), r.uniform(0.45, 0.85), r.uniform(0.35, 0.75))
    leaves, pot = r.randint(9, 13), r.choice((c.body, c.trim, c.wood))
    for leaf in range(leaves):
        angle = -90 + (leaf - (leaves - 1) / 2) * 150 / leaves + r.uniform(-6, 6)
        length = r.uniform(0.38, 0.52) * (1 - abs(angle + 90) / 300)
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        tip, middle, half = (0.5 + cos * length, 0.6 + sin * length), (0.5 + cos * length * 0.6, 0.6 + sin * length * 0.6), 0.055
        blade = _smooth([(0.5, 0.62), (middle[0] - sin * half, middle[1] + cos * half), tip, (middle[0] + sin * half, middle[1] -
            cos * half)])
        p.poly(blade, _shade(green, r.uniform(0.75, 1.2)))
        p.line([(0.5, 0.62), tip], _shade(green, 0.55), 0.007)
    low = r.uniform(0.14, 0.19)
    p.poly([(0.28, 0.64), (0.72, 0.64), (0.5 + low, 0.96), (0.5 - low, 0.96)], pot)
    p.poly([(0.34, 0.66), (0.4, 0.66), (0.41, 0.94), (0.37, 0.94)], (255, 255, 255, 60), False)
    p.box(0.25, 0.57, 0.75, 0.66, _shade(pot, 1.1), 0.01)


def _vinyl(p: Pen, r: random.Random, c: Palette) -> None:
    black = _hsv(0.6, 0.1, r.uniform(0.06, 0.16))
    p.box(0.03, 0.16, 0.66, 0.84, c.body)
    p.oval(0.27, r.uniform(0.35, 0.6), 0.13, fill=c.trim)
    p.poly([(0.06, 0.8), (0.06, 0.62), (0.4, 0.8)], c.light)
    p.oval(0.63, 0.5, 0.34, fill=black)
    for ring in range(9):
        radius = 0.325 - ring * 0.023
        p.arc(0.63, 0.5, radius, radius, 0, 360, _shade(black, 1.12 if ring % 3 else 1.3), 0.005)
    for start in (200, 20):
        p.poly([(0.63, 0.5), *_arc(0.63, 0.5, 0.33, 0.33, start, start + 26, 6)], (255, 255, 255, 50), False)
    p.oval(0.63, 0.5, 0.115, fill=c.accent)
    p.arc(0.63, 0.5, 0.08, 0.08, 200, 340, c.light, 0.012)
    p.arc(0.63, 0.5, 0.075, 0.075, 30, 150, c.dark, 0.01)
    p.oval(0.63, 0.5, 0.014, fill=c.light)


def _book(p: Pen, r: random.Random, c: Palette) -> None:
    paper, lift = _hsv(0.12, r.uniform(0.02, 0.16), r.uniform(0.9, 0.98)), r.uniform(0.03, 0.07)
    picture = r.randrange(4)
    p.poly([(0.02, 0.24), (0.98, 0.24), (0.98, 0.86), (0.02, 0.86)], c.body)
    for side in (-1, 1):
        for sheet in (0.02, 0.012, 0.0):
            far = 0.5 + side * (0.435 + sheet)
            page = [(0.5, 0.23 + sheet), (0.5 + side * 0.12, 0.2 - lift + 0.03 + sheet),
                (0.5 + side * 0.28, 0.2 - lift + 0.04 + sheet), (far, 0.22), (far, 0.82),
                (0.5 + side * 0.28, 0.82 - lift + 0.04 + sheet), (0.5 + side * 0.12, 0.82 - lift + 0.03 + sheet),
                (0.5, 0.83 + sheet)]
            p.poly(page, paper)
        for line in range(13):
            y = 0.27 + line * 0.038
            if side == 1 and picture == 0 and line < 6:
                continue
            end = 0.39 if line % 5 != 4 else r.uniform(0.2, 0.36)
            start = 0.06
            p.line([(0.5 + side * start, y - lift * 0.4), (0.5 + side * 0.2, y - lift * 0.5), (0.5 + side * end, y)],
                _shade(c.dark, 1.2), 0.01)
    if picture == 0:
        p.box(0.57, 0.25, 0.88, 0.46, c.accent)
    p.line([(0.5, 0.22), (0.5, 0.85)], _shade(paper, 0.5), 0.012)
    if r.random() < 0.5:
        p.line([(0.52, 0.22), (0.53, 0.6), (0.55, 0.93)], c.accent, 0.025)


def _cassette(p: Pen, r: random.Random, c: Palette) -> None:
    shell = r.choice((c.body, c.dark, c.light))
    p.box(0.03, 0.2, 0.97, 0.82, shell, 0.03)
    p.box(0.09, 0.25, 0.91, 0.67, c.light if _distance(c.light, shell) > 60 else c.trim, 0.03)
    p.box(0.09, r.uniform(0.54, 0.6), 0.91, 0.67, c.accent, 0.01)
    p.box(0.09, 0.25, 0.91, r.uniform(0.29, 0.33), c.trim, 0.01)
    for y in (0.355, 0.395):
        p.line([(0.17, y), (0.83, y)], _shade(c.dark, 1.3), 0.006)
    p.box(0.2, 0.42, 0.8, 0.6, _shade(shell, 0.7), 0.08)
    p.box(0.39, 0.45, 0.61, 0.57, _shade(c.dark, 1.2), 0.01)
    p.oval(0.39, 0.51, 0.07, 0.06, c.dark, edge=False)
    for x in (0.29, 0.71):
        p.oval(x, 0.51, 0.07, fill=(245, 245, 245))
        p.oval(x, 0.51, 0.045, fill=c.dark)
        for angle in range(0, 360, 60):
            p.line([_arc(x, 0.51, s, s, angle, angle, 1)[0] for s in (0.045, 0.03)], (245, 245, 245), 0.014)
    p.poly([(0.2, 0.82), (0.24, 0.71), (0.76, 0.71), (0.8, 0.82)], _shade(shell, 0.8))
    for x in (0.33, 0.45, 0.55, 0.67):
        p.oval(x, 0.77, 0.018, fill=c.dark)
    for x, y in ((0.06, 0.23), (0.94, 0.23), (0.06, 0.79), (0.94, 0.79)):
        p.oval(x, y, 0.014, fill=_shade(c.light, 0.7))


def _guitar(p: Pen, r: random.Random, c: Palette) -> None:
    p = p.turned(r.uniform(-42, 42))
    wood, neck = r.choice((c.wood, c.wood, c.body)), _shade(c.wood, 0.5)
    lower, upper = r.uniform(0.21, 0.24), r.uniform(0.15, 0.18)
    right = [(0.5 + upper * 0.6, 0.44), (0.5 + upper, 0.52), (0.5 + upper * 0.82, 0.62), (0.5 + lower, 0.78),
        (0.5 + lower * 0.75, 0.92), (0.5, 0.96)]
    outline = _smooth([(0.5, 0.45), *right, *[(1 - x, y) for x, y in reversed(right[:-1])]])
    p.poly([(x + (x - 0.5) * 0.05, y + (y - 0.7) * 0.04) for x, y in outline], _shade(wood, 0.45))
    p.poly(outline, wood)
    p.oval(0.5, 0.62, 0.085, fill=c.light)
    p.oval(0.5, 0.62, 0.068, fill=_shade(c.dark, 0.8))
    p.box(0.465, 0.1, 0.535, 0.56, neck)
    for fret in range(13):
        y = 0.13 + 0.43 * (1 - 0.94**fret) / (1 - 0.94**13)
        p.line([(0.467, y), (0.533, y)], _shade(c.light, 0.8), 0.007)
    p.poly([(0.455, -0.03), (0.545, -0.03), (0.54, 0.1), (0.46, 0.1)], _shade(wood, 0.6))
    for y in (0.0, 0.035, 0.07):
        for x in (0.425, 0.575):
            p.oval(x, y, 0.02, 0.013, c.light)
    p.box(0.41, 0.81, 0.59, 0.84, neck, 0.01)
    for string in range(6):
        x = 0.477 + string * 0.0092
        p.line([(x, 0.07), (x - 0.008 + string * 0.0032, 0.825)], _shade(c.light, 0.95), 0.0035)


def _piano(p: Pen, r: random.Random, c: Palette) -> None:
    case = r.choice((c.dark, c.body, c.wood))
    keys, top = r.choice((15, 17, 22)), r.uniform(0.28, 0.34)
    p.box(0.01, top, 0.99, 0.72, case, 0.02)
    p.box(0.4, top + 0.03, 0.6, top + 0.11, _shade(c.accent, 1.2), 0.01)
    for x in (0.07, 0.86):
        p.oval(x + 0.035, top + 0.07, 0.045, fill=_shade(case, 0.6))
    for knob in range(r.randint(2, 4)):
        p.oval(0.2 + knob * 0.05, top + 0.07, 0.016, fill=c.trim)
        p.box(0.65 + knob * 0.04, top + 0.055, 0.68 + knob * 0.04, top + 0.085, c.accent, 0.005)
    step = 0.92 / keys
    front = 0.7
    for key in range(keys):
        p.box(0.04 + key * step, top + 0.15, 0.04 + (key + 1) * step, front, (250, 249, 245))
    for key in range(keys - 1):
        if key % 7 not in (2, 6):
            x = 0.04 + (key + 1) * step
            p.box(x - step * 0.3, top + 0.15, x + step * 0.3, top + 0.15 + (front - top - 0.15) * 0.6, (25, 24, 27))
    p.box(0.01, front, 0.99, front + 0.045, _shade(case, 0.75), 0.01)


def _drum(p: Pen, r: random.Random, c: Palette) -> None:
    deep, ry = r.uniform(0.66, 0.78), r.uniform(0.13, 0.17)
    chrome = _shade(c.light, 0.8)
    side = [(0.1, 0.38), (0.1, deep), *_arc(0.5, deep, 0.4, ry, 180, 0, 24), (0.9, 0.38)]
    p.poly(side, c.body)
    p.poly([(0.2, 0.42), (0.3, 0.45), (0.3, deep + ry * 0.84), (0.2, deep + ry * 0.62)], (255, 255, 255, 70), False)
    for angle in (160, 130, 104, 76, 50, 20):
        x, y = _arc(0.5, 0, 0.4, ry, angle, angle, 1)[0]
        p.line([(x, y + 0.4), (x, y + deep)], chrome, 0.014)
        p.box(x - 0.02, y + (0.38 + deep) / 2 - 0.05, x + 0.02, y + (0.38 + deep) / 2 + 0.05, chrome, 0.01)
    p.arc(0.5, deep, 0.4, ry, 0, 180, chrome, 0.045)
    p.oval(0.5, 0.38, 0.41, ry + 0.01, chrome)
    p.oval(0.5, 0.375, 0.375, ry - 0.015, (248, 247, 240))
    p.arc(0.5, 0.39, 0.41, ry + 0.01, 0, 180, _shade(chrome, 0.85), 0.03)
    lean = r.uniform(-0.05, 0.08)
    for tail, tip in (((0.08, 0.06), (0.62 + lean, 0.42)), ((0.92, 0.05), (0.4 - lean, 0.43))):
        p.line([tail, tip], _shade(c.wood, 0.6), 0.036)
        p.line([tail, tip], c.wood, 0.026)
        p.oval(*tip, 0.026, 0.02, c.wood)


def _desk(p: Pen, r: random.Random, c: Palette) -> None:
    wood, top, pedestal = r.choice((c.wood, c.wood, c.body, c.light)), r.uniform(0.28, 0.34), r.uniform(0.28, 0.33)
    legs = r.choice((c.dark, _shade(wood, 0.7)))
    p.poly([(0.1, top), (0.9, top), (0.98, top + 0.12), (0.02, top + 0.12)], _shade(wood, 1.15))
    p.box(0.12, top + 0.15, 0.88, top + 0.36, _shade(wood, 0.55))
    p.box(0.06, top + 0.16, 0.1, 0.9, legs)
    x0, drawers = 0.94 - pedestal, r.randint(3, 4)
    p.box(x0, top + 0.16, 0.94, 0.88, wood)
    height = (0.88 - top - 0.17) / drawers
    for drawer in range(drawers):
        y = top + 0.17 + drawer * height
        p.box(x0 + 0.02, y + 0.008, 0.92, y + height - 0.004, _shade(wood, 1.08))
        p.box((x0 + 0.94) / 2 - 0.045, y + height * 0.4, (x0 + 0.94) / 2 + 0.045, y + height * 0.4 + 0.02, c.dark, 0.01)
    p.box(0.02, top + 0.12, 0.98, top + 0.165, _shade(wood, 0.9))


def _office_chair(p: Pen, r: random.Random, c: Palette) -> None:
    back, wide = r.uniform(0.03, 0.08), r.uniform(0.2, 0.24)
    metal = r.choice((c.dark, _shade(c.light, 0.65)))
    p.line([(0.5, 0.62), (0.5, 0.82)], metal, 0.05)
    for x, y in ((0.2, 0.9), (0.8, 0.9), (0.35, 0.95), (0.66, 0.95), (0.5, 0.87)):
        p.line([(0.5, 0.81), (x, y)], metal, 0.034)
        p.oval(x, y + 0.02, 0.032, fill=c.dark)
    p.box(0.46, 0.4, 0.54, 0.6, _shade(c.dark, 1.2))
    p.box(0.5 - wide, back, 0.5 + wide, 0.46, c.body, 0.09)
    p.box(0.5 - wide + 0.05, back + 0.06, 0.5 + wide - 0.05, 0.4, _shade(c.body, 1.15), 0.06, edge=False)
    for line in range(r.randint(0, 3)):
        p.line([(0.5 - wide + 0.06, back + 0.14 + line * 0.08), (0.5 + wide - 0.06, back + 0.14 + line * 0.08)],
            _shade(c.body, 0.7), 0.008)
    for side in (-1, 1):
        x = 0.5 + side * (wide + 0.08)
        p.line([(x, 0.44), (x, 0.58), (0.5 + side * wide * 0.8, 0.62)], metal, 0.026)
        p.box(x - 0.045, 0.41, x + 0.045, 0.455, c.dark, 0.02)
    p.poly(_smooth([(0.5 - wide - 0.02, 0.54), (0.5 + wide + 0.02, 0.54), (0.5 + wide + 0.06, 0.62), (0.5 + wide, 0.665),
        (0.5 - wide, 0.665), (0.5 - wide - 0.06, 0.62)]), _shade(c.body, 0.9))


def _filing_cabinet(p: Pen, r: random.Random, c: Palette) -> None:
    drawers, left = r.randint(3, 4), r.uniform(0.26, 0.3)
    pulled = r.randrange(drawers + 2)
    p.poly([(1 - left, 0.06), (1 - left + 0.1, 0.02), (1 - left + 0.1, 0.9), (1 - left, 0.96)], _shade(c.body, 0.65))
    p.poly([(left, 0.06), (left + 0.1, 0.02), (1 - left + 0.1, 0.02), (1 - left, 0.06)], _shade(c.body, 1.25))
    p.box(left, 0.06, 1 - left, 0.96, c.body)
    height = 0.88 / drawers
    for drawer in range(drawers):
        y, out = 0.075 + drawer * height, 0.03 if drawer == pulled else 0
        if out:
            p.poly([(left - 0.04, y), (1 - left - 0.04, y), (1 - left, y - 0.03), (left + 0.02, y - 0.03)], c.light)
        p.box(left + 0.02 - 2 * out, y + 0.012, 1 - left - 0.02 - 2 * out, y + height - 0.012 + out, _shade(c.body, 1.1), 0.01)
        p.box(0.44 - 2 * out, y + height * 0.22, 0.56 - 2 * out, y + height * 0.38, c.light)
        p.line([(0.42 - 2 * out, y + height * 0.58), (0.58 - 2 * out, y + height * 0.58)], _shade(c.dark, 1.2), 0.03)
    p.oval(1 - left - 0.045, 0.05 + 0.06, 0.012, fill=_shade(c.light, 0.6))


def _smartphone(p: Pen, r: random.Random, c: Palette) -> None:
    half = r.uniform(0.225, 0.25)
    columns, rows = 4, r.randint(4, 5)
    case = r.choice((c.dark, c.body, _shade(c.light, 0.75)))
    p.line([(0.5 + half + 0.004, 0.25), (0.5 + half + 0.004, 0.36)], _shade(case, 0.6), 0.02)
    p.box(0.5 - half, 0.03, 0.5 + half, 0.97, case, 0.065)
    p.box(0.5 - half + 0.02, 0.05, 0.5 + half - 0.02, 0.95, _shade(c.trim, 1.1), 0.05, edge=False)
    p.poly([(0.5 - half + 0.02, 0.6), (0.5 + half - 0.02, 0.4), (0.5 + half - 0.02, 0.88), (0.5 - half + 0.02, 0.9)],
        _shade(c.trim, 0.8), False)
    step = (half * 2 - 0.08) / columns
    for row in range(rows):
        for column in range(columns):
            x, y = 0.5 - half + 0.04 + column * step, 0.16 + row * (step + 0.035)
            p.box(x + 0.012, y, x + step - 0.012, y + step - 0.024, _hsv(r.random(), 0.65, 0.95), 0.02, edge=False)
    p.box(0.5 - half + 0.035, 0.82, 0.5 + half - 0.035, 0.93, (255, 255, 255, 110), 0.03, False)
    for column in range(columns):
        x = 0.5 - half + 0.04 + column * step
        p.box(x + 0.012, 0.838, x + step - 0.012, 0.838 + step - 0.024, _hsv(r.random(), 0.65, 0.95), 0.02, edge=False)
    p.box(0.43, 0.06, 0.57, 0.085, (15, 15, 18), 0.012, edge=False)


def _telephone(p: Pen, r: random.Random, c: Palette) -> None:
    top = r.uniform(0.34, 0.4)
    p.poly(_smooth([(0.22, top), (0.78, top), (0.93, 0.8), (0.92, 0.9), (0.08, 0.9), (0.07, 0.8)], 8), c.body)
    p.poly(_smooth([(0.08, 0.84), (0.92, 0.84), (0.93, 0.9), (0.07, 0.9)]), _shade(c.body, 0.7))
    face = c.light if _distance(c.light, c.body) > 80 else c.dark
    if r.random() < 0.6:
        p.poly([(0.34, 0.45), (0.66, 0.45), (0.7, 0.82), (0.3, 0.82)], _shade(c.body, 0.85))
        for row in range(4):
            for column in (-1, 0, 1):
                y, step = 0.485 + row * 0.085, 0.095 + row * 0.006
                p.box(0.5 + column * step - 0.036, y, 0.5 + column * step + 0.036, y + 0.06, face, 0.012)
    else:
        p.oval(0.5, 0.63, 0.195, fill=_shade(c.body, 0.8))
        p.oval(0.5, 0.63, 0.165, fill=face)
        for angle in range(0, 300, 30):
            p.oval(*_arc(0.5, 0.63, 0.125, 0.125, angle, angle, 1)[0], 0.027, fill=c.dark if face == c.light else c.light)
        p.oval(0.5, 0.63, 0.07, fill=c.body)
    for x in (0.29, 0.71):
        p.box(x - 0.05, top - 0.05, x + 0.05, top + 0.07, _shade(c.body, 0.75), 0.02)
    handset = [(0.04, 0.36), (0.06, 0.2), (0.22, 0.13), (0.5, 0.11), (0.78, 0.13), (0.94, 0.2), (0.96, 0.36), (0.82, 0.38),
        (0.74, 0.26), (0.5, 0.24), (0.26, 0.26), (0.18, 0.38)]
    p.poly(_smooth(handset), c.trim)
    cord = [(0.06 + 0.03 * math.cos(t * 1.9), 0.38 + t * 0.028 + 0.014 * math.sin(t * 1.9)) for t in range(18)]
    p.line(cord, c.trim, 0.014)


def _walkie_talkie(p: Pen, r: random.Random, c: Palette) -> None:
    side = r.choice((0.36, 0.6))
    p.poly([(side - 0.025, 0.3), (side - 0.018, 0.02), (side + 0.018, 0.02), (side + 0.025, 0.3)], c.dark)
    p.box(side - 0.045, 0.24, side + 0.045, 0.31, _shade(c.dark, 1.2), 0.01)
    p.box(1 - side - 0.05, 0.24, 1 - side + 0.03, 0.31, c.trim, 0.01)
    p.box(0.25, 0.42, 0.29, 0.56, c.accent, 0.01)
    p.box(0.27, 0.29, 0.73, 0.97, c.body, 0.06)
    p.box(0.31, 0.32, 0.69, 0.94, c.dark, 0.04)
    p.box(0.36, 0.36, 0.64, 0.49, _shade(c.accent, 1.3), 0.01)
    for x in (0.4, 0.46, 0.52):
        p.box(x, 0.395, x + 0.035, 0.455, c.dark, edge=False)
    for button in range(3):
        p.box(0.365 + button * 0.1, 0.53, 0.435 + button * 0.1, 0.575, c.trim, 0.015)
    if r.random() < 0.5:
        for line in range(6):
            p.line([(0.37, 0.64 + line * 0.045), (0.63, 0.64 + line * 0.045)], _shade(c.dark, 1.55), 0.016)
    else:
        for row in range(6):
            for column in range(6):
                p.oval(0.375 + column * 0.05, 0.64 + row * 0.045, 0.013, fill=_shade(c.dark, 1.6), edge=False)


def _bicycle(p: Pen, r: random.Random, c: Palette) -> None:
    radius, width = r.uniform(0.2, 0.225), r.uniform(0.02, 0.03)
    rear, front, crank, seat, head = (0.23, 0.66), (0.77, 0.66), (0.45, 0.68), (0.39, 0.36), (0.66, 0.34)
    for x, y in (rear, front):
        p.arc(x, y, radius, radius, 0, 360, c.dark, 0.028)
        p.arc(x, y, radius - 0.022, radius - 0.022, 0, 360, _shade(c.light, 0.8), 0.01)
        for angle in range(0, 360, 24):
            p.line([(x, y), _arc(x, y, radius - 0.02, radius - 0.02, angle, angle, 1)[0]], _shade(c.light, 0.75), 0.004)
        p.oval(x, y, 0.02, fill=c.dark)
    p.line([rear, crank], c.dark, 0.012)
    for tube in ((rear, seat), (rear, crank), (seat, crank), (seat, head), (crank, head), (head, front)):
        p.line(tube, _shade(c.body, 0.55), width + 0.008)
    for tube in ((rear, seat), (rear, crank), (seat, crank), (seat, head), (crank, head), (head, front)):
        p.line(tube, c.body, width)
    p.line([seat, (0.375, 0.29)], _shade(c.light, 0.6), 0.02)
    p.poly(_smooth([(0.29, 0.265), (0.36, 0.26), (0.47, 0.28), (0.4, 0.3), (0.31, 0.305)]), c.dark)
    p.line([head, (0.645, 0.27)], _shade(c.light, 0.6), 0.022)
    if r.random() < 0.5:
        p.line([(0.645, 0.27), (0.74, 0.26), (0.78, 0.31), (0.74, 0.37), (0.69, 0.36)], c.dark, 0.024)
    else:
        p.line([(0.645, 0.27), (0.69, 0.23), (0.58, 0.22)], c.dark, 0.026)
    p.oval(*crank, 0.055, fill=_shade(c.light, 0.6))
    p.oval(*crank, 0.03, fill=c.trim)
    p.line([(0.41, 0.76), (0.45, 0.68), (0.49, 0.6)], c.dark, 0.014)
    for x, y in ((0.41, 0.765), (0.49, 0.595)):
        p.line([(x - 0.03, y), (x + 0.03, y)], c.dark, 0.02)


def _tent(p: Pen, r: random.Random, c: Palette) -> None:
    peak, back, gap = r.uniform(0.34, 0.4), r.uniform(0.68, 0.74), r.uniform(0.09, 0.14)
    for x, y in ((0.0, 0.9), (1.0, 0.85)):
        p.line([(peak if x == 0 else back, 0.2), (x, y)], c.light, 0.007)
    p.poly([(peak, 0.14), (back, 0.2), (0.97, 0.78), (0.66, 0.88)], _shade(c.body, 0.75))
    p.line([((peak + back) / 2, 0.17), (0.82, 0.83)], _shade(c.body, 0.5), 0.007)
    p.poly([(0.665, 0.83), (0.96, 0.735), (0.97, 0.78), (0.66, 0.88)], c.trim)
    p.poly([(peak, 0.14), (0.66, 0.88), (0.06, 0.88)], c.body)
    p.poly([(peak, 0.3), (peak + gap, 0.88), (peak - gap, 0.88)], c.dark)
    p.poly([(peak, 0.3), (peak - gap, 0.88), (peak - gap - 0.09, 0.8), (peak - gap - 0.03, 0.62)], _shade(c.trim, 1.1))
    p.poly([(peak, 0.3), (peak + gap, 0.88), (peak + gap + 0.09, 0.8), (peak + gap + 0.03, 0.62)], _shade(c.trim, 1.1))
    p.line([(peak, 0.12), (peak, 0.3)], _shade(c.light, 0.8), 0.014)
    for x, y in ((0.06, 0.88), (0.66, 0.88), (0.97, 0.78)):
        p.line([(x, y - 0.01), (x, y + 0.035)], c.dark, 0.014)


def _football(p: Pen, r: random.Random, c: Palette) -> None:
    """A truncated icosahedron on a sphere, seen from a random side: 12 pentagons, and seams between them."""
    radius = r.uniform(0.4, 0.45)
    golden = (1 + 5**0.5) / 2
    corners = np.array([v for a in (-1, 1) for b in (-golden, golden) for v in ((0, a, b), (a, b, 0), (b, 0, a))], float)
    corners /= np.linalg.norm(corners[0])
    yaw, pitch, roll = (r.uniform(0, 6.28) for _ in range(3))
    about_z = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]])
    about_y = np.array([[math.cos(roll), 0, math.sin(roll)], [0, 1, 0], [-math.sin(roll), 0, math.cos(roll)]])
    corners = corners @ about_z @ about_x @ about_y
    panels, leather = r.choice(((c.dark, c.light), (c.dark, c.light), (c.body, c.light), (c.trim, c.light)))

    def on_disc(points: np.ndarray) -> list[Point]:
        points = points / np.linalg.norm(points, axis=1, keepdims=True)
        return [(0.5 + radius * x, 0.5 + radius * y) for x, y, _ in points.tolist()]

    p.oval(0.5, 0.5, radius, fill=leather)
    for corner in corners:
        near = corners[np.isclose(corners @ corner, 1 / 5**0.5)]  # the five neighbours of a corner of an icosahedron
        for other in near:
            if (corner * 2 / 3 + other / 3)[2] > 0 and (corner / 3 + other * 2 / 3)[2] > 0:
                p.line(on_disc(np.linspace(corner * 2 / 3 + other / 3, corner / 3 + other * 2 / 3, 5)), _shade(panels, 0.9), 0.01)
        if corner[2] > -0.1:
            side = np.cross(corner, near[0])
            order = np.argsort([math.atan2(n @ side, n @ near[0] - (near[0] @ corner) * (n @ corner)) for n in near])
            pentagon = corner * 2 / 3 + near[order] / 3
            edge = np.concatenate([np.linspace(pentagon[i], pentagon[(i + 1) % 5], 5)[:-1] for i in range(5)])
            edge /= np.linalg.norm(edge, axis=1, keepdims=True)
            hidden = edge[:, 2] < 0  # what is behind the rim slides onto it
            edge[hidden, :2] /= np.linalg.norm(edge[hidden, :2], axis=1, keepdims=True)
            if not hidden.all():
                p.poly([(0.5 + radius * x, 0.5 + radius * y) for x, y, _ in edge.tolist()], panels)
    p.oval(0.5 - radius * 0.35, 0.5 - radius * 0.4, radius * 0.3, radius * 0.22, (255, 255, 255, 70), -40, False)
    p.arc(0.5, 0.5, radius, radius, 0, 360, _shade(c.dark, 0.9), 0.01)


def _controller(p: Pen, r: random.Random, c: Palette) -> None:
    shell = r.choice((c.body, c.dark, c.light))
    inner = c.dark if _distance(shell, c.dark) > 90 else _shade(c.dark, 1.5)
    drop = r.uniform(0.8, 0.88)
    for x in (0.27, 0.73):
        p.box(x - 0.1, 0.2, x + 0.1, 0.32, _shade(shell, 0.6), 0.04)
    right = [(0.6, 0.27), (0.76, 0.23), (0.88, 0.34), (0.96, 0.6), (0.95, drop - 0.05), (0.87, drop), (0.79, drop - 0.06),
        (0.68, 0.68), (0.5, 0.66)]
    p.poly(_smooth([(0.5, 0.28), *right, *[(1 - x, y) for x, y in reversed(right[:-1])]]), shell)
    p.box(0.215, 0.37, 0.265, 0.53, inner, 0.01)
    p.box(0.16, 0.425, 0.32, 0.475, inner, 0.01)
    for (dx, dy), hue in zip(((0, -0.075), (0.075, 0), (0, 0.075), (-0.075, 0)), (0.13, 0.0, 0.38, 0.6), strict=True):
        p.oval(0.76 + dx, 0.45 + dy, 0.034, fill=_hsv(hue, 0.7, 0.9))
    for x in (0.37, 0.63):
        p.oval(x, 0.6, 0.08, fill=_shade(inner, 0.8))
        p.oval(x, 0.59, 0.055, fill=_shade(inner, 1.3))
    if r.random() < 0.5:
        p.box(0.38, 0.31, 0.62, 0.47, _shade(shell, 0.75), 0.03)
    else:
        p.oval(0.5, 0.36, 0.045, fill=c.accent)
    for x in (0.43, 0.57):
        p.oval(x, 0.49 if r.random() < 0.5 else 0.4, 0.018, 0.012, c.trim)


def _handheld(p: Pen, r: random.Random, c: Palette) -> None:
    top, bottom = r.uniform(0.27, 0.31), r.uniform(0.69, 0.73)
    other = c.trim if r.random() < 0.6 else c.body
    p.box(0.02, top, 0.35, bottom, c.body, 0.1)
    p.box(0.65, top, 0.98, bottom, other, 0.1)
    p.box(0.19, top, 0.81, bottom, c.dark)
    _screen_picture(p, r, c, 0.23, top + 0.045, 0.77, bottom - 0.045)
    hero = r.uniform(0.32, 0.6)
    for platform in range(3):
        x = 0.25 + platform * 0.17
        p.box(x, bottom - 0.14 - (platform % 2) * 0.06, x + 0.12, bottom - 0.11 - (platform % 2) * 0.06, c.wood)
    p.box(hero, bottom - 0.26, hero + 0.035, bottom - 0.205, c.accent)
    for x, y in ((0.105, top + 0.12), (0.895, bottom - 0.13)):
        p.oval(x, y, 0.052, fill=_shade(c.dark, 0.8))
        p.oval(x, y - 0.006, 0.034, fill=_shade(c.dark, 1.4))
    for dx, dy in ((0, -0.045), (0.045, 0), (0, 0.045), (-0.045, 0)):
        p.oval(0.895 + dx, top + 0.13 + dy, 0.02, fill=c.dark)
    p.box(0.09, bottom - 0.19, 0.12, bottom - 0.07, c.dark, 0.006)
    p.box(0.045, bottom - 0.145, 0.165, bottom - 0.115, c.dark, 0.006)
    p.line([(0.15, top + 0.04), (0.175, top + 0.04)], c.light, 0.012)


def _arcade(p: Pen, r: random.Random, c: Palette) -> None:
    wide = r.uniform(0.24, 0.27)
    left, right = 0.5 - wide, 0.5 + wide
    p.poly([(right, 0.02), (right + 0.1, 0.06), (right + 0.07, 0.2), (right + 0.07, 0.48), (right + 0.13, 0.56),
        (right + 0.1, 0.93), (right, 0.98)], _shade(c.body, 0.6))
    p.box(left, 0.02, right, 0.98, c.body)
    p.box(left + 0.02, 0.035, right - 0.02, 0.14, _shade(c.accent, 1.3))
    for star in range(5):
        p.oval(left + 0.07 + star * (wide * 2 - 0.14) / 4, 0.087, 0.026, fill=c.trim)
    p.box(left + 0.02, 0.16, right - 0.02, 0.52, c.dark)
    p.box(left + 0.055, 0.19, right - 0.055, 0.495, _shade(c.dark, 0.6))
    for row in range(3):
        for column in range(5):
            x, y = left + 0.09 + column * (wide * 2 - 0.22) / 4.6, 0.22 + row * 0.055
            p.box(x, y, x + 0.04, y + 0.032, _hsv(row / 3 + r.random() * 0.1, 0.7, 0.95), edge=False)
    p.poly([(0.5, 0.43), (0.53, 0.475), (0.47, 0.475)], c.light, False)
    p.poly([(left, 0.53), (right, 0.53), (right + 0.03, 0.64), (left - 0.03, 0.64)], c.trim)
    p.line([(left + 0.11, 0.595), (left + 0.11, 0.52)], _shade(c.light, 0.7), 0.016)
    p.oval(left + 0.11, 0.51, 0.03, fill=c.accent)
    for button in range(3):
        p.oval(0.5 + button * 0.075, 0.585, 0.024, 0.018, _hsv(button / 3 + 0.1, 0.8, 0.9))
    p.box(left - 0.03, 0.64, right + 0.03, 0.67, _shade(c.trim, 0.7))
    p.box(0.4, 0.74, 0.6, 0.9, _shade(c.dark, 1.2))
    for x in (0.45, 0.55):
        p.box(x - 0.022, 0.77, x + 0.022, 0.83, c.light)
        p.line([(x, 0.785), (x, 0.815)], c.dark, 0.008)


@dataclass(frozen=True)
class Kind:
    """One kind of object: where it is listed, what sellers write about it, its median price in pounds, how it is drawn."""

    name: str
    category: str
    nouns: tuple[str, ...]
    brands: tuple[str, ...]
    facts: tuple[str, ...]
    price_gbp: float
    paint: Callable[[Pen, random.Random, Palette], None]


def _kind(category: str, name: str, price_gbp: float, paint: Callable, nouns: str, brands: str, facts: str) -> Kind:
    return Kind(name, category, *(tuple(part.split("|")) for part in (nouns, brands, facts)), price_gbp, paint)


_KINDS = (
    _kind("Appliances / Washing Machines & Dryers / Washing Machines / Private", "washing machine", 140, _washing_machine,
        "washing machine|washer|front loader|8kg washing machine", "Bosch|Hotpoint|Beko|Indesit|Samsung",
        "1400 spin~1200 spin~1600 spin|8kg drum~7kg drum~9kg load|A+++ rated|30 min quick wash|all hoses included|60cm wide"),
    _kind("Appliances / Fridges & Freezers / Fridge Freezers", "fridge freezer", 130, _fridge,
        "fridge freezer|fridge|upright freezer|frost free fridge", "Bosch|Beko|LG|Hotpoint|Zanussi",
        "50/50 split|three freezer drawers|frost free|new door seals|salad drawer included|180cm high~55cm wide|very quiet"),
    _kind("Appliances / Small Appliances", "kettle", 14, _kettle, "kettle|electric kettle|cordless kettle|1.7l kettle",
        "Russell Hobbs|Morphy Richards|Breville|Dualit|Swan",
        "1.7 litre~1.5 litre|boils in no time|limescale filter|auto shut off|3kw fast boil|360 degree base"),
    _kind("Baby & Kids Stuff / Nursery & Children's Furniture / Cots & Beds", "cot", 55, _cot,
        "cot|cot bed|baby crib|wooden cot", "Mamas & Papas|Ikea|Mothercare|Silver Cross|East Coast",
        "three mattress heights|drop side|mattress included|teething rails|converts to toddler bed|60 x 120cm"),
    _kind("Baby & Kids Stuff / Prams & Strollers / Prams/Pushchairs / Pram Bodies / Private", "pram", 95, _pram,
        "pram|pushchair|stroller|travel system", "Silver Cross|Bugaboo|iCandy|Chicco|Graco",
        "rain cover included|folds flat|carrycot from birth|new tyres|five point harness|big shopping basket"),
    _kind("Baby & Kids Stuff / Toys / Soft Toys", "teddy bear", 9, _teddy, "teddy bear|teddy|cuddly bear|soft toy",
        "Steiff|Jellycat|Build a Bear|Keel|Harrods",
        "super soft|never chewed|35cm tall~big 60cm one|washed and ready to cuddle|with its bow|tags still on"),
    _kind("Clothes, Footwear & Accessories / Men's Clothing / T-Shirts", "T-shirt", 8, _tshirt,
        "T-shirt|tee|tshirt|short sleeve top", "Nike|Next|Superdry|Fred Perry|Uniqlo",
        "size M~size L~size XL~size S|100% cotton|slim fit|crew neck|washed once|chest 40 inch"),
    _kind("Clothes, Footwear & Accessories / Women's Clothing / Trousers & Jeans", "trousers", 15, _trousers,
        "trousers|jeans|chinos|straight leg trousers", "Levi's|Zara|M&S|Wrangler|Gap",
        "size 12~size 10~size 14~32 waist 30 leg|high rise|stretch denim|two back pockets|never altered"),
    _kind("Clothes, Footwear & Accessories / Shoes & Boots", "trainers", 28, _shoe,
        "trainers|running shoes|sneakers|trainer shoes", "Nike|Adidas|Puma|New Balance|Asics",
        "UK 9~UK 6~size 8~size 5|boxed|worn twice|spare laces|no creases"),
    _kind("Computers & Software / Computers, Laptops & Netbooks / PC Laptops & Netbooks", "laptop", 210, _laptop,
        "laptop|notebook|15 inch laptop|ultrabook", "Dell|HP|Lenovo|Acer|Asus",
        "i5 8GB RAM~i7 16GB~i7 8GB~i3 4GB|256GB SSD~1TB drive|Windows 11~Windows 10|charger included|5 hours of battery|full HD"),
    _kind("Computers & Software / Monitors & Projectors / Monitors", "monitor", 70, _monitor,
        "monitor|PC screen|24 inch monitor|computer display", "Dell|BenQ|AOC|Samsung|Iiyama",
        "1920x1080|HDMI and VGA|75Hz|IPS panel|no dead pixels|27 inch~24 inch~22 inch|stand tilts"),
    _kind("Computers & Software / Keyboards, Mice & Input Devices", "computer keyboard", 18, _keyboard,
        "keyboard|USB keyboard|wireless keyboard|mechanical keyboard", "Logitech|Microsoft|Corsair|Razer|Cherry",
        "UK layout|USB|brown switches|number pad|all keys work|spill proof"),
    _kind("DIY Tools & Materials / Hand Tools / Other Hand Tools", "hammer", 9, _hammer,
        "hammer|claw hammer|16oz hammer|nail hammer", "Stanley|Estwing|Draper|Bahco|Faithfull",
        "16oz~20oz|hickory handle~steel shaft|good grip|pulls nails easily"),
    _kind("DIY Tools & Materials / Power Tools / Drills & Screwdrivers", "drill", 48, _drill,
        "drill|cordless drill|combi drill|drill driver", "Makita|DeWalt|Bosch|Ryobi|Black & Decker",
        "18v~12v~20v|two batteries|13mm chuck|hammer action|charger and case|2 speed gearbox"),
    _kind("DIY Tools & Materials / Ladders/Steps", "step ladder", 26, _ladder,
        "step ladder|ladder|folding steps|decorating ladder", "Youngman|Werner|Abru|Hailo|Lyte",
        "5 tread~4 tread~6 tread|aluminium|folds flat|rubber feet|max load 150kg|stands 1.6m"),
    _kind("Health & Beauty / Hair Care & Styling / Hair Dryers", "hair dryer", 20, _hairdryer,
        "hair dryer|hairdryer|salon dryer|blow dryer", "Dyson|Babyliss|Remington|GHD|Tresemme",
        "2200w~1875w|ionic|two heat settings|cool shot button|nozzle included|long cable"),
    _kind("Health & Beauty / Make Up & Cosmetics", "lipstick", 7, _lipstick, "lipstick|matte lipstick|lip colour|lippy",
        "MAC|Rimmel|Chanel|Maybelline|Charlotte Tilbury",
        "only swatched|matte finish|long lasting|unwanted gift|sealed when bought|rose shade"),
    _kind("Health & Beauty / Fragrances", "perfume", 24, _perfume, "perfume|eau de parfum|fragrance|scent bottle",
        "Chanel|Dior|Jo Malone|Lancome|Hugo Boss",
        "100ml~50ml~30ml|nearly full~about 80% left|floral scent|original bottle|EDP"),
    _kind("Home & Garden / Dining, Living Room Furniture / Sofas, Armchairs & Suites / Private", "sofa", 160, _sofa,
        "sofa|settee|couch|3 seater sofa", "DFS|Ikea|Next|Habitat|SCS",
        "seats three|removable covers|210cm wide|fire label attached|feather cushions|goes through a normal door"),
    _kind("Home & Garden / Dining, Living Room Furniture / Lighting & Fittings", "table lamp", 16, _lamp,
        "table lamp|bedside lamp|lamp|reading light", "Laura Ashley|Habitat|Ikea|John Lewis|Dunelm",
        "bulb included|45cm high|switch on the cable|shade is fabric|E27 fitting|cosy light"),
    _kind("Home & Garden / Garden & Patio / Plants, Pots & Ornaments / Pot Plants / Private", "pot plant", 12, _plant,
        "pot plant|house plant|plant in pot|potted plant", "Homebase|B&Q|Ikea|Dobbies|Patch",
        "easy to look after|50cm tall~1m tall|likes shade~likes sun|water weekly|repotted this spring|pot included"),
    _kind("Music, Films, Books & Games / Music / Vinyl/LPs", "vinyl record", 11, _vinyl,
        "vinyl record|LP|12 inch record|vinyl album", "EMI|Decca|Motown|Island|Parlophone",
        "33rpm|plays without skipping|sleeve VG+|original 1978 pressing|inner sleeve|light surface marks"),
    _kind("Music, Films, Books & Games / Books & Magazines / Fiction", "book", 5, _book, "book|novel|hardback book|paperback",
        "Penguin|Faber|Macmillan|Pan|HarperCollins",
        "no torn pages|412 pages~280 pages|first edition~large print|read once|great holiday read"),
    _kind("Music, Films, Books & Games / Music / Cassettes", "cassette tape", 4, _cassette,
        "cassette tape|cassette|audio tape|mixtape", "TDK|Maxell|Sony|BASF|Memorex",
        "C90~C60|chrome type II|plays fine|from the 80s|case cracked|rewound"),
    _kind("Musical Instruments & DJ Equipment / Guitars & Accessories / Acoustic Guitars", "acoustic guitar", 85, _guitar,
        "acoustic guitar|guitar|classical guitar|6 string guitar", "Yamaha|Fender|Takamine|Tanglewood|Admira",
        "new strings|soft case|full size|low action|spruce top|lovely tone"),
    _kind("Musical Instruments & DJ Equipment / Keyboards & Pianos", "piano keyboard", 110, _piano,
        "keyboard|digital piano|electric keyboard|synthesiser", "Casio|Yamaha|Roland|Korg|Kawai",
        "61 keys~88 weighted keys~49 keys|power supply|stand included|MIDI out|headphone socket"),
    _kind("Musical Instruments & DJ Equipment / Percussion & Drums", "snare drum", 60, _drum,
        "snare drum|drum|drum with sticks|14 inch snare", "Pearl|Ludwig|Premier|Mapex|Tama",
        "14 x 5.5|sticks included|new head|wood shell|good crack|throw-off works"),
    _kind("Office Furniture & Equipment / Desks & Tables / Desks", "desk", 60, _desk,
        "desk|writing desk|computer desk|office desk", "Ikea|Habitat|Argos|John Lewis|Dams",
        "120cm wide~140cm wide~1m wide|lockable drawers|cable hole|solid top|flat pack|heavy two person lift"),
    _kind("Office Furniture & Equipment / Chairs & Seating / Office Chairs", "office chair", 42, _office_chair,
        "office chair|swivel chair|desk chair|computer chair", "Herman Miller|Ikea|HAG|Orangebox|Staples",
        "gas lift|adjustable arms|lumbar support|five castors|tilts back|mesh back"),
    _kind("Office Furniture & Equipment / Filing & Storage", "filing cabinet", 36, _filing_cabinet,
        "filing cabinet|metal cabinet|4 drawer cabinet|document cabinet", "Bisley|Silverline|Triumph|Ikea|Vickers",
        "two keys|takes A4 hanging files|smooth runners|steel|anti tilt|a small dent at the back"),
    _kind("Phones, Mobile Phones & Telecoms / Mobile Phones / Smartphones", "smartphone", 150, _smartphone,
        "mobile phone|smartphone|sim free phone|handset", "Apple|Samsung|Huawei|OnePlus|Nokia",
        "64GB~128GB unlocked~256GB|screen protector on|battery health 89%|dual sim|cracked corner|IMEI clean"),
    _kind("Phones, Mobile Phones & Telecoms / Home Phones & Answering Machines", "telephone", 15, _telephone,
        "telephone|landline phone|corded phone|home phone", "BT|Panasonic|Gigaset|GPO|Binatone",
        "loud ringer|curly cord|wall mountable|big buttons|memory dial|works in a power cut"),
    _kind("Phones, Mobile Phones & Telecoms / Radio Communication Equipment", "walkie talkie", 32, _walkie_talkie,
        "walkie talkie|two way radio|handheld radio|CB radio", "Motorola|Baofeng|Cobra|Midland|Kenwood",
        "5 mile range~2 mile range|UHF|belt clip|16 channels|drop in charger|vox"),
    _kind("Sports, Leisure & Travel / Bicycles / Road/Hybrid Bikes", "bicycle", 120, _bicycle,
        "bicycle|bike|road bike|hybrid bike", "Raleigh|Trek|Carrera|Giant|Specialized",
        "21 speed|54cm frame~56cm frame~18 inch frame|new chain|700c wheels|serviced in March|puncture proof tyres"),
    _kind("Sports, Leisure & Travel / Camping & Hiking / Tents/Awnings", "tent", 45, _tent,
        "tent|camping tent|ridge tent|2 man tent", "Vango|Coleman|Eurohike|Hi Gear|Outwell",
        "sleeps two~sleeps three|sewn in groundsheet|all pegs there|4kg|3000mm waterproof|pitched twice"),
    _kind("Sports, Leisure & Travel / Ball & Racquet Sport Equipment", "football", 8, _football,
        "football|match ball|soccer ball|size 5 football", "Adidas|Nike|Mitre|Umbro|Puma",
        "size 5|holds air|stitched panels|pump included|training ball|hardly kicked"),
    _kind("Video Games & Consoles / Gaming Accessories / Controllers", "game controller", 24, _controller,
        "controller|game pad|wireless controller|joypad", "Sony|Microsoft|Nintendo|PowerA|Hori",
        "no stick drift|bluetooth|rumble works|charging cable|for PC too|trigger grips"),
    _kind("Video Games & Consoles / Consoles / Handheld Consoles", "handheld console", 105, _handheld,
        "handheld console|portable console|handheld games machine|games console", "Nintendo|Sony|Sega|Anbernic|Atari",
        "32GB card|two games|charger|dock not included|screen spotless|grip case"),
    _kind("Video Games & Consoles / Consoles / Other Consoles / Arcade Machines / Private", "arcade machine", 420, _arcade,
        "arcade machine|arcade cabinet|coin op|upright arcade", "Namco|Atari|Sega|Taito|Konami",
        "60 games|free play switch|19 inch screen|key for coin door|original artwork|bring a van"),
)
# fmt: on
_BY_NAME = {kind.name: kind for kind in _KINDS}

KINDS: dict[str, tuple[str, ...]] = {
    category: tuple(kind.name for kind in _KINDS if kind.category == category)
    for category in dict.fromkeys(k.category for k in _KINDS)
}  # category path -> names of the kinds listed there


# Photographs: a background, the object in front of it, light, and a camera.


def _plain(rng: random.Random, ink: ImageDraw.ImageDraw, width: int, height: int, one: Colour, two: Colour) -> None:
    ink.rectangle((0, 0, width, height), one)


def _gradient(rng: random.Random, ink: ImageDraw.ImageDraw, width: int, height: int, one: Colour, two: Colour) -> None:
    across = rng.random() < 0.3
    length = width if across else height
    for at in range(length):
        colour = tuple(round(a + (b - a) * at / length) for a, b in zip(one, two, strict=True))
        ink.line((at, 0, at, height) if across else (0, at, width, at), colour)


def _room(rng: random.Random, ink: ImageDraw.ImageDraw, width: int, height: int, one: Colour, two: Colour) -> None:
    floor = height * rng.uniform(0.6, 0.85)
    ink.rectangle((0, 0, width, height), one)
    ink.rectangle((0, floor, width, height), two)
    ink.rectangle((0, floor - height * 0.035, width, floor), _shade(one, 1.4))


def _boards(rng: random.Random, ink: ImageDraw.ImageDraw, width: int, height: int, one: Colour, two: Colour) -> None:
    upright = rng.random() < 0.5
    across, along = (width, height) if upright else (height, width)
    board = across / rng.randint(4, 8)
    for number in range(math.ceil(across / board)):
        start = number * board
        colour = _shade(one, rng.uniform(0.85, 1.1))
        ink.rectangle((start, 0, start + board, along) if upright else (0, start, along, start + board), colour, _shade(one, 0.7))
        for _ in range(3):
            grain = start + rng.uniform(0.1, 0.9) * board
            ink.line(
                (grain, 0, grain + rng.uniform(-3, 3), along) if upright else (0, grain, along, grain + rng.uniform(-3, 3)),
                _shade(colour, 0.9),
            )


def _clutter(rng: random.Random, ink: ImageDraw.ImageDraw, width: int, height: int, one: Colour, two: Colour) -> None:
    ink.rectangle((0, 0, width, height), one)
    for _ in range(rng.randint(12, 24)):
        x, y, size = rng.uniform(-0.1, 1) * width, rng.uniform(-0.1, 1) * height, rng.uniform(0.05, 0.3) * height
        mixed = tuple(round(0.7 * a + 0.3 * b) for a, b in zip(one, _any_colour(rng), strict=True))
        shape = ink.ellipse if rng.random() < 0.5 else ink.rectangle
        shape((x, y, x + size * rng.uniform(0.5, 1.5), y + size), mixed)


def _backdrop_colour(rng: random.Random, palette: Palette) -> Colour:
    """A room's colour that the object stands out from."""
    tries = [_hsv(rng.random(), rng.uniform(0.03, 0.5), rng.uniform(0.3, 0.97)) for _ in range(12)]
    return next((colour for colour in tries if _distance(colour, palette.body) > 120), tries[-1])


def _background(rng: random.Random, width: int, height: int, palette: Palette) -> Image.Image:
    """An unsharp background at a quarter of the size asked for, enlarged."""
    small = Image.new("RGB", (max(1, width // 4), max(1, height // 4)))
    one, two = _backdrop_colour(rng, palette), _backdrop_colour(rng, palette)
    paint = rng.choice((_plain, _gradient, _room, _boards, _clutter))
    paint(rng, ImageDraw.Draw(small), *small.size, one, two)
    return small.resize((width, height), Image.Resampling.BILINEAR)


def _viewpoint(rng: random.Random, view: int, width: int, height: int) -> np.ndarray:
    """The homography from the unit square to pixels: the first view is nearly straight, later ones are from other angles."""
    turn, slant = (7, 0.2) if view == 0 else (12, 0.32)
    perspective = np.eye(3)
    perspective[2, :2] = rng.uniform(-slant, slant), rng.uniform(-slant, slant)
    mirror = -1.0 if rng.random() < (0.2 if view == 0 else 0.4) else 1.0
    scale = min(width, height) * (rng.uniform(0.76, 0.93) if view == 0 else rng.uniform(0.78, 1.02))
    spare_x, spare_y = max(0.0, width - scale) / 2, max(0.0, height - scale) / 2
    place = _shift(width / 2 + rng.uniform(-0.6, 0.6) * spare_x, height / 2 + rng.uniform(-0.6, 0.6) * spare_y)
    stretch = np.diag([scale * mirror, scale * rng.uniform(0.94, 1.06), 1.0])
    return place @ stretch @ _turn(rng.uniform(-turn, turn)) @ perspective @ _shift(-0.5, -0.5)


def draw(kind: str, rng: random.Random, view: int, size: tuple[int, int]) -> Image.Image:
    """One photo of one object, RGB, `size` = (width, height) pixels.

    The state of `rng` decides the object (colours, proportions, details), `view` which photo of it is taken (angle, background,
    light): two generators in the same state give the same object for every view.
    Raises KeyError for a kind that is not in KINDS.
    """
    paint = _BY_NAME[kind].paint
    palette = _palette(rng)
    details, camera = (random.Random(f"{rng.getrandbits(64)} {use}") for use in ("object", view))
    width, height = size
    canvas = _background(camera, width * SUPERSAMPLING, height * SUPERSAMPLING, palette)
    matrix = _viewpoint(camera, view, *canvas.size)
    pen = Pen(canvas, matrix)
    pen.oval(0.5, 0.95, 0.42, 0.05, (0, 0, 0, 45), edge=False)
    paint(pen, details, palette)
    photo = np.asarray(canvas.reduce(SUPERSAMPLING), np.float32)
    return Image.fromarray(_lit(photo, camera))


def _lit(photo: np.ndarray, camera: random.Random) -> np.ndarray:
    """Light falling from one side, a colour cast, an exposure and sensor noise; (H, W, 3) float32 -> uint8."""
    height, width = photo.shape[:2]
    slope_x, slope_y = camera.uniform(-0.16, 0.16), camera.uniform(-0.16, 0.16)
    light = (
        1
        + slope_x * np.linspace(-1, 1, width, dtype=np.float32)
        + slope_y * np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    )
    cast = np.array([camera.uniform(0.9, 1.1) for _ in range(3)], np.float32) * camera.uniform(0.82, 1.12)
    noise = np.random.default_rng(camera.getrandbits(64)).integers(-5, 6, (height, width, 1), np.int8)
    return np.clip(photo * light[..., None] * cast + noise, 0, 255).astype(np.uint8)


# Words: what sellers write.

# fmt: off
_PLACES = ("Leeds, West Yorkshire", "Bristol", "Norwich, Norfolk", "Kendal, Cumbria", "Hove, East Sussex", "Truro, Cornwall",
    "Perth, Perth and Kinross", "Swansea", "Derby, Derbyshire", "Wigan, Manchester", "Ely, Cambridgeshire", "Bath, Somerset",
    "Lisburn, County Antrim", "Durham, County Durham", "Hackney, London", "Croydon, London", "Stirling, Stirling",
    "Gateshead, Tyne and Wear", "Wrexham, Wrexham", "Bury St Edmunds, Suffolk", "Stow-on-the-Wold, Gloucestershire",
    "King's Lynn, Norfolk")
_SELLERS = ("Aisha", "Brian", "Mary Jane", "Callum", "Dorota", "Femi", "Gwen", "Hamid", "Siobhan", "Jean-Paul", "O'Brien",
    "priya")
_CONDITIONS = ("good condition", "excellent condition", "used but tidy", "like new", "fair condition", "as new", "bit worn",
    "great nick")
_WHY = ("moving house so it has to go", "upgraded to a newer one", "unwanted gift", "no longer needed", "clearing out the loft",
    "kids have grown out of it", "surplus to requirements", "downsizing after 12 years")
_HOW = ("collection only", "buyer to collect", "can deliver locally for petrol money", "cash on collection", "can post at cost",
    "pick up any evening after 6", "first to see will buy", "no time wasters please")
_MORE = ("Open to sensible offers", "Smoke and pet free home", "Any questions just ask", "Priced to sell 👍", "Grab a bargain!!",
    "Genuine reason for sale", "It’s been looked after", 'Was "as good as new" when I got it', "Dont miss out")
_DATES = ("14 February 2022", "25 February 2022", "3 March 2022", "30 January 2022", "8 August 2021")
# Only numbers that Ofcom keeps for drama: 07700 900000 to 900999, 020 7946 0000 to 0999, 0161 496 0000 to 0999,
# 01632 960000 to 960999.
_PHONES = ("07700 900{n}", "07700900{n}", "+44 7700 900{n}", "0044 7700 900{n}", "+44 (0)7700 900 {n}", "07700-900-{n}",
    "0 7 7 0 0 9 0 0 {n}", "(020) 7946 0{n}", "020.7946.0{n}", "0161 496 0{n}", "01632 960{n}", "+447700900{n}")
_POSTCODES = ("ZZ99 9ZZ", "zz99 3wz", "ZZ993WZ", "ZZ99 1AA", "zz9 9xy", "ZZ1 4QT")  # ZZ is no postcode area

_HUES = ((0.03, "red"), (0.1, "orange"), (0.19, "yellow"), (0.45, "green"), (0.53, "turquoise"), (0.7, "blue"), (0.82, "purple"),
    (0.94, "pink"), (1.01, "red"))
# fmt: on


def _colour_word(colour: Colour) -> str:
    hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in colour))
    if saturation < 0.15:
        return "black" if value < 0.28 else "grey" if value < 0.75 else "white"
    return next(word for limit, word in _HUES if hue <= limit)


def _wording(kind: Kind, colour: str, rng: random.Random) -> tuple[str, str]:
    """Title and description of one object; the description's sentences are run together the way sellers do it.

    A few sellers say so little that only the photo tells what it is.
    """
    brand, state, why, how = (rng.choice(words) for words in (kind.brands, _CONDITIONS, _WHY, _HOW))
    noun, same = rng.choice(kind.nouns), rng.choice(kind.nouns)
    facts = [rng.choice(fact.split("~")) for fact in rng.sample(kind.facts, rng.randint(2, 4))]
    paid = f"paid £{round(kind.price_gbp * rng.uniform(1.5, 4))} {rng.randint(2, 30)} months ago"
    if rng.random() < VAGUE_SHARE:
        title = rng.choice(
            ("bargain, must go", f"{colour} - {state}", f"job lot, {state}", f"see photos, {colour}", f"quick sale, {how}")
        )
        sentences = ["see photos", why, paid, how]
    else:
        title = rng.choice(
            (
                f"{brand} {noun}",
                f"{colour} {noun}",
                f"{brand} {colour} {noun}",
                f"{noun} - {state}",
                f"{noun}, {facts[0]}",
                f"lovely {colour} {noun}",
                f"{noun} for sale",
                f"{brand} {noun} {facts[0]}",
                f"{noun} ({brand})",
                f"{brand} - bargain, {state}",
            )
        )
        opening = rng.choice(
            (
                f"{brand} {same} in {colour}, {state}",
                f"selling my {colour} {same}",
                f"{state} {same} by {brand}",
                f"for sale: {same}, {why}",
                f"had this {same} {rng.randint(2, 11)} years",
                f"this is a {colour} one made by {brand}",
                f"{why}, {state}",
            )
        )
        sentences = [opening, *facts[1:], *rng.sample((how, paid, rng.choice(_MORE)), rng.randint(1, 3))]
    capitals = [one[0].upper() + one[1:] for one in (title, *sentences)]
    title = rng.choice((title.upper(), title.lower(), *capitals[:1] * 6))
    return title, rng.choice((". ", ".\n", "\n", " \n", "\n\n", " ", "")).join(capitals[1:])


def _price(kind: Kind, rng: random.Random) -> str:
    pounds = kind.price_gbp * math.exp(rng.gauss(0, PRICE_SPREAD))
    return f"£{max(1, round(pounds)) + rng.choice((0, 0, 0, 0, -0.01, 0.5)):,.2f}"


# The marketplace: listings and photos with their traps, planned first, then written.


@dataclass(frozen=True)
class Listing:
    """One record of Products.csv; `object_seed` decides the object on its photos."""

    product_id: str
    kind: Kind
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


BROKEN = ("truncated", "empty", "text")
ODD = ("oriented", "png", "oriented", "cmyk", "oriented", "grayscale")


REJECT_REASONS = ("null_price", "bad_price", "duplicate_id", "bad_id")
ORIENTATION_TAG = 0x0112  # EXIF 2.32, table 4
ORIENTATIONS = (  # value of the tag -> how the stored pixels are turned: the other way than the value tells a reader to
    (3, Image.Transpose.ROTATE_180),
    (6, Image.Transpose.ROTATE_90),
    (8, Image.Transpose.ROTATE_270),
)


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _spread(total: int, share: float, traps: bool) -> int:
    """How many of `total` get a trap: a share of them, at least one where traps are wanted."""
    return max(1 if traps else 0, round(share * total))


def _kinds_in_turn() -> list[Kind]:
    """One kind of every main category, then the next of every category, and so on."""
    by_category: dict[str, list[Kind]] = {}
    for kind in _KINDS:
        by_category.setdefault(kind.category.split(" / ")[0], []).append(kind)
    rounds = max(len(kinds) for kinds in by_category.values())
    return [kinds[turn] for turn in range(rounds) for kinds in by_category.values() if turn < len(kinds)]


def _new_listing(kind: Kind, rng: random.Random) -> Listing:
    product_id = _uuid(rng)
    colour = _colour_word(_palette(random.Random(product_id)).body)
    return Listing(product_id, kind, product_id, *_wording(kind, colour, rng), _price(kind, rng), rng.choice(_PLACES))


def _leak(listing: Listing, rng: random.Random) -> str:
    """The description with the phrase some pages add: it names the seller and the category."""
    levels = [level for level in listing.kind.category.split(" / ") if level != "Private"][-2:]
    title, town = listing.title, listing.place.split(",")[0]
    return (
        f"{listing.description} {title}. Posted by {rng.choice(_SELLERS)} in {', '.join(levels)} in {town}. {rng.choice(_DATES)}"
    )


def _contact(listing: Listing, what: str, number: int, rng: random.Random) -> Listing:
    """The listing with a phone number, a postcode or an e-mail address, spelt in one of many ways, in its text or its name."""
    if what == "phone":
        detail = _PHONES[number % len(_PHONES)].format(n=f"{rng.randrange(1000):03d}")
        lead = (" call ", " Tel:", " whatsapp me on ", " text")[number % 4]
    elif what == "postcode":
        detail, lead = _POSTCODES[number % len(_POSTCODES)], (" collect from ", " postcode ", " near ")[number % 3]
    else:
        seller = rng.choice(_SELLERS).lower().replace(" ", ".").replace("'", "")
        detail, lead = f"{seller}{rng.randint(1, 99)}@example.com", (" mail ", " e-mail:")[number % 2]
    if what != "email" and number % 5 == 4:
        return replace(listing, title=f"{listing.title} {detail}")
    return replace(listing, description=f"{listing.description}{lead}{detail}{('', ' thanks', '.')[number % 3]}")


@dataclass(frozen=True)
class Repost:
    """A listing posted again: with the "same photos", the "same text" or a "near photo"."""

    first: Listing
    again: Listing
    how: str


def _plan_listings(count: int, rng: random.Random) -> tuple[list[Listing], list[Repost], dict[str, int]]:
    """The listings to be kept, those among them that are reposts, and how many have which trap in their texts."""
    traps = count >= TRAPS_FROM
    reposted = max(3, count // 20) if traps else 0
    turn = _kinds_in_turn()
    listings = [_new_listing(turn[number % len(turn)], rng) for number in range(count - reposted)]
    marked: dict[str, set[str]] = {}

    def change(trap: str, share: float, changed: Callable[[Listing, int], Listing]) -> None:
        for number, at in enumerate(rng.sample(range(len(listings)), _spread(len(listings), share, traps))):
            listings[at] = changed(listings[at], number)
            marked.setdefault(trap, set()).add(listings[at].product_id)

    change(
        "names_with_pipes",
        0.01,
        lambda one, number: replace(one, title=f"{one.title} | {('RRP £99', 'NEW ✅')[number % 2]} | QUICK SALE"),
    )
    for trap, share in (("phone", 0.06), ("postcode", 0.05), ("email", 0.02)):
        change(f"listings_with_{trap}", share, lambda one, number, trap=trap: _contact(one, trap, number, rng))
    change("posted_by", 0.08, lambda one, _: replace(one, description=_leak(one, rng)))
    change("implausible_prices", 0.02, lambda one, number: replace(one, price=JOKE_PRICES[number % len(JOKE_PRICES)]))

    reposts: list[Repost] = []
    wordy = [listing for listing in listings if len(listing.description.split()) >= SAME_TEXT_WORDS]
    for number in range(reposted):
        how = ("same photos", "same text", "near photo")[number % 3]
        earlier = [repost.first for repost in reposts if repost.how == how]
        first = rng.choice(earlier if earlier and rng.random() < 0.3 else wordy if how == "same text" else listings)
        again = _new_listing(first.kind, rng)
        if how == "same text":
            again = replace(again, title=first.title, description=first.description, price=first.price)
            for ids in marked.values():
                ids.update({again.product_id} if first.product_id in ids else ())
        else:
            again = replace(again, object_seed=first.object_seed)
        reposts.append(Repost(first, again, how))
    return listings + [repost.again for repost in reposts], reposts, {trap: len(ids) for trap, ids in marked.items()}


def _plan_photos(listings: list[Listing], reposts: list[Repost], rng: random.Random) -> tuple[list[Photo], int]:
    """The photos of the listings, one or two each, and how many listings have none."""
    traps = len(listings) >= TRAPS_FROM
    reposted = {listing.product_id for repost in reposts for listing in (repost.first, repost.again)}
    free = [listing.product_id for listing in listings if listing.product_id not in reposted]
    rng.shuffle(free)

    def take(share: float, least: int = 1) -> list[str]:
        number = max(_spread(len(listings), share, traps), least if traps else 0)
        taken, free[:] = free[:number], free[number:]
        return taken

    bare, single, repeated = take(0.015), take(0.06), take(0.015)
    broken = {product_id: BROKEN[number % len(BROKEN)] for number, product_id in enumerate(take(0.02, len(BROKEN)))}
    odd = {product_id: ODD[number % len(ODD)] for number, product_id in enumerate(take(0.06, len(ODD)))}
    photos: dict[str, list[Photo]] = {}
    for listing in listings:
        product_id = listing.product_id
        if product_id in bare:
            photos[product_id] = []
            continue
        views = 1 if product_id in single else 2
        own = [Photo(_uuid(rng), product_id, listing.kind.name, listing.object_seed, view) for view in range(views)]
        if product_id in repeated:
            own[1] = replace(own[1], form="same", source=own[0])
        elif product_id in broken:
            own[1] = replace(own[1], form=broken[product_id])
        elif product_id in odd:
            own[1] = replace(own[1], form=odd[product_id])
        photos[product_id] = own
    for repost in reposts:
        own, theirs = photos[repost.again.product_id], photos[repost.first.product_id]
        if repost.how == "same photos":
            own[:] = [replace(one, form="same", source=other) for one, other in zip(own, theirs, strict=True)]
        elif repost.how == "near photo":
            own[0] = replace(own[0], form="near", source=theirs[0])
            own[1] = replace(own[1], view=2)
    return [photo for own in photos.values() for photo in own], len(bare)


def _plan_rejects(listings: list[Listing], rng: random.Random) -> list[tuple[str, Listing]]:
    """(reason, record) of the records that no marketplace can keep."""
    rejects = []
    if len(listings) >= TRAPS_FROM:
        for _ in range(1 + len(listings) // 250):
            unpriced, swapped, repeated, misnumbered = (_new_listing(rng.choice(_KINDS), rng) for _ in REJECT_REASONS)
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
    image = draw(photo.kind, random.Random(photo.object_seed), photo.view, size)
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

    From 40 listings on every trap is there at least once, and from 42 on every kind. The records to be rejected come on top of
    `listings`. Returns the true counts; a duplicate group is a set of photos with the same bytes, broken files left out, and
    `photos_without_listing` includes `photos_of_rejected_records`.
    Raises StageError when `out_dir` holds files that this run would not write: they may be a user's own.
    """
    rng = random.Random(f"marketplace {seed}")
    kept, reposts, text_counts = _plan_listings(listings, rng)
    photos, bare = _plan_photos(kept, reposts, rng)
    rejects = _plan_rejects(kept, rng)
    unlisted = [_new_listing(rng.choice(_KINDS), rng) for _ in range(_spread(listings, 0.008, listings >= TRAPS_FROM))]
    orphans, of_rejects = (
        [Photo(_uuid(rng), one.product_id, one.kind.name, one.object_seed, 0) for one in group]
        for group in (unlisted, [record for reason, record in rejects if reason == "null_price"])
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

    groups = Counter(photo.source.image_id for photo in files if photo.form == "same")
    texts = [record.fields()[3] for record in kept]
    return {
        "listings": len(kept),
        "records": len(records),
        "rejected": dict(sorted(Counter(reason for reason, _ in rejects).items())),
        "categories": dict(sorted(Counter(listing.kind.category.split(" / ")[0] for listing in kept).items())),
        "kinds": len({listing.kind.name for listing in kept}),
        "photos": len(files),
        "forms": dict(sorted(Counter(photo.form for photo in files).items())),
        "broken_files": sum(photo.form in BROKEN for photo in files),
        "photos_without_listing": len(orphans) + len(of_rejects),
        "photos_of_rejected_records": len(of_rejects),
        "listings_without_photo": bare,
        "duplicate_groups": len(groups),
        "duplicate_photos": len(groups) + sum(groups.values()),
        "near_duplicate_photos": sum(photo.form == "near" for photo in files),
        "same_text_listings": sum(repost.how == "same text" for repost in reposts),
        "carriage_returns": sum(text.count("\r") for text in texts),
        **text_counts,
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
