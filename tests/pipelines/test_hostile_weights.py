"""Weights and references that would silently give wrong images, and use from several threads."""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import Preset

UNET = Path("unet") / "diffusion_pytorch_model.safetensors"
State = dict[str, Tensor]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused(folder: Path, number: float) -> None:
    state = load_file(folder / UNET)
    state["conv_in.bias"][0] = number
    save_file(state, folder / UNET)
    with pytest.raises(CheckpointError, match=r"1 not finite \(NaN or infinity\) \(conv_in.bias\)"):
        BlipDiffusionPipeline.from_pretrained(folder)


def one_number(state: State) -> State:
    return {name: torch.full((1,), 0.01).expand(tensor.shape) for name, tensor in state.items()}


def sparse(state: State) -> State:
    return {name: tensor.to_sparse() for name, tensor in state.items()}


@pytest.mark.parametrize("spoil", [one_number, sparse])
def test_expanded_and_sparse_tensors_are_refused(folder: Path, spoil: Callable[[State], State]) -> None:
    state = load_file(folder / UNET)
    (folder / UNET).unlink()
    torch.save(spoil(state), (folder / UNET).with_suffix(".bin"))
    with pytest.raises(CheckpointError, match=r"fewer numbers than its shape has|without all their numbers"):
        BlipDiffusionPipeline.from_pretrained(folder)


def test_folder_without_model_index_is_refused(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    with pytest.raises(CheckpointError, match=r"model_index\.json is missing"):
        BlipDiffusionPipeline.from_pretrained(folder)


def test_non_finite_images_raise_an_error(fresh_pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    with torch.no_grad():
        fresh_pipe.unet.conv_out.bias[0] = float("nan")
    with pytest.raises(InputError, match="The result isn't finite"):
        fresh_pipe("x", dog, "dog")


@pytest.mark.parametrize("image", [Image.new("RGBA", (64, 64)), Image.new("RGB", (90, 30), "navy")])
def test_single_colour_reference_is_refused(pipe: BlipDiffusionPipeline, image: Image.Image) -> None:
    with pytest.raises(InputError, match="only one colour"):
        pipe("x", image, "dog")
    with pytest.raises(InputError, match="only one colour"):
        pipe.encode_subject(image, "dog")


# ------------------------------------------------------------------------------------------------------------- threads


def generate_image(pipe: BlipDiffusionPipeline, dog: Image.Image, steps: int) -> Tensor:
    noise = torch.Generator().manual_seed(steps)
    return pipe("x", dog, "dog", num_inference_steps=steps, generator=noise, output_type="pt").images


def test_calls_of_one_pipeline_from_threads_are_serialised(fresh_pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    other = BlipDiffusionPipeline.from_pipe(fresh_pipe)
    other.set_progress_bar_config(disable=True)
    other.set_preset(Preset(solver="dpm++", deepcache_interval=2))
    jobs = [(pipe, steps) for steps in (2, 3, 4) for pipe in (fresh_pipe, other)] * 2
    expected = [generate_image(pipe, dog, steps) for pipe, steps in jobs]
    with ThreadPoolExecutor(4) as pool:
        result = list(pool.map(lambda job: generate_image(job[0], dog, job[1]), jobs))
    assert all(torch.equal(a, b) for a, b in zip(expected, result, strict=True))


def test_pipelines_load_in_threads_during_generation(
    fresh_pipe: BlipDiffusionPipeline, dog: Image.Image, folder: Path
) -> None:
    fresh_pipe.set_progress_bar_config(disable=True)
    expected = generate_image(fresh_pipe, dog, 2)
    register = torch.nn.Module.register_parameter
    with ThreadPoolExecutor(4) as pool:
        loaded = [pool.submit(BlipDiffusionPipeline.from_pretrained, folder) for _ in range(3)]
        images = pool.submit(generate_image, fresh_pipe, dog, 2).result()
    assert torch.equal(images, expected) and torch.nn.Module.register_parameter is register
    for future in loaded:
        state = future.result().unet.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in fresh_pipe.unet.state_dict().items())


# ------------------------------------------------------------------------------------------------------ configurations


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("qformer/config.json", "num_query_tokens", 10**6),
        ("qformer/config.json", "vision_config", {"num_hidden_layers": 10**7}),
        ("text_encoder/config.json", "num_hidden_layers", 10**6),
        ("text_encoder/config.json", "layer_norm_eps", float("nan")),
        ("unet/config.json", "layers_per_block", 10**5),
        ("unet/config.json", "block_out_channels", [8] * 10**5),
        ("unet/config.json", "sample_size", 10**6),
        ("unet/config.json", "sample_size", 2000),
        ("unet/config.json", "sample_size", [4, 4]),
        ("unet/config.json", "sample_size", None),
        ("unet/config.json", "sample_size", -4),
        ("vae/config.json", "scaling_factor", float("inf")),
        ("vae/config.json", "scaling_factor", 0),
        ("vae/config.json", "scaling_factor", "x"),
        ("vae/config.json", "scaling_factor", None),
        ("vae/config.json", "shift_factor", 0.1),
        ("vae/config.json", "norm_eps", 1e300),
        ("image_processor/preprocessor_config.json", "size", 48000),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**9),
    ],
)
def test_implausible_configuration_values_are_refused(folder: Path, file: str, key: str, value: object) -> None:
    table = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**table, key: value}))
    with pytest.raises(CheckpointError, match=r"can't be (used|read)"):
        BlipDiffusionPipeline.from_pretrained(folder)


def test_attention_implementation_in_a_config_is_ignored(folder: Path) -> None:
    file = folder / "text_encoder" / "config.json"
    table = json.loads(file.read_text())
    file.write_text(json.dumps({**table, "attn_implementation": "owner/repo", "_attn_implementation": "owner/repo"}))
    assert BlipDiffusionPipeline.from_pretrained(folder).text_encoder.config._attn_implementation != "owner/repo"


def test_fifo_is_refused_as_a_configuration(folder: Path) -> None:
    (folder / "unet" / "config.json").unlink()
    os.mkfifo(folder / "unet" / "config.json")
    with pytest.raises(CheckpointError, match="it is not a file"):
        BlipDiffusionPipeline.from_pretrained(folder)


FILES = {
    "unet/config.json": (
        "mid_block_scale_factor", "norm_eps", "block_out_channels", "down_block_types", "act_fn", "flip_sin_to_cos",
        "attention_head_dim", "dropout", "only_cross_attention",
    ),
    "vae/config.json": ("block_out_channels", "scaling_factor", "force_upcast", "latent_channels", "act_fn"),
    "qformer/config.json": ("num_query_tokens", "projection_inner", "vision_config", "qformer_config"),
    "text_encoder/config.json": ("hidden_size", "layer_norm_eps", "hidden_act"),
    "image_processor/preprocessor_config.json": ("size", "image_mean", "image_std", "resize_mode"),
    "model_index.json": ("prompt_reps", "guidance_scale", "num_inference_steps"),
}  # fmt: skip
OTHERS: tuple[object, ...] = ("x", [[1, [2]]], {"a": 1}, [None], "\x1b[2J\n")


@pytest.mark.parametrize(("file", "key"), [(file, key) for file, keys in FILES.items() for key in keys])
def test_settings_of_other_types_are_refused(folder: Path, file: str, key: str) -> None:
    table = json.loads((folder / file).read_text())
    for value in OTHERS:
        if type(value) is dict and key in ("size", "vision_config", "qformer_config"):
            continue  # missing values are the published ones
        (folder / file).write_text(json.dumps({**table, key: value}))
        with pytest.raises(CheckpointError) as caught:
            BlipDiffusionPipeline.from_pretrained(folder)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


@pytest.mark.parametrize("part", ["vision_config", "qformer_config"])
@pytest.mark.parametrize("key", ["layer_norm_eps", "hidden_size", "num_attention_heads", "image_size", "vocab_size"])
def test_settings_of_the_qformer_are_numbers(folder: Path, part: str, key: str) -> None:
    file = folder / "qformer/config.json"
    table = json.loads(file.read_text())
    if key in table[part]:
        for value in (*OTHERS, True, None):
            file.write_text(json.dumps({**table, part: {**table[part], key: value}}))
            with pytest.raises(CheckpointError, match="The configuration of the Q-Former can't be used"):
                BlipDiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("file", [*FILES, "scheduler/scheduler_config.json"])
def test_configurations_have_a_size(folder: Path, file: str) -> None:
    table = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**table, **{f"key{number}": 1 for number in range(10_000)}}))
    with pytest.raises(CheckpointError, match="has more than 64 KiB"):
        BlipDiffusionPipeline.from_pretrained(folder)
