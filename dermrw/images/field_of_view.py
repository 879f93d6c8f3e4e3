"""Finds the field of view of a picture: the content without black or white borders and dark corners. No torch in here.

Dermatoscopes show a round field of view on black, and exported pictures often have borders or a letterbox. Both differ
from clinic to clinic, and a network refuses, or misjudges, pictures with a frame that it was not trained on.

The search works on a copy of about 192 pixels, in two steps:

1. Straight borders of any one colour: lines at an edge of the picture of nearly the same colour, which end in a sharp
   step along the line. Flat skin, gradual shading and overexposed skin have no such step.
2. A dark surround: dark corners, a round field of view, a vignette. The field of view is convex, so its outline is the
   convex hull of the bright pixels. A dark lesion, hair or a ruler at the edge only leaves a notch, which the hull
   fills. A surround must reach at least two corners of the picture, and its boundary must curve like a field of
   view's. So one dark corner alone is never cut, as it may be a lesion.

The box is the largest rectangle in the outline, of any proportions, since it keeps the most of the field. In a large
circle in a 4:3 picture it has the picture's full height and less width; in a small circle it is the inscribed square.
A rectangle of 4:3 in the same circle has a smaller middle square, and no larger area.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 192  # pixels of the longer side of the copy
SAME_COLOUR = 10  # grey levels by which a border's pixels may differ from its median colour
BORDER_SHARE = 0.95  # share of the pixels of a border's line that have its colour
STEP = 16  # grey levels between a border and the content next to it
DARK = 0.3  # brightness of a dark surround, as a fraction of the content's …
DARKEST, BRIGHTEST = 20, 70  # … and its bounds, in grey levels
LEAST_OUTSIDE = 0.002  # share of the picture: a smaller surround is ignored
LEAST_SIDE = 0.25  # of the picture's sides: a smaller field is not believed
NOTCH = 0.2  # area of the notches in the outline of the field, at most, as a share of the surround next to them
CAPTION = 0.15  # of a side: bright lines between dark ones are text in a border if they are fewer

Floats = npt.NDArray[np.float64]


class Box(NamedTuple):
    """A rectangle in an upright picture, in pixels: columns `left` to `right` and rows `top` to `bottom`, exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.bottom - self.top


def find_field_of_view(image: Image.Image) -> Box:
    """Returns the box of the content of an upright RGB picture; the whole picture if it has no border.

    The answer depends on the pixels alone. Copies of a picture in other sizes have the same box, to about 1/192 of
    the longer side.
    """
    width, height = image.size
    scale = min(1.0, SIDE / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    copy = image if size == image.size else image.resize(size, Image.Resampling.BOX, reducing_gap=1.0)
    pixels = np.asarray(copy, dtype=np.int16)
    border = _uniform_borders(pixels)
    content = pixels[border.top : border.bottom, border.left : border.right]
    inner = _bright_field(content)
    box = Box(border.left + inner.left, border.top + inner.top, border.left + inner.right, border.top + inner.bottom)
    if box.width < LEAST_SIDE * size[0] or box.height < LEAST_SIDE * size[1]:
        return Box(0, 0, width, height)
    return Box(
        -(-box.left * width // size[0]), -(-box.top * height // size[1]),
        box.right * width // size[0], box.bottom * height // size[1],
    )  # fmt: skip


def _uniform_borders(pixels: npt.NDArray[np.int16]) -> Box:
    """Returns the box within straight borders of one colour each, for pixels `[h, w, 3]`; two nested ones at most."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = 0, 0, width, height
    for _ in range(2):
        part = pixels[top:bottom, left:right]
        rows, columns = part, part.swapaxes(0, 1)
        edges = [_border(lines) for lines in (columns, rows, columns[::-1], rows[::-1])]
        if not any(edges) or edges[0] + edges[2] >= len(columns) or edges[1] + edges[3] >= len(rows):
            break
        left, top, right, bottom = left + edges[0], top + edges[1], right - edges[2], bottom - edges[3]
    return Box(left, top, right, bottom)


def _border(lines: npt.NDArray[np.int16]) -> int:
    """Returns the number of lines `[n, m, 3]`, from the first on, that are a border of one colour; 0 if there is none.

    The line in which border and content mix counts as border.
    """
    colour = np.median(lines[0], axis=0)
    count, most = 0, len(lines) // 2
    while count < most and (_highest(np.abs(lines[count] - colour)) <= SAME_COLOUR).mean() >= BORDER_SHARE:
        count += 1
    if count in (0, most) or len(lines) < count + 3:
        return 0
    sharp = (_highest(np.abs(lines[count + 2] - lines[count - 1])) >= STEP).mean()
    return count + 1 if sharp >= 0.5 else 0


def _highest(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns the maximum over the channels of values `[..., 3]`, which is faster than `max(-1)`."""
    return np.maximum(np.maximum(values[..., 0], values[..., 1]), values[..., 2])


def _bright_field(pixels: npt.NDArray[np.int16]) -> Box:
    """Returns the largest box within a dark surround of pixels `[h, w, 3]`; the whole if there is no surround."""
    height, width = pixels.shape[:2]
    whole = Box(0, 0, width, height)
    value = _highest(pixels)
    middle = value[height // 5 : height - height // 5 : 2, width // 5 : width - width // 5 : 2]
    if middle.size == 0:
        return whole
    threshold = float(np.clip(DARK * np.percentile(middle, 70), DARKEST, BRIGHTEST))
    bright = _majority(value > threshold)
    if bright[0, 0] and bright[0, -1] and bright[-1, 0] and bright[-1, -1]:
        return whole  # so is the hull
    bright &= _without_captions(np.any(bright, 1))[:, None] & _without_captions(np.any(bright, 0))[None]
    filled = np.flatnonzero(bright.any(1))
    if len(filled) < 8:
        return whole
    first, last = int(filled[0]), int(filled[-1])
    starts = bright[filled].argmax(1)
    ends = width - bright[filled][:, ::-1].argmax(1)
    rows = np.arange(first, last + 1)
    left = _lower_hull(filled, starts, rows)  # of the content, by row
    right = -_lower_hull(filled, -ends, rows)
    if not _is_surround(value, threshold, first, last, left, right, starts, ends, filled):
        return whole
    return _largest_box(first, left, right, whole)


def _without_captions(filled: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Returns a mask of lines `[n]` without the short runs that dark lines separate from the rest: text in a border."""
    ends = np.flatnonzero(np.diff(np.concatenate([[0], filled.astype(np.int8), [0]]))).reshape(-1, 2)
    kept = filled.copy()
    for start, stop in ends:
        if stop - start < CAPTION * len(filled):
            kept[start:stop] = False
    return kept


def _majority(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Returns the majority of each pixel and its eight neighbours in a mask `[h, w]`: without thin lines and dots."""
    padded = np.pad(mask, 1, mode="edge").astype(np.uint8)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] >= 5


def _lower_hull(x: npt.NDArray[np.intp], y: npt.NDArray[np.intp], at: npt.NDArray[np.intp]) -> Floats:
    """Returns the greatest convex function below the points (x, y), with x ascending, at the positions `at`."""
    hull: list[tuple[int, int]] = []
    for point in zip(x.tolist(), y.tolist(), strict=True):
        while len(hull) > 1:
            (x1, y1), (x2, y2) = hull[-2:]
            if (y2 - y1) * (point[0] - x1) < (point[1] - y1) * (x2 - x1):
                break
            hull.pop()
        hull.append(point)
    return np.interp(at, [p[0] for p in hull], [p[1] for p in hull])


def _is_surround(
    value: npt.NDArray[np.int16],
    threshold: float,
    first: int,
    last: int,
    left: Floats,
    right: Floats,
    starts: npt.NDArray[np.intp],
    ends: npt.NDArray[np.intp],
    filled: npt.NDArray[np.intp],
) -> bool:
    """Whether the dark pixels outside the hull are a surround, and not a lesion at the edge.

    In at least two quarters of the picture, and in half of those with a dark corner, the region outside the hull must
    be far larger than the notches in the hull next to it: a lesion bulges towards the middle, a surround does not.
    """
    height, width = value.shape
    outside = np.ones((height, width), bool)
    columns = np.arange(width)
    outside[first : last + 1] = (columns < np.floor(left)[:, None]) | (columns >= np.ceil(right)[:, None])
    if outside.mean() < LEAST_OUTSIDE or (value[outside] > threshold).mean() > 0.15:
        return False
    notch = np.zeros((height, 2))  # pixels of each row between the hull and the first bright pixel
    notch[filled, 0] = starts - left[filled - first]
    notch[filled, 1] = right[filled - first] - ends
    like, unlike = 0, 0
    for rows, depth in ((slice(0, height // 2), 0), (slice(height // 2, height), 1)):
        for side, half in enumerate((slice(0, width // 2), slice(width // 2, width))):
            area = int(outside[rows, half].sum())
            if area < LEAST_OUTSIDE / 8 * outside.size:
                continue
            corner = value[rows, half][:: 1 - 2 * depth, :: 1 - 2 * side][:3, :3]
            framed = corner.mean() <= threshold and notch[rows, side].sum() <= NOTCH * area + 4
            like, unlike = like + framed, unlike + (not framed)
    return like >= 2 and like >= unlike


def _largest_box(first: int, left: Floats, right: Floats, whole: Box) -> Box:
    """Returns the largest box in a convex outline, given by its left and right ends in each row from `first` on.

    Many boxes are nearly as large as the largest, and noise decides among them. Their mean, weighted by area, is stable
    and lies within the outline as well, because the outline is convex.
    """
    count = len(left)
    start = np.maximum(left[:, None], left[None])  # [top, last row]
    stop = np.minimum(right[:, None], right[None])
    rows = np.arange(count)
    area = np.maximum(stop - start, 0) * np.maximum(rows[None] + 1 - rows[:, None], 0)
    best = area.max()
    weights = np.exp((area - best) / (0.002 * best))
    weights /= weights.sum()
    top, bottom = float((weights.sum(1) * rows).sum()), float((weights.sum(0) * (rows + 1)).sum())
    edges = [
        float((weights * start).sum()), first + top, float((weights * stop).sum()), first + bottom,
    ]  # fmt: skip
    extremes = [float(left.min()), float(first), float(right.max()), float(first + count)]
    snapped = [b if abs(a - b) < 1 else a for a, b in zip(edges, extremes, strict=True)]
    # one pixel more where something is cut: there, border and content mix
    inward = [e if e == end else e + step for e, end, step in zip(snapped, whole, (1, 1, -1, -1), strict=True)]
    return Box(int(np.ceil(inward[0])), int(np.ceil(inward[1])), int(np.floor(inward[2])), int(np.floor(inward[3])))
