"""What the demonstration works on: pictures and a table of sales, made on the spot, the same each time."""

from __future__ import annotations

import csv
import random
from collections import Counter
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageFilter, ImageOps

SEED = 1882
PICTURES = 24
SIZES = ((2400, 1600), (1920, 1280), (3000, 2000))
COLOURS = (("#001b3a", "#ff7b00"), ("#0b3d2e", "#f2e8c9"), ("#2b0f3a", "#9be7ff"), ("#3a0d0d", "#ffd166"))
VIEWS = ((-2.0, -1.0, 1.0, 1.0), (-0.78, 0.08, -0.69, 0.14), (-1.80, -0.04, -1.68, 0.04))
"""Windows of the Mandelbrot set: left, bottom, right, top."""

REGIONS = ("north", "east", "south", "west")
PRODUCTS = ("lamp", "chair", "table", "shelf", "sofa")


class Sales(NamedTuple):
    """A table of sales and what its report must come to."""

    path: Path
    rows: int
    revenue_cents: int
    by_region: dict[str, int]


def draw_pictures(folder: Path) -> list[Path]:
    """Fractals and clouds, as JPEG files of a few megapixels each."""
    folder.mkdir()
    random.seed(SEED)
    paths: list[Path] = []
    greys = [
        *(Image.effect_mandelbrot((900, 600), view, 60) for view in VIEWS),
        _clouds(),
        _clouds(),
        _clouds(),
    ]
    for number in range(PICTURES):
        kind = number % len(greys)
        dark, light = COLOURS[number // len(greys) % len(COLOURS)]
        picture = ImageOps.colorize(ImageOps.autocontrast(greys[kind]), dark, light)
        path = folder / f"{'fractal' if kind < len(VIEWS) else 'clouds'}-{number:02}.jpg"
        picture.resize(SIZES[number % len(SIZES)]).save(path, quality=90)
        paths.append(path)
    return paths


def _clouds() -> Image.Image:
    """Noise of five sizes, laid over one another: the coarser, the stronger."""
    clouds = Image.new("L", (900, 600), 128)
    for octave in range(5):
        cells = 3 << octave
        noise = Image.frombytes("L", (cells * 3, cells * 2), random.randbytes(cells * cells * 6))
        layer = noise.resize(clouds.size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))
        clouds = Image.blend(clouds, layer, 0.5 / (octave + 1))
    return clouds


def write_sales(path: Path, rows: int) -> Sales:
    """A CSV of sales."""
    dice = random.Random(SEED)
    first_day = date(2024, 1, 1)
    by_region: Counter[str] = Counter()
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("day", "region", "product", "quantity", "price_cents"))
        for _ in range(rows):
            region = dice.choice(REGIONS)
            quantity, price_cents = dice.randint(1, 9), dice.randint(995, 99_900)
            by_region[region] += quantity * price_cents
            day = first_day + timedelta(days=dice.randrange(366))
            table.writerow((day, region, dice.choice(PRODUCTS), quantity, price_cents))
    return Sales(path, rows, by_region.total(), dict(by_region))
