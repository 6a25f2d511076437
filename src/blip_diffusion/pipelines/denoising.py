"""The denoise step: set the timesteps, build the guided denoiser, and sample."""

import itertools
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from blip_diffusion.diffusion.concatenation import concatenated
from blip_diffusion.diffusion.controlnet import Control, controlled_denoiser
from blip_diffusion.diffusion.deepcache import ShallowUNet, WholeUNet, deepcache
from blip_diffusion.diffusion.guidance import Denoiser, guided, on_interval, split_batch, unet_denoiser
from blip_diffusion.diffusion.multidiffusion import averaged_regions
from blip_diffusion.diffusion.sampler import sample
from blip_diffusion.errors import InputError, reason
from blip_diffusion.pipelines.acceleration import AccelerationMixin
from blip_diffusion.pipelines.checks import check_finite
from blip_diffusion.pipelines.inputs import PipelineInputs
from blip_diffusion.pipelines.step_callback import CallbackDenoiser
from blip_diffusion.pipelines.subject_scale import SubjectScaleMixin

SET_TIMESTEPS_ERRORS = (ValueError, TypeError, IndexError, RuntimeError, AssertionError)
"""The errors that schedulers raise for invalid steps."""


class DenoisingMixin(SubjectScaleMixin, AccelerationMixin):
    """From text states and noise to clean latents."""

    _num_timesteps: int

    def _denoise(self, text: Tensor, empty: Tensor | None, inputs: PipelineInputs) -> Tensor:
        """Return clean latents (B, C, H / 8, W / 8).

        `text` are the prompts' states (B, L, D), and `empty` those of the negative prompts, if guided.
        """
        self._set_timesteps(inputs)
        base = self.without_subjects() if inputs.hides_subjects else nullcontext()
        attention = self._adjusted_attention(inputs)
        with base, self._loras_in_weights(), attention, self.progress_bar(total=self.num_timesteps) as bar:
            build = partial(self._denoiser, inputs)
            denoiser = CallbackDenoiser(self, text, empty, build, inputs.callback, inputs.callback_tensors)

            def hook(index: int, timestep: Tensor, latents: Tensor) -> Tensor:
                bar.update()
                return denoiser.after_step(index, timestep, latents)

            options: dict[str, Any] = {"generators": inputs.generators, "eta": inputs.eta, "hook": hook}
            latents = sample(denoiser, inputs.latents, self.scheduler, **options, stop=lambda: self.interrupt)
        return check_finite(latents)

    def _set_timesteps(self, inputs: PipelineInputs) -> None:
        """Choose the scheduler's timesteps, or set the user's."""
        schedules = {"timesteps": inputs.timesteps, "sigmas": inputs.sigmas}
        options: dict[str, Any] = {name: values for name, values in schedules.items() if values is not None}
        try:
            self.scheduler.set_timesteps(
                **(options or {"num_inference_steps": inputs.steps}), device=inputs.latents.device
            )
        except SET_TIMESTEPS_ERRORS as error:
            raise InputError(
                f"{type(self.scheduler).__name__} can't take these steps ({reason(error)}): choose others, or another "
                "scheduler."
            ) from error
        self._num_timesteps = len(self.scheduler.timesteps)

    def _denoiser(
        self, inputs: PipelineInputs, text: Tensor, empty: Tensor | None, first: int = 0, steps: int | None = None
    ) -> Denoiser:
        """Return guided(controlled(unet(·, text states))) for the steps from `first` on.

        `empty` are the negative prompts' states, if guided; `steps` are by default the scheduler's.
        """
        steps = len(self.scheduler.timesteps) if steps is None else steps
        run = self._network_builder(inputs, first, steps)
        if empty is None:
            return run(text)
        if self.preset.split_cfg_batch and not inputs.controls:
            both = split_batch(run(empty), run(text))
        else:
            both = run(torch.cat([empty, text]), doubled=True)
        always = guided(both, lambda: self.guidance_scale, rescale=inputs.guidance_rescale)
        if self.preset.guidance_interval == (0.0, 1.0):
            return always
        return on_interval(self.preset.guidance_interval, steps, always, run(text), first=first)

    def _network_builder(self, inputs: PipelineInputs, first: int, steps: int) -> Callable[..., Denoiser]:
        """Return a function from text states to controlled(unet(·)), averaged over regions under MultiDiffusion.

        Call it with `doubled=True` if the first half of the text states are those of the negative prompts.
        """
        counter = itertools.count(first)
        _warn_of_unused_controls(inputs.controls, first, steps)

        def run(text: Tensor, *, doubled: bool = False) -> Denoiser:
            if not inputs.controls:
                return self._network(text, condition=inputs.condition)
            controls, guess = inputs.controls, inputs.guess_mode
            network = controlled_denoiser(
                self.unet, text, controls, steps=steps, guess=guess, doubled=doubled, counter=counter
            )
            return _conditioned(network, inputs.condition)

        composition = inputs.composition
        if composition is None or composition.visibility is None or not composition.averages_predictions:
            return run
        return partial(averaged_regions, run, visibility=composition.visibility)

    def _network(self, text: Tensor, *, condition: Tensor | None = None) -> Denoiser:
        """Return the U-Net with these text states, on the preset's engine, with DeepCache if the preset has it.

        `condition` is concatenated to the latents, for a U-Net that reads a mask.
        """
        return _conditioned(self._plain_network(text), condition)

    def _plain_network(self, text: Tensor) -> Denoiser:
        unet, layers, interval = self.unet, self.preset.deepcache_layers, self.preset.deepcache_interval
        if interval == 1 and self.preset.engine != "openvino":
            return unet_denoiser(unet, text)
        text = text.to(unet.dtype)
        whole = self._on_engine("whole U-Net", unet, lambda: WholeUNet(unet, layers))
        shallow = None if interval == 1 else self._on_engine("shallow U-Net", unet, lambda: ShallowUNet(unet, layers))
        return deepcache(whole, shallow, text, interval)


def _warn_of_unused_controls(controls: Sequence[Control], first: int, steps: int) -> None:
    for one in controls:
        if not any(one.is_active(step, steps) for step in range(first, steps)):
            sampled = steps - first
            warnings.warn(
                f"None of the {sampled} steps lies between {one.start:g} and {one.end:g} of the sampling: the control "
                "has no effect.",
                stacklevel=2,
            )


def _conditioned(network: Denoiser, condition: Tensor | None) -> Denoiser:
    return network if condition is None else concatenated(network, condition)
