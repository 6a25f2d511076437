"""Line charts of training runs, tunings and comparisons, drawn with Pillow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f")
"""The colours of Okabe & Ito, which colour-blind people can distinguish, without yellow, and grey."""
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """Points from left to right, optionally with the bounds of an interval."""

    points: Sequence[Point]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def line_chart(
    lines: Mapping[str, Line],
    *,
    title: str,
    x_label: str,
    y_label: str = "",
    mark: tuple[float, str] | None = None,
    size: tuple[int, int] = (840, 480),
) -> Image.Image:
    """Return a chart of named lines. `mark` is a vertical line at an x, with a label."""
    page = Image.new("RGB", size, "white")
    frame = _Frame(lines, size)
    pen = ImageDraw.Draw(page, "RGBA")
    _axes(pen, frame, title, x_label, y_label)
    for (name, line), colour in zip(lines.items(), _cycle(len(lines)), strict=True):
        _line(pen, frame, line, colour)
        _legend(pen, frame, list(lines).index(name), name, colour)
    if mark is not None:
        x = frame.at((mark[0], 0))[0]
        pen.line((x, frame.top, x, frame.bottom), fill="#888888", width=2)
        pen.text((x + 5, frame.top + 2), mark[1], fill="#555555", font=_font(14))
    return page


class _Frame:
    """Axes of a chart, and the position of values on the page."""

    def __init__(self, lines: Mapping[str, Line], size: tuple[int, int]) -> None:
        xs = [x for line in lines.values() for x, _ in line.points] or [0.0]
        ys = [y for line in lines.values() for y in (*(y for _, y in line.points), *line.low, *line.high)] or [0.0]
        self.x_ticks, self.y_ticks = _ticks(min(xs), max(xs)), _ticks(min(0.0, *ys), max(ys))
        widest = max((_font(14).getlength(name) for name in lines), default=0)
        self.left, self.top, self.bottom = 70, 44, size[1] - 58
        self.right = size[0] - max(190, round(widest) + 56)  # names are at the right of the plot

    def at(self, point: Point) -> Point:
        x = (point[0] - self.x_ticks[0]) / (self.x_ticks[-1] - self.x_ticks[0])
        y = (point[1] - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return self.left + x * (self.right - self.left), self.bottom - y * (self.bottom - self.top)


def _axes(pen: ImageDraw.ImageDraw, frame: _Frame, title: str, x_label: str, y_label: str) -> None:
    pen.text((frame.left, 12), title, fill="black", font=_font(18))
    for tick in frame.y_ticks:
        y = frame.at((frame.x_ticks[0], tick))[1]
        pen.line((frame.left, y, frame.right, y), fill="#e4e4e4")
        pen.text((frame.left - 8, y), f"{tick:g}", fill="#444444", font=_font(14), anchor="rm")
    for tick in frame.x_ticks:
        x = frame.at((tick, frame.y_ticks[0]))[0]
        pen.line((x, frame.bottom, x, frame.bottom + 5), fill="#888888")
        pen.text((x, frame.bottom + 8), f"{tick:g}", fill="#444444", font=_font(14), anchor="ma")
    pen.text(((frame.left + frame.right) / 2, frame.bottom + 32), x_label, fill="black", font=_font(15), anchor="ma")
    pen.text((frame.right + 14, frame.top - 4), y_label, fill="black", font=_font(14))


def _line(pen: ImageDraw.ImageDraw, frame: _Frame, line: Line, colour: str) -> None:
    spots = [frame.at(point) for point in line.points]
    if line.low:
        xs = [x for x, _ in line.points]
        upper = [frame.at(point) for point in zip(xs, line.high, strict=True)]
        lower = [frame.at(point) for point in zip(xs, line.low, strict=True)]
        if len(spots) > 1:
            pen.polygon([*upper, *reversed(lower)], fill=f"{colour}28")
    if len(spots) > 1:
        pen.line(spots, fill=colour, width=3)
    for x, y in spots:
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)


def _legend(pen: ImageDraw.ImageDraw, frame: _Frame, row: int, name: str, colour: str) -> None:
    x, y = frame.right + 14, frame.top + 22 + 24 * row
    pen.line((x, y + 8, x + 22, y + 8), fill=colour, width=3)
    pen.text((x + 28, y), name, fill="black", font=_font(14))


def _ticks(low: float, high: float) -> list[float]:
    """Return five to ten round numbers from below `low` to above `high`."""
    if high <= low:
        low, high = low - 0.5, low + 0.5
    power = 10.0 ** _exponent((high - low) / 5)
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= (high - low) / 6)
    first, last = int(low // step), int(-(-high // step))
    return [round(number * step, 10) for number in range(first, last + 1)]


def _exponent(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


def _cycle(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
