"""Where the names of points go in a chart, so that none lies on another."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin

# Around a point, the nearest first: at the side, above and below, then between these.
_ANGLES = tuple(pi / 6 * turn for turn in (0, 6, 3, 9, 1, 5, 7, 11, 2, 4, 8, 10))
_DISTANCES = (6.0, 12.0, 20.0, 30.0, 42.0, 56.0, 72.0)
# A name that lies further from its point than this is tied to it by a line.
_NEAR = 8.0
_STEPS = 12  # by which a line between two points is followed
_PASSES = 3


@dataclass(frozen=True)
class Box:
    """A rectangle, in any unit."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: "Box") -> bool:
        """Whether the two have anything in common but an edge."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )

    def holds(self, x: float, y: float) -> bool:
        """Whether a point lies within."""
        return self.left < x < self.right and self.bottom < y < self.top

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The place within that is nearest to a point."""
        return min(max(x, self.left), self.right), min(max(y, self.bottom), self.top)


@dataclass(frozen=True)
class PlacedLabel:
    """A name's place."""

    box: Box
    tie: tuple[float, float] | None  # where a line from the point ends; None for a near one


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    inside: Box,
    lines: Sequence[tuple[int, int]],
    radius: float,
) -> list[PlacedLabel]:
    """Find a place for each point's name: near it, on nothing else.

    Args:
        points: where they are.
        sizes: width and height of each name.
        inside: where names may be.
        lines: pairs of points that a line joins.
        radius: of a point.

    Returns:
        The places in the order of the points. No two names meet where that can be had.
    """
    dots = [Box(x - radius, y - radius, x + radius, y + radius) for x, y in points]
    on_lines = [spot for a, b in lines for spot in _between(points[a], points[b])]
    placed: list[PlacedLabel | None] = [None] * len(points)
    # Names that came first can give way to those that came later.
    for _ in range(_PASSES):
        for index, (point, size) in enumerate(zip(points, sizes, strict=True)):
            others = [one for at, one in enumerate(placed) if one is not None and at != index]
            placed[index] = _best(point, size, inside, others, dots, on_lines)
    return [one for one in placed if one is not None]


def _best(
    point: tuple[float, float],
    size: tuple[float, float],
    inside: Box,
    others: Sequence[PlacedLabel],
    dots: Sequence[Box],
    on_lines: Sequence[tuple[float, float]],
) -> PlacedLabel:
    found: list[tuple[float, PlacedLabel]] = []
    for distance in _DISTANCES:
        for turn, angle in enumerate(_ANGLES):
            box = _beside(point, size, distance, angle)
            end = box.nearest(*point)
            tie = _between(point, end) if distance > _NEAR else []
            cost = (
                1000.0 * sum(box.meets(other.box) for other in others)
                + 1000.0 * (not _within(box, inside))
                + 100.0 * sum(box.meets(dot) for dot in dots)
                + 3.0 * sum(box.holds(*spot) for spot in on_lines)
                + 3.0 * sum(other.box.holds(*spot) for other in others for spot in tie)
                + distance
                + 0.1 * turn
            )
            found.append((cost, PlacedLabel(box, end if tie else None)))
    return min(found, key=lambda one: one[0])[1]


def _between(a: tuple[float, float], b: tuple[float, float]) -> list[tuple[float, float]]:
    """Places along the way from one to the other, without the two."""
    shares = [step / _STEPS for step in range(1, _STEPS)]
    return [(a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share) for share in shares]


def _beside(
    point: tuple[float, float], size: tuple[float, float], distance: float, angle: float
) -> Box:
    """The box whose nearest edge or corner is so far from a point, in this direction."""
    (x, y), (width, height) = point, size
    dx, dy = cos(angle), sin(angle)
    # A side of the box faces the point: its middle for the four straight directions.
    left = x + distance * dx - width * (1 - dx) / 2
    bottom = y + distance * dy - height * (1 - dy) / 2
    return Box(left, bottom, left + width, bottom + height)


def _within(box: Box, other: Box) -> bool:
    return (
        box.left >= other.left
        and box.right <= other.right
        and box.bottom >= other.bottom
        and box.top <= other.top
    )
