"""The demonstration's handlers, run by `penstock worker --app examples/demo/tasks.py`."""

import asyncio
import csv
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import BaseModel, Field

from penstock import Context, task

ROWS_A_CHECKPOINT = 1_000
PAUSE_A_CHECKPOINT_S = 0.25
PAUSE_A_THUMBNAIL_S = 0.05
"""What real jobs would wait for a database or a network; here they leave time to watch, and to be killed."""


class Picture(BaseModel):
    """A picture, and the widths of the thumbnails wanted of it."""

    path: Path
    folder: Path
    widths: list[int] = Field(min_length=1)


@task
def thumbnails(picture: Picture, ctx: Context) -> dict[str, Any]:
    """Write one thumbnail a width. A plain function: it runs in a thread. The checkpoint is the list of files made."""
    made: list[str] = list(ctx.checkpoint or [])
    with Image.open(picture.path) as image:
        for width in picture.widths[len(made) :]:
            ctx.sleep(PAUSE_A_THUMBNAIL_S)
            target = picture.folder / f"{picture.path.stem}-{width}.jpg"
            small = image.convert("RGB").resize(
                (width, width * image.height // image.width), Image.Resampling.LANCZOS
            )
            # The whole file or none of it, even if this process dies right here.
            part = target.with_suffix(f".{ctx.fence}.part")
            small.save(part, "JPEG", quality=85)
            part.replace(target)
            made.append(target.name)
            ctx.progress(100 * len(made) / len(picture.widths), f"{width} px", checkpoint=made)
    return {"files": made}


class SalesTable(BaseModel):
    """A CSV file with ``rows`` sales."""

    path: Path
    rows: int


class Sums(BaseModel):
    """The report so far: its checkpoint, and in the end its result."""

    rows: int = 0
    revenue_cents: int = 0
    by_region: dict[str, int] = {}


@task
async def sales_report(table: SalesTable, ctx: Context) -> dict[str, Any]:
    """Sum up a CSV of sales. After a crash the next attempt goes on behind the last checkpoint."""
    sums = Sums.model_validate(ctx.checkpoint or {})
    resumed_at, rows = sums.rows, table.rows
    if resumed_at:
        await ctx.progress(100 * resumed_at / rows, f"resumed at row {resumed_at:,} of {rows:,}")
    with table.path.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            if number < resumed_at:
                continue
            cents = int(row["quantity"]) * int(row["price_cents"])
            sums.rows += 1
            sums.revenue_cents += cents
            sums.by_region[row["region"]] = sums.by_region.get(row["region"], 0) + cents
            if sums.rows % ROWS_A_CHECKPOINT == 0:
                await asyncio.sleep(PAUSE_A_CHECKPOINT_S)
                await ctx.progress(100 * sums.rows / rows, f"row {sums.rows:,} of {rows:,}", checkpoint=sums)
    return {**sums.model_dump(), "resumed_at": resumed_at}


@task
async def send_mail(to: str, ctx: Context) -> str:
    """Fails twice, as mail servers do, then succeeds."""
    if ctx.attempt <= 2:
        raise ConnectionError(f"the mail server hung up (attempt {ctx.attempt})")
    return f"sent to {to} in attempt {ctx.attempt}"


@task
async def charge_card(card: str) -> None:
    """Never succeeds, and ends in the dead letters."""
    raise ValueError(f"the card {card} was declined")


@task
async def remind(text: str) -> str:
    """Is enqueued with a delay."""
    return text
