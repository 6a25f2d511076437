"""Load and save a pipeline, and build the model from its parts."""

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Self

import torch

from blip_diffusion.checkpoint.model_folder import (
    assemble,
    find_model,
    load_controlnet,
    load_unet,
    load_vae,
    read_parts,
    save_model,
)
from blip_diffusion.model import BlipDiffusion, InferenceConfig
from blip_diffusion.pipelines.adapters import set_bundled_lora
from blip_diffusion.pipelines.host import PipelineHost

PARTS = (
    "qformer", "text_encoder", "unet", "vae", "tokenizer", "qformer_tokenizer", "default_scheduler", "image_processor",
    "subject_finder",
)  # fmt: skip
"""What `LoadingMixin.model` is built of."""


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
        """
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
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        qformer_tokenizer: str | Path | None = None,
        unet: Any = None,
        vae: Any = None,
        scheduler: Any = None,
        controlnet: Any = None,
        **hub: Any,
    ) -> Self:
        """Load a pipeline.

        Args:
            name_or_path: "mini" (part of the package), a folder in the published layout, or a hub id.
            torch_dtype: Precision of the weights; by default that of the files.
            dtype: Another name of `torch_dtype`.
            qformer_tokenizer: A WordPiece vocabulary in place of the folder's or bert-base-uncased's.
            unet: Replaces the folder's U-Net: a module, a folder, or a Stable Diffusion 1.5 file.
            vae: Replaces the folder's VAE: a module, a folder, or a Stable Diffusion 1.5 file.
            scheduler: Replaces the folder's scheduler.
            controlnet: A ControlNet, a folder, a file or a hub id, or a list of them.
            **hub: Passed to `huggingface_hub.snapshot_download`, for example `revision`.

        Returns:
            The pipeline, on the CPU.

        Raises:
            CheckpointError: If something is missing, damaged, or of an unknown layout.
            InputError: If a keyword is unknown.

        Example:
            >>> pipe = BlipDiffusionPipeline.from_pretrained("mini")
            >>> pipe = BlipDiffusionPipeline.from_pretrained("./model", torch_dtype=torch.float16).to("cuda")
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
            set_bundled_lora(pipe.unet, parts.consistency_lora)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: Any, *, controlnet: Any = None) -> Self:
        """Create a pipeline over the parts of another, with its settings and a preset of its own.

        LoRAs and subjects are part of the U-Net and the text encoder: both pipelines use them.

        Args:
            pipeline: The other pipeline.
            controlnet: Replaces its ControlNet.

        Returns:
            The new pipeline.
        """
        return cls.from_model(pipeline.model, controlnet=controlnet or pipeline.controlnet)

    def save_pretrained(self, save_directory: str | Path, *, torch_dtype: torch.dtype | None = None, **_: Any) -> None:
        """Write the model in the published layout, without subjects and without LoRAs that are not fused.

        Args:
            save_directory: The folder.
            torch_dtype: Precision of the written weights; by default unchanged.
            **_: Ignored, for the signature of diffusers.

        Raises:
            InputError: If there are several ControlNets, or nothing can be written.
            CheckpointError: If the bundled consistency LoRA is damaged.
        """
        with self.without_subjects():
            extra = {"controlnet": self.controlnet, "consistency_lora": self.adapters.state.bundled_lora}
            save_model(self.model, Path(save_directory), **extra, dtype=torch_dtype)

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


def _same(parts: dict[str, Any], others: dict[str, Any]) -> bool:
    return all(parts[name] is others[name] for name in PARTS)


def _loaded(load: Callable[..., Any], given: Any, **options: Any) -> Any:
    """Return a module as it is, and load a path."""
    if isinstance(given, list | tuple):
        return [_loaded(load, one, **options) for one in given]
    return load(given, **options) if isinstance(given, str | Path) else given
