"""Samples and held-out losses during a run, also under shuffled conditions, which measure the use of each condition."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.prompts import subject_prompt
from blip_diffusion.sampling import sample_images
from blip_diffusion.training.objective import Objective, StepContext
from blip_diffusion.training.trainer import HookContext

STEPS, GUIDANCE, RESCALE = 20, 3.0, 0.6


class SampleCallback:
    """A hook that saves samples of a fixed held-out batch, and logs held-out losses, also under shuffled conditions."""

    def __init__(self, batch: SubjectBatch, probes: Sequence[SubjectBatch]) -> None:
        self.batch = batch
        self.probes = probes

    def __call__(self, context: HookContext) -> None:
        objective = context.objective
        columns = objective.sample_images(self.batch)
        if columns:
            context.metric_logger.image("page", images.column_page(columns), context.step)
        context.metric_logger.log(context.step, self._held_out_losses(objective))

    def _held_out_losses(self, objective: Objective) -> dict[str, float]:
        """Return means over the probes, with the same noise for all conditions."""
        sums: dict[str, float] = {}
        for number, batch in enumerate(self.probes):
            losses = _losses(objective, batch, number)
            values = {f"heldout/{key}": value for key, value in losses.items()}
            if any("denoising" in key for key in losses):  # the only loss that depends on these conditions
                for name, shuffled in shuffled_conditions(batch).items():
                    wrong = _losses(objective, shuffled, number).items()
                    values |= {f"heldout/{key} {name}": value for key, value in wrong if "denoising" in key}
            comparison = objective.comparison_losses(batch, _context(batch, number))
            values |= {f"heldout/{key}": float(value) for key, value in comparison.items()}
            for label, value in values.items():
                sums[label] = sums.get(label, 0.0) + value / len(self.probes)
        return sums


def _losses(objective: Objective, batch: SubjectBatch, number: int) -> dict[str, float]:
    return {key: float(value) for key, value in objective(batch, _context(batch, number)).items()}


def _context(batch: SubjectBatch, number: int) -> StepContext:
    return StepContext(step=0, rng=torch.Generator(batch["target"].device).manual_seed(number))


def shuffled_conditions(batch: SubjectBatch) -> dict[str, SubjectBatch]:
    """Return the batch with references of other subjects, and the batch with scenes of other prompts."""
    rolled = [*batch["prompt"][1:], batch["prompt"][0]]
    scenes = [subject_prompt(prompt, category) for category, prompt in zip(batch["category"], rolled, strict=True)]
    return {
        "wrong reference": cast(SubjectBatch, {**batch, "reference": batch["reference"].roll(1, dims=0)}),
        "wrong scene": cast(SubjectBatch, {**batch, "caption": scenes}),
    }


def sample_with_same_noise(model: BlipDiffusion, states: Tensor, seed: int = 0) -> Tensor:
    """Sample images (B, 3, H, W) in [0, 1] of text states (B, L, D), all from the same noise, by fixed settings."""
    return sample_images(model, states, [seed] * len(states), steps=STEPS, guidance=GUIDANCE, rescale=RESCALE)
