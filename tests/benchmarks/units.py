"""Numbers as people read them."""

from __future__ import annotations


def seconds(value: float) -> str:
    """Three digits that count, with the unit that suits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{_three_digits(value / size)} {unit}"
    return f"{_three_digits(value / 1e-6)} µs"


def megabytes(size: float) -> str:
    """As disks are sold: a million bytes each."""
    return f"{size / 1e6:,.0f} MB"


def plain(value: float) -> str:
    """A ratio."""
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _three_digits(value: float) -> str:
    return f"{value:.{max(0, 3 - len(str(int(value))))}f}"
