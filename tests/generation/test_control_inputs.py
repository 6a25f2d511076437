from dataclasses import replace
from typing import Any

import pytest
from diffusers import T2IAdapter
from PIL import Image

from blip_diffusion.annotators import KINDS, NETWORKS
from blip_diffusion.errors import InputError
from blip_diffusion.generation.control_inputs import control_arguments, control_kinds
from blip_diffusion.generation.control_kinds import CONTROLNETS
from blip_diffusion.generation.request import ControlInput, GenerationRequest
from blip_diffusion.generation.run import _subject_arguments
from blip_diffusion.images import png_bytes
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

REQUEST: Any = {"prompts": ("on the beach",), "reference": b"", "category": "dog", "target_category": "dog"}
PNG = png_bytes(Image.effect_noise((20, 20), 80).convert("RGB"))


def test_a_mask_as_control_image_gives_the_subjects_box(placed: BlipDiffusionPipeline, pipe: Any) -> None:
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 4, 24, 28))
    request = GenerationRequest(**REQUEST, controls=(ControlInput("mask", png_bytes(mask)),))
    assert _subject_arguments(placed, request)["box"] == (0.25, 0.125, 0.75, 0.875)
    assert _subject_arguments(placed, replace(request, box=(0.0, 0.0, 0.5, 0.5)))["box"] == (0.0, 0.0, 0.5, 0.5)
    assert _subject_arguments(placed, replace(request, controls=(ControlInput("map", PNG),)))["box"] is None
    assert _subject_arguments(pipe, request)["box"] is None  # without positions
    assert control_arguments(placed, request) == {}  # no adapter: the box alone
    with pytest.raises(InputError, match="no ControlNet for mask"):
        control_arguments(pipe, request)


def test_the_subject_of_a_photo_for_edges_gives_the_subjects_box(placed: BlipDiffusionPipeline, pipe: Any) -> None:
    photo = Image.new("RGB", (64, 64), "white")
    photo.paste((200, 40, 40), (16, 8, 48, 56))
    control = ControlInput("canny", png_bytes(photo), is_map=False)
    request = GenerationRequest(**REQUEST, controls=(control,))
    assert _subject_arguments(placed, request)["box"] == pytest.approx((0.25, 0.125, 0.75, 0.875), abs=0.04)
    assert _subject_arguments(placed, replace(request, box=(0.0, 0.0, 0.5, 0.5)))["box"] == (0.0, 0.0, 0.5, 0.5)
    assert _subject_arguments(placed, replace(request, controls=(replace(control, is_map=True),)))["box"] is None
    assert _subject_arguments(pipe, request)["box"] is None  # without positions


@pytest.mark.parametrize(("kind", "background"), [("depth", (0, 0, 0)), ("normal", (128, 128, 255))])
def test_depth_and_normals_before_a_plain_background_give_the_subjects_box(
    kind: str, background: tuple[int, int, int], placed: BlipDiffusionPipeline, pipe: Any
) -> None:
    image = Image.new("RGB", (64, 64), background)
    image.paste((200, 200, 200) if kind == "depth" else (200, 90, 200), (16, 8, 48, 56))
    request = GenerationRequest(**REQUEST, controls=(ControlInput(kind, png_bytes(image)),))
    assert _subject_arguments(placed, request)["box"] == pytest.approx((0.25, 0.125, 0.75, 0.875), abs=0.04)
    filled = replace(request, controls=(ControlInput(kind, PNG),))
    assert _subject_arguments(placed, filled)["box"] is None  # of a photo, with a background
    assert _subject_arguments(pipe, request)["box"] is None  # without positions
    placed.t2i_adapters = {kind: T2IAdapter(1, list(placed.unet.config.block_out_channels), num_res_blocks=1)}
    try:
        assert control_arguments(placed, request)["controlnet"] is placed.t2i_adapters[kind]
    finally:
        placed.t2i_adapters = {}


def test_adapters_of_the_model_act_on_the_conditional_prediction_only(fresh_pipe: Any) -> None:
    channels = list(fresh_pipe.unet.config.block_out_channels)
    fresh_pipe.t2i_adapters = {"canny": T2IAdapter(3, channels, num_res_blocks=1)}
    request = GenerationRequest(**REQUEST, controls=(ControlInput("canny", PNG, 0.5),))
    assert control_arguments(fresh_pipe, request)["guess_mode"]
    assert not control_arguments(fresh_pipe, replace(request, region_mode="multidiffusion"))["guess_mode"]


def test_a_kind_that_the_model_does_not_serve_is_refused_by_the_kinds_that_it_does(fresh_pipe: Any) -> None:
    request = GenerationRequest(**REQUEST, controls=(ControlInput("depth", PNG),))
    assert control_kinds(fresh_pipe) == ()
    with pytest.raises(InputError, match=r"for depth and this model: use another model or ControlNet\.$"):
        control_arguments(fresh_pipe, request)
    adapter = T2IAdapter(1, list(fresh_pipe.unet.config.block_out_channels), num_res_blocks=1)
    fresh_pipe.t2i_adapters = {"normal": adapter, "canny": adapter}
    assert control_kinds(fresh_pipe) == ("canny", "normal")
    with pytest.raises(InputError, match="for depth and this model: use canny, normal, or another model or Contr"):
        control_arguments(fresh_pipe, request)
    fresh_pipe.controlnet = object()
    assert control_kinds(fresh_pipe) == ("map", "canny", "normal")


def test_placed_tokens_serve_masks(placed: BlipDiffusionPipeline) -> None:
    assert control_kinds(placed) == ("mask",)


def test_default_controlnets_match_their_annotators() -> None:
    assert CONTROLNETS.keys() < set(KINDS)
    assert NETWORKS["normal"] == "NormalBaeDetector" and CONTROLNETS["normal"].endswith("_normalbae")
