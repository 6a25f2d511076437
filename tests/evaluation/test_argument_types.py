"""Arguments of wrong types and ranges for the functions that evaluate, before a model is loaded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blip_diffusion.errors import BlipDiffusionError, InputError
from blip_diffusion.evaluation.blip2.report import evaluate_captions
from blip_diffusion.evaluation.editing.evaluate import EditEvaluationConfig, evaluate_edits
from blip_diffusion.evaluation.evaluate import EvalConfig, evaluate
from blip_diffusion.evaluation.generators.cache import Shard

WRONG = [2.5, float("nan"), "", b"other", {"a": 1}, [None], object(), torch.rand(2, 3), np.zeros((4, 4)), -5, True]
COMMON = {"steps": [0, 1001, "5"], "engine": ["cuda"], "metrics": ["dino", ("nonsense",)], "dataset": ["", 5]}
SETTINGS: dict[type, dict[str, list[Any]]] = {
    EvalConfig: COMMON | {
        "model": [5, None], "condition": ["best"], "seeds": ["4", 2.5], "subjects": [True], "prompts": ["all"],
        "guidance_scale": [-1, 101, "7"], "dtype": ["float8", torch.float16], "preset": [5], "probe_images": [0, -1],
        "tuning": [{"steps": 1}, None], "loras": ["x.safetensors", [5]], "embeddings": [("x",)],
    },
    EditEvaluationConfig: COMMON | {
        "model": [5], "edits": [1, "4"], "conditions": ["copy", ("nonsense",)], "strength": [0, -1, 1.5, "1"],
        "pie_bench": [5, ""], "lpips": [5],
    },
}  # fmt: skip
FUNCTIONS: dict[Any, tuple[dict[str, Any], list[str]]] = {
    evaluate: (
        {"config": EvalConfig()},
        ["config", "out", "shard", "batch_size", "device", "log", "backend", "actors"],
    ),
    evaluate_edits: ({"config": EditEvaluationConfig()}, ["config", "out", "device", "log"]),
    evaluate_captions: (
        {"dataset": "world.zip", "model": "mini"},
        ["dataset", "out", "num_images", "num_beams", "vqa", "probe_images", "rerank", "device", "seed"],
    ),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_have_types_and_ranges(kind: type) -> None:
    for name, wrong in SETTINGS[kind].items():
        for value in wrong:
            with pytest.raises(InputError) as caught:
                kind(**{name: value})
            assert "\n" not in str(caught.value)
    assert kind(dataset="world.zip").dataset == Path("world.zip")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_refuse_wrong_types(function: Any, tmp_path: Path) -> None:
    common, names = FUNCTIONS[function]
    for name in names:
        for value in WRONG:
            if name == "vqa" and value is True:
                continue
            with pytest.raises(BlipDiffusionError, match=name.replace("_", ".")):
                function(**{"out": tmp_path / "out", **common, name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("numbers", [(0, 1), (3, 2), (1, 10**6), (1.0, 2), ("1", "2")])
def test_shards_have_a_range(numbers: tuple[Any, Any]) -> None:
    with pytest.raises(InputError, match=r"index|count"):
        Shard(*numbers)
