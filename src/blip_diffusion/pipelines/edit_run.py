"""One edit as it runs: from a photo and two texts to the latents of the edit."""

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
    found_mask,
    mask_of_latents,
    noising_from,
    seeded_like,
    subject_box,
    whole_mask,
)
from blip_diffusion.pipelines.inputs import PipelineInputs
from blip_diffusion.pipelines.prompt_weighting import plain_text
from blip_diffusion.prompts import subject_prompt


@dataclass(frozen=True)
class EditRun:
    """A photo, its texts, and the noise levels that are visited.

    Args:
        host: The pipeline.
        inputs: The target's, with noise (n, C, h, w).
        photo: The photo.
        clean: Its latents (1, C, h, w).
        target: Text states (n, L, D) of the edit.
        empty: Of the negative prompt, if guided.
        noising: The forward process.
        timesteps: Falling.
        skipped: Noisier levels that are not visited.
        source: Text states (1, L, D) of what the photo shows; empty where nothing asks for them.
        sentence: The words of `source`.
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
        """Encode the photo and the target's texts, its subject placed where the mask or the old subject is."""
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
    def images(self) -> int:
        """n."""
        return len(self.inputs.latents)

    def described(self, category: str, prompt: str, *, by_photo: bool) -> "EditRun":
        """Add what the photo shows: its words, and by wish its own subject tokens where its subject is."""
        host = self.host
        repeats = {"repetitions": host.config["prompt_reps"]}
        words = plain_text(prompt) if self.inputs.texts.weighted else prompt
        text = subject_prompt(words, category, **repeats)
        if not by_photo:
            return replace(self, source=host._encode_text([text]), sentence=Sentence(text))
        squares = host._square([self.photo.image], self.inputs.resize_mode)
        tokens = host._encode_references(squares, [category])
        box = subject_box(host, self.photo, None, [square.aspect for square in squares])
        boxes = None if box is None else [box]
        frames = host._frames(self.inputs, self.inputs.texts, [squares[0].aspect], boxes)
        states = host._encode_text([text], tokens, frames)
        return replace(self, source=states, sentence=Sentence(text, tokens.shape[1]))

    def conditioned(self, mask: EditMask) -> "EditRun":
        """Give a U-Net that reads a mask this one."""
        if not self.host.model.reads_mask:
            return self
        condition = self.host.model.inpainting_condition(self.photo.pixels, mask.pixels.to(self.photo.pixels))
        return replace(self, inputs=replace(self.inputs, condition=condition))

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Context manager: the pipeline's networks as this call wants them."""
        base = self.host.without_subjects() if self.inputs.hides_subjects else nullcontext()
        with base, self.host._loras_in_weights():
            yield

    def found_mask(self, how: str, threshold: float) -> EditMask:
        """Return the mask by the difference of both texts' predictions, by the subject finder, or of everything."""
        factor = self.host.model.latents.factor
        if how == "none":
            return whole_mask(self.clean, factor)
        if how == "subject":
            return found_mask(self.host, self.photo, factor)
        texts = torch.cat([self.source.expand(NOISES, -1, -1), self.target[:1].expand(NOISES, -1, -1)])
        both, rng = self._network(texts), seeded_like(self.inputs.generators)
        found = difference_mask(both, self.clean, self.noising, rng, threshold=threshold)
        return check_covers(mask_of_latents(found, factor))

    def inverted(self, method: Method) -> Inversion:
        """Return the photo's path; one for all images, but where noise is drawn."""
        noising, timesteps = self.noising, self.timesteps
        if method == "none":
            return inversions.noised_path(self._each(self.clean), noising, timesteps, self.inputs.latents)
        if method == "ddpm":
            denoiser = self._network(self._each(self.source))
            return inversions.ddpm_inversion(denoiser, self._each(self.clean), noising, timesteps, self.noise)
        path = inversions.ddim_inversion(self._network(self.source), self.clean, noising, timesteps)
        return path if method == "direct" else inversions.replayed(self._network(self.source), path, noising)

    def denoiser(self, resamplings: int = 1) -> Denoiser:
        """Return the guided denoiser of the target, with controls, on the preset's engine."""
        first, steps = self.skipped * resamplings, (self.skipped + len(self.timesteps)) * resamplings
        denoiser: Denoiser = self.host._denoiser(self.inputs, self.target, self.empty, first, steps)
        return denoiser

    @contextmanager
    def controlled(self, path: Inversion, control: AttentionControl) -> Iterator[Denoiser]:
        """Context manager: the target's denoiser beside the source's, whose attention maps it takes over."""
        host, steps = self.host, len(self.timesteps)
        words = self.inputs.texts.prompts[0]
        target = Sentence(plain_text(words) if self.inputs.texts.weighted else words, self._target_tokens())
        category = self._target_category()
        length = self.target.shape[1]
        alignment = align(host.tokenizer, self.sentence, target, category, control, length).to(self.target.device)
        cross, own = (round(share * steps) for share in (control.cross, control.own))
        controller = AttentionController(alignment, self.images, cross=cross, own=own)
        counter = itertools.count()

        def beside_source(rows: Denoiser) -> Denoiser:
            def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
                controller.step = next(counter)
                source = self._each(path.latents[controller.step])
                return rows(torch.cat([latents, source]), timestep)[: len(latents)]

            return denoise

        texts = [] if self.empty is None else [self.empty]
        both = beside_source(self._controlled_network(torch.cat([*texts, self.target, self._each(self.source)])))
        if self.empty is not None:
            both = guided(both, lambda: host.guidance_scale, rescale=self.inputs.guidance_rescale)
        with controlled_attention(host.unet, controller):
            yield both

    def blended(self, denoiser: Denoiser, path: Inversion, mask: EditMask, resamplings: int = 1) -> Tensor:
        """Sample the edit; after each step, what lies outside the mask is the photo's own path."""
        inside = mask.latents.to(self.clean)

        with self.host.progress_bar(total=len(self.timesteps)) as bar:

            def blend(level: int, latents: Tensor) -> Tensor:
                bar.update()
                return inside * latents + (1 - inside) * path.latents[level]

            return inversions.sample_from(
                denoiser,
                path,
                self.noising,
                start=self._each(path.latents[0]),
                resamplings=resamplings,
                noise=self.noise,
                hook=blend,
            )

    def sampled(self) -> Tensor:
        """Sample from noise by the pipeline's own scheduler: the U-Net's condition holds the photo."""
        noise = self.host.config["noise_scale"] * self.inputs.latents
        latents: Tensor = self.host._denoise(self.target, self.empty, replace(self.inputs, latents=noise), None, ())
        return latents

    def finished(self, latents: Tensor, mask: EditMask, feather: int) -> Any:
        """Return images of the wanted type, with the photo's own pixels outside of the mask."""
        if self.inputs.output_type == "latent":
            return check_finite(latents)
        pixels = check_finite(self.host._decode_latents(latents).float())
        photo = self.photo.pixels.to(pixels)
        return self.host._as_output(
            paste(photo, pixels, mask.pixels.to(pixels), feather=feather), self.inputs.output_type
        )

    def noise(self) -> Tensor:
        """Draw normal noise (n, C, h, w) from the images' generators."""
        shape = tuple(self.clean.shape[1:])
        return initial_noise(shape, self.inputs.generators, self.clean)  # type: ignore[arg-type]  # three of them

    def _each(self, rows: Tensor) -> Tensor:
        """Repeat one row for all images."""
        return rows.expand(self.images, *rows.shape[1:])

    def _network(self, text: Tensor) -> Denoiser:
        """Return the unguided network; one that reads a mask paints all of an image."""
        condition = self.host.model.whole_condition(self.clean) if self.host.model.reads_mask else None
        network: Denoiser = self.host._network(text, condition=condition)
        return network

    def _controlled_network(self, text: Tensor) -> Denoiser:
        """Return the plain network, with ControlNets if there are any."""
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
        """Return how many subject tokens stand in the target's text."""
        texts = self.inputs.texts
        queries: int = self.host.qformer.qformer.config.queries
        return queries if texts.subject_embeds is None else texts.subject_embeds.shape[1]

    def _target_category(self) -> str:
        """Return the word after the subject tokens."""
        return self.inputs.texts.targets[0]
