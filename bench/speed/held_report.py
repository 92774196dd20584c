"""What `bench speed --memory` measured, as a table and as a picture. Nothing is measured here."""

from functools import cache
from pathlib import Path

from ...sedialect_core.charts.pen import COLOURS, INK, PALE, PAPER, Pen, picture
from ...sedialect_core.footprint.fitted import fitter_of
from ...sedialect_core.footprint.memory import Estimator
from ...sedialect_core.footprint.outline import outline_of
from ...sedialect_core.plan.fit import ALL, TURNS, Fitter, Option
from .held import DECODING, PHASES, STEPS, room_of
from .rendering import origin, table
from .results import Part, Row
from .ways import WAYS, arm_of, stay

GIGA = 1e9
MEASURED, PLANNED = "wan-14b", "wan-2.1-14b"  # the same model, as the bench and as the plan call it
WIDTH, LABEL, VALUE, LINE, MARGIN, HEAD = 940, 330, 190, 26, 18, 66


def held_table(part: Part) -> str:
    """One row a way: peak of each phase, the smallest card, seconds of a step and minutes of a video."""
    cards = [int(card) for card in part.where.get("cards", ())]
    rows = [[row.arm, *_cells(row, cards), *_foretold_cells(row), row.note] for row in _ways(part)]
    columns = ["", *(f"{phase}, GB" for phase in PHASES), *(f"{card} GB" for card in cards)]
    columns += ["s a step", f"min a video of {STEPS} steps, extrapolated", "foretold by plan: encoding, step, decoding", ""]
    return "\n\n".join([table(columns, rows), _told(part), origin(part)])


def _cells(row: Row, cards: list[int]) -> list[str]:
    numbers = row.numbers
    if not numbers:
        return [""] * (len(PHASES) + len(cards) + 2)
    needs = numbers["needs bytes"]
    held = int(numbers.get("card", 0))
    fits = ["yes" if held and card >= held else "no" if needs > room_of(card) else "refused" for card in cards]
    return [
        *(f"{numbers[f'{phase} bytes'] / GIGA:.1f}" for phase in PHASES),
        *fits,
        f"{numbers['step, s']:.2f}",
        f"{numbers[f'video of {STEPS} steps, s'] / 60:.1f}",
    ]


def foretold(arm: str) -> Option | None:
    """What `sedialect plan` says of one of our ways; None for others."""
    way = next((way for way in WAYS if way.name == arm), None)
    config = arm_of(way.arm).config if way is not None else None
    if way is None or config is None:
        return None
    place = ALL if way.placing is stay else TURNS
    return _planned().option(config, bool(way.encoder), place, tiling=True, compiled=way.compiled)


@cache
def _planned() -> Fitter:
    """One for all rows: it follows a forward once for all ways that hold the same."""
    return fitter_of(Estimator(outline_of(PLANNED)))


def _foretold_cells(row: Row) -> list[str]:
    option = foretold(row.arm) if row.numbers and row.case == MEASURED else None
    return [""] if option is None else [", ".join(f"{count / GIGA:.1f}" for count in option.phases.values())]


def _told(part: Part) -> str:
    decoding = next((row.numbers for row in part.rows if row.arm == DECODING), {})
    told = f" Decoding in tiles took {decoding['decoding, s']:.1f} s, the same in each way." if decoding else ""
    return (
        "Peak bytes that torch had allocated, in GB (10^9 bytes), while the prompt was encoded, in the steps, and while the "
        "video was decoded. A card keeps 1 GB for the driver; *yes*: it ran with the process held to the rest, *no*: it "
        f"needs more. A step is two forwards (guidance), from one that was timed; a video is one prompt, {STEPS} such steps "
        f"and decoding.{told}"
    )


def draw_held(part: Part, path: Path) -> bool:
    """Draw what each way needs; False where no way was measured on a GPU.

    Raises:
        InputError: Pillow is missing, or the file cannot be written.
    """
    rows = [row for row in _ways(part) if row.numbers.get("needs bytes")]
    if not rows:
        return False
    cards = [int(card) for card in part.where.get("cards", ())]
    longest = max(max(row.numbers["needs bytes"] for row in rows), *(room_of(card) for card in cards))
    height = HEAD + LINE * len(rows) + 2 * MARGIN
    with picture(path, WIDTH, height) as pen:
        pen.text(MARGIN, MARGIN + 4, "Wan 14B, 832x480, 81 frames: GPU memory that a whole pipeline needs", size=16)
        scale = (WIDTH - LABEL - VALUE - MARGIN) / longest
        for card in cards:
            x = LABEL + room_of(card) * scale
            pen.line(x, HEAD - 8, x, height - MARGIN, fill=PALE)
            pen.text(x, HEAD - 16, f"{card} GB", size=11, fill=PALE, anchor="mm")
        for number, row in enumerate(rows):
            _bar(pen, row, HEAD + LINE * (number + 0.5), scale)
    return True


def _bar(pen: Pen, row: Row, middle: float, scale: float) -> None:
    numbers = row.numbers
    length = max(2.0, numbers["needs bytes"] * scale)
    colour = COLOURS[0] if row.arm.startswith("sedialect") else PALE if row.arm.startswith("16 bit") else COLOURS[2]
    pen.text(MARGIN, middle, row.arm, size=12)
    pen.bar(LABEL, middle, length, LINE - 9, colour)
    minutes = numbers[f"video of {STEPS} steps, s"] / 60
    said = f"{numbers['needs bytes'] / GIGA:.1f} GB, {minutes:.1f} min a video"
    pen.text(LABEL + length + 8, middle, said, size=11, fill=INK, paper=PAPER)


def _ways(part: Part) -> list[Row]:
    """Their rows in the order of the ways, whichever run they are of; what is no longer a way comes last."""
    order = {way.name: number for number, way in enumerate(WAYS)}
    rows = [row for row in part.rows if row.arm != DECODING]
    return sorted(rows, key=lambda row: order.get(row.arm, len(order)))
