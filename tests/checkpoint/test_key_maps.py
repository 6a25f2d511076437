"""Key maps between this package and the published layout."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from blip_diffusion.checkpoint.components import (
    load_text_encoder,
)
from blip_diffusion.checkpoint.key_maps import (
    published_name,
    subject_encoder_from_published,
    subject_encoder_to_published,
)
from blip_diffusion.errors import CheckpointError
from blip_diffusion.model import SubjectEncoder

from .folders import WEIGHTS


def test_key_maps_are_inverse(clip_encoder: SubjectEncoder) -> None:
    state = clip_encoder.state_dict()
    published = subject_encoder_to_published(state)
    back = subject_encoder_from_published(published, state)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


def test_published_names_equal_the_golden_file(clip_encoder: SubjectEncoder) -> None:
    """The golden model has the same shapes except its position embeddings."""
    golden = load_file(Path(__file__).parents[1] / "parity/golden/pipe/qformer/model.safetensors")
    ours = subject_encoder_to_published(clip_encoder.state_dict())
    unread = {name for name in golden if name.endswith("position_ids")}
    assert ours.keys() == golden.keys() - unread
    differing = [name for name in ours if ours[name].shape != golden[name].shape]
    assert differing == ["embeddings.position_embeddings.weight"]


def test_names_of_query_and_text_feed_forwards() -> None:
    names = {
        "qformer.query_tokens": "query_tokens",
        "qformer.layers.3.self_attention.query.weight": "encoder.layer.3.attention.attention.query.weight",
        "qformer.layers.3.cross_attention.out.bias": "encoder.layer.3.crossattention.output.dense.bias",
        "qformer.layers.3.query_feed_forward.up.weight": "encoder.layer.3.intermediate_query.dense.weight",
        "qformer.layers.3.word_feed_forward.norm.bias": "encoder.layer.3.output.LayerNorm.bias",
        "projection.up.weight": "proj_layer.dense1.weight",
        "image_encoder.norm.weight": "visual_encoder.post_layernorm.weight",
    }
    assert {ours: published_name(ours) for ours in names} == names


def test_text_encoder_loads_with_and_without_prefix(model_folder: Path) -> None:
    path = model_folder / WEIGHTS["text_encoder"]
    state = load_file(path)
    assert all(name.startswith("text_model.") for name in state)
    with_prefix = load_text_encoder(model_folder / "text_encoder").state_dict()
    plain = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    save_file(plain | {"embeddings.position_ids": torch.arange(32)}, path)
    without = load_text_encoder(model_folder / "text_encoder").state_dict()
    assert all(torch.equal(with_prefix[name], without[name]) for name in with_prefix)


def test_fused_attention_of_another_width_is_refused(clip_encoder: SubjectEncoder) -> None:
    state = clip_encoder.state_dict()
    published = subject_encoder_to_published(state)
    name = "visual_encoder.encoder.layers.0.self_attn.qkv.weight"
    for rows in (71, 2, 96):
        with pytest.raises(CheckpointError, match="3 of another shape"):
            subject_encoder_from_published(published | {name: torch.zeros(rows, 24)}, state)


def test_long_lists_of_names_are_shortened(clip_encoder: SubjectEncoder) -> None:
    state = clip_encoder.state_dict()
    with pytest.raises(CheckpointError, match=rf"{len(state)} missing \(.*, …\)\.$"):
        subject_encoder_from_published({}, state)
