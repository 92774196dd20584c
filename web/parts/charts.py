"""Small pictures as SVG: they follow the page's colours, light and dark, and stay sharp at any size."""

from collections.abc import Sequence
from html import escape

from ...sedialect_core.formatbook import Dialect

COLUMN, MIDDLE = 40, 90  # of the bar charts, in units of the picture
STRIP, UNITS = 20, 16


def svg(width: float, height: float, body: str, title: str, least: int = 0) -> str:
    """A picture with a name for screen readers; below `least` pixels it scrolls rather than shrinks."""
    style = f' style="min-width:{least}px"' if least else ""
    return (
        f'<div class="sd-scroll"><svg class="sd-svg" viewBox="0 0 {width:g} {height:g}" role="img"{style}>'
        f"<title>{escape(title)}</title>{body}</svg></div>"
    )


def text(x: float, y: float, content: str, anchor: str = "start", kind: str = "") -> str:
    """A line of text; `kind` is a class of the style sheet."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{escape(content)}</text>'


def rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    """A rectangle."""
    size = f'width="{max(0.0, width):.2f}" height="{max(0.0, height):.2f}"'
    return f'<rect x="{x:.2f}" y="{y:.2f}" {size} rx="1.5" class="{kind}"/>'


def line(x0: float, y0: float, x1: float, y1: float, kind: str = "sd-axis") -> str:
    """A line."""
    return f'<line x1="{x0:.2f}" y1="{y0:.2f}" x2="{x1:.2f}" y2="{y1:.2f}" class="{kind}"/>'


def signed_bars(values: Sequence[float], decoded: Sequence[float], title: str) -> str:
    """Numbers as outlined bars around zero, what became of them as a mark on each."""
    top = max(map(abs, [*values, *decoded]), default=0.0) or 1.0
    unit = (MIDDLE - 14) / top
    parts = [line(0, MIDDLE, COLUMN * len(values), MIDDLE)]
    for number, (value, became) in enumerate(zip(values, decoded, strict=True)):
        x, height = number * COLUMN + 8, abs(value) * unit
        parts.append(rect(x, MIDDLE - height if value > 0 else MIDDLE, COLUMN - 16, height, "sd-given"))
        y = MIDDLE - became * unit
        parts.append(line(x - 4, y, x + COLUMN - 12, y, "sd-became"))
    return svg(COLUMN * len(values), 2 * MIDDLE, "".join(parts), title, least=22 * len(values))


def dialect_strip(dialect: Dialect, y: float, left: float, colour: int, chosen: bool) -> str:
    """The magnitudes of a dialect as dots over half-units 0 to 15."""
    dots = "".join(
        f'<circle cx="{left + STRIP * unit:g}" cy="{y:g}" r="5" class="sd-shape-{colour}{"" if chosen else " sd-faint"}"/>'
        for unit in dialect.half_units
    )
    return line(left, y, left + STRIP * (UNITS - 1), y) + dots


def shares(values: Sequence[float], labels: Sequence[str], kinds: Sequence[str], title: str, digits: int = 1) -> str:
    """Upright bars of parts of one, each with its label below."""
    top, width, height = max(values, default=0.0) or 1.0, 26, 130
    parts = []
    for number, (value, label, kind) in enumerate(zip(values, labels, kinds, strict=True)):
        tall = (height - 30) * value / top
        parts.append(rect(number * width + 4, height - 14 - tall, width - 8, tall, kind))
        parts.append(text(number * width + width / 2, height - 2, label, "middle", "sd-small"))
        if value > 0:
            mark = f"{100 * value:.{digits}f}" if value < 0.0995 else f"{100 * value:.0f}"
            parts.append(text(number * width + width / 2, height - 18 - tall, mark, "middle", "sd-small"))
    return svg(width * len(values), height, "".join(parts), title, least=17 * len(values))
