"""Edit a photo: another subject in its place, or what a mask covers painted anew."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from blip_diffusion.diffusion.inversion import Method
from blip_diffusion.errors import InputError
from blip_diffusion.pipelines.attention_alignment import AttentionControl
from blip_diffusion.pipelines.edit_inputs import (
    EditOutput,
    MaskSource,
    Photo,
    check_edit,
    check_given,
    check_plain_engine,
    given_mask,
)
from blip_diffusion.pipelines.edit_run import EditRun
from blip_diffusion.pipelines.host import PipelineHost
from blip_diffusion.pipelines.inputs import CallArguments, PipelineInputs, prepare_inputs
from blip_diffusion.pipelines.locking import exclusive
from blip_diffusion.pipelines.step_callback import StepCallback, callback_tensors


class EditingMixin(PipelineHost):
    """`edit` and `inpaint`."""

    __call__: Callable[..., Any]
    _check_features: Callable[[], None]
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

        The photo is inverted under the words that describe it, and sampled again under those of the edit. After each
        step, what lies outside the mask is taken from the photo's own path, and at the end its pixels.

        Args:
            image: The photo. It is cut about its middle to the shape of the image that is drawn.
            source_category: What is in the photo and shall go: "dog".
            target_category: What shall come: "cat"; by default the same category.
            reference_image: An image of the new subject. Without one and without `subject_embeds`, it is the active
                tuned subject, else words alone.
            prompt: What is said of both, after the category: "on the beach". It may be empty.
            mask: Where the photo may change: an image of its size, white there; "difference": where both texts want
                different images; "subject": where the model's subject finder sees the old subject; "none": anywhere.
            inversion: "direct": DDIM's path, read again outside the mask; "ddpm": edit-friendly, another edit for each
                seed; "ddim": as published; "none": fresh noise.
            attention: What of the photo's attention maps is kept; `None` for nothing. It needs the engine torch.
            strength: Share in (0, 1] of the steps that are run; less keeps more.
            feather: Pixels over which the edit passes into the photo, within the mask.
            mask_threshold: Of "difference", in [0, 1]; more covers less.
            describe_source: Whether the photo's own subject tokens describe it, beside the words.
            control_image: As `image` of the pipeline's call, with its arguments `controlnet` and so on.
            callback_on_step_end: Called after each step of the sampling with the latents; see `StepCallback`.
            **options: Others of the pipeline's call: `subject_embeds`, `negative_prompt`, `height`, `width`,
                `num_inference_steps`, `guidance_scale`, `guidance_rescale`, `num_images_per_prompt`, `generator`,
                `resize_mode`, `box` and `output_type`.

        Returns:
            `EditOutput` with `images`, one for each of `num_images_per_prompt`, and `mask`.

        Raises:
            InputError: If the mask has another size or is empty, or an argument can't be used.

        Example:
            >>> photo, cat = Image.open("dog-on-beach.jpg"), Image.open("cat.png")
            >>> pipe.edit(photo, "dog", "cat", cat, prompt="on the beach").images[0].save("cat-on-beach.png")
        """
        callback_tensors(callback_on_step_end, ("latents",))
        check_edit(self, inversion, strength, feather, mask_threshold)
        tuned = reference_image is None and options.get("subject_embeds") is None and self.adapters.registry.mixture
        category = target_category or ("" if tuned else source_category)  # a tuned subject knows its own
        inputs, photo = self._prepared(
            image, options, prompt=prompt, reference_image=reference_image, image=control_image, category=category
        )
        if attention is not None:
            check_plain_engine(self, inputs)
        user_mask, finding = given_mask(mask, photo, self.model.latents.factor)
        run = EditRun.begin(self, inputs, photo, user_mask, strength)
        run = run.described(source_category, prompt, by_photo=describe_source)
        with run.ready():
            where = user_mask or run.found_mask(finding, mask_threshold)
            run = run.conditioned(where)
            path = run.inverted(inversion)
            if attention is None:
                latents = run.blended(run.denoiser(), path, where, on_step=callback_on_step_end)
            else:
                with run.controlled(path, attention) as denoiser:
                    latents = run.blended(denoiser, path, where, on_step=callback_on_step_end)
        return self._result(run.finished(latents, where, feather), where.image())

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
        """Paint a subject where a mask is white, and keep all other pixels exactly.

        A U-Net that reads mask and masked image (9 input channels for Stable Diffusion, 17 for `mini`) is given them
        (Rombach et al. 2022, figure 3). For any other, what lies outside the mask is taken from the noised photo after
        each step (Avrahami et al. 2023, "Blended Latent Diffusion"), and each step is taken several times.

        Args:
            image: The photo, cut about its middle to the shape of the image that is drawn.
            mask: An image of the photo's size, white where it is painted.
            reference_image: An image of the subject. Without one and without `subject_embeds`, it is the active tuned
                subject, else words alone.
            category: What the subject is: "dog".
            prompt: What is said after the category: "on the beach". It may be empty.
            strength: Share in (0, 1] of the steps that are run; less keeps more of what the mask covers.
            resamplings: How often each step is taken, from 1; more closes seams.
            feather: Pixels over which the new passes into the photo, within the mask.
            control_image: As `image` of the pipeline's call.
            callback_on_step_end: As that of `edit`, also called after each resampling.
            **options: As those of `edit`.

        Returns:
            `EditOutput` with `images` and `mask`.

        Raises:
            InputError: If the mask has another size or is empty, or an argument can't be used.

        Example:
            >>> pipe.inpaint(photo, Image.open("mask.png"), Image.open("dog.png"), "dog", prompt="on the beach")
        """
        callback_tensors(callback_on_step_end, ("latents",))
        check_edit(self, "none", strength, feather, resamplings=resamplings)
        if self.model.reads_mask and strength != 1:
            raise InputError("strength has no effect on a U-Net that reads the mask: leave it out.")
        inputs, photo = self._prepared(
            image, options, prompt=prompt, reference_image=reference_image, image=control_image, category=category
        )
        where = photo.mask(mask, self.model.latents.factor)
        run = EditRun.begin(self, inputs, photo, where, strength, noisiest=True).conditioned(where)
        if self.model.reads_mask:
            latents = run.sampled(callback_on_step_end)
        else:
            with run.ready():
                path = run.inverted("none")
                latents = run.blended(run.denoiser(resamplings), path, where, resamplings, callback_on_step_end)
        return self._result(run.finished(latents, where, feather), where.image())

    def _prepared(
        self, photo: Any, options: dict[str, Any], *, category: str, reference_image: Any, **given: Any
    ) -> tuple[PipelineInputs, Photo]:
        """Return checked inputs of the target, with noise of full strength, and the photo at their size."""
        self._sync_preset()
        self._check_features()
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
        inputs = prepare_inputs(self, arguments)
        if len(inputs.texts) != 1:
            raise InputError("One photo is edited by one prompt and one reference: call again for others.")
        factor = self.model.latents.factor
        height, width = (factor * side for side in inputs.latents.shape[-2:])
        self._guidance_scale, self._interrupt = inputs.guidance_scale, False
        return inputs, Photo.read(photo, height, width)

    def _result(self, images: Any, mask: Image.Image) -> EditOutput:
        self.maybe_free_model_hooks()
        return EditOutput(images=images, mask=mask)
