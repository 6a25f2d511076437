"""A chart of the scores of a training run over its steps, read from the run's log."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from blip_diffusion.plots import Line, line_chart
from blip_diffusion.strict_json import parse_json

Series = dict[str, list[tuple[float, float]]]
"""Steps and values, by the name of a score."""
LOWEST, HIGHEST = -0.1, 1.1
"""Values outside of this range are clipped: 0 is a score's lower bound and 1 its upper bound."""


def read_scores(log: Path, names: Sequence[str]) -> Series:
    """Read the steps and values of scores from a run's `log.jsonl`. An incomplete last line is skipped."""
    series: Series = {name: [] for name in names}
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            values: Mapping[str, float] = parse_json(line)
        except ValueError:
            continue
        for name in names:
            if name in values:
                series[name].append((float(values["step"]), float(values[name])))
    return {name: points for name, points in series.items() if points}


def score_curve(series: Series) -> Image.Image:
    """Plot a line for each series, labelled with its last value. NaN values are left out."""
    lines = {}
    for name, points in series.items():
        shown = [(step, min(max(value, LOWEST), HIGHEST)) for step, value in points if value == value]
        lines[f"{name} {points[-1][1]:.2f}"] = Line(shown)
    return line_chart(lines, title="scores", x_label="steps")
