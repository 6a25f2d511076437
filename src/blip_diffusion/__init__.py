"""BLIP-Diffusion (Li, Li & Hoi, NeurIPS 2023): one picture and a sentence in, the subject in that scene out.

from blip_diffusion import BlipDiffusionPipeline
pipe = BlipDiffusionPipeline.from_pretrained("mini")
pipe("swimming in a lake", photo, "dog", "dog").images[0]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from blip_diffusion.errors import BlipDiffusionError

if TYPE_CHECKING:
    from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline as BlipDiffusionPipeline

__version__ = "0.4.0"
__all__ = ["BlipDiffusionError", "BlipDiffusionPipeline", "__version__"]

_LAZY = {"BlipDiffusionPipeline": "blip_diffusion.pipelines.pipeline"}


def __getattr__(name: str) -> Any:
    """Imports torch and diffusers only when something that needs them is asked for."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
