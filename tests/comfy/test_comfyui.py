"""The nodes in a real ComfyUI: set COMFYUI to a checkout of it, and COMFYUI_PYTHON to its Python with this package."""

import io
import json
import os
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, EulerDiscreteScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file

from blip_diffusion.checkpoint.model_folder import save_model
from blip_diffusion.checkpoint.subject_file import Subject, fingerprint, write_subject
from blip_diffusion.cli.main import main
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from tests.comfy.server import ROOT, Comfy, Graph, running
from tests.conftest import tiny_model

COMFYUI = os.environ.get("COMFYUI", "")
pytestmark = [
    pytest.mark.faces,
    pytest.mark.skipif(not COMFYUI, reason="needs ComfyUI: set COMFYUI to its folder"),
]
WORKFLOWS = ROOT / "comfyui" / "api_workflows"
STEPS = 5
SD_SCALE = 0.18215
"""What ComfyUI divides latents of Stable Diffusion 1.5 by."""


@pytest.fixture(scope="module")
def sd_folder(world: AssetLibrary, batch: SubjectBatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose U-Net has Stable Diffusion's 32 groups, with two subjects, a LoRA, and a ControlNet."""
    folder = tmp_path_factory.mktemp("comfy") / "tiny"
    model = tiny_model(world, batch)
    torch.manual_seed(0)
    model.unet = UNet2DConditionModel.from_config({**model.unet.config, "norm_num_groups": 32}).eval()
    save_model(model, folder)
    return folder


@pytest.fixture(scope="module")
def comfy(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    folder = tmp_path_factory.mktemp("base")
    write_files(folder, BlipDiffusionPipeline.from_pretrained(sd_folder))
    packs = {"blip-diffusion": ROOT / "comfyui", "tiny-unet": Path(__file__).parent / "tiny_unet_pack"}
    with running(Path(COMFYUI), folder, packs) as server:
        yield server


def write_files(folder: Path, pipe: BlipDiffusionPipeline) -> None:
    """What a user would have put into ComfyUI's folders."""
    subjects, loras, images = (folder / name for name in ("models/blip_subjects", "models/loras", "input"))
    for place in (subjects, loras, images):
        place.mkdir(parents=True)
    base, rng = fingerprint(pipe.unet, pipe.text_encoder), torch.Generator().manual_seed(0)
    for name in ("rex", "tom"):
        write_subject(
            Subject(name, "dog", torch.randn(1, 4, 32, generator=rng), base), subjects / f"{name}.safetensors"
        )
    (subjects / "damaged.safetensors").write_bytes(b"no tensors")
    layer = next(name for name, _ in pipe.unet.named_modules() if name.endswith("attn1.to_q"))
    state = {f"unet.{layer}.lora_A.weight": torch.randn(2, 32, generator=rng),
             f"unet.{layer}.lora_B.weight": torch.randn(32, 2, generator=rng)}  # fmt: skip
    save_file(state, loras / "style.safetensors")
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
    torch.nn.init.normal_(net.controlnet_mid_block.weight, std=0.3)
    net.save_pretrained(folder / "controlnet")
    for name in ("dog", "armchair"):
        Image.open(ROOT / "examples" / f"{name}.png").save(images / f"{name}.png")


def workflow(name: str, **inputs: dict[str, Any]) -> Graph:
    """An example workflow, with other inputs for some kinds of node."""
    graph = json.loads((WORKFLOWS / f"{name}.json").read_text())
    for node in graph.values():
        node["inputs"].update(inputs.get(node["class_type"].removeprefix("BlipDiffusion"), {}))
    return graph


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def generate(out: Path, *arguments: object) -> list[Path]:
    """The files of the command line."""
    assert main(["generate", *map(str, arguments), "--out", str(out), "--quiet"]) == 0
    return sorted(out.glob("*.png"))


def test_every_node_is_there(comfy: Comfy) -> None:
    known = {name: node for name, node in comfy.get("/object_info").items() if name.startswith("BlipDiffusion")}
    used = {node["class_type"] for path in WORKFLOWS.glob("*.json") for node in json.loads(path.read_text()).values()}
    assert set(known) == {name for name in used if name.startswith("BlipDiffusion")}
    assert {node["category"] for node in known.values()} == {"blip-diffusion"}
    assert all(node["description"] for node in known.values())


def test_images_are_those_of_the_command_line(comfy: Comfy, tmp_path: Path) -> None:
    outcome = comfy.run(workflow("generate", Generate={"num_images": 2, "seed": 3, "steps": STEPS}))
    assert outcome.end == "execution_success", outcome.data
    command = ("on the beach", "--reference", ROOT / "examples/dog.png", "--category", "dog", "--num-images", 2)
    files = generate(tmp_path, *command, "--seed", 3, "--steps", STEPS, "--device", "cpu")
    ours = outcome.shown["5"]
    assert len(ours) == len(files) == 2
    for one, other in zip(ours, files, strict=True):
        assert np.array_equal(pixels(one), pixels(other))
    assert outcome.progress == [(step, STEPS) for step in range(1, STEPS + 1)]
    assert len(outcome.previews) == 3
    assert all(Image.open(io.BytesIO(one)).format == "JPEG" for one in outcome.previews)
    assert pixels(outcome.shown["3"][0]).shape == (128, 128, 3)
    assert main(["generate", "--reproduce", str(ours[1]), "--out", str(tmp_path / "again"), "--quiet"]) == 0
    again = pixels(next((tmp_path / "again").iterdir())).astype(int)  # alone, which may round otherwise
    assert np.abs(again - pixels(ours[1])).max() <= 1
    with Image.open(ours[0]) as image:
        assert json.loads(image.info["prompt"])["4"]["class_type"] == "BlipDiffusionGenerate"


def test_saveimage_of_comfyui_writes_the_same_pixels(comfy: Comfy) -> None:
    graph = workflow("generate", Generate={"num_images": 1, "steps": 2})
    graph["6"] = {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "stock"}}
    shown = comfy.run(graph).shown
    assert np.array_equal(pixels(shown["5"][0]), pixels(shown["6"][0]))


def test_interruption_ends_within_a_step_and_the_next_graph_runs(comfy: Comfy) -> None:
    outcome = comfy.run(workflow("generate", Generate={"steps": 500}), interrupt_at=3)
    assert outcome.end == "execution_interrupted"
    assert outcome.progress[-1][0] < 100
    assert comfy.run(workflow("generate", Generate={"num_images": 1, "steps": 1})).end == "execution_success"


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"Generate": {"prompt": " "}}, "The prompt is empty: describe the scene"),
        ({"Subject": {"category": ""}}, "The category is empty: name what the subject is"),
        ({"Generate": {"seed": -1}}, "Value -1 smaller than min of 0"),
        ({"Generate": {"num_images": 0}}, "Value 0 smaller than min of 1"),
        ({"Generate": {"subject": ["2", 0]}}, "subject, received_type(IMAGE) mismatch input_type(BLIP_SUBJECT)"),
    ],
    ids=str,
)
def test_wrong_inputs_are_refused_before_anything_runs(comfy: Comfy, inputs: dict[str, Any], sentence: str) -> None:
    status, answer = comfy.post("/prompt", {"prompt": workflow("generate", **inputs)})
    errors = [error for node in answer["node_errors"].values() for error in node["errors"]]
    assert status == 400
    assert len(errors) == 1 and sentence in f"{errors[0]['message']} {errors[0]['details']}", errors


@pytest.mark.parametrize(
    ("name", "inputs", "sentence"),
    [
        ("generate", {"Generate": {"width": 100}}, "The size 100 can't be used: give a multiple of"),
        ("generate", {"Generate": {"preset": "warp"}}, "There is no preset 'warp': use exact, fast or turbo"),
        ("generate", {"Load": {"model": "gone"}}, "There is no model gone: use mini, a folder, or a hub id"),
        ("generate", {"Load": {"path": "/no/where"}}, "There is no model /no/where: use mini, a folder, or a hub id"),
        ("structure_and_style", {"Load": {"path": ""}, "Control": {"kind": "map"}}, "There is no ControlNet for map"),
        ("mix_tuned_subjects", {"LoadSubject": {"file": "damaged.safetensors"}}, "damaged.safetensors"),
        ("mix_tuned_subjects", {}, "'rex' was tuned for another model, not for this model: load that one"),
        ("mix_tuned_subjects", {"MixSubjects": {"weight_1": 1.0, "weight_2": -1.0}}, "weights of the subjects add up"),
    ],
    ids=range(8),
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(comfy: Comfy, name: str, inputs: dict[str, Any], sentence: str) -> None:
    graph = workflow(name, **inputs)
    if name == "structure_and_style":
        del graph["7"]["inputs"]["loras"], graph["6"]
    outcome = comfy.run(graph)
    message = outcome.data["exception_message"]
    assert outcome.end == "execution_error"
    assert sentence in message and message.count("\n") <= 1 and "--" not in message, message


def test_tuned_subjects_are_mixed_as_on_the_command_line(comfy: Comfy, sd_folder: Path, tmp_path: Path) -> None:
    graph = workflow("mix_tuned_subjects", Load={"path": str(sd_folder)})
    shares = (
        f"{comfy.folder}/models/blip_subjects/{name}.safetensors:{weight}"
        for name, weight in (("rex", 0.3), ("tom", 0.7))
    )
    subjects = [part for share in shares for part in ("--subject", share)]
    (file,) = generate(tmp_path, "on the beach", *subjects, "--model", sd_folder, "--device", "cpu")
    outcome = comfy.run(graph)
    assert outcome.end == "execution_success", outcome.data
    assert np.array_equal(pixels(outcome.shown["6"][0]), pixels(file))


def test_controls_and_loras_are_those_of_the_command_line(comfy: Comfy, sd_folder: Path, tmp_path: Path) -> None:
    net = comfy.folder / "controlnet"
    graph = workflow("structure_and_style", Load={"path": str(sd_folder)}, Control={"controlnet": str(net), "end": 0.6})
    command = ["in a living room", "--reference", ROOT / "examples/dog.png", "--category", "dog", "--preset", "fast"]
    command += ["--control", f"canny={ROOT}/examples/armchair.png:0.8", "--controlnet", f"canny={net}"]
    command += ["--control-guidance-end", "0.6"]
    command += ["--lora", f"{comfy.folder}/models/loras/style.safetensors:0.7", "--model", sd_folder, "--device", "cpu"]
    (file,) = generate(tmp_path, *command)
    outcome = comfy.run(graph)
    assert outcome.end == "execution_success", outcome.data
    assert np.array_equal(pixels(outcome.shown["8"][0]), pixels(file))
    without = deepcopy(graph)
    del without["7"]["inputs"]["loras"], without["7"]["inputs"]["controls"]
    plain = comfy.run(without)  # the LoRA of the graph before is gone
    (file,) = generate(tmp_path / "plain", *command[:7], *command[-4:])
    assert np.array_equal(pixels(plain.shown["8"][0]), pixels(file))


def test_ksampler_makes_the_image_of_this_pipeline(comfy: Comfy, sd_folder: Path) -> None:
    """From the same noise, over the same noise levels, by Euler's method: 10 steps of 111 timesteps."""
    seed, cfg, steps = 7, 5.0, 10
    graph = workflow("ksampler", Load={"path": str(sd_folder)})
    graph["5"] = {"class_type": "TinyUnet", "inputs": {"path": f"{sd_folder}/unet/diffusion_pytorch_model.safetensors"}}
    graph["6"]["inputs"] |= {"width": 32, "height": 32}
    graph["7"]["inputs"] |= {"seed": seed, "cfg": cfg, "steps": steps}
    graph["4"]["inputs"]["negative_prompt"] = "in the snow"
    del graph["8"], graph["9"]
    graph["10"] = {"class_type": "SaveLatent", "inputs": {"samples": ["7", 0], "filename_prefix": "test"}}
    outcome = comfy.run(graph)
    assert outcome.end == "execution_success", outcome.data
    theirs = load_file(next((comfy.folder / "output").glob("test*.latent")))["latent_tensor"] * SD_SCALE

    pipe = BlipDiffusionPipeline.from_pretrained(sd_folder)
    scheduler = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
    }
    pipe.scheduler = EulerDiscreteScheduler(**scheduler, timestep_spacing="linspace")
    pipe.scheduler.set_timesteps(steps)
    sigma = float(pipe.scheduler.sigmas[0])
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
    images = [
        pipe(
            "on the beach", Image.open(ROOT / "examples/dog.png"), "dog", "dog", negative_prompt="in the snow",
            latents=noise * (1 + sigma**2) ** 0.5 / sigma, num_inference_steps=steps, guidance_scale=cfg,
            guidance_rescale=0.0, output_type=kind,
        ).images
        for kind in ("latent", "pt")
    ]  # fmt: skip
    assert torch.allclose(theirs, images[0], atol=2e-4), (theirs - images[0]).abs().max()
    decoded = pipe._decode_latents(theirs)
    assert (decoded - images[1]).abs().max() < 1 / 255
