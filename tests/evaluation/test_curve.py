"""A curve is where its numbers are."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from blip_diffusion.evaluation.curve import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, curve, read_scores


def test_scores_are_read_from_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 3}\n{"step": 2, "a": 0.5}\n{"step": 4, "a": 1.0, "b": 0}\n{"step": 5, "a"')
    assert read_scores(log, ["a", "b", "c"]) == {"a": [(2, 0.5), (4, 1.0)], "b": [(4, 0.0)]}


def test_a_line_goes_through_its_points() -> None:
    picture = ElementTree.fromstring(curve({"a <b>": [(0, 0.0), (5, 1.0), (10, 9.0)]}))
    line = picture.find("{*}polyline")
    assert line is not None
    points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    low, high = HEIGHT - BOTTOM, TOP
    assert points[0] == (LEFT, low) and points[1] == ((LEFT + WIDTH - RIGHT) / 2, high)
    assert points[2][0] == WIDTH - RIGHT and 0 <= points[2][1] < high  # cut off, still in the picture
    assert "a &lt;b&gt; 9.00" in curve({"a <b>": [(1, 9.0)]})
    assert re.search("<svg", curve({}))
