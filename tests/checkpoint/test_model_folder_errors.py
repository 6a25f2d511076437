"""Model folders with missing, damaged or mismatched files: one sentence names the fault."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from blip_diffusion.checkpoint.model_folder import read_parts
from blip_diffusion.errors import CheckpointError
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

from .folders import WEIGHTS, edit_json

State = dict[str, Tensor]


def edit_weights(path: Path, change: Callable[[State], Any]) -> None:
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(state)
    save_file(state, path)


@pytest.mark.parametrize("part", WEIGHTS)
def test_missing_tensor_is_named(model_folder: Path, part: str) -> None:
    name = next(iter(load_file(model_folder / WEIGHTS[part])))
    edit_weights(model_folder / WEIGHTS[part], lambda state: state.pop(name))
    with pytest.raises(CheckpointError, match=r"1 missing \(\S+\)"):
        read_parts(model_folder)


@pytest.mark.parametrize("part", WEIGHTS)
def test_unexpected_tensor_is_named(model_folder: Path, part: str) -> None:
    edit_weights(model_folder / WEIGHTS[part], lambda state: state.update(stranger=torch.zeros(2)))
    with pytest.raises(CheckpointError, match=r"1 unexpected \(stranger\)"):
        read_parts(model_folder)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("qformer", "proj_layer.dense1.weight"),
        ("text_encoder", "text_model.encoder.layers.0.mlp.fc1.weight"),
        ("unet", "conv_in.weight"),
        ("vae", "decoder.conv_in.weight"),
    ],
)
def test_transposed_tensor_is_refused(model_folder: Path, part: str, name: str) -> None:
    """A tensor of another shape is refused even if its number of elements is equal."""
    edit_weights(
        model_folder / WEIGHTS[part], lambda state: state.update({name: state[name].transpose(0, 1).contiguous()})
    )
    with pytest.raises(CheckpointError, match=r"shape"):
        read_parts(model_folder)


@pytest.mark.parametrize("part", WEIGHTS)
def test_integer_weights_are_refused(model_folder: Path, part: str) -> None:
    name = next(name for name, tensor in load_file(model_folder / WEIGHTS[part]).items() if tensor.is_floating_point())
    edit_weights(model_folder / WEIGHTS[part], lambda state: state.update({name: state[name].to(torch.int8)}))
    with pytest.raises(CheckpointError, match=r"\d not of floats \(\S+ is int8"):
        read_parts(model_folder)


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ({"weight_map": {"a": ["b"]}}, "has no weight_map"),
        ({"weight_map": {"a": 1, "b": "model.safetensors"}}, "has no weight_map"),
        ({"weight_map": {"a": "../unet/model.safetensors"}}, "which is not in its folder"),
    ],
)
def test_invalid_shard_index_is_refused(model_folder: Path, index: dict[str, Any], sentence: str) -> None:
    (model_folder / WEIGHTS["text_encoder"]).unlink()
    (model_folder / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=sentence):
        read_parts(model_folder)


def test_deeply_nested_configuration_is_refused(model_folder: Path) -> None:
    (model_folder / "unet" / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"config\.json can't be read"):
        read_parts(model_folder)


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("length", [0, 5, 1000])
def test_truncated_file_is_refused(model_folder: Path, part: str, length: int) -> None:
    path = model_folder / WEIGHTS[part]
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=part):
        read_parts(model_folder)


@pytest.mark.parametrize(
    "name",
    [
        "qformer/config.json",
        "text_encoder/config.json",
        "unet/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "image_processor/preprocessor_config.json",
        "model_index.json",
        "tokenizer/tokenizer.json",
    ],
)
def test_broken_configuration_is_refused(model_folder: Path, name: str) -> None:
    (model_folder / name).write_text("not json {")
    with pytest.raises(CheckpointError, match=name.split("/")[0].split(".")[0]):
        read_parts(model_folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("qformer/config.json", {"qformer_config": {"hidden_size": "wide"}}),
        ("qformer/config.json", {"qformer_config": {"num_attention_heads": 0}}),
        ("qformer/config.json", {"vision_config": [1]}),
        ("qformer/config.json", {"vision_config": {"tower": "eiffel"}}),
        ("qformer/config.json", {"num_query_tokens": -1}),
        ("text_encoder/config.json", {"hidden_act": "none"}),
        ("text_encoder/config.json", {"hidden_size": "wide"}),
        ("text_encoder/config.json", {"max_position_embeddings": 10**15}),
        ("unet/config.json", {"block_out_channels": 7}),
        ("unet/config.json", {"_class_name": "AutoencoderKL"}),
        ("vae/config.json", {"down_block_types": ["Block"]}),
        ("scheduler/scheduler_config.json", {"beta_schedule": "none"}),
        ("scheduler/scheduler_config.json", {"_class_name": "AutoencoderKL"}),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1]}),
        ("scheduler/scheduler_config.json", {"thresholding": True, "dynamic_thresholding_ratio": "x"}),
        ("scheduler/scheduler_config.json", {"timestep_spacing": "wide"}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 100_000}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": True}),
        ("scheduler/scheduler_config.json", {"steps_offset": 10_000, "timestep_spacing": "leading"}),
        ("scheduler/scheduler_config.json", {"_class_name": "CMStochasticIterativeScheduler"}),
        ("scheduler/scheduler_config.json", {"_class_name": "SASolverScheduler", "predictor_order": 0}),
        ("scheduler/scheduler_config.json", {"_class_name": "DPMSolverSinglestepScheduler", "solver_order": -1}),
        ("scheduler/scheduler_config.json", {"_class_name": "UniPCMultistepScheduler", "solver_order": 999}),
        ("image_processor/preprocessor_config.json", {"size": "large"}),
        ("image_processor/preprocessor_config.json", {"image_mean": [0.5]}),
        ("image_processor/preprocessor_config.json", {"image_mean": [0.5, 0.5, float("nan")]}),
        ("image_processor/preprocessor_config.json", {"image_std": [0.5, 0, 0.5]}),
        ("image_processor/preprocessor_config.json", {"size": -5}),
        ("image_processor/preprocessor_config.json", {"size": 0}),
        ("image_processor/preprocessor_config.json", {"size": 100}),
        ("unet/config.json", {"cross_attention_dim": [32, 32]}),
        ("model_index.json", {"mean": ["a", "b", "c"]}),
        ("model_index.json", {"num_inference_steps": "fifty"}),
        ("model_index.json", {"num_inference_steps": 2.5}),
        ("model_index.json", {"prompt_reps": True}),
        ("model_index.json", {"guidance_scale": float("nan")}),
        ("model_index.json", {"noise_scale": float("inf")}),
        ("model_index.json", {"guidance_rescale": 10**400}),
    ],
)
def test_invalid_configuration_is_refused(model_folder: Path, name: str, change: dict[str, Any]) -> None:
    edit_json(model_folder / name, **change)
    with pytest.raises(CheckpointError) as caught:
        BlipDiffusionPipeline.from_pretrained(model_folder)
    assert "\n" not in str(caught.value)


def test_index_without_scheduler_is_refused(model_folder: Path) -> None:
    edit_json(model_folder / "scheduler" / "scheduler_config.json", _class_name=None)
    edit_json(model_folder / "model_index.json", scheduler=5)
    with pytest.raises(CheckpointError, match="configuration of the scheduler can't be used"):
        read_parts(model_folder)


@pytest.mark.parametrize("text", ["[]", "{}", "5", '{"model": []}'])
def test_invalid_vocabulary_is_refused(model_folder: Path, text: str) -> None:
    for path in (model_folder / "qformer_tokenizer").glob("vocab*"):
        path.unlink()
    (model_folder / "qformer_tokenizer" / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"no WordPiece vocabulary at|is not a JSON object") as caught:
        read_parts(model_folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "part", ["qformer", "image_processor", "text_encoder", "tokenizer", "unet", "vae", "scheduler"]
)
def test_missing_component_is_named(model_folder: Path, part: str) -> None:
    shutil.rmtree(model_folder / part)
    name = {"qformer": "subject_encoder, qformer_tokenizer", "image_processor": "reference"}.get(part, part)
    with pytest.raises(CheckpointError, match=rf"incomplete: {name} missing\.$"):
        BlipDiffusionPipeline.from_pretrained(model_folder)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("unet", {"cross_attention_dim": 48}, "text encoder 32 wide, U-Net 48"),
        ("vae", {"latent_channels": 16}, "VAE's latents 16 wide, U-Net's input 4"),
    ],
)
def test_component_of_another_model_is_refused(
    model_folder: Path, tmp_path: Path, part: str, change: dict[str, int], message: str
) -> None:
    config = json.loads((model_folder / part / "config.json").read_text()) | change
    kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part]
    other = kind.from_config(config)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match=f"The parts don't fit: {message}"):
        BlipDiffusionPipeline.from_pretrained(model_folder, **{part: tmp_path / "other"})
    other.save_pretrained(model_folder / part)
    with pytest.raises(CheckpointError, match=f"The parts don't fit: {message}"):
        BlipDiffusionPipeline.from_pretrained(model_folder)


def test_tokenizer_of_another_model_is_refused(model_folder: Path) -> None:
    shutil.rmtree(model_folder / "tokenizer")
    shutil.copytree(Path(__file__).parents[1] / "parity" / "golden" / "tok" / "clip", model_folder / "tokenizer")
    table = json.loads((model_folder / "tokenizer" / "vocab.json").read_text())
    known = json.loads((model_folder / "text_encoder" / "config.json").read_text())["vocab_size"]
    more = {f"w{number}": number for number in range(len(table), known + 1)}
    (model_folder / "tokenizer" / "vocab.json").write_text(json.dumps(table | more))
    with pytest.raises(CheckpointError, match=rf"the tokenizer has {known + 1} words, the text encoder {known}"):
        BlipDiffusionPipeline.from_pretrained(model_folder)


def test_tokenizer_with_a_token_beyond_the_vocabulary_is_refused(model_folder: Path) -> None:
    known = json.loads((model_folder / "text_encoder" / "config.json").read_text())["vocab_size"]
    path = model_folder / "tokenizer" / "tokenizer.json"
    table = json.loads(path.read_text())
    word = next(word for word in table["model"]["vocab"] if word.endswith("</w>"))
    table["model"]["vocab"][word] = known + 7
    path.write_text(json.dumps(table))
    (model_folder / "tokenizer" / "vocab.json").write_text(json.dumps(table["model"]["vocab"]))
    with pytest.raises(CheckpointError, match=rf"the tokenizer has {known + 8} words, the text encoder {known}"):
        BlipDiffusionPipeline.from_pretrained(model_folder)
