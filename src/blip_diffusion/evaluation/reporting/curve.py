"""The scores of a run over its steps, from its log, as one chart: what each stage brings, at a glance."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from blip_diffusion.plots import Line, line_chart

Series = dict[str, list[tuple[float, float]]]
LOWEST, HIGHEST = -0.1, 1.1
"""What lies outside is cut off: 0 is a score's floor and 1 its ceiling."""


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


def curve(series: Series) -> Image.Image:
    """A line for each series, and beside its name its last value. Values that are no numbers are left out."""
    lines = {}
    for name, points in series.items():
        shown = [(step, min(max(value, LOWEST), HIGHEST)) for step, value in points if value == value]
        lines[f"{name} {points[-1][1]:.2f}"] = Line(shown)
    return line_chart(lines, title="scores", x_label="steps")
