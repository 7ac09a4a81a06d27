"""Drawn photos of things: a table of shapes for each kind, in front of a background, seen by a camera."""

import colorsys
import math
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLING = 2  # things are drawn at this many times the photo's size and averaged down: smooth edges
TURNED_DEG = {"hammer": 60, "acoustic guitar": 45, "football": 180, "lipstick": 18}  # either way at most; others stand upright

# One shape a line, from the back to the front, in percent of a square, x to the right and y down:
#   box COLOUR x0 y0 x1 y1 [corner]      oval COLOUR x y rx ry       ring COLOUR width x y radius [radius ...]
#   poly COLOUR x y x y ...              blob COLOUR x y x y ...     line COLOUR width x y x y ...
# A blob is a closed smooth curve. A colour is a part of the palette ("case" is one of several), darker by each "-" behind it and
# paler by each "+". Words before the shape: "=" draws it also mirrored left to right, "3:5,0" three times, each 5 further right
# (again for rows), "8@50,50" eight times around that point, "?strap" only on every other thing, "!strap" only on those without.
SHAPES = {
    "washing machine": """
        = box dark 17 92 25 97
        box body 14 6 86 94 3
        box body- 14 6 86 23 2
        box body+ 18 9 39 20 1
        oval trim 55 14.5 5 5
        3:5,0 oval accent 66 14.5 1.5 1.5
        oval light- 50 58 29 29
        oval dark 50 58 22 22
        line light 2.5 35 54 39 46 46 42
        box light-- 71 52 76 64 2""",
    "kettle": """
        line dark 7 62 24 86 26 90 36 82 72 66 78
        poly body- 34 25 12 20 15 30 28 50
        blob body 31 24 69 24 75 55 80 82 50 84 20 82 25 55
        poly body++ 38 30 44 30 38 78 29 78
        oval trim 50 23.5 21 4.5
        oval dark 50 20 5 4.5
        box dark 17 82 83 90 3""",
    "pram": """
        line light-- 2.4 28 82 64 52
        line light-- 2.4 72 82 36 52
        line light-- 2.8 72 50 90 28 97 27
        poly body 12 42 80 42 78 52 70 61 58 65.5 46 67 34 65.5 22 61 14 52
        poly trim 44 42 11 42 12.5 32 18 21 27 12.5 38 8.5 50 8.6 56.4 10.5
        line trim-- 1 15 26 44 42 25.5 14 44 42 40.5 8.2
        box body- 11 40 82 45.5 2
        = oval dark 29 80 14 14
        = oval light 29 80 11 11
        = 8@29,80 line dark .8 29 80 29 69
        = oval accent 29 80 3 3""",
    "teddy bear": """
        = oval case 30 83 13 10
        = blob case 33 47 38 56 28 70 19 70 17 63 22 53
        = oval case 31 11 8.5 8.5
        = oval case++ 31 11 5 5
        oval case 50 66 22 24.5
        oval case++ 50 69 13 15.5
        oval case 50 28 23 20
        oval case++ 50 35 10 8
        oval dark 50 31.5 3.5 2.6
        line dark 1 45 37 50 39.5 55 37
        = oval dark 41.5 25 2.4 2.4
        = poly accent 50 47.5 40 43 40 53""",
    "T-shirt": """
        poly body 37 10 63 10 76 15 97 38 83 47 74 34 76 90 24 90 26 34 17 47 3 38 24 15
        ?stripes 4:0,12 box trim 26 38 74 43
        !stripes oval accent 50 50 12 12
        = line body-- 1 26 34 24 20
        = line body- 1 6 35.5 19 44.5
        poly body-- 37 10 63 10 60 17 50 21 40 17
        line body- 2.5 37 10 40 17 50 21 60 17 63 10""",
    "trainers": """
        blob body 6 68 7 40 10 28 28 31 38 30 56 50 78 58 94 65 96 74 50 75 8 75
        blob trim 74 58 93 64.5 95.5 73 72 73
        poly trim 7 72 7 42 10 32 17 40 20 72
        blob body-- 10 28 24 32 38 29 30 37 16 35
        ?stripes 3:7.5,0 poly accent 34 50 38 48 32 72 28 72
        5:6,4 line light 2.2 37 42 46 34.5
        blob light 4 74 50 74.5 97 72 98 80 90 83 10 84 4 81
        line dark 2.5 6 82.5 50 83.5 93 81""",
    "laptop": """
        poly dark 14 10 86 10 85 60 15 60
        box accent+ 18 14 82 56
        oval light 65 26 5 5
        poly trim 18 56 18 46 36 33 82 50 82 56
        poly case 15 60 85 60 98 88 2 88
        poly case-- 2 88 98 88 97 91.5 3 91.5
        13:5,0 box dark+ 18 62 22 65
        13:5.3,0 box dark+ 16 66 20.3 69.2
        13:5.6,0 box dark+ 14 70.2 18.6 73.6
        poly case- 39 77 61 77 63 86 37 86""",
    "computer keyboard": """
        ?cable line dark 1.6 50 32 50 22 62 16 70 4
        box case 1.5 30 98.5 72 2.5
        box case-- 1.5 70 98.5 73 1
        14:5,0 4:0,7 box dark+ 4 33 8 39 .6
        3:5,0 5:0,7 box dark+ 82 33 86 39 .6
        2:55,0 3:5,0 box dark+ 4 61 8 67 .6
        box dark+ 21 61 57 67 .6
        box accent 4 33 8 39 .6""",
    "hammer": """
        blob wood 46.5 20 53.5 20 53 50 55 80 54.5 99 45.5 99 45 80 47 50
        box trim 44.5 64 55.5 99 3
        4:0,7 line trim-- 1 46 71 54 71
        blob light-- 56 8 68 7 80 12 90 26 78 20 68 19 56 20
        line dark 1.2 70 13 84 21
        box light-- 42 6 58 22 2
        box light--- 30 8.5 43 19.5
        box light-- 19 5 31 23 2""",
    "drill": """
        poly light-- 2 28.5 20 27 20 31 2 29.5
        poly dark 17 25 24 22 34 20 34 38 24 36 17 33
        poly body 60 38 80 38 86 80 66 80
        poly dark 66 42 79 42 85 76 74 76
        poly accent 56 41 63 41 63.5 52 59 50
        blob body 34 18 60 14 84 16 92 22 92 34 84 42 60 43 34 40
        box trim 34 19 42 39.5 2
        3:4,0 line dark 1.4 76 22 76 34
        box dark 58 78 93 93 3
        box trim 58 78 93 83 2""",
    "hair dryer": """
        line dark 2 62 92 70 98 84 93 90 80 97 78
        blob body- 56 42 74 42 71 70 69 93 59 93 57 70
        box trim 61 55 66 67 2
        blob body 30 20 55 12 76 8 93 20 95 32 88 45 70 52 50 46 30 41
        poly dark 6 16 14 18 31 20.5 31 40.5 14 43 6 45
        box trim 31 19.5 36 41.5 1
        oval dark 80 30 10 15
        oval dark++ 80 30 6.5 10
        oval dark 80 30 3 5
        line body++ 2.2 42 21 62 15""",
    "lipstick": """
        box body 20 60 46 97 2
        box wood+ 22 40 44 60 1
        line light 3 27 43 27 57
        poly red 24.5 40 24.5 20 33 6 39 7 41.5 14 41.5 40
        blob red+ 25 20 31 8 39 7 41 13 35 22
        line body++ 2.5 24 64 24 93
        box body 59 52 85 97 2.5
        line body++ 2.5 63 57 63 87
        box wood+ 59 91 85 97 1""",
    "sofa": """
        = box wood 10 78 14 87
        box body- 7 27 93 76 6
        3:23.4,0 box body 15 30 38 60 5
        3:23.4,0 box body+ 15 54 38 66 4
        box body- 5 65 95 79 2
        = box body 2 43 15 80 5
        ?cushion poly accent 17 40 31 38 33 53 19 55""",
    "table lamp": """
        line case- 3 50 41 50 90
        blob case 46 52 54 52 64 68 60 84 54 90 46 90 40 84 36 68
        line case++ 2.5 42 64 41 76
        oval case- 50 92 17 4
        poly body+ 35 5 65 5 79 43 65 46 50 47 35 46 21 43
        poly body++ 45 6 55 6 60 46 40 46
        line accent 2 35 6 65 6
        line accent 2 21 42 35 45 50 46 65 45 79 42""",
    "vinyl record": """
        box body 3 16 66 84
        oval trim 25 40 13 13
        poly light 6 80 6 62 30 80
        oval dark- 63 50 34 34
        2@63,50 poly dark++ 63 50 31 41 34 34
        ring dark+ .6 63 50 31 28 25 22 19 16
        oval accent 63 50 11.5 11.5
        ring light 1.2 63 50 7.5
        oval light 63 50 1.4 1.4""",
    "book": """
        poly body 1 24 99 24 99 88 1 88
        = poly light 50 25 38 21 22 20 3 23 3 85 22 82 38 83 50 87
        = poly light+ 50 24 38 18 22 17 5 21 5 83 22 79 38 80 50 85
        = 13:0,4 line dark+ 1.1 11 27 42 28.5
        ?picture box accent 56 25 90 47
        line light-- 1.4 50 23 50 86
        ?ribbon line accent 2.5 52 22 53 60 55 95""",
    "acoustic guitar": """
        blob wood- 50 45 60 44 66 52 63 62 72 78 67 92 50 96 33 92 28 78 37 62 34 52 40 44
        blob wood+ 50 47 59 46 64 53 61 63 70 78 65.5 90.5 50 94 34.5 90.5 30 78 39 63 36 53 41 46
        oval light 50 62 8.5 8.5
        oval dark 50 62 6.8 6.8
        box wood--- 46.5 10 53.5 56
        11:0,4 line light .7 46.7 14 53.3 14
        poly case- 45.5 -1 54.5 -1 54 10 46 10
        3:0,3.5 = oval light 42.5 1 2 1.3
        box wood--- 41 81 59 84 1
        6:.92,0 line light .4 47.7 7 47.7 82.5""",
    "piano keyboard": """
        ?stand = line dark 2.4 22 98 78 72
        box case 1 31 99 72 2
        box accent+ 40 34 60 42 1
        = oval case-- 10 38 4.5 4.5
        3:5,0 oval trim 20 38 1.6 1.6
        14:6.6,0 box white 3.8 46 10.4 70
        2:46.2,0 2:6.6,0 box black 8.4 46 12.4 60
        2:46.2,0 3:6.6,0 box black 28.2 46 32.2 60
        box case- 1 70 99 74.5 1""",
    "office chair": """
        line dark+ 5 50 62 50 82
        = line dark+ 3.4 50 81 20 90
        = line dark+ 3.4 50 81 37 94
        = oval dark 20 92 3.2 3.2
        = oval dark 37 96 3.2 3.2
        box dark+ 46 40 54 60
        box body 28 5 72 46 9
        box body+ 33 11 67 40 6
        = line dark+ 2.6 20 44 20 58 34 62
        = box dark 15.5 41 24.5 45.5 2
        blob body- 26 54 74 54 80 62 74 66.5 26 66.5 20 62""",
    "filing cabinet": """
        poly body-- 70 6 82 2 82 90 70 96
        poly body+ 26 6 38 2 82 2 70 6
        box body 26 6 70 96
        4:0,22 box body+ 28 8.5 68 28 1
        4:0,22 box light 43 12 53 16
        4:0,22 line dark+ 3 41 21 55 21
        ?pulled poly light 16 52 58 52 68 50 28 50
        ?pulled box body+ 16 52 58 75 1
        ?pulled box light 31 57 41 61
        ?pulled line dark+ 3 29 67 43 67""",
    "smartphone": """
        box case 26 3 74 97 6.5
        box trim+ 28.5 5.5 71.5 94.5 5
        poly trim 29 60 71 40 71 88 29 90
        4:10.3,0 2:0,26 box accent 31 16 38 23 2
        4:10.3,0 2:0,26 box light 31 29 38 36 2
        box white 31 81 69 92 3
        4:9.2,0 box accent+ 33 83 39.5 90 1.5
        box black 43 7 57 9.5 1.2""",
    "telephone": """
        blob body 22 37 78 37 93 80 92 90 8 90 7 80
        blob body-- 8 84 92 84 93 90 7 90
        ?dial oval body- 50 63 19.5 19.5
        ?dial oval light 50 63 16.5 16.5
        ?dial 10@50,63 oval dark 50 50.5 2.6 2.6
        ?dial oval body 50 63 7 7
        !dial poly body- 33 45 67 45 71 82 29 82
        !dial 3:11,0 4:0,8.5 box light 35.5 48 42.5 54 1.2
        = box body-- 24 32 34 45 2
        blob trim 4 36 6 20 22 13 50 11 78 13 94 20 96 36 82 38 74 26 50 24 26 26 18 38
        line trim 1.4 6 38 9 42 4 46 9 50 4 54 9 58 4 62 9 66 4 70 8 74 6 80""",
    "bicycle": """
        = ring dark 2.8 23 66 21
        = ring light- 1 23 66 18.8
        = 15@23,66 line light- .5 23 66 23 47.5
        line dark 1.2 23 66 45 68
        line body 3 23 66 39 36 45 68 23 66
        line body 3 39 36 66 34 45 68
        line body 3 66 34 77 66
        line light-- 2 39 36 37.5 29
        blob dark 29 26.5 36 26 47 28 40 30 31 30.5
        line light-- 2.2 66 34 64.5 27
        ?racing line dark 2.4 64.5 27 74 26 78 31 74 37 69 36
        !racing line dark 2.6 64.5 27 69 23 58 22
        oval light-- 45 68 5.5 5.5
        oval trim 45 68 3 3
        line dark 1.6 37 76.5 41 76.5 49 59.5 53 59.5""",
    "football": """
        oval light 50 50 43 43
        poly dark 50 35 64.3 45.4 58.8 62.1 41.2 62.1 35.7 45.4
        5@50,50 line dark 1 50 35 50 21
        5@50,50 poly dark 50 21 60 15.5 58 7.8 50 7 42 7.8 40 15.5
        5@50,50 line dark 1 60 15.5 71.5 21 79.7 29.8
        ring dark 1 50 50 43""",
    "game controller": """
        = box body- 17 20 37 32 4
        blob case 50 28 60 27 76 23 88 34 96 60 95 79 87 84 79 78 68 68 50 66 32 68 21 78 13 84 5 79 4 60 12 34 24 23 40 27
        box dark 21.5 37 26.5 53 1
        box dark 16 42.5 32 47.5 1
        2@76,45 oval accent 76 37.5 3.4 3.4
        2@76,45 oval trim 83.5 45 3.4 3.4
        = oval dark 37 60 8 8
        = oval dark++ 37 59 5.5 5.5
        ?pad box case- 38 31 62 47 3
        !pad oval accent 50 36 4.5 4.5
        !pad = oval trim 43 49 1.8 1.2""",
    "handheld console": """
        box body 2 29 40 71 10
        box trim 60 29 98 71 10
        box dark 19 29 81 71
        box accent+ 23 33.5 77 66.5
        poly light 23 66 23 56 40 46 55 58 77 50 77 66
        3:17,-3 box wood 27 57 39 60
        box trim 49 46 53 54
        = oval dark 10.5 41 5.2 5.2
        = oval dark++ 10.5 40.5 3.2 3.2
        4@89.5,56 oval dark 89.5 51.5 2.2 2.2
        box dark 9 51 12 63 .6
        box dark 4.5 55.5 16.5 58.5 .6""",
}

Colour = tuple[int, ...]  # red, green, blue, and opacity where it is not full, 0..255


def palette(rng: random.Random) -> dict[str, Colour]:
    """The colours of one thing, by the names that SHAPES uses; any kind may have any of them."""
    body = _any_colour(rng)
    colours = {
        "body": body,
        "trim": _unlike(body, rng, 110),
        "accent": _unlike(body, rng, 160),
        "dark": _hsv(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.1, 0.25)),
        "light": _hsv(rng.random(), rng.uniform(0, 0.12), rng.uniform(0.86, 0.98)),
        "wood": _hsv(rng.uniform(0.04, 0.11), rng.uniform(0.35, 0.75), rng.uniform(0.4, 0.85)),
        "red": _hsv(rng.uniform(0.88, 1.04), rng.uniform(0.6, 0.95), rng.uniform(0.5, 0.95)),
        "white": (250, 249, 245),
        "black": (25, 24, 27),
    }
    return colours | {"case": rng.choice((body, body, colours["wood"], _shaded(colours["light"], "-")))}


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _any_colour(rng: random.Random) -> Colour:
    if rng.random() < 0.3:
        return _hsv(rng.random(), 0.04, rng.choice((0.2, 0.35, 0.6, 0.8, 0.95)))
    return _hsv(rng.random(), rng.uniform(0.4, 0.9), rng.uniform(0.45, 0.95))


def _unlike(colour: Colour, rng: random.Random, distance: float) -> Colour:
    """A colour at least `distance` from `colour` (Euclidean, 0..255 RGB), or the farthest of 20."""
    tries = [_any_colour(rng) for _ in range(20)]
    return next((one for one in tries if math.dist(one, colour) >= distance), max(tries, key=lambda one: math.dist(one, colour)))


def _shaded(colour: Colour, signs: str) -> Colour:
    for sign in signs:
        colour = tuple(round(part * 0.78) if sign == "-" else round(part + (255 - part) * 0.28) for part in colour)
    return colour


def _turn(degrees: float, centre: Sequence[float] = (0, 0)) -> np.ndarray:
    """The 3 x 3 matrix that turns points clockwise about a centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _shift(*centre) @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ _shift(-centre[0], -centre[1])


def _shift(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], float)


def _seen(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(N, 2) points through a 3 x 3 homography."""
    plane = points @ matrix[:, :2].T + matrix[:, 2]
    return plane[:, :2] / plane[:, 2:]


_ANGLES = np.radians(np.arange(4, 364, 8))
_CIRCLE = np.column_stack([np.cos(_ANGLES), np.sin(_ANGLES)])


def _outlines(shape: str, numbers: list[float]) -> list[np.ndarray]:
    """The lines that a shape's numbers mean, each of (N, 2) points."""
    if shape == "oval":
        return [numbers[:2] + _CIRCLE * numbers[2:]]
    if shape == "ring":
        closed = np.vstack([_CIRCLE, _CIRCLE[:1]])
        return [numbers[:2] + closed * radius for radius in numbers[2:]]
    if shape == "box":
        low, high, corner = np.array(numbers[:2]), np.array(numbers[2:4]), sum(numbers[4:])
        return [(low + high) / 2 + np.sign(_CIRCLE) * ((high - low) / 2 - corner) + _CIRCLE * corner]
    points = np.reshape(numbers, (-1, 2))
    return [_smooth(points) if shape == "blob" else points]


def _smooth(points: np.ndarray, steps: int = 6) -> np.ndarray:
    """A closed Catmull-Rom curve through the points."""
    a, b, c, d = (np.roll(points, back, 0)[:, None] for back in (1, 0, -1, -2))
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return curve.reshape(-1, 2)


def _paint(ink: ImageDraw.ImageDraw, kind: str, rng: random.Random, colours: dict[str, Colour], matrix: np.ndarray) -> None:
    """Draw one thing through a homography (percent -> pixels); `rng` decides its proportions, its tilt and its extras."""
    bulge_x, bulge_y, slope = (rng.uniform(-0.15, 0.15) for _ in range(3))
    matrix = matrix @ _turn(rng.uniform(-1, 1) * TURNED_DEG.get(kind, 0), (50, 50))
    percent_px = math.dist(*_seen(np.array([[49.5, 50.0], [50.5, 50.0]]), matrix))
    extras: dict[str, bool] = {}
    for line in SHAPES[kind].strip().splitlines():
        copies, words, drawn = [np.eye(3)], line.split(), True
        while words[0][0] in "=?!0123456789":
            word = words.pop(0)
            if word[0] in "?!":
                drawn = drawn and extras.setdefault(word[1:], rng.random() < 0.5) == (word[0] == "?")
            else:
                copies = [copy @ further for copy in copies for further in _repeats(word)]
        shape, colour, *numbers = words
        width = float(numbers.pop(0)) if shape in ("line", "ring") else 0.0
        part = colour.rstrip("+-")
        fill = _shaded(colours[part], colour[len(part) :])
        for copy in copies if drawn else ():
            for outline in _outlines(shape, [float(number) for number in numbers]):
                x, y = _seen(outline, copy).T / 100
                x = x + bulge_x * np.sin(2 * np.pi * x) / (2 * np.pi)
                y = y + bulge_y * np.sin(2 * np.pi * y) / (2 * np.pi) + slope * y * (1 - y)
                pixels = _seen(100 * np.column_stack([x, y]), matrix)
                _ink(ink, [tuple(point) for point in pixels.tolist()], fill, width, percent_px)


def _repeats(word: str) -> list[np.ndarray]:
    """What "=", "3:5,0" and "8@50,50" do with a shape: a 3 x 3 matrix for each copy of it."""
    if word == "=":
        return [np.eye(3), _shift(100, 0) @ np.diag([-1.0, 1.0, 1.0])]
    count, x, y = (float(part) for part in word.replace("@", ":").replace(",", ":").split(":"))
    if "@" in word:
        return [_turn(360 / count * number, (x, y)) for number in range(int(count))]
    return [_shift(x * number, y * number) for number in range(int(count))]


def _ink(ink: ImageDraw.ImageDraw, points: list[tuple], fill: Colour, width: float, percent_px: float) -> None:
    """A line of a width in percent, or a filled outline for width 0; a darker edge keeps either apart from its background."""
    edge, edge_px = _shaded(fill, "--"), 0.8 * percent_px
    width_px = max(1, round(width * percent_px))
    if width == 0:
        ink.polygon(points, fill)
        ink.line([*points, points[0]], edge, max(1, round(edge_px)), joint="curve")
    elif width < 2:
        ink.line(points, fill, width_px, joint="curve")
    else:
        for colour, radius_px in ((edge, (width_px + edge_px) / 2), (fill, width_px / 2)):
            ink.line(points, colour, round(2 * radius_px), joint="curve")
            for x, y in (points[0], points[-1]):
                ink.ellipse((x - radius_px, y - radius_px, x + radius_px, y + radius_px), colour)


def _background(rng: random.Random, width: int, height: int, body: Colour) -> Image.Image:
    """A wall and floor, boards, or a heap of things, unsharp (drawn at a quarter of its size), unlike the thing's own colour."""
    tries = [_hsv(rng.random(), rng.uniform(0.03, 0.5), rng.uniform(0.3, 0.97)) for _ in range(24)]
    one, two = sorted(tries, key=lambda colour: math.dist(colour, body) < 120)[:2]
    small = Image.new("RGB", (max(1, width // 4), max(1, height // 4)), one)
    ink, (across, down) = ImageDraw.Draw(small), small.size
    scene = rng.choice(("plain", "room", "boards", "heap"))
    if scene == "room":
        ink.rectangle((0, down * rng.uniform(0.55, 0.9), across, down), two, _shaded(one, "+"))
    elif scene == "boards":
        step = across / rng.randint(4, 8)
        for number in range(9):
            ink.rectangle((number * step, 0, (number + 1) * step, down), _shaded(one, rng.choice(("", "-", "+"))), two)
    elif scene == "heap":
        for _ in range(rng.randint(12, 24)):
            x, y, side = rng.uniform(-0.1, 1) * across, rng.uniform(-0.1, 1) * down, rng.uniform(0.05, 0.3) * down
            mixed = tuple(round(0.7 * a + 0.3 * b) for a, b in zip(one, _any_colour(rng), strict=True))
            shape = rng.choice((ink.ellipse, ink.rectangle))
            shape((x, y, x + side * rng.uniform(0.5, 1.5), y + side), mixed)
    return small.resize((width, height), Image.Resampling.BILINEAR)


def _viewpoint(rng: random.Random, view: int, width: int, height: int) -> np.ndarray:
    """The homography from percent to pixels: the first view is nearly straight, later ones are from other angles."""
    turn_deg, slant, mirrored = (7, 0.2, 0.2) if view == 0 else (12, 0.32, 0.4)
    perspective = np.eye(3)
    perspective[2, :2] = rng.uniform(-slant, slant), rng.uniform(-slant, slant)
    mirror = -1.0 if rng.random() < mirrored else 1.0
    scale = min(width, height) * (rng.uniform(0.76, 0.93) if view == 0 else rng.uniform(0.78, 1.02))
    spare_x, spare_y = max(0.0, width - scale) / 2, max(0.0, height - scale) / 2
    place = _shift(width / 2 + rng.uniform(-0.6, 0.6) * spare_x, height / 2 + rng.uniform(-0.6, 0.6) * spare_y)
    stretch = np.diag([scale * mirror, scale * rng.uniform(0.94, 1.06), 1.0])
    centred = _shift(-0.5, -0.5) @ np.diag([0.01, 0.01, 1.0])
    return place @ stretch @ _turn(rng.uniform(-turn_deg, turn_deg)) @ perspective @ centred


def draw(kind: str, rng: random.Random, view: int, size: tuple[int, int]) -> Image.Image:
    """One photo of one thing, RGB, `size` = (width, height) pixels.

    The state of `rng` decides the thing (colours, proportions, details), `view` which photo of it is taken (angle, background,
    light): two generators in the same state give the same thing for every view.
    Raises KeyError for a kind that is not in SHAPES.
    """
    colours = palette(rng)
    details, camera = (random.Random(f"{rng.getrandbits(64)} {use}") for use in ("object", view))
    canvas = _background(camera, size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING, colours["body"])
    matrix, ink = _viewpoint(camera, view, *canvas.size), ImageDraw.Draw(canvas, "RGBA")
    shadow = _seen(np.array([50, 95]) + _CIRCLE * (42, 5), matrix)
    ink.polygon([tuple(point) for point in shadow.tolist()], (0, 0, 0, 45))
    _paint(ink, kind, details, colours, matrix)
    return Image.fromarray(_lit(np.asarray(canvas.reduce(SUPERSAMPLING), np.float32), camera))


def _lit(photo: np.ndarray, camera: random.Random) -> np.ndarray:
    """Light falling from one side, a colour cast, an exposure and sensor noise; (H, W, 3) float32 -> uint8."""
    height, width = photo.shape[:2]
    across, down = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    light = 1 + camera.uniform(-0.16, 0.16) * across + camera.uniform(-0.16, 0.16) * down[:, None]
    cast = np.array([camera.uniform(0.9, 1.1) for _ in range(3)], np.float32) * camera.uniform(0.82, 1.12)
    noise = np.random.default_rng(camera.getrandbits(64)).integers(-5, 6, (height, width, 1), np.int8)
    return np.clip(photo * light[..., None] * cast + noise, 0, 255).astype(np.uint8)
