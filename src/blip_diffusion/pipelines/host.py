"""The type of the pipeline, as the mixins and functions of this package use it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch

from blip_diffusion.model import BlipDiffusion, ReferenceConfig, SubjectEncoder

if TYPE_CHECKING:
    from blip_diffusion.pipelines.adapters import AdapterManager
    from blip_diffusion.pipelines.encoding_cache import EncodingCache
    from blip_diffusion.pipelines.presets import Preset
    from blip_diffusion.pipelines.subject_scale import Scale


class PipelineHost(Protocol):
    """The attributes of `BlipDiffusionPipeline` that mixins and functions may use.

    Annotations only: a method with a body would hide diffusers' method of that name.
    """

    tokenizer: Any
    text_encoder: Any
    vae: Any
    unet: Any
    scheduler: Any
    qformer: SubjectEncoder
    image_processor: ReferenceConfig
    qformer_tokenizer: Any
    controlnet: Any
    t2i_adapters: dict[str, Any]
    subject_finder: Any
    safety_checker: Any
    watermark: Any
    config: Any
    preset: "Preset"
    _cache: "EncodingCache"
    _subject_scale: "Scale"
    _progress_bar_config: dict[str, Any]
    register_to_config: Callable[..., None]
    without_subjects: Callable[[], AbstractContextManager[None]]
    _sync_preset: Callable[[], None]

    if TYPE_CHECKING:

        @property
        def _execution_device(self) -> torch.device: ...
        @property
        def model(self) -> BlipDiffusion: ...
        @property
        def adapters(self) -> AdapterManager: ...
        @property
        def guidance_scale(self) -> float: ...
        @property
        def default_scheduler(self) -> Any: ...
