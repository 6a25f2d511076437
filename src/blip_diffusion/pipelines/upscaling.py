"""Super-resolution: enlarge images with a model that was trained with the objective `upscale`."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from PIL import Image
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.argument_checks import choice, number, texts
from blip_diffusion.diffusion.resizing import enlarged
from blip_diffusion.errors import InputError
from blip_diffusion.images import ResizeMode
from blip_diffusion.pipelines.broadcast import OneOrMany, as_list, broadcast, common_length
from blip_diffusion.pipelines.checks import check_finite
from blip_diffusion.pipelines.host import PipelineHost
from blip_diffusion.pipelines.inputs import Boxes, CallArguments, PipelineInputs, prepare_inputs
from blip_diffusion.pipelines.locking import exclusive
from blip_diffusion.sampling import sample_upscaled

MAX_NOISE_LEVEL = 0.9


class UpscalingMixin(PipelineHost):
    """`upscale`."""

    _prompt_states: Callable[[PipelineInputs], Tensor]
    _negative_states: Callable[[PipelineInputs], Tensor]
    _as_output: Callable[[Tensor, str], Any]
    maybe_free_model_hooks: Callable[[], None]

    @torch.no_grad()
    @exclusive
    def upscale(
        self,
        image: OneOrMany[Image.Image],
        prompt: OneOrMany[str] = "",
        reference_image: OneOrMany[Image.Image] | None = None,
        source_subject_category: OneOrMany[str] = "",
        target_subject_category: OneOrMany[str] = "",
        *,
        negative_prompt: OneOrMany[str] | None = None,
        noise_level: float = 0.1,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        generator: OneOrMany[torch.Generator] | None = None,
        resize_mode: ResizeMode | None = None,
        box: Boxes | None = None,
        subject_embeds: Tensor | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Enlarge images to the model's size (Rombach et al. 2022, section 4.4).

        Args:
            image: One small image or B; the middle square is used.
            prompt: The scene, as the image was generated from it. It may be empty.
            reference_image: The image of the subject that it was generated from. `None`: the category's word alone.
            source_subject_category: What the reference shows: "dog".
            target_subject_category: What the image shows; by default the same.
            negative_prompt: What should not appear.
            noise_level: Noise that is added to the small image, in [0, 0.9], in shares of the timesteps. More hides
                its faults and lets more be invented (Saharia et al. 2022, section 2.4).
            num_inference_steps: Sampling steps, at least 1; by default the checkpoint's.
            guidance_scale: Weight of classifier-free guidance; up to 1 switches it off, which is usual here.
            generator: One for all images, or one each.
            resize_mode: How the reference becomes square; by default the model's.
            box: Position of the subject, as the image was generated with it.
            subject_embeds: Subject tokens (1 or B, Q, D) in place of references.
            output_type: "pil", "np" (B, H, W, 3), or "pt" (B, 3, H, W) in [0, 1].

        Returns:
            `ImagePipelineOutput` with `images`.

        Raises:
            InputError: If the model doesn't upscale, an image is larger than the model's size, or an argument is out
                of range.

        Example:
            >>> small = base("on the beach", photo, "dog", "dog").images[0]  # 32 x 32
            >>> upscaler.upscale(small, "on the beach", photo, "dog", "dog").images[0]  # 128 x 128
        """
        self._check_upscales(output_type)
        level = number("noise_level", noise_level, 0, MAX_NOISE_LEVEL)
        small, prompts = as_list(image), texts("prompt", prompt)
        count = common_length({"images": len(small), "prompts": len(prompts)})
        if reference_image is None and subject_embeds is None:
            subject_embeds = torch.zeros(1, 0, int(self.text_encoder.config.hidden_size))
        inputs = prepare_inputs(
            self,
            CallArguments.of_call(
                type(self).__call__,
                prompt=broadcast(prompts, count),
                reference_image=reference_image,
                source_subject_category=source_subject_category,
                target_subject_category=target_subject_category,
                negative_prompt=negative_prompt,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                generator=generator,
                resize_mode=resize_mode,
                box=box,
                subject_embeds=subject_embeds,
            ),
        )
        pixels = sample_upscaled(
            self.model,
            self._prompt_states(inputs),
            self._enlarged(broadcast(small, len(inputs.texts))),
            inputs.generators,
            noise_level=level,
            steps=inputs.steps,
            guidance=inputs.guidance_scale,
            empty=self._negative_states(inputs) if inputs.guided else None,
        )
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=self._as_output(check_finite(pixels), output_type))

    def _check_upscales(self, output_type: str) -> None:
        if not self.model.upscales:
            raise InputError("This model doesn't upscale: use one that was trained with the objective upscale.")
        if self.preset.engine != "torch" or self.preset.deepcache_interval > 1:
            raise InputError("Upscaling needs the engine torch and no cached features: use another preset.")
        choice("output_type", output_type, ("pil", "np", "pt"))

    def _enlarged(self, small: list[Image.Image]) -> Tensor:
        """Return the middle squares of images at the model's size (B, 3, S, S)."""
        side = self.model.image_size
        rows = []
        for one in small:
            if not isinstance(one, Image.Image):
                raise InputError("An image to enlarge is a PIL image, or a list of them: Image.open reads a file.")
            if min(one.size) > side:
                raise InputError(f"The image is {one.width} x {one.height}, and this model enlarges to {side} pixels.")
            square = images.fit_square(images.as_rgb(one), min(one.size), "crop")
            rows.append(enlarged(images.to_tensor([square]), (side, side)))
        return torch.cat(rows).to(self._execution_device)
