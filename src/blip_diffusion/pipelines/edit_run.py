"""The steps of one edit: from a photo and two texts to the edited images."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from blip_diffusion.diffusion import inversion as inversions
from blip_diffusion.diffusion.concatenation import concatenated
from blip_diffusion.diffusion.controlnet import controlled_denoiser
from blip_diffusion.diffusion.forward_process import Noising
from blip_diffusion.diffusion.guidance import Denoiser, guided, unet_denoiser
from blip_diffusion.diffusion.inversion import Inversion, Method
from blip_diffusion.diffusion.masks import NOISES, difference_mask, paste
from blip_diffusion.diffusion.sampler import ddim_like, initial_noise
from blip_diffusion.modules.attention_control import AttentionController, controlled_attention
from blip_diffusion.pipelines.attention_alignment import AttentionControl, Sentence, align
from blip_diffusion.pipelines.broadcast import as_list
from blip_diffusion.pipelines.checks import check_finite
from blip_diffusion.pipelines.edit_inputs import (
    EditMask,
    Photo,
    check_covers,
    edit_mask,
    mask_generator,
    noising_from,
    subject_box,
    subject_finder_mask,
    whole_mask,
)
from blip_diffusion.pipelines.inputs import PipelineInputs
from blip_diffusion.pipelines.prompt_weighting import plain_text
from blip_diffusion.pipelines.step_callback import CallbackDenoiser
from blip_diffusion.prompts import subject_prompt
from blip_diffusion.references import check_not_blank, square_reference


@dataclass(frozen=True)
class EditRun:
    """The state of one edit: the photo, the text states and the timesteps.

    Args:
        host: The pipeline.
        inputs: Inputs of the target, with noise (n, C, h, w).
        photo: The photo.
        clean: Its latents (1, C, h, w).
        target: Text states (n, L, D) of the target.
        empty: Text states (n, L, D) of the negative prompt, if guided.
        noising: The forward process.
        timesteps: Decreasing timesteps that are visited.
        skipped: Number of noisier timesteps that `strength` leaves out.
        source: Text states (1, L, D) of the photo's description; empty for `inpaint`.
        sentence: The prompt of `source`.
    """

    host: Any
    inputs: PipelineInputs
    photo: Photo
    clean: Tensor
    target: Tensor
    empty: Tensor | None
    noising: Noising
    timesteps: tuple[int, ...]
    skipped: int
    source: Tensor = field(default_factory=lambda: torch.empty(0))
    sentence: Sentence = field(default_factory=lambda: Sentence(""))

    @classmethod
    def begin(
        cls,
        host: Any,
        inputs: PipelineInputs,
        photo: Photo,
        user_mask: EditMask | None,
        strength: float,
        *,
        noisiest: bool = False,
    ) -> "EditRun":
        """Encode the photo and the target's texts, with its subject at the mask's or the old subject's position."""
        noising = noising_from(host)
        scheduler = ddim_like(host.default_scheduler)
        scheduler.set_timesteps(inputs.steps)
        timesteps = inversions.visited_timesteps(noising, scheduler.timesteps.tolist(), strength, noisiest=noisiest)
        if inputs.boxes is None:
            references = [image for group in inputs.texts.references for image in as_list(group)]
            aspects = [square.aspect for square in host._square(references, inputs.resize_mode)]
            box = subject_box(host, photo, user_mask, aspects)
            inputs = inputs if box is None else replace(inputs, boxes=[box])
        photo = replace(photo, pixels=photo.pixels.to(inputs.latents.device))
        clean = host.model.latents.encode(photo.pixels).float()
        target, empty = host._encode(inputs)
        skipped = len(scheduler.timesteps) - len(timesteps)
        return cls(host, inputs, photo, clean, target, empty, noising, timesteps, skipped)

    @property
    def num_images(self) -> int:
        """The number n of edited images."""
        return len(self.inputs.latents)

    def with_source(self, category: str, prompt: str, *, use_photo: bool) -> "EditRun":
        """Add the text states of the photo's description, with the photo's own subject tokens if `use_photo`."""
        host = self.host
        repeats = {"repetitions": host.config["prompt_reps"]}
        words = plain_text(prompt) if self.inputs.texts.weighted else prompt
        text = subject_prompt(words, category, **repeats)
        if not use_photo:
            return replace(self, source=host._encode_text([text]), sentence=Sentence(text))
        square = square_reference(host.model, self.photo.image, self.inputs.resize_mode, found=self.photo.subject)
        check_not_blank(square.image, "The photo")
        tokens = host._encode_references([square], [category])
        box = subject_box(host, self.photo, None, [square.aspect])
        frames = host._frames(self.inputs, self.inputs.texts, [square.aspect], None if box is None else [box])
        states = host._encode_text([text], tokens, frames)
        return replace(self, source=states, sentence=Sentence(text, tokens.shape[1]))

    def with_condition(self, mask: EditMask) -> "EditRun":
        """Add the condition of a U-Net that reads a mask; for any other U-Net nothing changes."""
        if not self.host.model.reads_mask:
            return self
        condition = self.host.model.inpainting_condition(self.photo.pixels, mask.pixels.to(self.photo.pixels))
        return replace(self, inputs=replace(self.inputs, condition=condition))

    @contextmanager
    def prepared_unet(self) -> Iterator[None]:
        """Context manager: hide tuned subjects under a reference, and merge a preset's LoRAs."""
        base = self.host.without_subjects() if self.inputs.hides_subjects else nullcontext()
        with base, self.host._loras_in_weights():
            yield

    def predicted_mask(self, method: str, threshold: float) -> EditMask:
        """Return the mask "difference" (of the texts' predictions), "subject" (finder) or "none" (whole image)."""
        factor = self.host.model.latents.factor
        if method == "none":
            return whole_mask(self.clean, factor)
        if method == "subject":
            return subject_finder_mask(self.host, self.photo, factor)
        texts = torch.cat([self.source.expand(NOISES, -1, -1), self.target[:1].expand(NOISES, -1, -1)])
        both, rng = self._unguided(texts), mask_generator(self.inputs.generators)
        pixels = difference_mask(both, self.clean, self.noising, rng, threshold=threshold, factor=factor)
        return check_covers(edit_mask(pixels, factor))

    def invert(self, method: Method) -> Inversion:
        """Return the photo's path, shared by all images, or one for each where the inversion is random."""
        noising, timesteps = self.noising, self.timesteps
        if method == "none":
            return inversions.noised_path(self._expand(self.clean), noising, timesteps, self.inputs.latents)
        if method == "ddpm":
            denoiser = self._unguided(self._expand(self.source))
            return inversions.ddpm_inversion(denoiser, self._expand(self.clean), noising, timesteps, self.noise)
        path = inversions.ddim_inversion(self._unguided(self.source), self.clean, noising, timesteps)
        return path if method == "direct" else inversions.sampled_path(self._unguided(self.source), path, noising)

    def denoiser(self, resamplings: int = 1) -> Denoiser:
        """Return the guided denoiser of the target, with controls, on the preset's engine."""
        first, steps = self.skipped * resamplings, (self.skipped + len(self.timesteps)) * resamplings
        denoiser: Denoiser = self.host._denoiser(self.inputs, self.target, self.empty, first, steps)
        return denoiser

    @contextmanager
    def attention_controlled(self, path: Inversion, control: AttentionControl) -> Iterator[Denoiser]:
        """Context manager: the target's denoiser, run with the source, whose attention maps replace the target's."""
        host, steps = self.host, len(self.timesteps)
        words = self.inputs.texts.prompts[0]
        target = Sentence(plain_text(words) if self.inputs.texts.weighted else words, self._target_tokens())
        category = self._target_category()
        length = self.target.shape[1]
        alignment = align(host.tokenizer, self.sentence, target, category, control, length).to(self.target.device)
        shares = (control.cross_attention, control.self_attention)
        cross_steps, self_steps = (round(share * steps) for share in shares)
        controller = AttentionController(alignment, self.num_images, cross_steps=cross_steps, self_steps=self_steps)
        counter = itertools.count()

        def with_source_rows(network: Denoiser) -> Denoiser:
            def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
                controller.step = next(counter)
                source = self._expand(path.latents[controller.step])
                return network(torch.cat([latents, source]), timestep)[: len(latents)]

            return denoise

        texts = [] if self.empty is None else [self.empty]
        both = with_source_rows(self._with_controls(torch.cat([*texts, self.target, self._expand(self.source)])))
        if self.empty is not None:
            both = guided(both, lambda: host.guidance_scale, rescale=self.inputs.guidance_rescale)
        with controlled_attention(host.unet, controller):
            yield both

    def sample_blended(self, denoiser: Denoiser, path: Inversion, mask: EditMask, resamplings: int = 1) -> Tensor:
        """Sample the edit; after each step, latents outside the mask are replaced by the photo's path."""
        inside = mask.latents.to(self.clean)
        self.host._num_timesteps = len(self.timesteps)
        runner = CallbackDenoiser(self.host, self.target, self.empty, lambda *_: denoiser, self.inputs.callback)
        timesteps = torch.tensor(self.timesteps, device=self.clean.device)

        with self.host.progress_bar(total=(len(self.timesteps) - 1) * resamplings + 1) as bar:

            def blend(level: int, latents: Tensor) -> Tensor:
                bar.update()
                latents = runner.after_step(level - 1, timesteps[level - 1], latents)
                return inside * latents + (1 - inside) * path.latents[level]

            return inversions.sample_from(
                runner,
                path,
                self.noising,
                start=self._expand(path.latents[0]),
                resamplings=resamplings,
                noise=self.noise,
                hook=blend,
            )

    def sample(self) -> Tensor:
        """Sample from noise with the pipeline's scheduler, for a U-Net that reads the masked photo."""
        inputs = replace(self.inputs, latents=self.host.config["noise_scale"] * self.inputs.latents)
        latents: Tensor = self.host._denoise(self.target, self.empty, inputs)
        return latents

    def decode(self, latents: Tensor, mask: EditMask, feather: int) -> Any:
        """Return images of the requested type, with the photo's pixels outside the mask."""
        if self.inputs.output_type == "latent":
            return check_finite(latents)
        pixels = check_finite(self.host._decode_latents(latents).float())
        photo = self.photo.pixels.to(pixels)
        return self.host._as_output(
            paste(photo, pixels, mask.pixels.to(pixels), feather=feather), self.inputs.output_type
        )

    def noise(self) -> Tensor:
        """Return new normal noise (n, C, h, w) of the images' generators."""
        shape = tuple(self.clean.shape[1:])
        return initial_noise(shape, self.inputs.generators, self.clean)  # type: ignore[arg-type]  # three integers

    def _expand(self, row: Tensor) -> Tensor:
        """Expand a tensor of one row to n rows."""
        return row.expand(self.num_images, *row.shape[1:])

    def _unguided(self, text: Tensor) -> Denoiser:
        """Return the denoiser without guidance; a U-Net that reads a mask gets the mask of a whole image."""
        condition = self.host.model.whole_condition(self.clean) if self.host.model.reads_mask else None
        network: Denoiser = self.host._network(text, condition=condition)
        return network

    def _with_controls(self, text: Tensor) -> Denoiser:
        """Return the denoiser without guidance and DeepCache, with the call's ControlNets and condition."""
        host, inputs = self.host, self.inputs
        steps = self.skipped + len(self.timesteps)
        counter = itertools.count(self.skipped)
        network = (
            controlled_denoiser(host.unet, text, inputs.controls, steps=steps, counter=counter)
            if inputs.controls
            else unet_denoiser(host.unet, text)
        )
        return network if inputs.condition is None else concatenated(network, inputs.condition)

    def _target_tokens(self) -> int:
        """Return the number of subject tokens in the target's text."""
        texts = self.inputs.texts
        queries: int = self.host.qformer.qformer.config.queries
        return queries if texts.subject_embeds is None else texts.subject_embeds.shape[1]

    def _target_category(self) -> str:
        """Return the word after the subject tokens."""
        return self.inputs.texts.targets[0]
