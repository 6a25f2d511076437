"""Requests of nodes: those of the command line, and nothing of them is left in the model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from blip_diffusion.checkpoint.adapter_refs import lora_ref
from blip_diffusion.checkpoint.subject_file import Subject, fingerprint, write_subject
from blip_diffusion.comfy.generation import generate, node_rules, request_of
from blip_diffusion.comfy.loaded_model import LoadedModel, find_models
from blip_diffusion.comfy.subjects import SubjectInput, subject_from_file, subject_from_images
from blip_diffusion.comfy.tensors import from_pil
from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.generation.run import run

Report = Callable[[int, int, Image.Image | None], None]


def silent(step: int, steps: int, preview: Image.Image | None) -> None:
    pass


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> LoadedModel:
    return LoadedModel(str(tiny_folder), "cpu")


@pytest.fixture
def subject(dog: Image.Image) -> SubjectInput:
    return subject_from_images(from_pil([dog]), "dog")


def test_zero_is_the_models_default(model: LoadedModel, subject: SubjectInput) -> None:
    request = request_of(model, subject, "on the beach", steps=0, guidance_scale=0.0, width=0, height=0, seed=4)
    assert request.steps is None and request.guidance_scale is None and request.width is None
    assert request.preset == "" and request.dtype == "float32" and request.seed == 4
    assert request.category == request.target_category == "dog"
    assert request_of(model, subject, "x", target_category="cat", steps=7, preset="fast").target_category == "cat"


def test_images_are_those_of_a_run(model: LoadedModel, subject: SubjectInput, tmp_path: Path) -> None:
    request = request_of(model, subject, "on the beach", num_images=9, seed=2, steps=2)
    steps: list[tuple[int, int, bool]] = []
    images, settings = generate(model, request, lambda *now: steps.append((*now[:2], now[2] is not None)), previews=1)
    files = run(request, tmp_path, device="cpu", progress=False)
    assert [image.tobytes() for image in images] == [Image.open(file).tobytes() for file in files]
    assert settings.images == tuple(("on the beach", seed) for seed in range(2, 11))
    assert steps == [(1, 4, True), (2, 4, False), (3, 4, True), (4, 4, False)]  # two batches


def test_nothing_of_a_request_stays(model: LoadedModel, subject: SubjectInput, tmp_path: Path) -> None:
    pipe = model.any_pipe()
    layer = next(name for name, _ in pipe.unet.named_modules() if name.endswith("attn1.to_q"))
    save_file({f"unet.{layer}.lora_A.weight": torch.randn(2, 32), f"unet.{layer}.lora_B.weight": torch.randn(32, 2)},
              tmp_path / "style.safetensors")  # fmt: skip
    base = fingerprint(pipe.unet, pipe.text_encoder)
    write_subject(Subject("rex", "dog", torch.randn(1, 4, 32), base), tmp_path / "rex.safetensors")
    plain = request_of(model, subject, "on the beach", steps=2)
    before = generate(model, plain, silent)[0][0].tobytes()
    rex = subject_from_file(tmp_path / "rex.safetensors")
    styled = request_of(model, rex, "on the beach", steps=2, loras=[lora_ref(tmp_path / "style.safetensors")])
    with_both = generate(model, styled, silent)[0][0].tobytes()
    assert with_both != before and pipe.subjects == ()
    assert generate(model, plain, silent)[0][0].tobytes() == before
    assert generate(model, styled, silent)[0][0].tobytes() == with_both


def test_what_a_report_raises_ends_the_generation(model: LoadedModel, subject: SubjectInput) -> None:
    class StoppedError(Exception):
        pass

    steps = []

    def stop(step: int, *_: Any) -> None:
        steps.append(step)
        if step == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        generate(model, request_of(model, subject, "on the beach", steps=5), stop)
    assert steps == [1, 2]
    assert generate(model, request_of(model, subject, "on the beach", steps=1), silent)[0]


def test_a_subject_or_a_lora_is_needed(model: LoadedModel) -> None:
    with pytest.raises(InputError, match="There is no subject: connect one"):
        request_of(model, None, "on the beach", target_category="dog")


def test_a_precision_is_loaded_when_it_is_needed(tiny_folder: Path) -> None:
    model = LoadedModel(str(tiny_folder), "cpu")
    first = model.any_pipe()
    assert model.pipe("float32") is first is model.any_pipe()
    assert model.pipe("bfloat16").unet.dtype == torch.bfloat16
    assert LoadedModel("mini", "cpu", "bfloat16").dtype_of("") == "bfloat16"
    with pytest.raises(CheckpointError, match="There is no model"):
        LoadedModel("/no/where").any_pipe()


def test_models_are_found_by_their_index(tiny_folder: Path, tmp_path: Path) -> None:
    for name, table in {"a": "{", "b": json.dumps({"_class_name": "StableDiffusionPipeline"}), "c": "[]"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(table)
    assert find_models([tmp_path, tiny_folder.parent, tmp_path / "gone"]) == {tiny_folder.name: tiny_folder}


def test_within_a_node_weights_can_be_changed_and_sentences_name_inputs() -> None:
    with torch.inference_mode(), node_rules():
        assert not torch.zeros(1).is_inference() and not torch.is_grad_enabled()
    with pytest.raises(InputError, match=r"^num_images is 0: use controlnet\.$"), node_rules():
        raise InputError("--num-images is 0: use --controlnet.")
