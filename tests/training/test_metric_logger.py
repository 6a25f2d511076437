import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip_diffusion.errors import ConfigError
from blip_diffusion.training.metric_logger import MetricLogger, console_line


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_log_lines_are_flushed(tmp_path: Path) -> None:
    metric_logger = MetricLogger(tmp_path, console=False)
    metric_logger.log(3, {"loss": 0.5})
    assert lines(tmp_path) == [{"step": 3, "loss": 0.5}]
    metric_logger.close()


def test_resuming_truncates_the_log(tmp_path: Path) -> None:
    with MetricLogger(tmp_path, console=False) as metric_logger:
        for step in (10, 20, 30):
            metric_logger.log(step, {"loss": step / 10})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 15, "lo')
    with MetricLogger(tmp_path, start=20, console=False) as metric_logger:
        metric_logger.log(30, {"loss": 7.0})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(10, 1.0), (20, 2.0), (30, 7.0)]


def test_console_line_format() -> None:
    values = {"loss": 0.12345, "lr": 1e-4, "samples": 80, "samples_per_second": 312.52, "seconds": 9.0, "eta": 3723.4}
    assert console_line(120, 1000, values) == "120/1000  loss 0.1235  lr 1.0e-04  312.5 samples/s  eta 1:02:03"


def test_console_output_can_be_disabled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for console in (True, False):
        with MetricLogger(tmp_path, steps=9, console=console) as metric_logger:
            metric_logger.log(1, {"loss": 1.0})
        assert capsys.readouterr().out == ("1/9  loss 1\n" if console else "")


def test_images_are_saved(tmp_path: Path) -> None:
    with MetricLogger(tmp_path, console=False) as metric_logger:
        path = metric_logger.image("teapot/front", Image.new("RGB", (4, 3), "red"), 12)
    assert path == tmp_path / "samples" / "teapot" / "front-00000012.png"
    with Image.open(path) as image:
        assert image.size == (4, 3)


def test_tensorboard_logs_are_optional(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with MetricLogger(tmp_path, console=False, tensorboard=True) as metric_logger:
        metric_logger.log(1, {"loss": 0.5})
        metric_logger.image("a", Image.new("L", (4, 3)), 1)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_missing_tensorboard_raises_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any, **more: Any) -> Any:
        if "tensorboard" in name:
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        MetricLogger(tmp_path, tensorboard=True)
