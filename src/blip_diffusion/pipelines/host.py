"""The type of the pipeline, as the mixins and functions of this package use it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch

from blip_diffusion.model import BlipDiffusion, ReferenceConfig, SubjectEncoder
from blip_diffusion.protocols import Scheduler, Tokenizer

if TYPE_CHECKING:
    from blip_diffusion.pipelines.adapters import AdapterManager
    from blip_diffusion.pipelines.encoding_cache import EncodingCache
    from blip_diffusion.pipelines.presets import Preset
    from blip_diffusion.pipelines.subject_scale import Scale


class PipelineHost(Protocol):
    """The attributes of `BlipDiffusionPipeline` that mixins and functions may use.

    Annotations only: a method with a body would hide diffusers' method of that name.
    """

    tokenizer: Tokenizer
    text_encoder: Any
    vae: Any
    unet: Any
    scheduler: Scheduler
    qformer: SubjectEncoder
    image_processor: ReferenceConfig
    qformer_tokenizer: Tokenizer
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
    progress_bar: Callable[..., Any]
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
        def do_classifier_free_guidance(self) -> bool: ...
        @property
        def num_timesteps(self) -> int: ...
        @property
        def interrupt(self) -> bool: ...
        @property
        def default_scheduler(self) -> Scheduler: ...
