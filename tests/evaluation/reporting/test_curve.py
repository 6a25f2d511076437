"""Score curves of a training log."""

from pathlib import Path

import numpy as np
from PIL import Image

from blip_diffusion.evaluation.reporting.curve import read_scores, score_curve
from blip_diffusion.plots import COLOURS


def heights(page: Image.Image, colour: str) -> list[int]:
    """From left to right, the middle row of a line's colour in each column of the plot that it is in."""
    expected = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    spots = (np.asarray(page)[:, : page.width - 190] == expected).all(axis=2)
    return [int(np.flatnonzero(column).mean()) for column in spots.T if column.any()]


def test_scores_are_read_from_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 3}\n{"step": 2, "a": 0.5}\n{"step": 4, "a": 1.0, "b": 0}\n{"step": 5, "a"')
    assert read_scores(log, ["a", "b", "c"]) == {"a": [(2, 0.5), (4, 1.0)], "b": [(4, 0.0)]}


def test_values_outside_the_axes_are_clipped() -> None:
    """A score that is far beyond its upper_bound leaves the others where they can be read."""
    nan = float("nan")
    result = heights(score_curve({"a": [(0, 0.0), (5, 1.0), (10, 99.0), (11, nan)]}), COLOURS[0])
    lower_bound, upper_bound = result[0], result[len(result) // 2]
    assert lower_bound - upper_bound > 200 and 0 < upper_bound - result[-1] < 60
    assert score_curve({}).size == score_curve({"a": [(0, nan)]}).size
