"""The one owner of all LoRAs in a pipeline: the user's, those of tuned subjects, and the preset's.

    user's LoRAs     loaded and chosen by diffusers' methods; PEFT stores which of them are active
    preset's LoRA    the adapter PRESET_ADAPTER, at most one
    subjects' LoRAs  adapters named PREFIX + name, active with the weights of the mixture

The state is stored on the U-Net, in the attribute SLOT, like the adapters: pipelines that share a U-Net share it, and a
deep copy has a separate state. Only `AdapterManager.apply` activates adapters.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import LoraConfig, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from blip_diffusion.checkpoint.lora import layers_of
from blip_diffusion.checkpoint.lora_file import UNREADABLE, Lora, inject_lora, read_lora
from blip_diffusion.checkpoint.subject_file import Subject, fingerprint
from blip_diffusion.errors import CheckpointError, InputError, reason
from blip_diffusion.nn_utils import base_parameters, iter_modules, lora_layers, mark_modified, uncompiled
from blip_diffusion.pipelines.locking import LIBRARY_LOCK
from blip_diffusion.pipelines.subject_registry import (
    PREFIX,
    SubjectRegistry,
    changes_unet,
    check_base,
    check_shapes,
)

SLOT = "blip_diffusion_adapters"
"""The one attribute that this package adds to a U-Net: an `AdapterState`."""
PRESET_ADAPTER = "blip-diffusion-lcm"
UserAdapters = Mapping[BaseTunerLayer, Sequence[str]]


@dataclass
class AdapterState:
    """The state of a U-Net besides the user's LoRAs.

    Args:
        registry: Tuned subjects.
        preset_lora: File, folder or hub id of the preset's LoRA that is loaded.
        bundled_lora: File of the consistency LoRA in the model's folder.
    """

    registry: SubjectRegistry = field(default_factory=SubjectRegistry)
    preset_lora: str | None = None
    bundled_lora: Path | None = None


class AdapterManager:
    """Load, choose and remove the LoRAs of a U-Net and a text encoder.

    Args:
        unet: The U-Net, whose SLOT holds the state. It may be wrapped by `torch.compile`.
        text_encoder: The text encoder, or `None` if only the state is needed.
        pipeline: The pipeline that both belong to; diffusers moves its offloaded modules while it loads.
    """

    def __init__(self, unet: Any, text_encoder: Any = None, *, pipeline: Any = None) -> None:
        self._unet, self._text_encoder, self._pipeline = unet, text_encoder, pipeline

    @property
    def state(self) -> AdapterState:
        """The state in the U-Net's slot."""
        unet = uncompiled(self._unet)
        if not hasattr(unet, SLOT):
            setattr(unet, SLOT, AdapterState())
        state: AdapterState = getattr(unet, SLOT)
        return state

    @property
    def registry(self) -> SubjectRegistry:
        """The tuned subjects."""
        return self.state.registry

    # ------------------------------------------------------------------------------------------------------ activation

    def apply(self, user: UserAdapters | None = None) -> None:
        """Activate the adapters of the state: in each layer the user's LoRAs, then the preset's, then the subjects'.

        Args:
            user: The user's active LoRAs by layer; by default those that are active now. PEFT by default activates
                the newest adapter only, and the first of the remaining ones when an active one is removed.
        """
        user = self.user_adapters() if user is None else user
        self._add_missing()
        scales = self.registry.adapter_scales()
        for layer in lora_layers(self._unet, self._text_encoder):
            names = dict.fromkeys([*user.get(layer, ()), *self._preset_adapters(), *scales])
            layer.set_adapter([name for name in names if name in layer.r], inference_mode=True)
            for name in scales.keys() & layer.r.keys():
                layer.set_scale(name, scales[name])

    def user_adapters(self) -> UserAdapters:
        """Return the user's active LoRAs by layer."""
        return {
            layer: [name for name in layer.active_adapters if not _is_managed(name)]
            for layer in lora_layers(self._unet, self._text_encoder)
        }

    @contextmanager
    def keeping_user_adapters(self) -> Iterator[None]:
        """Context manager: on exit, activate the user's LoRAs that were active before and still exist."""
        user = self.user_adapters()
        yield
        self.apply(user)

    def _preset_adapters(self) -> list[str]:
        return [] if self.state.preset_lora is None else [PRESET_ADAPTER]

    def _add_missing(self) -> None:
        """Add the adapters of the state that the U-Net lacks."""
        present = getattr(self._unet, "peft_config", {})
        for adapter in [name for name in self.registry.adapter_scales() if name not in present]:
            self._add_subject(self.registry.get(adapter.removeprefix(PREFIX)))
        if self.state.preset_lora is not None and not self._has_preset_lora():
            self.check_unfused("A preset's LoRA can't be used over fused ones: call unfuse_lora first.")
            self._inject(self.read(self.state.preset_lora), PRESET_ADAPTER)

    # ------------------------------------------------------------------------------------------------------ user LoRAs

    def load(
        self, source: Any, adapter_name: str | None, *, hotswap: bool, low_cpu_mem_usage: bool, **options: Any
    ) -> None:
        """Load a user's LoRA completely or not at all; see `LoraLoadersMixin.load_lora_weights`."""
        lora, user = self.read(source, **options), self.user_adapters()
        try:
            self._inject(lora, adapter_name, hotswap=hotswap, low_cpu_mem_usage=low_cpu_mem_usage)
        except CheckpointError:
            self.apply(user)
            raise
        if hotswap:  # PEFT writes through `.data`
            mark_modified(self._unet, self._text_encoder)
        self.apply()

    def read(self, source: Any, **options: Any) -> Lora:
        """Read a LoRA by any of its naming schemes. Raises `CheckpointError` unless it fits this model."""
        self.check_uncompiled()
        return read_lora(source, {"unet": self._unet, "text_encoder": self._text_encoder}, **options)

    def _inject(self, lora: Lora, name: str | None, *, hotswap: bool = False, low_cpu_mem_usage: bool = True) -> None:
        """Add a LoRA's layers to the U-Net, the text encoder, or both; on an error to neither. Call `apply` next."""
        before = self._names()
        options = {"adapter_name": name, "hotswap": hotswap, "low_cpu_mem_usage": low_cpu_mem_usage}
        try:
            with LIBRARY_LOCK:
                inject_lora(lora, self._unet, self._text_encoder, **options, _pipeline=self._pipeline)
        except UNREADABLE as error:
            self._remove_new(before)
            raise CheckpointError(f"The LoRA can't be loaded: {reason(error)}.") from error

    def _names(self) -> dict[str, set[str]]:
        parts = {"unet": self._unet, "text_encoder": self._text_encoder}
        return {part: set(getattr(uncompiled(module), "peft_config", {})) for part, module in parts.items()}

    def _remove_new(self, before: Mapping[str, set[str]]) -> None:
        now = self._names()
        for name in now["unet"] - before["unet"]:
            self._unet.delete_adapters(name)
        for name in now["text_encoder"] - before["text_encoder"]:
            self._text_encoder.delete_adapter(name)

    # ---------------------------------------------------------------------------------------------------- preset's LoRA

    def set_preset_lora(self, source: str | None) -> None:
        """Make this file, folder or hub id the preset's LoRA, or remove it; the user's and the subjects' stay.

        Raises:
            CheckpointError: If the LoRA cannot be read or is for another model; nothing is changed then.
            InputError: If LoRAs are fused into the weights.
        """
        present = self._has_preset_lora()
        if source == (self.state.preset_lora if present else None) and (
            source is None or self._preset_lora_is_active()
        ):
            return
        replaced = present and source != self.state.preset_lora
        if source is not None:
            self.check_unfused("A preset's LoRA can't be used over fused ones: call unfuse_lora first.")
        lora = None if source is None or (present and not replaced) else self.read(source)
        user = self.user_adapters()
        if replaced:
            self._remove_preset_lora()
        self.state.preset_lora = None
        if lora is not None:
            self._inject(lora, PRESET_ADAPTER)
        self.state.preset_lora = source
        self.apply(user)

    def _has_preset_lora(self) -> bool:
        return any(PRESET_ADAPTER in names for names in self._names().values())

    def _preset_lora_is_active(self) -> bool:
        layers = [layer for layer in lora_layers(self._unet) if PRESET_ADAPTER in layer.r]
        return all(PRESET_ADAPTER in layer.active_adapters for layer in layers)

    def _remove_preset_lora(self) -> None:
        self.check_uncompiled()
        names = self._names()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Adapter .* was active")  # `apply` chooses the active ones
            if PRESET_ADAPTER in names["unet"]:
                self._unet.delete_adapters(PRESET_ADAPTER)
            if PRESET_ADAPTER in names["text_encoder"]:
                self._text_encoder.delete_adapter(PRESET_ADAPTER)

    # --------------------------------------------------------------------------------------------------------- subjects

    def load_subject(self, subject: Subject) -> None:
        """Add a subject to the registry, replacing one of the same name, and make it the only active one."""
        registry = self.registry
        self.check_base(subject)
        if subject.lora:
            self.check_uncompiled()
        check_shapes(self._unet, subject)
        self._check_unfused_for(subject)
        if subject.name in registry.subjects:
            self.unload_subject(subject.name)
        registry.subjects[subject.name] = subject
        self.set_mixture({subject.name: 1.0})

    def set_mixture(self, mixture: Mapping[str, float]) -> None:
        """Activate these loaded subjects with these weights, and no others."""
        subjects = [self.registry.get(name) for name in mixture]
        for subject in subjects:
            self._check_unfused_for(subject)
        for subject in subjects:
            self.registry.save_base_weights(self._unet, subject)
        self.registry.mixture = dict(mixture)
        self.apply()
        self.registry.write_weights(self._unet)

    def unload_subject(self, name: str) -> None:
        """Remove a subject. If it was active, none is afterwards."""
        self.registry.get(name)
        if name in self.registry.mixture:
            self.set_mixture({})
        if f"{PREFIX}{name}" in getattr(self._unet, "peft_config", {}):
            self._unet.delete_adapters(f"{PREFIX}{name}")
        del self.registry.subjects[name]

    def _add_subject(self, subject: Subject) -> None:
        """Add a subject's LoRA to the U-Net; `apply` activates it."""
        config = LoraConfig(r=subject.rank, lora_alpha=subject.alpha, target_modules=layers_of(subject.lora))
        adapter = f"{PREFIX}{subject.name}"
        with LIBRARY_LOCK, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are intended
            self._unet.add_adapter(config, adapter_name=adapter)
        like = next(iter(base_parameters(self._unet).values()))
        weights = {name: tensor.to(like) for name, tensor in subject.lora.items()}
        set_peft_model_state_dict(self._unet, weights, adapter_name=adapter)

    # ----------------------------------------------------------------------------------------------------------- checks

    def check_base(self, subject: Subject) -> None:
        """Raise `CheckpointError` for a subject that was tuned for another model."""
        registry = self.registry
        registry.base = registry.base or fingerprint(self._unet, self._text_encoder)
        check_base(subject, registry.base)

    def check_uncompiled(self) -> None:
        """Raise `InputError` if `torch.compile` wraps a part: diffusers and PEFT would not find its layers."""
        if any(uncompiled(part) is not part for part in (self._unet, self._text_encoder)):
            raise InputError(
                "LoRAs can't be loaded into or removed from a module that torch.compile has wrapped: use "
                "pipe.unet.compile() instead."
            )
        self.check_unfused_projections()

    def check_unfused_projections(self) -> None:
        """Raise `InputError` if query, key and value are fused: such layers ignore LoRAs and subjects' weights."""
        if any(getattr(module, "fused_projections", False) for module in iter_modules(self._unet)):
            raise InputError("The attention's projections are fused: call unfuse_qkv_projections first.")

    def check_unfused(self, message: str) -> None:
        """Raise `InputError` if LoRAs are fused: PEFT ignores all others in such layers."""
        if any(layer.merged for layer in lora_layers(self._unet)):
            raise InputError(message)

    def check_fusable(self) -> None:
        """Raise `InputError` if an active subject changes the U-Net: it would be fused too, or ignored."""
        for name in self.registry.mixture:
            if changes_unet(self.registry.get(name)):
                raise InputError(f"LoRAs can't be fused while {name!r} is active: call set_subjects(None) first.")

    def _check_unfused_for(self, subject: Subject) -> None:
        if changes_unet(subject):
            self.check_unfused_projections()
            self.check_unfused(
                f"{subject.name!r} can't be used over fused LoRAs: call unload_lora_weights, which leaves them in the "
                "weights, or unfuse_lora."
            )


def set_bundled_lora(unet: nn.Module, path: Path) -> None:
    """Store the path of the consistency LoRA in a model's folder with its U-Net."""
    AdapterManager(unet).state.bundled_lora = path


def _is_managed(name: str) -> bool:
    return name == PRESET_ADAPTER or name.startswith(PREFIX)
