"""The scores of a run over its steps, as one SVG picture: what each stage brings, at a glance."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 360, 46, 220, 40, 40
COLOURS = ("#3157d5", "#c2410c", "#1a7f4b", "#7c3aed", "#b42318", "#0e7490", "#a16207", "#475569")
Series = dict[str, list[tuple[float, float]]]


def read_scores(log: Path, names: Sequence[str]) -> Series:
    """Steps and values of these names from a run's `log.jsonl`; a torn last line is left out."""
    series: Series = {name: [] for name in names}
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            values: Mapping[str, float] = json.loads(line)
        except ValueError:
            continue
        for name in names:
            if name in values:
                series[name].append((float(values["step"]), float(values[name])))
    return {name: points for name, points in series.items() if points}


def curve(series: Series) -> str:
    """An SVG with a line for each series. 0 is a score's floor and 1 its ceiling; what lies outside is cut off."""
    last = max((step for points in series.values() for step, _ in points), default=1.0) or 1.0

    def at(step: float, value: float) -> tuple[float, float]:
        x = LEFT + step / last * (WIDTH - LEFT - RIGHT)
        return x, TOP + (1 - min(max(value, -0.1), 1.1)) * (HEIGHT - TOP - BOTTOM)

    parts = [_text(LEFT, HEIGHT - 8, "0"), _text(WIDTH - RIGHT, HEIGHT - 8, f"{last:g} steps", "end")]
    for value, word in ((0.0, "0"), (0.5, "0.5"), (1.0, "1")):
        (x, y), (end, _) = at(0, value), at(last, value)
        parts.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{end:.1f}" y2="{y:.1f}" stroke="#d0d5dd"/>')
        parts.append(_text(x - 8, y + 4, word, "end"))
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in (at(*p) for p in points)]
        parts.append(_text(WIDTH - RIGHT + 14, TOP + 12 + 20 * number, f"{name} {points[-1][1]:.2f}", fill=colour))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, words: str, anchor: str = "start", *, fill: str = "#475467") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{escape(words)}</text>'
