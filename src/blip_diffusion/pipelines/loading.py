"""Load and save a pipeline, and build the model from its parts."""

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.utils import logging
from torch import nn

from blip_diffusion.checkpoint.control_fit import check_control_fit
from blip_diffusion.checkpoint.locate import find_model
from blip_diffusion.checkpoint.model_folder import (
    Parts,
    Precision,
    assemble,
    check_dtype,
    dtype_of,
    read_parts,
    save_model,
)
from blip_diffusion.checkpoint.single_component import load_controlnet, load_unet, load_vae
from blip_diffusion.checkpoint.weights import WeightFiles
from blip_diffusion.diffusion.scheduler_checks import check_scheduler
from blip_diffusion.errors import InputError
from blip_diffusion.fileio import as_path
from blip_diffusion.model import BlipDiffusion, InferenceConfig
from blip_diffusion.pipelines.adapters import set_bundled_lora
from blip_diffusion.pipelines.control import as_nets
from blip_diffusion.pipelines.host import PipelineHost
from blip_diffusion.pipelines.load_options import check_load_options, check_save_options, placement
from blip_diffusion.pipelines.locking import exclusive

PARTS = (
    "qformer", "text_encoder", "unet", "vae", "tokenizer", "qformer_tokenizer", "default_scheduler", "image_processor",
    "subject_finder",
)  # fmt: skip
"""The attributes that `LoadingMixin.model` is built from."""


LOG = logging.get_logger("diffusers.pipelines.pipeline_utils")
"""The logger to which diffusers' pipelines report the parts that they load."""


class LoadingMixin(PipelineHost):
    """`from_pretrained`, `save_pretrained`, and the model behind the pipeline."""

    _model: tuple[dict[str, Any], BlipDiffusion] | None = None

    @classmethod
    def from_model(cls, model: BlipDiffusion, *, controlnet: Any = None) -> Self:
        """Create a pipeline over the parts of a model.

        Args:
            model: The model; its parts are shared, not copied.
            controlnet: A ControlNet, or a list of them.

        Returns:
            The pipeline.

        Raises:
            InputError: If a ControlNet is none, or is for another model.
        """
        if not isinstance(model, BlipDiffusion):
            raise InputError(f"model is a {type(model).__name__}: use a BlipDiffusion; from_pretrained loads a name.")
        for net in [] if controlnet is None else as_nets(controlnet):
            check_control_fit(net, model.unet, model.latents.factor)
        create: Callable[..., Self] = cls
        return create(
            model.tokenizer,
            model.text_encoder,
            model.vae,
            model.unet,
            model.scheduler,
            model.subject_encoder,
            model.reference,
            model.qformer_tokenizer,
            controlnet,
            model.subject_finder,
            **asdict(model.inference),
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "mini",
        *,
        torch_dtype: Precision = None,
        dtype: Precision = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        device_map: Any = None,
        qformer_tokenizer: str | Path | None = None,
        unet: Any = None,
        vae: Any = None,
        scheduler: Any = None,
        controlnet: Any = None,
        **options: Any,
    ) -> Self:
        """Load a pipeline.

        Several threads may load at once.

        Args:
            name_or_path: "mini" (part of the package), a folder in the published layout, or a hub id.
            torch_dtype: Data type of the weights, by default float32; or, as in diffusers, a dict from
                names of parts to data types, with "default" for the others.
            dtype: Alias of `torch_dtype`.
            variant: Read `model.fp16.safetensors` for "fp16". Parts without such a file are read
                from the file without a variant.
            use_safetensors: Read only safetensors (`True`) or only pickles (`False`); by default both.
            device_map: The device of the pipeline, for example "cuda".
            qformer_tokenizer: A WordPiece vocabulary in place of the folder's or bert-base-uncased's.
            unet: Replaces the folder's U-Net: a module, a folder, or a Stable Diffusion 1.5 file.
            vae: Replaces the folder's VAE: a module, a folder, or a Stable Diffusion 1.5 file.
            scheduler: Replaces the folder's scheduler.
            controlnet: A ControlNet, a folder, a file or a hub id, or a list of them.
            **options: Passed to `huggingface_hub.snapshot_download`, for example `revision`. Arguments of diffusers'
                pipelines without an effect, such as `safety_checker=None`, are accepted.

        Returns:
            The pipeline, on the CPU unless `device_map` is given.

        Raises:
            CheckpointError: If a file is missing or damaged, or the folder's layout is unknown.
            InputError: If a keyword is unknown or unsupported, or no part has weights of the variant.

        Example:
            >>> pipe = BlipDiffusionPipeline.from_pretrained("mini")
            >>> pipe = BlipDiffusionPipeline.from_pretrained("./model", torch_dtype=torch.float16).to("cuda")
        """
        device = placement(device_map)
        files = WeightFiles(variant, use_safetensors)
        folder = find_model(name_or_path, **check_load_options(options))
        dtype = dtype if torch_dtype is None else torch_dtype
        parts = read_parts(folder, qformer_tokenizer=qformer_tokenizer, dtype=dtype, files=files)
        _replace_parts(parts, dtype, unet=unet, vae=vae, scheduler=scheduler, controlnet=controlnet)
        pipe = cls.from_model(assemble(parts, folder), controlnet=parts.controlnet)
        pipe.t2i_adapters = parts.t2i_adapters or {}
        pipe.register_to_config(_name_or_path=str(name_or_path))
        if unet is None and parts.consistency_lora is not None:
            set_bundled_lora(pipe.unet, parts.consistency_lora)
        _log_loaded(pipe, name_or_path)
        return pipe if device is None else pipe.to(device)  # type: ignore[attr-defined]

    @classmethod
    def from_pipe(cls, pipeline: Any, *, controlnet: Any = None) -> Self:
        """Create a pipeline over the parts of another, with its settings but without its preset.

        LoRAs and subjects are part of the U-Net and the text encoder: both pipelines use them.

        Args:
            pipeline: The other pipeline.
            controlnet: Replaces its ControlNet.

        Returns:
            The new pipeline.
        """
        if not isinstance(pipeline, LoadingMixin):
            raise InputError(f"pipeline is a {type(pipeline).__name__}: use a BlipDiffusionPipeline.")
        chosen = pipeline.controlnet if controlnet is None else controlnet
        pipe = cls.from_model(pipeline.model, controlnet=chosen)
        pipe.t2i_adapters = pipeline.t2i_adapters
        pipe.safety_checker, pipe.watermark = pipeline.safety_checker, pipeline.watermark
        return pipe

    @exclusive
    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        *,
        torch_dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        """Write the model in the published layout, without subjects and without LoRAs that are not fused.

        Args:
            save_directory: The folder.
            safe_serialization: Write safetensors; `False` writes pickles of tensors.
            variant: Write `model.fp16.safetensors` for "fp16", and keep weights of other variants.
            torch_dtype: Data type of the written weights; by default unchanged.
            **options: Other arguments of diffusers, accepted if they have no effect.

        Raises:
            InputError: If there are several ControlNets, nothing can be written, or an option isn't supported.
            CheckpointError: If the bundled consistency LoRA is damaged.
        """
        check_save_options(options)
        folder = as_path("save_directory", save_directory)
        check_dtype(torch_dtype)
        files = WeightFiles(variant, safe_serialization)
        with self.without_subjects():
            extra: dict[str, Any] = {
                "controlnet": self.controlnet,
                "consistency_lora": self.adapters.state.bundled_lora,
                "t2i_adapters": self.t2i_adapters,
            }
            save_model(self.model, folder, **extra, dtype=torch_dtype, files=files)

    @property
    def components(self) -> dict[str, Any]:
        """The parts; the scheduler is the model's, never a preset's."""
        components: dict[str, Any] = super().components  # type: ignore[misc]
        return {**components, "scheduler": self.default_scheduler}

    @property
    def model(self) -> BlipDiffusion:
        """The model over the pipeline's parts, rebuilt only after a part is replaced."""
        parts = {name: getattr(self, name) for name in PARTS}
        inference = InferenceConfig(**{field.name: self.config[field.name] for field in fields(InferenceConfig)})
        if self._model is None or self._model[1].inference != inference or not _same(self._model[0], parts):
            self._model = parts, _build_model(parts, inference)
        return self._model[1]


def _build_model(parts: dict[str, Any], inference: InferenceConfig) -> BlipDiffusion:
    return BlipDiffusion(
        parts["qformer"],
        parts["text_encoder"],
        parts["unet"],
        parts["vae"],
        tokenizer=parts["tokenizer"],
        qformer_tokenizer=parts["qformer_tokenizer"],
        scheduler=parts["default_scheduler"],
        reference=parts["image_processor"],
        inference=inference,
        subject_finder=parts["subject_finder"],
    )


def _replace_parts(parts: Parts, dtype: Precision, *, unet: Any, vae: Any, scheduler: Any, controlnet: Any) -> None:
    """Replace a folder's parts by those that the caller has chosen."""
    config = {"unet": parts.unet and parts.unet.config, "vae": parts.vae and parts.vae.config}
    other = _loaded(load_unet, unet, config=config["unet"], dtype=dtype_of(dtype, "unet"))
    parts.unet = parts.unet if other is None else other
    other = _loaded(load_vae, vae, config=config["vae"], dtype=dtype_of(dtype, "vae"))
    parts.vae = parts.vae if other is None else other
    if scheduler is not None:
        check_scheduler(scheduler)
        parts.scheduler = scheduler
    other = _loaded(load_controlnet, controlnet, dtype=dtype_of(dtype, "controlnet"))
    parts.controlnet = parts.controlnet if other is None else other


def _log_loaded(pipe: Any, name_or_path: str | Path) -> None:
    for name, part in pipe.components.items():
        if part is not None:
            LOG.info(f"Loaded {name} as {type(part).__name__} from `{name}` of {name_or_path}.")


def _same(parts: dict[str, Any], others: dict[str, Any]) -> bool:
    return all(parts[name] is others[name] for name in PARTS)


def _loaded(load: Callable[..., Any], given: Any, **options: Any) -> Any:
    """Load a path; return a module unchanged."""
    if load is load_controlnet and isinstance(given, list | tuple):
        return [_loaded(load, item, **options) for item in given]
    if isinstance(given, str | Path):
        return load(given, **options)
    if given is not None and not isinstance(given, nn.Module):
        name = load.__name__.removeprefix("load_")
        raise InputError(f"{name} is a {type(given).__name__}: use a network of diffusers, a folder or a file.")
    return given
