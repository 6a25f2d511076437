"""Arguments of wrong types and ranges for `tune`: one sentence with the argument's name, before anything is trained."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip_diffusion.errors import BlipDiffusionError, ConfigError, InputError
from blip_diffusion.training.personalize.api import tune
from blip_diffusion.training.personalize.config import TuneConfig
from blip_diffusion.training.personalize.early_stopping import ValidationConfig

WRONG = [
    5, True, 2.5, float("nan"), "", "\ud800", b"other", {"a": 1}, [None], [[]], object(), torch.rand(2, 3),
    np.zeros((4, 4)), torch.float16, Image, lambda: None, 1j,
]  # fmt: skip
NAMES = {"photos": "photo", "model": "name_or_path|model", "loras": "LoRA|loras", "embeddings": "embedding",
         "class_images": "class.images", "masks": "mask", "out": "out"}  # fmt: skip
"""How messages name an argument that they don't name literally."""
SETTINGS: dict[str, list[Any]] = {
    "steps": [0, -1, 2.0, 10**9, "5", True], "max_steps": [0, 10**9, None], "learning_rate": [0, -1, "1", float("inf")],
    "batch_size": [0, 1001, 2.5], "rank": [0, 10**6], "num_vectors": [0, 33], "num_class_images": [-1, 1001],
    "background_weight": [-0.1, 1.1, float("nan")], "prior_weight": [-1, 1e9], "seed": [-1, 2**63, 0.5],
    "token": ["", "two words", "x" * 65, "\ud800", 5], "flip": [1, "yes"], "method": ["lora", None],
    "trainable": ["all"], "validation": [None, {"every": 2}],
}  # fmt: skip
VALIDATION: dict[str, list[Any]] = {
    "prompts": ["on the beach", ("a",), ("a", " "), ("a", 5), ("a", "\ud800"), ("a", "\x1b")], "seeds": [0, 101, True],
    "every": [0, 2.5], "sampling_steps": [0, -5, 1001], "patience": [0], "margin": [-1, 2], "overfitted": [-0.1, 1.1],
}  # fmt: skip


@pytest.fixture
def arguments(tiny_folder: Path, dog: Image.Image, tmp_path: Path) -> dict[str, Any]:
    config = TuneConfig(steps=1, batch_size=1, trainable="embedding")
    out = tmp_path / "rex.safetensors"
    return {"photos": [dog], "category": "dog", "name": "rex", "out": out, "model": tiny_folder, "config": config}


@pytest.mark.parametrize(
    "name",
    ["photos", "category", "name", "out", "model", "config", "loras", "embeddings", "class_images", "masks",
     "segmenter", "evaluator", "resume"],
)  # fmt: skip
def test_tune_refuses_wrong_types(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    for value in WRONG:
        if name == "resume" and value is True:
            continue
        with pytest.raises(BlipDiffusionError, match=NAMES.get(name, name)) as caught:
            tune(**{**arguments, name: value})
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_arguments_in_each_others_place_are_refused(arguments: dict[str, Any], dog: Image.Image) -> None:
    for changed in ({"photos": dog}, {"photos": "photos"}, {"category": dog}, {"out": dog}, {"config": {"steps": 1}}):
        with pytest.raises(InputError):
            tune(**{**arguments, **changed})


def test_results_of_functions_are_checked(arguments: dict[str, Any], dog: Image.Image) -> None:
    stopping = TuneConfig(max_steps=1, trainable="embedding", validation=ValidationConfig(sampling_steps=1))
    for mask in (None, dog, Image.new("L", (2, 2))):
        with pytest.raises(InputError, match="The segmenter returned"):
            tune(**arguments, segmenter=lambda _, mask=mask: mask)
    for result in (None, 5, (1.0,), (1.0, float("nan")), ("a", "b")):
        with pytest.raises(InputError, match="evaluator"):
            tune(**{**arguments, "config": stopping}, evaluator=lambda _, result=result: result)


@pytest.mark.parametrize(("kind", "values"), [(TuneConfig, SETTINGS), (ValidationConfig, VALIDATION)])
def test_settings_have_types_and_ranges(kind: type, values: dict[str, list[Any]]) -> None:
    assert {*values} <= {field.name for field in fields(kind)}
    for name, wrong in values.items():
        for value in wrong:
            with pytest.raises((ConfigError, InputError), match=name.rstrip("s")):
                kind(**{name: value})
