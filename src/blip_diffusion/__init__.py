"""BLIP-Diffusion (Li, Li & Hoi, NeurIPS 2023): generate images of a subject from one reference image and a prompt.

from blip_diffusion import BlipDiffusionPipeline
pipe = BlipDiffusionPipeline.from_pretrained("mini")
pipe("swimming in a lake", photo, "dog", "dog").images[0]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from blip_diffusion.errors import BlipDiffusionError, CheckpointError, ConfigError, DataError, InputError

if TYPE_CHECKING:
    from blip_diffusion.checkpoint.subject_file import Subject as Subject
    from blip_diffusion.evaluation.evaluate import evaluate as evaluate
    from blip_diffusion.pipelines.captioner import Captioner as Captioner
    from blip_diffusion.pipelines.composition import SubjectRegion as SubjectRegion
    from blip_diffusion.pipelines.image_search import ImageSearch as ImageSearch
    from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline as BlipDiffusionPipeline
    from blip_diffusion.pipelines.presets import Preset as Preset
    from blip_diffusion.training.personalize.api import tune as tune
    from blip_diffusion.training.pretrain import run as train

__version__ = "0.5.0"
__all__ = [
    "BlipDiffusionError",
    "BlipDiffusionPipeline",
    "Captioner",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ImageSearch",
    "InputError",
    "Preset",
    "Subject",
    "SubjectRegion",
    "__version__",
    "evaluate",
    "train",
    "tune",
]

_LAZY = {
    "BlipDiffusionPipeline": ("blip_diffusion.pipelines.pipeline", "BlipDiffusionPipeline"),
    "Captioner": ("blip_diffusion.pipelines.captioner", "Captioner"),
    "ImageSearch": ("blip_diffusion.pipelines.image_search", "ImageSearch"),
    "Preset": ("blip_diffusion.pipelines.presets", "Preset"),
    "Subject": ("blip_diffusion.checkpoint.subject_file", "Subject"),
    "SubjectRegion": ("blip_diffusion.pipelines.composition", "SubjectRegion"),
    "evaluate": ("blip_diffusion.evaluation.evaluate", "evaluate"),
    "train": ("blip_diffusion.training.pretrain", "run"),
    "tune": ("blip_diffusion.training.personalize.api", "tune"),
}


def __getattr__(name: str) -> Any:
    """Import torch and diffusers only when something that needs them is used."""
    if name in _LAZY:
        module, attribute = _LAZY[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
