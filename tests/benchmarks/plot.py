"""The time per file as a picture: bars on a logarithmic scale, legible on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from statistics import median

from . import units
from .roster import OURS, Contender
from .rounds import Result
from .rows import values

# Pixels.
WIDTH = 760
LEFT = 240  # where the bars begin; the names stand before them
RIGHT = 80  # beside the longest bar, for its number
TOP = 60
BAR = 18
PITCH = 26  # from one bar to the next

# What no page tells to be light or dark is in tones that can be read on both.
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #6e7781 }
  .heading { font-size: 15px; font-weight: 600 }
  .note { font-size: 11px }
  .grid { stroke: #8c959f; stroke-opacity: 0.35 }
  .peer { fill: #8c959f }
  .ours, text.ours { fill: #2da44e }
  text.ours { font-weight: 600 }
  @media (prefers-color-scheme: light) { text { fill: #1f2328 } .ours, text.ours { fill: #1a7f37 } }
  @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .ours, text.ours { fill: #3fb950 } }
"""


def draw(result: Result, heading: str) -> str:
    """An SVG of all who have run, the quickest on top."""
    bars = [
        (median(values(result, entry, "seconds")), entry.contender)
        for entry in result.entries
        if entry.runs
    ]
    bars.sort(key=lambda bar: bar[0])
    decades = range(math.floor(math.log10(bars[0][0])), math.floor(math.log10(bars[-1][0])) + 2)
    height = TOP + PITCH * len(bars) + 14
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(heading)}</title>",
        f"<style>{STYLE}</style>",
        f'<text x="10" y="22" class="heading">{escape(heading)}</text>',
        *_grid(decades, height),
    ]
    for place, (seconds, contender) in enumerate(bars):
        lines += _bar(TOP + PITCH * place, _x(seconds, decades), seconds, contender)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _grid(decades: range, height: int) -> Iterator[str]:
    """A line for each power of ten."""
    for decade in decades:
        x = _x(10.0**decade, decades)
        label = units.seconds(10.0**decade).replace(".00", "").replace(".0", "")
        yield f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{TOP - 8}" y2="{height - 10}" class="grid"/>'
        yield f'<text x="{x:.0f}" y="{TOP - 14}" class="note" text-anchor="middle">{label}</text>'


def _bar(y: int, end: float, seconds: float, contender: Contender) -> Iterator[str]:
    kind = "ours" if contender == OURS else "peer"
    text = ' class="ours"' if contender == OURS else ""
    saves = "" if contender.keeps == "nothing" else " *"
    middle = y + BAR - 5
    title = escape(contender.title) + saves
    yield f'<text x="{LEFT - 8}" y="{middle}" text-anchor="end"{text}>{title}</text>'
    yield f'<rect x="{LEFT}" y="{y}" width="{end - LEFT:.0f}" height="{BAR}" class="{kind}"/>'
    yield f'<text x="{end + 6:.0f}" y="{middle}"{text}>{units.seconds(seconds)}</text>'


def _x(seconds: float, decades: range) -> float:
    """Where so many seconds are on the scale."""
    share = (math.log10(seconds) - decades[0]) / (decades[-1] - decades[0])
    return LEFT + share * (WIDTH - LEFT - RIGHT)
