"""Step callbacks, as in diffusers: they read and may replace latents, prompt embeddings and the guidance scale."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from blip_diffusion.argument_checks import choice, function, listed
from blip_diffusion.diffusion.guidance import Denoiser
from blip_diffusion.errors import InputError

CALLBACK_TENSORS = ("latents", "prompt_embeds", "negative_prompt_embeds")
StepCallback = Callable[[Any, int, Tensor, dict[str, Any]], Mapping[str, Tensor] | None]
"""Called after each step with the pipeline, the step's index, its timestep and the requested tensors.

It may return other tensors by the same names. While guidance runs, `prompt_embeds` (2B, L, D) are those of the negative
prompts and of the prompts, as in diffusers; a callback that sets `pipeline._guidance_scale` to 0 switches guidance off.
`pipeline._interrupt = True` makes this step the last.
"""
Build = Callable[[Tensor, Tensor | None, int], Denoiser]
"""Text states, the negative prompts' if guidance runs, and the index of the next step, to a denoiser."""


class Guided(Protocol):
    """The part of the pipeline that `CallbackDenoiser` uses."""

    @property
    def do_classifier_free_guidance(self) -> bool: ...


def callback_tensors(callback: Any, names: Sequence[str]) -> list[str]:
    """Return the names of the tensors that a callback requests; diffusers' callbacks list them in an attribute.

    Raises:
        InputError: If the callback can't be called, or a name is not in CALLBACK_TENSORS.
    """
    function("callback_on_step_end", callback, "pipeline", "index", "timestep", "tensors")
    names = getattr(callback, "tensor_inputs", names)
    name = "callback_on_step_end_tensor_inputs"
    return [choice(name, one, CALLBACK_TENSORS) for one in listed(name, names, "names of tensors")]


class CallbackDenoiser:
    """A denoiser that is rebuilt after a step callback has changed its embeddings or switched guidance.

    Args:
        pipeline: Passed to the callback; provides `do_classifier_free_guidance`.
        text: Text states (B, L, D).
        empty: Text states of the negative prompts, if guidance runs.
        build: Builds the denoiser of the remaining steps.
        callback: The user's callback, or `None`.
        names: The tensors that it requests.
    """

    def __init__(
        self,
        pipeline: Guided,
        text: Tensor,
        empty: Tensor | None,
        build: Build,
        callback: StepCallback | None = None,
        names: Sequence[str] = ("latents",),
    ) -> None:
        self._pipeline, self._build, self._callback, self._names = pipeline, build, callback, names
        self._embeds = text if empty is None or callback is None else torch.cat([empty, text])
        self._empty = empty
        self._denoiser = build(text, empty, 0)
        self._version = self._state()

    def __call__(self, latents: Tensor, timestep: Tensor) -> Tensor:
        return self._denoiser(latents, timestep)

    def after_step(self, index: int, timestep: Tensor, latents: Tensor) -> Tensor:
        """Run the callback and return the latents to continue with."""
        if self._callback is None:
            return latents
        tensors = {"latents": latents, "prompt_embeds": self._embeds, "negative_prompt_embeds": self._empty}
        given = {name: tensors[name] for name in self._names}
        changed = self._checked(self._callback(self._pipeline, index, timestep, given), latents)
        self._embeds = changed.get("prompt_embeds", self._embeds)
        self._empty = changed.get("negative_prompt_embeds", self._empty)
        if self._version != (version := self._state()):
            self._denoiser, self._version = self._rebuilt(len(latents), index + 1), version
        return changed.get("latents", latents)

    def _state(self) -> tuple[Any, ...]:
        tensors = (self._embeds, self._empty)
        counts = [None if t is None else (id(t), 0 if t.is_inference() else t._version) for t in tensors]
        return (*counts, self._pipeline.do_classifier_free_guidance)

    def _checked(self, result: Any, latents: Tensor) -> Mapping[str, Tensor]:
        """Return a callback's result after checking it; `None` stands for no change."""
        changed = {} if result is None else result
        if not isinstance(changed, Mapping):
            raise InputError(
                f"The step callback returned a {type(result).__name__}: return a dict of tensors, or None."
            )
        for name, value in changed.items():
            like = latents if name == "latents" else self._embeds
            is_none = value is None and name == "negative_prompt_embeds" and self._empty is None
            valid = isinstance(value, Tensor) and value.shape[1:] == like.shape[1:]
            if name not in CALLBACK_TENSORS or not (is_none or valid):
                raise InputError(
                    f"The step callback returned {name!r}, which can't be used: return one of "
                    f"{CALLBACK_TENSORS} in its shape."
                )
        if "latents" in changed and changed["latents"].shape != latents.shape:
            raise InputError(f"The step callback returned latents of another shape, {tuple(changed['latents'].shape)}.")
        return changed

    def _rebuilt(self, batch: int, step: int) -> Denoiser:
        text, empty = self._embeds, self._empty
        if len(text) == 2 * batch:
            first, text = text.chunk(2)
            own = self._version[1]
            empty = (
                first if empty is None or own == (id(empty), 0 if empty.is_inference() else empty._version) else empty
            )
        if len(text) != batch:
            raise InputError(f"The step callback returned {len(text)} prompt_embeds for {batch} images.")
        if not self._pipeline.do_classifier_free_guidance:
            return self._build(text, None, step)
        if empty is None:
            raise InputError("Guidance can't begin in a step callback: call with a guidance_scale above 1.")
        return self._build(text, empty, step)
