"""Edit a photo: replace its subject, or generate a subject in a masked region."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from blip_diffusion.argument_checks import one_text
from blip_diffusion.diffusion.inversion import Method
from blip_diffusion.errors import InputError
from blip_diffusion.pipelines.attention_alignment import AttentionControl
from blip_diffusion.pipelines.edit_inputs import (
    EditMask,
    EditOutput,
    MaskSource,
    Photo,
    check_edit,
    check_given,
    check_plain_engine,
    check_switches,
    given_mask,
)
from blip_diffusion.pipelines.edit_run import EditRun
from blip_diffusion.pipelines.host import PipelineHost
from blip_diffusion.pipelines.inputs import CallArguments, PipelineInputs
from blip_diffusion.pipelines.locking import exclusive
from blip_diffusion.pipelines.step_callback import StepCallback


class EditingMixin(PipelineHost):
    """`edit` and `inpaint`."""

    __call__: Callable[..., Any]
    _prepare: Callable[[CallArguments], PipelineInputs]
    maybe_free_model_hooks: Callable[[], None]

    @torch.no_grad()
    @exclusive
    def edit(
        self,
        image: Image.Image,
        source_category: str,
        target_category: str = "",
        reference_image: Image.Image | None = None,
        *,
        prompt: str = "",
        mask: MaskSource = "difference",
        inversion: Method = "direct",
        attention: AttentionControl | None = None,
        strength: float = 1.0,
        feather: int = 3,
        mask_threshold: float = 0.3,
        describe_source: bool = True,
        control_image: Any = None,
        callback_on_step_end: StepCallback | None = None,
        **options: Any,
    ) -> EditOutput:
        """Replace the subject of a photo, and keep the rest.

        The photo is inverted with a text that describes it, and sampled with the text of the edit. After each step,
        latents outside the mask are replaced by the photo's, and after decoding its pixels are.

        Args:
            image: The photo. It is centre-cropped to the proportions of the output.
            source_category: The subject to replace: "dog".
            target_category: The new subject: "cat"; by default the same category.
            reference_image: An image of the new subject. Without one and without `subject_embeds`, the active tuned
                subject is used, or else the category's word alone.
            prompt: The scene of photo and edit, without the subject: "on the beach". It may be empty.
            mask: The region that may change: an image of the photo's size, white there; "difference": where the
                predictions for both texts differ; "subject": the old subject, by the model's subject finder; "none":
                the whole photo.
            inversion: "direct": DDIM's inversion path is used outside the mask; "ddpm": edit-friendly DDPM, another
                edit for each seed; "ddim": as published; "none": new noise.
            attention: The attention maps of the photo that are kept; `None` for none. It needs the engine torch.
            strength: Share in (0, 1] of the steps that are run; a lower one keeps more of the photo.
            feather: Width in pixels, in [0, 64], of the blended edge within the mask.
            mask_threshold: Threshold in [0, 1] of the mask "difference"; a higher one gives a smaller mask.
            describe_source: Whether the photo's own subject tokens are added to the text that describes it.
            control_image: The argument `image` of the pipeline's call.
            callback_on_step_end: Called after each sampling step with the latents; see `StepCallback`.
            **options: Further arguments of the pipeline's call: `subject_embeds`, `negative_prompt`, `height`, `width`,
                `num_inference_steps`, `guidance_scale`, `guidance_rescale`, `num_images_per_prompt`, `generator`,
                `resize_mode`, `box` and `output_type`.

        Returns:
            `EditOutput` with `images`, one for each of `num_images_per_prompt`, and `mask`.

        Raises:
            InputError: If the mask has another size or is empty, or an argument is out of range.

        Example:
            >>> photo, cat = Image.open("dog-on-beach.jpg"), Image.open("cat.png")
            >>> pipe.edit(photo, "dog", "cat", cat, prompt="on the beach").images[0].save("cat-on-beach.png")
        """
        check_edit(self, inversion, strength, feather, mask_threshold)
        check_switches(describe_source, attention)
        for name, words in (("source_category", source_category), ("target_category", target_category)):
            one_text(name, words)
        tuned = reference_image is None and options.get("subject_embeds") is None and self.adapters.registry.mixture
        category = target_category or ("" if tuned else source_category)  # a tuned subject has a category
        inputs, photo = self._prepare_edit(
            image,
            options,
            prompt=prompt,
            reference_image=reference_image,
            image=control_image,
            category=category,
            callback_on_step_end=callback_on_step_end,
        )
        if attention is not None:
            check_plain_engine(self, inputs)
        user_mask, mask_method = given_mask(mask, photo, self.model.latents.factor)
        run = EditRun.begin(self, inputs, photo.with_subject(self.model), user_mask, strength)
        run = run.with_source(source_category, prompt, use_photo=describe_source)
        with run.prepared_unet():
            edit_mask = user_mask or run.predicted_mask(mask_method, mask_threshold)
            run = run.with_condition(edit_mask)
            path = run.invert(inversion)
            if attention is None:
                latents = run.sample_blended(run.denoiser(), path, edit_mask)
            else:
                with run.attention_controlled(path, attention) as denoiser:
                    latents = run.sample_blended(denoiser, path, edit_mask)
        return self._output(run.decode(latents, edit_mask, feather), edit_mask)

    @torch.no_grad()
    @exclusive
    def inpaint(
        self,
        image: Image.Image,
        mask: Image.Image,
        reference_image: Image.Image | None = None,
        category: str = "",
        *,
        prompt: str = "",
        strength: float = 1.0,
        resamplings: int = 2,
        feather: int = 3,
        control_image: Any = None,
        callback_on_step_end: StepCallback | None = None,
        **options: Any,
    ) -> EditOutput:
        """Generate a subject in the white region of a mask, and keep all other pixels exactly.

        An inpainting U-Net (9 input channels for Stable Diffusion, 17 for `mini`) reads the mask and the masked image
        (Rombach et al. 2022, figure 3). With any other U-Net, latents outside the mask are replaced by the noised
        photo's after each step (Avrahami et al. 2023, "Blended Latent Diffusion"), and each step is repeated.

        Args:
            image: The photo, centre-cropped to the proportions of the output.
            mask: An image of the photo's size, white in the region to generate.
            reference_image: An image of the subject. Without one and without `subject_embeds`, the active tuned
                subject is used, or else the category's word alone.
            category: What the subject is: "dog".
            prompt: The scene, without the subject: "on the beach". It may be empty.
            strength: Share in (0, 1] of the steps that are run; a lower one keeps more of the masked content.
            resamplings: How often each step is taken, in [1, 20]; more remove seams. An inpainting U-Net needs none.
            feather: Width in pixels, in [0, 64], of the blended edge within the mask.
            control_image: The argument `image` of the pipeline's call.
            callback_on_step_end: As for `edit`, also called after each resampling.
            **options: As for `edit`.

        Returns:
            `EditOutput` with `images` and `mask`.

        Raises:
            InputError: If the mask has another size or is empty, or an argument is out of range.

        Example:
            >>> pipe.inpaint(photo, Image.open("mask.png"), Image.open("dog.png"), "dog", prompt="on the beach")
        """
        check_edit(self, "none", strength, feather, resamplings=resamplings)
        one_text("category", category)
        if self.model.reads_mask and strength != 1:
            raise InputError("strength has no effect on a U-Net that reads the mask: leave it out.")
        inputs, photo = self._prepare_edit(
            image,
            options,
            prompt=prompt,
            reference_image=reference_image,
            image=control_image,
            category=category,
            callback_on_step_end=callback_on_step_end,
        )
        edit_mask = photo.mask(mask, self.model.latents.factor)
        run = EditRun.begin(self, inputs, photo, edit_mask, strength, noisiest=True)
        run = run.with_condition(edit_mask)
        if self.model.reads_mask:
            latents = run.sample()
        else:
            with run.prepared_unet():
                path = run.invert("none")
                latents = run.sample_blended(run.denoiser(resamplings), path, edit_mask, resamplings)
        return self._output(run.decode(latents, edit_mask, feather), edit_mask)

    def _prepare_edit(
        self, photo: Any, options: dict[str, Any], *, category: str, reference_image: Any, **given: Any
    ) -> tuple[PipelineInputs, Photo]:
        """Return checked inputs of the target, with unscaled noise, and the photo at their size."""
        check_given(options)
        embeds = options.pop("subject_embeds", None)
        if reference_image is None and embeds is None and not self.adapters.registry.mixture:
            embeds = torch.zeros(1, 0, int(self.text_encoder.config.hidden_size))
        arguments = CallArguments.of_call(
            type(self).__call__,
            reference_image=reference_image,
            subject_embeds=embeds,
            source_subject_category=category,
            noise_scale=1.0,
            **given,
            **options,
        )
        inputs = self._prepare(arguments)
        if len(inputs.texts) != 1:
            raise InputError("An edit takes one prompt and one reference: call again for others.")
        factor = self.model.latents.factor
        height, width = (factor * side for side in inputs.latents.shape[-2:])
        return inputs, Photo.read(photo, height, width)

    def _output(self, images: Any, mask: EditMask) -> EditOutput:
        self.maybe_free_model_hooks()
        return EditOutput(images=images, mask=mask.image())
