"""A short tuning of the tiny model."""

from pathlib import Path

from PIL import Image

from blip_diffusion.training.personalize.api import tune
from blip_diffusion.training.personalize.artifacts import Tuned
from blip_diffusion.training.personalize.config import TuneConfig
from blip_diffusion.training.personalize.early_stopping import ValidationConfig
from tests.training.photos import written

QUICK = ValidationConfig(every=2, sampling_steps=1, patience=2)


def tune_photos(
    folder: Path, model: Path, dog: Image.Image, *, name: str = "rex", resume: bool = False, **more: object
) -> Tuned:
    """Tune to three photos of the dog; `more` are fields of `TuneConfig`."""
    photos = folder / "photos" if (folder / "photos").is_dir() else written(dog, folder / "photos")
    config = TuneConfig(**{"steps": 3, "batch_size": 2, "validation": QUICK, **more})  # type: ignore[arg-type]
    out = folder / f"{name}.safetensors"
    return tune([photos], category="dog", name=name, out=out, model=model, config=config, resume=resume)
