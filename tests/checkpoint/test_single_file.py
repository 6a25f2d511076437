"""Single files of Stable Diffusion 1. The tests write them with the original key names and the tiny model's weights."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from blip_diffusion.checkpoint.single_component import load_controlnet, load_unet, load_vae
from blip_diffusion.cli.main import main
from blip_diffusion.errors import CheckpointError
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"
State = dict[str, Tensor]
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
WHOLE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    # of ControlNets alone
    "controlnet_mid_block": "middle_block_out.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_cond_embedding.conv_out": "input_hint_block.14",
}


def original_unet_name(name: str, depth: int = 2) -> str:
    """By `depth` blocks of one layer each."""
    if result := re.match(r"down_blocks\.(\d)\.(resnets|attentions)\.0\.(.*)", name):
        block = f"input_blocks.{2 * int(result[1]) + 1}.{int(result[2] == 'attentions')}"
        return f"{block}.{inner(result[2], result[3])}"
    if result := re.match(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.*)", name):
        return f"input_blocks.{2 * int(result[1]) + 2}.0.op.{result[2]}"
    if result := re.match(r"up_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", name):
        block = f"output_blocks.{2 * int(result[1]) + int(result[3])}.{int(result[2] == 'attentions')}"
        return f"{block}.{inner(result[2], result[4])}"
    if result := re.match(r"up_blocks\.(\d)\.upsamplers\.0\.conv\.(.*)", name):
        return f"output_blocks.{2 * int(result[1]) + 1}.{2 if int(result[1]) < depth - 1 else 1}.conv.{result[2]}"
    if result := re.match(r"controlnet_down_blocks\.(\d)\.(.*)", name):
        return f"zero_convs.{result[1]}.0.{result[2]}"
    if result := re.match(r"controlnet_cond_embedding\.blocks\.(\d)\.(.*)", name):
        return f"input_hint_block.{2 * int(result[1]) + 2}.{result[2]}"
    for ours, theirs in WHOLE.items():
        if name.startswith(f"{ours}."):
            rest = name.removeprefix(f"{ours}.")
            kind = "resnets" if "resnets" in ours else "attentions"
            return f"{theirs}.{inner(kind, rest)}"
    raise AssertionError(name)


def inner(kind: str, rest: str) -> str:
    part, _, last = rest.rpartition(".")
    return f"{RESNET.get(part, part)}.{last}" if kind == "resnets" else rest


def original_vae_name(name: str) -> str:
    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{1 - int(m[1])}.block.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{1 - int(m[1])}.upsample.", name)
    name = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", name)
    for ours, theirs in [
        ("mid_block.attentions.0.group_norm.", "mid.attn_1.norm."),
        ("mid_block.attentions.0.to_q.", "mid.attn_1.q."),
        ("mid_block.attentions.0.to_k.", "mid.attn_1.k."),
        ("mid_block.attentions.0.to_v.", "mid.attn_1.v."),
        ("mid_block.attentions.0.to_out.0.", "mid.attn_1.proj_out."),
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
    ]:
        name = name.replace(ours, theirs)
    return name


def weights(part: str) -> State:
    folder = GOLDEN / "controlnet" if part == "controlnet" else GOLDEN / "pipe" / part
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def in_convolutions(name: str, tensor: Tensor) -> Tensor:
    """The original's attention in the VAE is of 1 x 1 convolutions."""
    return tensor[:, :, None, None] if ".attn_1." in name and tensor.ndim == 2 else tensor


@pytest.fixture(scope="module")
def original() -> State:
    """U-Net and VAE with twice the golden weights, and a text encoder that is not used."""
    state = {f"model.diffusion_model.{original_unet_name(n)}": 2 * t for n, t in weights("unet").items()}
    vae = {original_vae_name(name): 2 * tensor for name, tensor in weights("vae").items()}
    state |= {f"first_stage_model.{name}": in_convolutions(name, tensor) for name, tensor in vae.items()}
    return state | {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)}


@pytest.fixture(params=[".safetensors", ".ckpt"])
def path(request: pytest.FixtureRequest, original: State, tmp_path: Path) -> Path:
    path = tmp_path / f"sd15{request.param}"
    if path.suffix == ".ckpt":
        torch.save({"state_dict": original, "global_step": 7, "hyper": [1e-4]}, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in original.items()}, path)
    return path


def golden_pipe(**other: Any) -> BlipDiffusionPipeline:
    pipe = BlipDiffusionPipeline.from_pretrained(GOLDEN / "pipe", qformer_tokenizer=GOLDEN / "tok" / "bert", **other)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_unet_and_vae_are_read_from_one_file(path: Path) -> None:
    pipe = golden_pipe()
    for part, load in (("unet", load_unet), ("vae", load_vae)):
        loaded = load(path, config=getattr(pipe, part).config).state_dict()
        assert loaded.keys() == weights(part).keys()
        assert all(torch.equal(loaded[name], 2 * tensor) for name, tensor in weights(part).items())


def test_controlnet_is_read_from_one_file(tmp_path: Path) -> None:
    from blip_diffusion.checkpoint import single_file
    from blip_diffusion.checkpoint.weights import read_json

    state = {f"control_model.{original_unet_name(n)}": t.contiguous() for n, t in weights("controlnet").items()}
    save_file(state, tmp_path / "control.safetensors")
    config = read_json(GOLDEN / "controlnet" / "config.json")
    loaded = single_file.controlnet(tmp_path / "control.safetensors", config=config).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights("controlnet").items())
    with pytest.raises(CheckpointError, match=r"don't fit the controlnet: \d+ missing"):
        load_controlnet(tmp_path / "control.safetensors")  # as of Stable Diffusion 1.5


def test_single_file_components_replace_those_of_the_model(path: Path, tmp_path: Path, dog: Image.Image) -> None:
    def generate_image(pipe: BlipDiffusionPipeline) -> Tensor:
        noise = torch.Generator().manual_seed(0)
        return pipe("swimming", dog, "dog", height=32, width=32, num_inference_steps=2, generator=noise,
                    output_type="pt").images  # fmt: skip

    command = ["convert", str(GOLDEN / "pipe"), "--unet", str(path), "--vae", str(path), "--out", str(tmp_path / "new")]
    assert main(command) == 0
    converted = BlipDiffusionPipeline.from_pretrained(tmp_path / "new", qformer_tokenizer=GOLDEN / "tok" / "bert")
    converted.set_progress_bar_config(disable=True)
    replaced = golden_pipe(unet=path, vae=path)
    assert torch.equal(generate_image(converted), generate_image(replaced))
    assert not torch.equal(generate_image(replaced), generate_image(golden_pipe()))
    assert torch.equal(
        generate_image(golden_pipe(unet=GOLDEN / "pipe", vae=GOLDEN / "pipe" / "vae")), generate_image(golden_pipe())
    )


def test_single_file_with_diffusers_names() -> None:
    config = golden_pipe().vae.config
    assert load_vae(GOLDEN / "pipe" / "vae" / "diffusion_pytorch_model.safetensors", config=config)
    with pytest.raises(CheckpointError, match=r"There is no unet among the \d+ tensors"):
        load_unet(GOLDEN / "pipe" / "vae" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_mismatched_files_are_refused(tmp_path: Path, original: State, part: str) -> None:
    load = {"unet": load_unet, "vae": load_vae}[part]
    config = getattr(golden_pipe(), part).config
    one = {"unet": "model.diffusion_model.time_embed.0.weight", "vae": "first_stage_model.encoder.conv_in.weight"}[part]
    save_file({n: t.contiguous() for n, t in original.items() if n != one}, tmp_path / "less.safetensors")
    with pytest.raises(CheckpointError, match=f"the {part}: 1 missing|is not laid out as"):
        load(tmp_path / "less.safetensors", config=config)
    save_file(
        {n: torch.ones(3) if n == one else t.contiguous() for n, t in original.items()}, tmp_path / "x.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"of another shape \(.* is \(3,\), not"):
        load(tmp_path / "x.safetensors", config=config)
    with pytest.raises(CheckpointError, match=f"There is no {part} at nowhere"):
        load("nowhere")
    (tmp_path / "text.txt").write_text("no weights")
    with pytest.raises(CheckpointError, match="is not a file of weights: use a"):
        load(tmp_path / "text.txt")
