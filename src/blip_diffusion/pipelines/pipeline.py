"""Zero-shot subject-driven generation (Li et al. 2023, section 3.3) as a diffusers pipeline."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from PIL import Image
from torch import Tensor

from blip_diffusion.argument_checks import flag
from blip_diffusion.devices import present_device
from blip_diffusion.images import ResizeMode
from blip_diffusion.model import ReferenceConfig, SubjectEncoder
from blip_diffusion.nn_utils import iter_modules
from blip_diffusion.pipelines.broadcast import OneOrMany
from blip_diffusion.pipelines.composition import RegionMode, SubjectRegion
from blip_diffusion.pipelines.control import Images, Numbers, Resample
from blip_diffusion.pipelines.decoding import DecodingMixin
from blip_diffusion.pipelines.denoising import DenoisingMixin
from blip_diffusion.pipelines.editing import EditingMixin
from blip_diffusion.pipelines.encoding import EncodingMixin
from blip_diffusion.pipelines.encoding_cache import EncodingCache
from blip_diffusion.pipelines.features import FeaturesMixin
from blip_diffusion.pipelines.inputs import Boxes, CallArguments, PipelineInputs, prepare_inputs
from blip_diffusion.pipelines.loading import LoadingMixin
from blip_diffusion.pipelines.locking import exclusive
from blip_diffusion.pipelines.lora_loaders import LoraLoadersMixin
from blip_diffusion.pipelines.safety import SafetyChecker, Watermark
from blip_diffusion.pipelines.step_callback import CALLBACK_TENSORS, StepCallback
from blip_diffusion.pipelines.subject_scale import Scale
from blip_diffusion.pipelines.subjects import SubjectsMixin
from blip_diffusion.pipelines.upscaling import UpscalingMixin
from blip_diffusion.protocols import Scheduler, Tokenizer


class BlipDiffusionPipeline(
    LoadingMixin,
    SubjectsMixin,
    EncodingMixin,
    DenoisingMixin,
    DecodingMixin,
    EditingMixin,
    UpscalingMixin,
    FeaturesMixin,
    LoraLoadersMixin,
    DiffusionPipeline,
):
    """Generate images of a subject in new scenes, from a reference image and a prompt.

    Devices, offloading, progress bars and hooks are diffusers'. Threads that use one pipeline or U-Net take turns.
    `safety_checker` and `watermark` may be set (`pipelines.safety`); they act on all images that are decoded.

    Example:
        >>> pipe = BlipDiffusionPipeline.from_pretrained("mini")
        >>> pipe("on the beach", Image.open("dog.png"), "dog", "dog").images[0].save("beach.png")
    """

    model_cpu_offload_seq = "qformer->text_encoder->unet->vae"
    _callback_tensor_inputs = CALLBACK_TENSORS
    _optional_components = ("controlnet", "subject_finder")
    safety_checker: SafetyChecker | None = None
    watermark: Watermark | None = None

    def __init__(
        self,
        tokenizer: Tokenizer,
        text_encoder: Any,
        vae: Any,
        unet: Any,
        scheduler: Scheduler,
        qformer: SubjectEncoder,
        image_processor: ReferenceConfig,
        qformer_tokenizer: Tokenizer,
        controlnet: Any = None,
        subject_finder: Any = None,
        *,
        prompt_reps: int = 20,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.0,
        noise_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self._cache = EncodingCache()
        self.t2i_adapters: dict[str, Any] = {}
        if isinstance(controlnet, list | tuple):
            controlnet = MultiControlNetModel(controlnet)
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            unet=unet,
            scheduler=scheduler,
            qformer=qformer,
            image_processor=image_processor,
            qformer_tokenizer=qformer_tokenizer,
            controlnet=controlnet,
            subject_finder=subject_finder,
        )
        self.register_to_config(
            prompt_reps=prompt_reps,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            noise_scale=noise_scale,
        )

    @torch.no_grad()
    @exclusive
    def __call__(
        self,
        prompt: OneOrMany[str] | None = None,
        reference_image: OneOrMany[OneOrMany[Image.Image]] | None = None,
        source_subject_category: OneOrMany[str] = "",
        target_subject_category: OneOrMany[str] = "",
        *,
        negative_prompt: OneOrMany[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        noise_scale: float | None = None,
        num_images_per_prompt: int = 1,
        eta: float | None = None,
        generator: OneOrMany[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_strength: float = 1.0,
        prompt_reps: int | None = None,
        prompt_weighting: bool = False,
        resize_mode: ResizeMode | None = None,
        box: Boxes | None = None,
        subjects: Sequence[SubjectRegion] | None = None,
        region_mode: RegionMode = "attention",
        subject_scale: Scale | None = None,
        subject_embeds: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        clip_skip: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        image: Images | list[Images] | None = None,
        controlnet: Any = None,
        controlnet_conditioning_scale: Numbers = 1.0,
        control_guidance_start: Numbers = 0.0,
        control_guidance_end: Numbers = 1.0,
        guess_mode: bool = False,
        control_resample: Resample = "lanczos",
        neg_prompt: OneOrMany[str] | None = None,
        condtioning_image: Images | list[Images] | None = None,
    ) -> Any:
        """Generate images of the subject of each reference in the scene of each prompt.

        Prompts, references, categories and negative prompts are single values or lists of one length; a single value
        is used for the whole batch. `None` stands for the checkpoint's default.

        Args:
            prompt: The scene, without the subject: "on the beach".
            reference_image: An image of the subject; a list within the list: several of one subject, their mean.
                Without one and without `subject_embeds`, the active tuned subjects are generated.
            source_subject_category: What the reference shows: "dog".
            target_subject_category: What to generate it as; by default the same.
            negative_prompt: What should not appear.
            height: In pixels, a multiple of the U-Net's stride up to 2048.
            width: In pixels, likewise.
            num_inference_steps: Sampling steps, at least 1; by default the preset's or the checkpoint's.
            timesteps: Decreasing timesteps in place of the scheduler's; not every scheduler supports them.
            sigmas: Decreasing noise levels in place of the scheduler's; not every scheduler supports them.
            guidance_scale: Weight w of classifier-free guidance, e + w (c - e) (Ho & Salimans 2022, eq. 6, with
                w = 1 + their w); up to 1 switches it off.
            guidance_rescale: Share in [0, 1] of the rescaling of the guided prediction (Lin et al. 2024, eq. 15-16).
            noise_scale: Factor of the initial noise; below 1 images are plainer and vary less with the seed. `latents`
                are not scaled.
            num_images_per_prompt: Images of each prompt, at least 1.
            eta: Noise that DDIM adds at each step (Song et al. 2021, eq. 16), in [0, 1]; other samplers ignore it.
            generator: One for all images, or one each. Each image has separate noise, independent of the batch.
            latents: Initial noise (B, C, H / 8, W / 8) in place of new noise.
            prompt_strength: With `prompt_reps`, how often the prompt is repeated: their product, rounded down.
            prompt_reps: See `prompt_strength`.
            prompt_weighting: Whether words have weights, "(beach)1.5", "beach++" or "(beach:1.5)", which compel applies
                to the text states. It needs the extra `weighting`. Subject tokens keep weight 1.
            resize_mode: How the reference becomes square: "crop" (centre), "squash" (both sides), "pad" (all of it) or
                "subject" (a square about the subject); by default the model's.
            box: Position of the subject: left, top, right, bottom in [0, 1], or one box for each prompt. By default the
                prompt's words decide ("at the left"). Only models with placed tokens, as `mini`, take one.
            subjects: Several subjects in one image, in place of reference and categories; see `SubjectRegion`.
            region_mode: With boxes or masks: "attention" masks cross-attention, "multidiffusion" averages one
                prediction per subject (Bar-Tal et al. 2023, equation 5), which takes that many times as long.
            subject_scale: Weight of the subject in [0, 2]; see `set_subject_scale`, which sets the default.
            subject_embeds: Subject tokens (1 or B, Q, D) of `encode_subject` in place of references.
            prompt_embeds: Text states (1 or B, L, D) in place of prompt, subject and categories.
            negative_prompt_embeds: Text states (1 or B, L, D) in place of the negative prompt.
            cross_attention_kwargs: Not supported, since `set_adapters` chooses the weights of LoRAs.
            clip_skip: Not supported: subject tokens belong to the text encoder's last layer.
            output_type: "pil", "np" (B, H, W, 3), "pt" (B, 3, H, W) in [0, 1], or "latent".
            return_dict: Return an `ImagePipelineOutput` instead of a tuple.
            callback_on_step_end: Called after each step; see `StepCallback`.
            callback_on_step_end_tensor_inputs: Which of "latents", "prompt_embeds", "negative_prompt_embeds" it gets.
            image: Control image of each ControlNet: a PIL image, or a tensor (B, 3, H, W) in [0, 1].
            controlnet: A ControlNet or T2I-Adapter, or a list; by default the model's. See also `pipe.t2i_adapters`.
            controlnet_conditioning_scale: Weight of each ControlNet; 1 is usual.
            control_guidance_start: Fraction of the steps, in [0, 1), at which each ControlNet starts.
            control_guidance_end: Fraction of the steps, in (0, 1], at which each ControlNet ends.
            guess_mode: Run ControlNets without the prompt.
            control_resample: How control images are resized: "lanczos" or "bicubic".
            neg_prompt: The published name of `negative_prompt`.
            condtioning_image: The published name of `image`.

        Returns:
            `ImagePipelineOutput` with `images`, prompt by prompt; or a tuple of them.

        Raises:
            InputError: If an argument is out of range or arguments do not fit together.

        Example:
            >>> out = pipe(["on the beach", "in the snow"], photo, "dog", "dog", generator=torch.manual_seed(0))
            >>> out.images[0].save("beach.png")
        """
        flag("return_dict", return_dict)
        inputs = self._prepare(CallArguments.select(locals()))
        text, empty = self._encode(inputs)
        latents = self._denoise(text, empty, inputs)
        result = self._decode(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=result) if return_dict else (result,)

    def _prepare(self, given: CallArguments) -> PipelineInputs:
        """Return checked inputs, after applying the preset."""
        self._sync_preset()
        self._check_features()
        inputs = prepare_inputs(self, given)
        self._guidance_scale, self._interrupt = inputs.guidance_scale, False
        return inputs

    def to(self, *args: Any, **options: Any) -> Self:
        """Move all parts to a device or convert them to a data type, as diffusers does, and return the pipeline.

        Raises:
            InputError: If there is no such device here; nothing is moved then.

        Example:
            >>> pipe = pipe.to("cuda", torch.float16)
        """
        for given in (*args, options.get("device")):
            if given is not None and not isinstance(given, torch.dtype):
                present_device(given)
        moved: Self = super().to(*args, **options)
        return moved

    @property
    def _execution_device(self) -> torch.device:
        """The device of the computation: that of the weights, unless a layer has a hook that moves them.

        diffusers' search for hooks takes 15 ms on `mini`, a tenth of an image.
        """
        parts = (self.unet, self.vae, self.text_encoder, self.qformer)
        layers = (vars(layer) for part in parts for layer in iter_modules(part))
        if any("_hf_hook" in attributes or "_diffusers_hook" in attributes for attributes in layers):
            return super()._execution_device  # type: ignore[safe-super]
        device: torch.device = next(self.unet.parameters()).device
        return device
