"""Tuned subjects in a pipeline: many may be resident, one or a mixture of them is drawn. As with diffusers' adapters,
`load_subject` brings one in and `set_subjects` chooses.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, set_peft_model_state_dict
from torch import Tensor, nn

from blip_diffusion.checkpoint.lora import layers_of
from blip_diffusion.checkpoint.subject_file import Subject, fingerprint, read_subject, renamed, write_subject
from blip_diffusion.checkpoint.weights import State, format_mismatches, shape_mismatches
from blip_diffusion.errors import CheckpointError, InputError, reason
from blip_diffusion.nn_utils import base_parameters, lora_layers, uncompiled
from blip_diffusion.pipelines.extras import ExtrasMixin, activate, active_adapters
from blip_diffusion.prompts import insert_position

ADAPTER = "subject_"
"""What the names of subjects' adapters begin with, so that other people's LoRAs are left alone."""
SHELF = "subject_shelf"


@dataclass
class Shelf:
    """The subjects that are resident, and how much of each is drawn."""

    subjects: dict[str, Subject] = field(default_factory=dict)
    mixture: dict[str, float] = field(default_factory=dict)
    replaced: State = field(default_factory=dict)  # the base's own weights, where subjects bring others
    base: str = ""  # the base's fingerprint, taken before anything was changed


class SubjectsMixin(ExtrasMixin):
    """What a pipeline with `unet` and `text_encoder` knows of tuned subjects, whose LoRAs lie beside other people's."""

    unet: Any
    text_encoder: Any
    tokenizer: Any

    @property
    def subjects(self) -> tuple[str, ...]:
        """The names of those that are resident."""
        return tuple(self._shelf.subjects)

    @property
    def active_subjects(self) -> dict[str, float]:
        """What is drawn where a call names no reference: names and weights."""
        return dict(self._shelf.mixture)

    def load_subject(self, subject: str | Path | Subject, *, name: str | None = None) -> Subject:
        """Makes a subject's file resident, and draws it from now on. One of that name is replaced.

        Raises `CheckpointError` for a file that is none, or that was made for another base model.
        """
        found = subject if isinstance(subject, Subject) else read_subject(subject)
        found = renamed(found, name) if name else found
        shelf = self._shelf
        shelf.base = shelf.base or fingerprint(self.unet, self.text_encoder)
        _check_base(found, shelf.base)
        try:
            self._check_tokens(found.embedding)
        except InputError as error:
            raise CheckpointError(f"{found.name!r} is for another model ({reason(error)}).") from error
        if found.lora:
            self._check_plain()
        _check_fit(self.unet, found)
        if found.name in shelf.subjects:
            self.unload_subject(found.name)
        shelf.subjects[found.name] = found
        self.set_subjects(found.name)
        return found

    def set_subjects(self, names: str | Sequence[str] | None, weights: Sequence[float] | None = None) -> None:
        """Draws these of the resident subjects from now on, mixed with weights (default: alike); `None`: no one.

        Weights sum to 1 for an interpolation; nothing forbids others. Other LoRAs stay as they are.
        """
        names = [names] if isinstance(names, str) else list(names or ())
        weights = list(weights) if weights is not None else [1 / len(names) for _ in names]
        strangers = [name for name in names if name not in self._shelf.subjects]
        if strangers:
            there = ", ".join(self._shelf.subjects) or "none is loaded"
            raise InputError(f"There is no subject {strangers[0]!r}: load its file first ({there}).")
        if len(weights) != len(names):
            raise InputError(f"There are {len(weights)} weights for {len(names)} subjects: give one for each.")
        for name in names:
            _check_unfused(self.unet, self._resident(name))
        for name in names:
            _keep_own(self.unet, self._resident(name), self._shelf.replaced)
        self._shelf.mixture = dict(zip(names, weights, strict=True))
        self._mix_loras()
        _mix_weights(self.unet, self._shelf)

    @contextmanager
    def without_subjects(self) -> Iterator[None]:
        """Within it none is drawn, and the U-Net is the base's; after it, those that were before."""
        drawn = self.active_subjects
        self.set_subjects(None)
        try:
            yield
        finally:
            self.set_subjects(list(drawn), list(drawn.values()))

    def unload_subject(self, name: str) -> None:
        """Forgets a subject. If it was drawn, none is any more."""
        self._resident(name)
        if name in self._shelf.mixture:
            self.set_subjects(None)
        if f"{ADAPTER}{name}" in getattr(self.unet, "peft_config", {}):
            self.unet.delete_adapters(f"{ADAPTER}{name}")
        del self._shelf.subjects[name]

    def save_subject(self, path: str | Path, *, name: str | None = None) -> Path:
        """Writes a resident subject's file; without a name, that of the one that is drawn."""
        if name is None:
            if len(self._shelf.mixture) != 1:
                raise InputError(f"{len(self._shelf.mixture)} subjects are drawn: name the one to be saved.")
            (name,) = self._shelf.mixture
        write_subject(self._resident(name), Path(path))
        return Path(path)

    def subject_embeds(self) -> Tensor | None:
        """The subject tokens (1, Q, D) of what is drawn: a weighted sum where it is a mixture."""
        parts = [weight * self._resident(name).embedding for name, weight in self._shelf.mixture.items()]
        return torch.stack(parts).sum(dim=0) if parts else None

    def subject_category(self) -> str:
        """The word for what is drawn: that of the weightiest."""
        mixture = self._shelf.mixture
        return self._resident(max(mixture, key=mixture.__getitem__)).category if mixture else ""

    # ------------------------------------------------------------------------------------------- other people's LoRAs

    def load_lora_weights(self, *what: Any, **how: Any) -> None:
        """Loads another LoRA, as `ExtrasMixin` does; subjects are drawn as before."""
        super().load_lora_weights(*what, **how)
        self._mix_loras()

    def set_adapters(self, *what: Any, **how: Any) -> None:
        """Chooses among other LoRAs, as diffusers does; `set_subjects` chooses among subjects."""
        super().set_adapters(*what, **how)
        self._mix_loras()

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Takes other LoRAs out; subjects are drawn as before, and go by `unload_subject`."""
        super().delete_adapters(adapter_names)
        self._mix_loras()

    def unload_lora_weights(self) -> None:
        """Takes all other LoRAs out; subjects stay resident and are drawn as before, and go by `unload_subject`."""
        super().unload_lora_weights()
        self._mix_loras()

    def fuse_lora(self, *what: Any, **how: Any) -> None:
        """Makes other LoRAs part of the weights, as diffusers does.

        Raises `InputError` while a subject is drawn that changes the U-Net: it would be fused too, or passed over.
        """
        for name in self._shelf.mixture:
            if _changes_unet(self._resident(name)):
                raise InputError(f"LoRAs can't be fused while {name!r} is drawn: call set_subjects(None) first.")
        super().fuse_lora(*what, **how)
        self._shelf.replaced.clear()  # none of it is replaced now, and the base has changed

    def _mix_loras(self) -> None:
        """Makes the mixture's adapters the only active ones of the subjects'."""
        adapters = {f"{ADAPTER}{n}": w for n, w in self._shelf.mixture.items() if self._resident(n).lora}
        for adapter in [name for name in adapters if name not in getattr(self.unet, "peft_config", {})]:
            _add_lora(self.unet, self._resident(adapter.removeprefix(ADAPTER)))
        for layer in lora_layers(self.unet):
            others = [name for name in layer.active_adapters if not name.startswith(ADAPTER)]
            own = [name for name in adapters if name in layer.r]
            layer.set_adapter([*others, *own], inference_mode=True)
            for name in own:
                layer.set_scale(name, adapters[name])

    def _check_tokens(self, tokens: Tensor) -> None:
        """Raises `InputError` for what can't stand among the text encoder's words, of which the template's stay.

        No tokens at all are a prompt without a subject.
        """
        config = self.text_encoder.config
        width, room = config.hidden_size, config.max_position_embeddings - insert_position(self.tokenizer) - 1  # [EOS]
        if tokens.ndim != 3 or tokens.shape[2] != width or tokens.shape[1] > room:
            raise InputError(
                f"The subject tokens are {tuple(tokens.shape)}: this model reads (pictures, 0 to {room}, {width})."
            )

    def _resident(self, name: str) -> Subject:
        try:
            return self._shelf.subjects[name]
        except KeyError:
            raise InputError(f"There is no subject {name!r}: load its file first.") from None

    @property
    def _shelf(self) -> Shelf:
        """The U-Net's, which the subjects are in: with another, or in another pipeline, it is still right."""
        unet = uncompiled(self.unet)
        if not hasattr(unet, SHELF):
            setattr(unet, SHELF, Shelf())
        shelf: Shelf = getattr(unet, SHELF)
        return shelf


def _check_base(subject: Subject, base: str) -> None:
    if subject.base != base:
        made_for = subject.details.get("model") or "another model"
        raise CheckpointError(
            f"{subject.name!r} was tuned for {made_for}, not for this model: load that one, or tune it anew."
        )


def _check_fit(unet: nn.Module, subject: Subject) -> None:
    """Every name and shape, before anything is changed."""
    wanted = _lora_shapes(unet, layers_of(subject.lora), subject.rank)
    _check_names(f"the LoRA of {subject.name!r}", subject.lora, wanted, missing=wanted.keys() - subject.lora.keys())
    own = {name: tuple(parameter.shape) for name, parameter in base_parameters(unet).items()}
    _check_names(f"the weights of {subject.name!r}", subject.weights, own)
    _check_unfused(unet, subject)


def _check_unfused(unet: nn.Module, subject: Subject) -> None:
    """A layer into which PEFT has fused a LoRA passes all others over; and it can't be unfused from other weights."""
    if _changes_unet(subject) and any(layer.merged for layer in lora_layers(unet)):
        raise InputError(
            f"{subject.name!r} can't be drawn over fused LoRAs: call unload_lora_weights, which leaves them in the "
            "weights, or unfuse_lora."
        )


def _changes_unet(subject: Subject) -> bool:
    return bool(subject.lora or subject.weights)


def _add_lora(unet: nn.Module, subject: Subject) -> None:
    """An adapter of the subject's own, inactive."""
    config = LoraConfig(r=subject.rank, lora_alpha=subject.alpha, target_modules=layers_of(subject.lora))
    adapter = f"{ADAPTER}{subject.name}"
    active = active_adapters(unet)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several are what we want
        unet.add_adapter(config, adapter_name=adapter)  # type: ignore[operator]
    activate(active, unet)
    like = next(iter(base_parameters(unet).values()))
    state = {name: tensor.to(like) for name, tensor in subject.lora.items()}
    set_peft_model_state_dict(unet, state, adapter_name=adapter)


def _lora_shapes(unet: nn.Module, modules: Sequence[str], rank: int) -> dict[str, tuple[int, ...]]:
    """What each module's two matrices measure; a name that is no linear layer of the U-Net has none."""
    layers = {name.replace(".base_layer", ""): module for name, module in unet.named_modules()}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in modules:
        layer = layers.get(name)
        if isinstance(layer, nn.Linear):
            shapes[f"{name}.lora_A.weight"] = (rank, layer.in_features)
            shapes[f"{name}.lora_B.weight"] = (layer.out_features, rank)
    return shapes


def _keep_own(unet: nn.Module, subject: Subject, kept: State) -> None:
    """Keeps what a subject's weights will replace, on the CPU."""
    own = base_parameters(unet)
    for name in subject.weights.keys() - kept.keys():
        kept[name] = own[name].detach().cpu().clone()


def _check_names(
    what: str, found: State, wanted: Mapping[str, tuple[int, ...]], *, missing: Iterable[str] = ()
) -> None:
    """Raises `CheckpointError` for what is too much or of another shape than wanted, and for what is missing."""
    problem = format_mismatches(
        missing=missing, unexpected=found.keys() - wanted.keys(), wrong=shape_mismatches(found, wanted)
    )
    if problem:
        raise CheckpointError(f"The weights don't fit {what}: {problem}.")


@torch.no_grad()
def _mix_weights(unet: nn.Module, shelf: Shelf) -> None:
    """The base's own weights, moved towards each subject's by its share of the mixture."""
    own = base_parameters(unet)
    for name, base in shelf.replaced.items():
        mixed = base.float()
        for subject, weight in shelf.mixture.items():
            if name in shelf.subjects[subject].weights:
                mixed = mixed + weight * (shelf.subjects[subject].weights[name].float() - base.float())
        own[name].copy_(mixed)
