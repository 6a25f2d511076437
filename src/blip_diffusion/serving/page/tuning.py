"""One tuning at a time, as a child process that runs `blip-diffusion tune`. Imports no torch and no Gradio."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_diffusion.errors import BlipDiffusionError, InputError
from blip_diffusion.images import MAX_PHOTOS
from blip_diffusion.strict_json import parse_json

if TYPE_CHECKING:
    from blip_diffusion.serving.job_service import JobService

MAX_STEPS = 2000
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
LOG = "output.log"


@dataclass(frozen=True)
class Score:
    """One validation. 1 is as similar as the photos are to each other, or follows prompts like the untuned model."""

    step: int
    subject: float
    text: float


@dataclass(frozen=True)
class TuningState:
    """The state of a tuning.

    Args:
        text: One line.
        running: Whether the process runs.
        scores: All validations so far.
        samples: The images of the newest validation, if there are any.
    """

    text: str
    running: bool = False
    scores: tuple[Score, ...] = ()
    samples: Path | None = None


class Tuning:
    """The tuning of this server. It continues when the page is closed.

    Args:
        service: The service whose store gets the tuned subject.
    """

    def __init__(self, service: JobService) -> None:
        self._service = service
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._name = ""
        self._text = "No tuning yet."
        self._stopped = False

    def start(
        self, photos: Sequence[Path], *, category: str, name: str, model: str, trainable: str, steps: int
    ) -> None:
        """Start a tuning.

        Args:
            photos: Image files of the subject; copied.
            category: The subject's category.
            name: The subject's name: letters, digits, - and _.
            model: A name from the service's settings.
            trainable: See `blip-diffusion tune --trainable`.
            steps: Training steps; 0: early stopping.

        Raises:
            InputError: If a value can't be used, or a tuning runs already.
        """
        if not 0 < len(photos) <= MAX_PHOTOS:
            raise InputError(f"There are {len(photos)} photos: use 1 to {MAX_PHOTOS}.")
        if not NAME.fullmatch(name):
            raise InputError(f"The name {name[:64]!r} can't be used: use letters, digits, - and _, for example rex.")
        if not category.strip():
            raise InputError("The category is empty: name the subject, for example dog.")
        if not 0 <= steps <= MAX_STEPS:
            raise InputError(f"The number of steps is {steps}: use up to {MAX_STEPS}, or 0.")
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                raise InputError(f"{self._name} is being tuned: wait for it, or stop it.")
            self._begin(photos, name)
            command = [sys.executable, "-m", "blip_diffusion", "tune", f"--category={category.strip()}",
                       f"--name={name}", f"--out={self._out}", f"--model={self._service.settings.models[model]}",
                       f"--trainable={trainable}", f"--train-steps={steps or 'auto'}",
                       "--", str(self._work / "photos")]  # fmt: skip
            with (self._work / LOG).open("wb") as log:
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            threading.Thread(target=self._wait, args=(self._process,), daemon=True).start()

    def stop(self) -> None:
        """Stop the tuning; the best result so far is kept."""
        if self._process is not None and self._process.poll() is None:
            self._stopped = True
            self._process.send_signal(signal.SIGTERM)

    def state(self) -> TuningState:
        """Return the state of the tuning."""
        if self._folder is None:
            return TuningState(self._text)
        process = self._process
        running = process is not None and process.poll() is None
        scores = _scores(self._folder / "scores.jsonl")
        samples = sorted((self._folder / "samples").glob("validation-*.png"))
        step = last_step(self._folder / "log.jsonl")
        text = f"Tuning {self._name}: {f'step {step}' if step else 'starting'}." if running else self._text
        return TuningState(text, running, scores, samples[-1] if samples else None)

    @property
    def _work(self) -> Path:
        return self._service.settings.folder.absolute() / "tuning"

    @property
    def _out(self) -> Path:
        return self._work / f"{self._name}.safetensors"

    def _begin(self, photos: Sequence[Path], name: str) -> None:
        """Copy the photos into an empty work folder."""
        shutil.rmtree(self._work, ignore_errors=True)
        (self._work / "photos").mkdir(parents=True)
        for number, photo in enumerate(photos):
            shutil.copyfile(photo, self._work / "photos" / f"{number:02d}{photo.suffix.lower()}")
        self._name, self._stopped, self._text = name, False, "Ending."
        self._folder = self._out.with_name(f"{self._out.name}.tuning")

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        """Save the result in the store when the process has ended."""
        code = process.wait()
        kept = self._out if self._out.is_file() else _best(self._folder)
        if kept is None or not (code == 0 or self._stopped):
            self._text = "Stopped before there was a result." if self._stopped else f"Failed: {self._last_line()}"
            return
        try:
            self._service.store.add_subject(kept.read_bytes())
            self._text = f"{self._name} is in Subjects." + (" It was stopped: the best so far is kept." if code else "")
        except (BlipDiffusionError, OSError) as error:
            self._text = f"Failed: {error}"

    def _last_line(self) -> str:
        """Return the error message that the command printed."""
        lines = (self._work / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].removeprefix("blip-diffusion: ")[:300] if lines else "the process has ended."


def _best(folder: Path | None) -> Path | None:
    """Return the best subject file of an interrupted tuning, if there is one."""
    files = sorted((folder / "best").glob("*/subject.safetensors")) if folder is not None else []
    return files[-1] if files else None


def last_step(path: Path) -> int:
    """Return the newest step of a training log; 0 before the first."""
    try:
        whole_lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        return int(parse_json(whole_lines[-1])["step"])
    except (OSError, ValueError, KeyError, TypeError, IndexError):  # not written yet, or damaged
        return 0


def _scores(path: Path) -> tuple[Score, ...]:
    try:
        rows: list[dict[str, Any]] = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return tuple(Score(int(row["step"]), float(row["subject"]), float(row["text"])) for row in rows)
    except (OSError, ValueError, KeyError, TypeError):  # not written yet, or damaged
        return ()
