"""Helpers of the tests of checkpoints."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip_diffusion.model import ModelConfig
from blip_diffusion.modules.image_encoder import ImageEncoderConfig
from blip_diffusion.modules.qformer import QFormerConfig

CLIP_SHAPES = ModelConfig(
    image_encoder=ImageEncoderConfig(image_size=28, width=24, layers=2, heads=2, inner=96, patch=14),
    qformer=QFormerConfig(
        width=16, layers=2, heads=2, inner=32, vocabulary=64, positions=32, vision_width=24, queries=4
    ),
    projection_inner=64,
)
WEIGHTS = {
    "qformer": "qformer/model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}


def edit_json(path: Path, **change: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


GOLDEN = Path(__file__).parents[1] / "parity" / "golden" / "pipe"
WORD_LIST = GOLDEN.parent / "tok" / "bert"
WIDTH, WORDS = 16, 64
State = dict[str, Tensor]


def blip_weights(published: State) -> State:
    """Return `blip_weight.pt`: the published Q-Former weights with LAVIS' names, and the heads of stage 1."""
    state: State = {}
    for name, tensor in published.items():
        if name.startswith("embeddings."):
            state[f"Qformer.bert.{name}"] = tensor
        elif name.startswith("encoder."):
            state["Qformer.bert." + name.replace("attention.attention.", "attention.self.")] = tensor
        elif name == "query_tokens":
            state[name] = tensor
        elif name.startswith("visual_encoder.post_layernorm"):
            state[name.replace("visual_encoder.post_layernorm", "ln_vision")] = tensor
        elif name.startswith("visual_encoder."):
            state[vision_name(name)] = tensor.squeeze() if "_embedding" in name and "patch" not in name else tensor
    return state | heads(state["Qformer.bert.embeddings.word_embeddings.weight"])


def vision_name(name: str) -> str:
    for old, new in [
        ("embeddings.class_embedding", "class_embedding"),
        ("embeddings.position_embedding", "positional_embedding"),
        ("embeddings.patch_embedding", "conv1"),
        ("pre_layernorm", "ln_pre"),
        ("encoder.layers", "transformer.resblocks"),
        ("layer_norm", "ln_"),
        ("self_attn.qkv.", "attn.in_proj_"),
        ("self_attn.projection", "attn.out_proj"),
        ("fc1", "c_fc"),
        ("fc2", "c_proj"),
    ]:
        name = name.replace(old, new)
    return name


def heads(words: Tensor) -> State:
    torch.manual_seed(0)
    bias = torch.randn(WORDS)
    return {
        "vision_proj.weight": torch.randn(256, WIDTH),
        "vision_proj.bias": torch.randn(256),
        "text_proj.weight": torch.randn(256, WIDTH),
        "text_proj.bias": torch.randn(256),
        "itm_head.weight": torch.randn(2, WIDTH),
        "itm_head.bias": torch.randn(2),
        "temp": torch.tensor(0.05),
        "Qformer.cls.predictions.bias": bias,
        "Qformer.cls.predictions.transform.dense.weight": torch.randn(WIDTH, WIDTH),
        "Qformer.cls.predictions.transform.dense.bias": torch.randn(WIDTH),
        "Qformer.cls.predictions.transform.LayerNorm.weight": torch.randn(WIDTH),
        "Qformer.cls.predictions.transform.LayerNorm.bias": torch.randn(WIDTH),
        "Qformer.cls.predictions.decoder.weight": words,
        "Qformer.cls.predictions.decoder.bias": bias,
    }


def old_vae(state: State) -> State:
    """Return the state with the attention names of diffusers 0.16."""
    swaps = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]
    renamed = {}
    for name, tensor in state.items():
        for new, old in swaps:
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        renamed[name] = tensor
    return renamed
