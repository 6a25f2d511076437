"""Text states of a batch from which some prompts, and some subjects, are left out."""

import torch
from torch import Generator, Tensor

from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion


def dropped_text_states(
    model: BlipDiffusion, batch: SubjectBatch, rng: Generator, *, prompt_drop: float, subject_drop: float
) -> Tensor:
    """Return text states (B, L, D) of the captions with their subjects.

    A share `prompt_drop` loses all its words and its subject, another share `subject_drop` its subject alone.
    """
    tokens = model.subject_tokens(batch["reference"], batch["category"])
    whole = model.text_states(batch["caption"], tokens, batch["frames"])
    if not prompt_drop and not subject_drop:
        return whole
    draw = torch.rand(len(tokens), generator=rng, device=rng.device)
    empty = (draw < prompt_drop).tolist()
    captions = ["" if none else caption for none, caption in zip(empty, batch["caption"], strict=True)]
    return torch.where((draw < prompt_drop + subject_drop)[:, None, None], model.text_states(captions), whole)


def check_dropout(prompt_drop: float, subject_drop: float) -> None:
    """Raise `ConfigError` for shares that leave nothing."""
    if not 0 <= subject_drop + prompt_drop < 1:
        raise ConfigError(f"subject_drop + prompt_drop is {subject_drop + prompt_drop}: keep it below 1.")
