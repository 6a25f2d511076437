"""Zero-shot subject generation (Li et al. 2023, section 3.3): a reference, its word and a prompt in, pictures out."""

import itertools
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from PIL import Image
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.checkpoint.model_folder import (
    assemble,
    find_model,
    load_controlnet,
    load_unet,
    load_vae,
    read_parts,
    save_model,
)
from blip_diffusion.diffusion.controlnet import Control, controlled_denoiser
from blip_diffusion.diffusion.guidance import Denoiser
from blip_diffusion.diffusion.sampler import initial_noise, sample
from blip_diffusion.errors import InputError
from blip_diffusion.images import ResizeMode
from blip_diffusion.model import BlipDiffusion, InferenceConfig, ReferenceConfig, SubjectEncoder
from blip_diffusion.nn_utils import iter_modules, mark_modified, tensor_bytes, uncompiled, weights_version
from blip_diffusion.pipelines.acceleration import OWN_LORA, SpeedMixin
from blip_diffusion.pipelines.broadcast import OneOrMany, common_length, copied, many, spread, words
from blip_diffusion.pipelines.control import ControlRequest, Numbers, Pictures, Resample, control_request
from blip_diffusion.pipelines.encoding_cache import Memo
from blip_diffusion.pipelines.subjects import SubjectsMixin
from blip_diffusion.prompts import subject_prompt, warn_of_dropped

MAX_SIDE = 2048
MAX_STEPS = 1000  # for a scheduler that names no limit
OUTPUTS = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class _Request:
    """One row a picture."""

    prompts: list[str]  # full sentences, said as often as asked for
    negatives: list[str]
    subject: Tensor  # (B, Q, D)


class BlipDiffusionPipeline(DiffusionPipeline, SubjectsMixin, SpeedMixin):
    """BLIP-Diffusion as a diffusers pipeline; devices, offloading, LoRA and progress bars are inherited."""

    model_cpu_offload_seq = "qformer->text_encoder->unet->vae"
    _callback_tensor_inputs = ("latents",)
    _optional_components = ("controlnet",)

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        vae: Any,
        unet: Any,
        scheduler: Any,
        qformer: SubjectEncoder,
        image_processor: ReferenceConfig,
        qformer_tokenizer: Any,
        controlnet: Any = None,
        *,
        prompt_reps: int = 20,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.0,
        noise_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self._memo = Memo()
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
        )
        self.register_to_config(
            prompt_reps=prompt_reps,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            noise_scale=noise_scale,
        )

    @classmethod
    def from_model(cls, model: BlipDiffusion, *, controlnet: Any = None) -> Self:
        """A pipeline over the parts of a model, and a ControlNet where there is one."""
        return cls(
            model.tokenizer,
            model.text_encoder,
            model.vae,
            model.unet,
            model.scheduler,
            model.subject_encoder,
            model.reference,
            model.qformer_tokenizer,
            controlnet,
            **asdict(model.inference),
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "mini",
        *,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        qformer_tokenizer: str | Path | None = None,
        unet: Any = None,
        vae: Any = None,
        scheduler: Any = None,
        controlnet: Any = None,
        **hub: Any,
    ) -> Self:
        """Loads `mini` (which ships with the package), a folder, or a hub id, in the published layout.

        `qformer_tokenizer` names another WordPiece list than the folder's own or bert-base-uncased's. `unet`, `vae`
        and `controlnet` replace the folder's: a module, a folder, or a Stable Diffusion 1.5 file; so does `scheduler`,
        an object. `dtype` is another name of `torch_dtype`. `hub` goes to `huggingface_hub.snapshot_download`. Raises
        `CheckpointError` for what is missing, damaged or unknown, `InputError` for a keyword that nobody knows.
        """
        torch_dtype = torch_dtype or dtype
        folder = find_model(name_or_path, **hub)
        parts = read_parts(folder, qformer_tokenizer=qformer_tokenizer, dtype=torch_dtype)
        parts.unet = _loaded(load_unet, unet, config=parts.unet and parts.unet.config, dtype=torch_dtype) or parts.unet
        parts.vae = _loaded(load_vae, vae, config=parts.vae and parts.vae.config, dtype=torch_dtype) or parts.vae
        parts.scheduler = scheduler or parts.scheduler
        parts.controlnet = _loaded(load_controlnet, controlnet, dtype=torch_dtype) or parts.controlnet
        pipe = cls.from_model(assemble(parts, folder), controlnet=parts.controlnet)
        pipe.register_to_config(_name_or_path=str(name_or_path))
        if unet is None and parts.consistency_lora is not None:
            setattr(uncompiled(pipe.unet), OWN_LORA, parts.consistency_lora)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: "BlipDiffusionPipeline", *, controlnet: Any = None) -> Self:
        """Another pipeline over the same parts, with the same settings, and a preset of its own.

        LoRAs and tuned subjects lie in the parts: both draw with them.
        """
        return cls.from_model(pipeline.model, controlnet=controlnet or pipeline.controlnet)

    @property
    def components(self) -> dict[str, Any]:
        """The parts; the scheduler is the model's own, not a preset's."""
        return {**super().components, "scheduler": self.own_scheduler}

    def fuse_lora(self, *what: Any, **how: Any) -> None:
        """Makes LoRAs part of the weights, as diffusers does, but for subjects' own; see `SubjectsMixin`.

        Raises `InputError` under a preset that brings a LoRA: it would be fused too.
        """
        if self.preset.lcm_lora is not None:
            raise InputError("LoRAs can't be fused under a preset that brings one: set another first.")
        self._bring_lora()  # or rather take out that of another pipeline
        mark_modified(self.unet, self.text_encoder)
        super().fuse_lora(*what, **how)

    def unfuse_lora(self, *what: Any, **how: Any) -> None:
        """Takes them out of the weights again, as diffusers does."""
        mark_modified(self.unet, self.text_encoder)
        super().unfuse_lora(*what, **how)

    def _mix_loras(self) -> None:
        """Whatever LoRAs come and go, the subjects' are drawn as before, and the preset's stays."""
        super()._mix_loras()
        self._keep_lora(self.preset.lcm_lora)

    def save_pretrained(self, save_directory: str | Path, *, torch_dtype: torch.dtype | None = None, **_: Any) -> None:
        """Writes the published layout; floats in `torch_dtype` where one is given.

        It is the model without subjects, which `save_subject` writes, and without LoRAs that aren't fused. Raises
        `InputError` for several ControlNets.
        """
        with self.without_subjects():
            own = {"controlnet": self.controlnet, "consistency_lora": self.consistency_lora}
            save_model(self.model, Path(save_directory), **own, dtype=torch_dtype)

    @property
    def model(self) -> BlipDiffusion:
        """The parts and the flow."""
        return BlipDiffusion(
            self.qformer,
            self.text_encoder,
            self.unet,
            self.vae,
            tokenizer=self.tokenizer,
            qformer_tokenizer=self.qformer_tokenizer,
            scheduler=self.own_scheduler,
            reference=self.image_processor,
            inference=InferenceConfig(**{field.name: self.config[field.name] for field in fields(InferenceConfig)}),
        )

    @torch.no_grad()
    def encode_subject(
        self, pictures: OneOrMany[Image.Image], category: str, *, resize_mode: ResizeMode = "crop"
    ) -> Tensor:
        """Subject tokens (1, Q, D); several pictures of one subject give their mean."""
        pictures = many(pictures)
        if not pictures:
            raise InputError("There is no picture of the subject: give one or more.")
        tokens = self._encoded(pictures, [category] * len(pictures), resize_mode)
        return tokens.mean(dim=0, keepdim=True)

    @torch.no_grad()
    def __call__(
        self,
        prompt: OneOrMany[str],
        reference_image: OneOrMany[Image.Image] | None = None,
        source_subject_category: OneOrMany[str] = "",
        target_subject_category: OneOrMany[str] = "",
        *,
        negative_prompt: OneOrMany[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        noise_scale: float | None = None,
        num_images_per_prompt: int = 1,
        eta: float | None = None,
        generator: OneOrMany[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_strength: float = 1.0,
        prompt_reps: int | None = None,
        resize_mode: ResizeMode = "crop",
        subject_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]] | None = None,
        image: Pictures | list[Pictures] | None = None,
        controlnet: Any = None,
        controlnet_conditioning_scale: Numbers = 1.0,
        control_guidance_start: Numbers = 0.0,
        control_guidance_end: Numbers = 1.0,
        guess_mode: bool = False,
        control_resample: Resample = "lanczos",
        neg_prompt: OneOrMany[str] | None = None,
        condtioning_image: Pictures | list[Pictures] | None = None,
    ) -> Any:
        """Draws the subject of each reference in the scene of each prompt.

        Prompts, references, categories and negative prompts may be lists of one length; one of a thing serves all.
        `None` asks for the checkpoint's own setting. `noise_scale` is of the noise that is drawn, not of `latents`:
        below 1 pictures are plainer, and more alike from seed to seed. `subject_embeds` (1 or B, Q, D) stand in for
        references; where there are neither, the subject is what `load_subject` and `set_subjects` have chosen.
        `output_type`: "pil", "np", "pt" (B, 3, H, W) in [0, 1], or "latent".

        Structure control: `image` is what `controlnet` (default: the model's own) looks at. Several nets take a list
        of each, and of scales and of the shares of the steps between which they speak; `guess_mode` is for nets that
        must do without a prompt. `neg_prompt` and `condtioning_image` are the published names of `negative_prompt`
        and `image`. Raises `InputError` for what can't be drawn.
        """
        self._bring_lora()
        height, width = self._size(height, width)
        own_steps = self.preset.steps_of(self.config["num_inference_steps"])
        steps = own_steps if num_inference_steps is None else num_inference_steps
        _check(output_type, steps=steps, most=_most_steps(self.scheduler), copies=num_images_per_prompt)
        control = control_request(
            self.controlnet if controlnet is None else controlnet,
            image if image is not None else condtioning_image,
            controlnet_conditioning_scale,
            control_guidance_start,
            control_guidance_end,
            guess=guess_mode,
        )
        if reference_image is None and subject_embeds is None and self.active_subjects:
            subject_embeds = self.subject_embeds()
            source_subject_category = source_subject_category or self.subject_category()
        if subject_embeds is not None:
            self._check_tokens(subject_embeds)
        request = self._request(
            prompt,
            reference_image,
            source_subject_category,
            target_subject_category,
            negative_prompt if negative_prompt is not None else neg_prompt,
            subject_embeds,
            fit=resize_mode,
            copies=num_images_per_prompt,
            strength=prompt_strength,
            repetitions=self._or_own(prompt_reps, "prompt_reps"),
        )
        controls = self._controls(control, len(request.prompts), num_images_per_prompt, height, width, control_resample)
        generators = self._generators(generator, len(request.prompts))
        device = self._execution_device  # which asks every layer for hooks
        latents = self._noise(latents, generators, height, width, self._or_own(noise_scale, "noise_scale"), device)
        if not self.preset.uses_cfg and (guidance_scale not in (None, 1) or negative_prompt or neg_prompt):
            warnings.warn("The preset's LoRA brings its own guidance: no other has a say, nor negatives.", stacklevel=3)
        scale = self._or_own(guidance_scale, "guidance_scale")
        rescale = self._or_own(guidance_rescale, "guidance_rescale")
        self.scheduler.set_timesteps(steps, device=device)
        another = reference_image is not None and self.active_subjects
        base = self.without_subjects() if another else nullcontext()
        with base, self._loras_in_weights(), self.progress_bar(total=len(self.scheduler.timesteps)) as bar:
            denoiser = self._denoiser(request, scale, rescale, controls, guess=control is not None and control.guessing)

            def hook(index: int, timestep: Tensor, now: Tensor) -> Tensor:
                bar.update()
                if callback_on_step_end is None:
                    return now
                return callback_on_step_end(self, index, timestep, {"latents": now}).get("latents", now)

            latents = sample(denoiser, latents, self.scheduler, generators=generators, eta=eta, hook=hook)
        pictures = self._pictures(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=pictures) if return_dict else (pictures,)

    # ------------------------------------------------------------------------------------------------- the small steps

    @property
    def _execution_device(self) -> torch.device:
        """Where it computes. Where no layer has a hook, which alone brings weights elsewhere, the weights tell.

        diffusers' own search for hooks takes 15 ms on `mini`, a tenth of a picture.
        """
        parts = (self.unet, self.vae, self.text_encoder, self.qformer)
        layers = (vars(layer) for part in parts for layer in iter_modules(part))
        if any("_hf_hook" in own or "_diffusers_hook" in own for own in layers):
            return super()._execution_device
        device: torch.device = next(self.unet.parameters()).device
        return device

    def _or_own(self, value: Any, name: str) -> Any:
        return self.config[name] if value is None else value

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        factor = self.model.latents.factor
        own = int(self.unet.config.sample_size) * factor
        step = factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        for side in (height, width):
            if side is not None and (side % step or not step <= side <= MAX_SIDE):
                raise InputError(f"The size {side} can't be drawn: use a multiple of {step} from {step} to {MAX_SIDE}.")
        return height or own, width or own

    def _encoded(self, pictures: list[Image.Image], categories: list[str], fit: ResizeMode) -> Tensor:
        """Subject tokens (B, Q, D). What was encoded before is remembered."""
        if not all(isinstance(picture, Image.Image) for picture in pictures):
            raise InputError("A reference is a PIL picture, or a list of them: Image.open gives that of a file.")
        for picture in pictures:
            images.check_size(picture)
        squares = [images.fit_square(images.as_rgb(picture), self.image_processor.size, fit) for picture in pictures]
        state = weights_version(self.qformer)
        keys = [(state, word, square.tobytes()) for square, word in zip(squares, categories, strict=True)]

        def compute(places: list[int]) -> Tensor:
            pixels = images.to_tensor([squares[place] for place in places]).to(self._execution_device)
            return self.model.subject_tokens(pixels, [categories[place] for place in places])

        return self._memo.rows(keys, compute)

    def _read(self, prompts: list[str], subject: Tensor | None = None) -> Tensor:
        """Text states (B, L, D). What was read before is remembered."""
        state = weights_version(self.text_encoder)
        rows = [b""] * len(prompts) if subject is None else [tensor_bytes(row) for row in subject]
        keys = [(state, prompt, row) for prompt, row in zip(prompts, rows, strict=True)]

        def compute(places: list[int]) -> Tensor:
            chosen = None if subject is None else subject[places]
            return self.model.text_states([prompts[p] for p in places], chosen, device=self._execution_device)

        return self._memo.rows(keys, compute)

    def _request(
        self,
        prompt: OneOrMany[str],
        reference: OneOrMany[Image.Image] | None,
        source: OneOrMany[str],
        target: OneOrMany[str],
        negative: OneOrMany[str] | None,
        embeds: Tensor | None,
        *,
        fit: ResizeMode,
        copies: int,
        strength: float,
        repetitions: int,
    ) -> _Request:
        named: dict[str, list[str]] = {"prompt": words(prompt), "negative_prompt": words(negative or "")}
        named |= {"source_subject_category": words(source), "target_subject_category": words(target)}
        rows = {name: len(values) for name, values in named.items()}
        rows["reference_image"] = len(many(reference)) if reference is not None else 1
        rows["subject_embeds"] = 1 if embeds is None else len(embeds)
        size = common_length(rows)
        prompts, negatives, sources, targets = (spread(values, size) for values in named.values())
        prompts, negatives = self._with_inversions(prompts), self._with_inversions(negatives)
        sentences = [subject_prompt(p, t or s) for p, t, s in zip(prompts, targets, sources, strict=True)]
        subject = self._subject(reference, sources, embeds, fit, size)
        warn_of_dropped(self.tokenizer, sentences, self.model.text_length - subject.shape[1])
        warn_of_dropped(self.tokenizer, negatives, self.model.text_length)
        full = [
            subject_prompt(p, t or s, strength=strength, repetitions=repetitions)
            for p, t, s in zip(prompts, targets, sources, strict=True)
        ]
        return _Request(copied(full, copies), copied(negatives, copies), subject.repeat_interleave(copies, dim=0))

    def _with_inversions(self, prompts: list[str]) -> list[str]:
        """A textual inversion of several vectors stands in the prompt as so many words."""
        converted: list[str] = self.maybe_convert_prompt(prompts, self.tokenizer)
        return converted

    def _subject(
        self,
        reference: OneOrMany[Image.Image] | None,
        sources: list[str],
        embeds: Tensor | None,
        fit: ResizeMode,
        size: int,
    ) -> Tensor:
        """Subject tokens (B, Q, D)."""
        if embeds is not None:
            return embeds.to(self._execution_device).expand(size, -1, -1)
        if reference is None:
            raise InputError("There is no subject: give reference_image or subject_embeds, or load_subject first.")
        return self._encoded(spread(many(reference), size), sources, fit)

    def _controls(
        self, control: ControlRequest | None, rows: int, copies: int, height: int, width: int, resample: Resample
    ) -> list[Control]:
        if control is None:
            return []
        control.check(self.unet)
        return control.controls(rows // copies, copies, height, width, resample)

    def _denoiser(
        self, request: _Request, scale: float, rescale: float, controls: list[Control], *, guess: bool
    ) -> Denoiser:
        """The figure of the flow, from the right: guided( controlled( unet(·, text states) ) )."""
        text = self._read(request.prompts, request.subject)
        steps = len(self.scheduler.timesteps)
        doubled = scale > 1 and self.preset.uses_cfg
        empty = self._read(request.negatives) if doubled else None
        if not controls:
            return self._shortened(text, empty, scale, rescale, steps=steps)
        controlled = partial(
            controlled_denoiser, self.unet, controls=controls, steps=steps, guess=guess, counter=itertools.count()
        )
        if empty is None:
            return controlled(text)
        both = controlled(torch.cat([empty, text]), doubled=True)
        return self._guided(both, lambda: controlled(text), scale, rescale, steps=steps)

    def _generators(self, given: OneOrMany[torch.Generator] | None, size: int) -> list[torch.Generator]:
        if given is None:
            return [torch.default_generator] * size
        generators = many(given)
        if len(generators) not in (1, size):
            raise InputError(f"There are {len(generators)} generators for {size} pictures: use one, or one each.")
        return spread(generators, size)

    def _noise(
        self,
        given: Tensor | None,
        generators: list[torch.Generator],
        height: int,
        width: int,
        scale: float,
        device: torch.device,
    ) -> Tensor:
        factor, channels = self.model.latents.factor, self.model.latents.channels
        like = torch.empty(0, device=device)  # float32: in each precision a seed means the same noise
        shape = (channels, height // factor, width // factor)
        if given is None:
            return scale * initial_noise(shape, generators, like)
        if given.shape != (len(generators), *shape):
            wanted = (len(generators), *shape)
            raise InputError(f"The latents are {tuple(given.shape)}: these pictures begin with {wanted}.")
        return given.to(like)

    def _pictures(self, latents: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return latents
        pixels = self._decoded(latents).float()
        if output_type == "pt":
            return pixels
        return images.to_pil(pixels) if output_type == "pil" else pixels.permute(0, 2, 3, 1).cpu().numpy()


def _loaded(load: Callable[..., Any], given: Any, **how: Any) -> Any:
    """A part, or where a path is given what lies there."""
    if isinstance(given, list | tuple):
        return [_loaded(load, one, **how) for one in given]
    return load(given, **how) if isinstance(given, str | Path) else given


def _most_steps(scheduler: Any) -> int:
    """A consistency model's steps are some of those that it was distilled from; any other's, of those of training."""
    limits = (scheduler.config.get(name) for name in ("original_inference_steps", "num_train_timesteps"))
    return min((int(limit) for limit in limits if limit), default=MAX_STEPS)


def _check(output_type: str, *, steps: int, most: int, copies: int) -> None:
    if output_type not in OUTPUTS:
        raise InputError(f"There is no output_type {output_type!r}: use {', '.join(OUTPUTS[:-1])} or {OUTPUTS[-1]}.")
    if not 1 <= steps <= most:
        raise InputError(f"num_inference_steps is {steps}: use 1 to {most}.")
    if copies < 1:
        raise InputError(f"num_images_per_prompt is {copies}: use 1 or more.")
