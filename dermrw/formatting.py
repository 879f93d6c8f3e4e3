"""Numbers and tables as text for people: percentages, decimals and durations."""

from collections.abc import Sequence

NO_BREAK = "\u202f"  # narrow no-break space, for HTML: the number and its unit stay on one line


def percent(value: float | None, digits: int = 1, space: str = " ") -> str:
    """A share in 0..1 as a percentage, such as `81.1 %`; – where it is undefined."""
    return "–" if value is None else f"{100 * value:.{digits}f}{space}%"


def number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` decimals; – where it is undefined."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def decimals(value: float, least: int = 0) -> int:
    """Decimals, at least `least`, with which a number in 0..100 keeps 5 % of its distance from the nearer end."""
    room = min(value, 100 - value)
    digits = least
    while digits < 12 and room > 0 and abs(round(value, digits) - value) > 0.05 * room:
        digits += 1
    return digits


def threshold(value: float | None) -> str:
    """A threshold in 0..1 with at least three decimals, more near 0 and 1: `0.159`, `0.00031`."""
    return number(value) if value is None else number(value, 2 + decimals(100 * value, 1))


def duration(seconds: float, space: str = " ") -> str:
    """A time in seconds below 90 s, in minutes below 90 min and in hours above: `45 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f}{space}s"
    return f"{seconds / 60:.0f}{space}min" if seconds < 5400 else f"{seconds / 3600:.1f}{space}h"


def gigabytes(size: float, space: str = " ") -> str:
    """A number of bytes in GB, in MB below 1 GB: `2.1 GB`, `350 MB`."""
    return f"{size / 1e9:,.1f}{space}GB" if size >= 1e9 else f"{size / 1e6:.0f}{space}MB"


def counted(count: int, one: str, several: str | None = None) -> str:
    """A number and its noun: `1 image`, `2,000 images`; `several` is the plural, of a verb too: `images are`."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, whose first column is aligned to the left and the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *body])
