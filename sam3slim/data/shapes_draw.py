"""Drawing one picture of the ``shapes`` set: muted background, clutter, then overlapping objects."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

# Named colours far enough apart that the jitter below never turns one into another.
PALETTE = {
    "red": (214, 44, 44),
    "green": (44, 160, 66),
    "blue": (44, 88, 214),
    "yellow": (236, 204, 52),
    "orange": (240, 130, 30),
    "purple": (140, 60, 180),
    "white": (238, 238, 238),
    "black": (24, 24, 24),
}
# Corner count of each polygon and its circumradius, for about equal areas; a circle has radius 1.
OUTLINES = {"circle": (0, 1.0), "square": (4, 1.22), "triangle": (3, 1.4), "star": (5, 1.35)}
SUPERSAMPLE = 4

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Point = tuple[float, float]


@dataclass(frozen=True)
class ShapeObject:
    """One object, in pixels of the final picture; ``diameter`` is that of a circle of about its area."""

    shape: str
    color: str
    size: str
    center: Point
    diameter: float
    angle: float
    fill: tuple[int, int, int]

    def outline(self, scale: float) -> list[Point]:
        """Corners (or a circle's bounding box) after multiplying all lengths by ``scale``."""
        (x, y), radius = self.center, self.diameter / 2 * OUTLINES[self.shape][1]
        if self.shape == "circle":
            return [
                ((x - radius) * scale, (y - radius) * scale),
                ((x + radius) * scale, (y + radius) * scale),
            ]
        corners = OUTLINES[self.shape][0] * (2 if self.shape == "star" else 1)
        points = []
        for corner in range(corners):
            reach = radius * (0.5 if self.shape == "star" and corner % 2 else 1.0)
            turn = self.angle + 2 * math.pi * corner / corners
            points.append(((x + reach * math.cos(turn)) * scale, (y + reach * math.sin(turn)) * scale))
        return points

    def draw(self, canvas: ImageDraw.ImageDraw, scale: float, fill: object, edge: object = None) -> None:
        """Paint the object on ``canvas``; with ``edge``, its outer 0.75 pixel takes that colour."""
        kwargs = {"fill": fill, "outline": edge, "width": round(0.75 * scale) if edge is not None else 0}
        if self.shape == "circle":
            canvas.ellipse(self.outline(scale), **kwargs)  # type: ignore[arg-type]
        else:
            canvas.polygon(self.outline(scale), **kwargs)  # type: ignore[arg-type]

    def mask(self, image_size: int) -> Mask:
        """[S, S] bool, the object alone (not antialiased, for placing only)."""
        image = Image.new("1", (image_size, image_size))
        self.draw(ImageDraw.Draw(image), 1, 1)
        return np.asarray(image)


def draw_background(rng: np.random.Generator, size: int) -> Image.Image:
    """A solid, graded or textured picture [size, size] of muted colours."""
    first = _muted(rng)
    kind = rng.integers(3)
    field = np.broadcast_to(first, (size, size, 3))
    if kind == 1:
        turn = rng.uniform(0, 2 * math.pi)
        y, x = np.mgrid[0:size, 0:size] / (size - 1) - 0.5
        share = np.clip(math.cos(turn) * x + math.sin(turn) * y + 0.5, 0, 1)[..., None]
        field = first * (1 - share) + _muted(rng) * share
    elif kind == 2:
        cells = int(rng.integers(4, 25))
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
        soft = np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)
        field = first + (soft[..., None] / 255 - 0.5) * rng.uniform(25, 70)
    return Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))


def draw_clutter(rng: np.random.Generator, canvas: ImageDraw.ImageDraw, size: int, scale: float) -> None:
    """Grey dots and muted lines: things that no phrase names. ``size`` is the final picture's side."""
    for _ in range(rng.integers(0, 5)):
        ends = rng.uniform(0, size * scale, 4).tolist()
        canvas.line(ends, fill=_color(_muted(rng)), width=round(rng.uniform(0.8, 1.8) * scale * size / 96))
    for _ in range(rng.integers(0, 7)):
        x, y = rng.uniform(0, size * scale, 2)
        radius = rng.uniform(1.0, 2.5) * scale * size / 96
        grey = int(rng.integers(50, 210))
        canvas.ellipse([x - radius, y - radius, x + radius, y + radius], fill=(grey, grey, grey))


def draw_scene(
    rng: np.random.Generator, objects: list[ShapeObject], size: int, clutter: bool = True
) -> tuple[Picture, list[Mask]]:
    """Render ``objects``, later ones in front.

    Returns:
        the picture [S, S, 3] uint8 and, for each object, the mask [S, S] bool of what is visible of it
        (pixels more than half covered).
    """
    wide = (size * SUPERSAMPLE, size * SUPERSAMPLE)
    image = draw_background(rng, size).resize(wide, Image.Resampling.BILINEAR)
    canvas = ImageDraw.Draw(image)
    if clutter:
        draw_clutter(rng, canvas, size, SUPERSAMPLE)
    owner = Image.new("L", wide)
    owner_canvas = ImageDraw.Draw(owner)
    for number, item in enumerate(objects, start=1):
        # The darker rim keeps two touching objects of one colour apart.
        item.draw(canvas, SUPERSAMPLE, item.fill, tuple(int(0.6 * value) for value in item.fill))
        item.draw(owner_canvas, SUPERSAMPLE, number, number)
    small = image.resize((size, size), Image.Resampling.LANCZOS)
    noise = rng.normal(0, rng.uniform(0, 5), (size, size, 1))
    picture = np.clip(np.asarray(small) + noise, 0, 255).astype(np.uint8)
    blocks = np.asarray(owner).reshape(size, SUPERSAMPLE, size, SUPERSAMPLE)
    half = SUPERSAMPLE**2 / 2
    masks = []
    for number in range(1, len(objects) + 1):
        # One axis after the other in bytes, which hold SUPERSAMPLE**2: four times as fast as both at once.
        rows = (blocks == number).sum(axis=1, dtype=np.uint8)
        masks.append(rows.sum(axis=2, dtype=np.uint8) > half)
    return picture, masks


def jittered(rng: np.random.Generator, name: str) -> tuple[int, int, int]:
    """A colour near the one called ``name``."""
    brightness, shift = rng.uniform(0.88, 1.08), rng.uniform(-12, 12, 3)
    return _color(np.asarray(PALETTE[name]) * brightness + shift)


def _muted(rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.uniform(70, 200) + rng.uniform(-14, 14, 3)


def _color(values: NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in np.clip(values, 0, 255))
    return red, green, blue
