"""Charts: lines at their values, labels, and round ticks."""

import numpy as np
import pytest
from PIL import Image

from blip_diffusion.plots import COLOURS, Line, _ticks, line_chart


def where(page: Image.Image, colour: str) -> np.ndarray:
    """Rows and columns of the plot that have a colour; the legend lies at the right of it."""
    expected = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    pixels = np.asarray(page)[:, : page.width - 190]
    return np.argwhere((pixels == expected).all(axis=2))


def test_lines_pass_through_their_values() -> None:
    up, down = Line([(0, 0), (10, 1)]), Line([(0, 1), (10, 0)], low=[0.9, 0], high=[1, 0.1])
    page = line_chart({"up": up, "down": down}, title="both", x_label="steps", mark=(5, "kept"))
    for colour, rises in zip(COLOURS, (True, False), strict=False):
        spots = where(page, colour)
        left, right = spots[spots[:, 1].argmin()], spots[spots[:, 1].argmax()]
        assert (left[0] > right[0] + 200) == rises


@pytest.mark.parametrize("points", [[], [(3.0, 0.5)], [(0.0, 0.0), (1.0, 0.0)], [(0, -1), (1, 1e6)]])
def test_extreme_values_can_be_plotted(points: list[tuple[float, float]]) -> None:
    assert line_chart({"one": Line(points)}, title="", x_label="").size == (840, 480)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 37), (-0.2, 0.31), (5, 5), (0, 1e-3)])
def test_ticks_cover_the_range(low: float, high: float) -> None:
    ticks = _ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 10
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])
