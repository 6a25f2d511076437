import json
from pathlib import Path

import pytest
from PIL import Image

from studies.structure_control import losses as study


def test_losses_of_a_log_are_plotted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"step": step, **dict.fromkeys(study.NAMES.values(), 0.5 - 0.001 * step)} for step in (0, 10)]
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert study.main(["--run", str(tmp_path), "--out", str(tmp_path / "losses.png")]) == 0
    assert capsys.readouterr().out.startswith("right hint 0.4900, wrong hint 0.4900")
    with Image.open(tmp_path / "losses.png") as chart:
        assert chart.size == (840, 480)


def test_a_log_without_losses_by_hint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 10, "loss": 0.5}\n')
    assert study.main(["--run", str(tmp_path), "--out", str(tmp_path / "losses.png")]) == 2
    assert "has no losses by hint" in capsys.readouterr().err and not (tmp_path / "losses.png").exists()
