"""The tuned subjects that a U-Net holds: which are loaded, which are active, and the checks before one is loaded."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from blip_diffusion.checkpoint.lora import layers_of
from blip_diffusion.checkpoint.subject_file import Subject
from blip_diffusion.checkpoint.weights import State, format_mismatches, shape_mismatches
from blip_diffusion.errors import CheckpointError, InputError, quoted
from blip_diffusion.nn_utils import base_parameters
from blip_diffusion.pipelines.blending import weighted_sum
from blip_diffusion.prompts import insert_position
from blip_diffusion.protocols import Tokenizer

PREFIX = "subject_"
"""Adapter names of subjects begin with this; users' LoRAs should not."""


@dataclass
class SubjectRegistry:
    """Loaded subjects, and the mixture of them that is active.

    Args:
        subjects: The loaded subjects by name.
        mixture: The active subjects and their weights.
        base_weights: The base model's values of the U-Net weights that subjects replace, on the CPU.
        base: Fingerprint of the base model, taken before anything was changed.
    """

    subjects: dict[str, Subject] = field(default_factory=dict)
    mixture: dict[str, float] = field(default_factory=dict)
    base_weights: State = field(default_factory=dict)
    base: str = ""

    def get(self, name: str) -> Subject:
        """Return a loaded subject. Raises `InputError` for an unknown name."""
        if not isinstance(name, str) or name not in self.subjects:
            loaded = ", ".join(self.subjects) or "none is loaded"
            raise InputError(f"There is no subject {quoted(name)}: load its file first ({loaded}).")
        return self.subjects[name]

    def embedding(self) -> Tensor | None:
        """Return the weighted sum (1, Q, D) of the active subjects' tokens."""
        parts = [self.get(name).embedding for name in self.mixture]
        return weighted_sum(parts, list(self.mixture.values())) if parts else None

    def category(self) -> str:
        """Return the category of the active subject with the largest weight."""
        return self.get(max(self.mixture, key=self.mixture.__getitem__)).category if self.mixture else ""

    def adapter_scales(self) -> dict[str, float]:
        """Return the LoRA adapters of the active subjects and their scales."""
        return {f"{PREFIX}{name}": weight for name, weight in self.mixture.items() if self.get(name).lora}

    def save_base_weights(self, unet: nn.Module, subject: Subject) -> None:
        """Copy the U-Net weights that a subject replaces, once."""
        parameters = base_parameters(unet)
        for name in subject.weights.keys() - self.base_weights.keys():
            self.base_weights[name] = parameters[name].detach().cpu().clone()

    @torch.no_grad()
    def write_weights(self, unet: nn.Module) -> None:
        """Write base weights plus each active subject's difference, times its share, into the U-Net."""
        parameters = base_parameters(unet)
        for name, base in self.base_weights.items():
            mixed = base.float()
            for subject, weight in self.mixture.items():
                if name in self.subjects[subject].weights:
                    mixed = mixed + weight * (self.subjects[subject].weights[name].float() - base.float())
            parameters[name].copy_(mixed)


def changes_unet(subject: Subject) -> bool:
    """Return whether a subject has a LoRA or weights besides its embedding."""
    return bool(subject.lora or subject.weights)


def check_base(subject: Subject, base: str) -> None:
    """Raise `CheckpointError` for a subject that was tuned for another model."""
    if subject.base != base:
        made_for = subject.metadata.get("model") or "another model"
        raise CheckpointError(
            f"{subject.name!r} was tuned for {made_for}, not for this model: load that one, or tune again."
        )


def check_shapes(unet: nn.Module, subject: Subject) -> None:
    """Raise `CheckpointError` unless every name and shape of a subject fits, before anything is changed."""
    expected = _lora_shapes(unet, layers_of(subject.lora), subject.rank)
    _check_names(f"the LoRA of {subject.name!r}", subject.lora, expected, missing=expected.keys() - subject.lora.keys())
    shapes = {name: tuple(parameter.shape) for name, parameter in base_parameters(unet).items()}
    _check_names(f"the weights of {subject.name!r}", subject.weights, shapes)


def check_tokens(tokens: Tensor, text_encoder: Any, tokenizer: Tokenizer) -> None:
    """Raise `InputError` for subject tokens that do not fit between the words of the text encoder's prompt.

    Zero tokens are allowed: a prompt without a subject.
    """
    config = text_encoder.config
    width, room = config.hidden_size, config.max_position_embeddings - insert_position(tokenizer) - 1  # [EOS]
    if tokens.ndim != 3 or tokens.shape[2] != width or tokens.shape[1] > room:
        raise InputError(
            f"The subject tokens are {tuple(tokens.shape)}: this model reads (images, 0 to {room}, {width})."
        )


def _lora_shapes(unet: nn.Module, modules: Sequence[str], rank: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of each module's two LoRA matrices; names that are not linear layers are left out."""
    layers = {name.replace(".base_layer", ""): module for name, module in unet.named_modules()}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in modules:
        layer = layers.get(name)
        if isinstance(layer, nn.Linear):
            shapes[f"{name}.lora_A.weight"] = (rank, layer.in_features)
            shapes[f"{name}.lora_B.weight"] = (layer.out_features, rank)
    return shapes


def _check_names(
    what: str, tensors: State, expected: Mapping[str, tuple[int, ...]], *, missing: Iterable[str] = ()
) -> None:
    """Raise `CheckpointError` for unexpected names, wrong shapes, and missing names."""
    problem = format_mismatches(
        missing=missing, unexpected=tensors.keys() - expected.keys(), wrong=shape_mismatches(tensors, expected)
    )
    if problem:
        raise CheckpointError(f"The weights don't fit {what}: {problem}.")
