"""Logs of a run: a line of JSON and one on the console per report, images, and TensorBoard on request."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from blip_diffusion.control_characters import print_text
from blip_diffusion.errors import ConfigError, InputError
from blip_diffusion.fileio import save_image, write_text
from blip_diffusion.strict_json import parse_json

if TYPE_CHECKING:
    from PIL.Image import Image

LOG = "log.jsonl"
SAMPLES = "samples"


class MetricLogger:
    """Logger to the folder of a run. Lines after step `start` are dropped, because a resumed run writes them again."""

    def __init__(
        self, folder: Path, *, start: int = 0, steps: int = 0, console: bool = True, tensorboard: bool = False
    ) -> None:
        self.folder = folder
        self._steps = steps
        self._console = console
        folder.mkdir(parents=True, exist_ok=True)
        self._board = _tensorboard(folder, start) if tensorboard else None
        _drop_after(folder / LOG, start)
        self._log = (folder / LOG).open("a", encoding="utf-8")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers by name; the console formats `samples_per_second`, `lr` and `eta`."""
        self._log.write(json.dumps({"step": step, **values}) + "\n")
        self._log.flush()
        if self._console:
            print_text(console_line(step, self._steps, values))
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def image(self, name: str, image: "Image", step: int) -> Path:
        """Write `samples/{name}-{step}.png`."""
        path = self.folder / SAMPLES / f"{name}-{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(image, path)
        if self._board:
            import numpy as np

            self._board.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        return path

    def close(self) -> None:
        self._log.close()
        if self._board:
            self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def console_line(step: int, steps: int, values: Mapping[str, float]) -> str:
    """Return one line of progress, such as `120/1000  loss 0.1234  312.5 samples/s  lr 1.0e-04  eta 0:12:03`."""
    words = [f"{step}/{steps}" if steps else f"{step}"]
    for name, value in values.items():
        if name == "samples_per_second":
            words.append(f"{value:.1f} samples/s")
        elif name == "lr":
            words.append(f"lr {value:.1e}")
        elif name == "eta":
            words.append(f"eta {_clock(value)}")
        elif name not in ("samples", "seconds"):
            words.append(f"{name} {value:.4g}")
    return "  ".join(words)


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"


def _drop_after(path: Path, step: int) -> None:
    """Keep the complete lines up to a step; a killed process may have left a partial last line."""
    if not path.exists():
        return
    if not path.is_file():  # a named pipe, for example
        raise InputError(f"{path} is not a file: remove it.")
    kept = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if _step_of(line) <= step]
    write_text(path, "".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return float(parse_json(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _tensorboard(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "tensorboard isn't installed: pip install tensorboard, or set tensorboard to false."
        ) from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
