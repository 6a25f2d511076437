"""Maps between this library's parameter names and those of other libraries."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from blip_diffusion.checkpoint.weights import check_state

# This library's names to the published ones, tried in order; names without a match are unchanged.
RENAMES = (
    (r"^qformer\.query_tokens$", "query_tokens"),
    (r"^qformer\.(word_embeddings|position_embeddings)\.", r"embeddings.\1."),
    (r"^qformer\.norm\.", "embeddings.LayerNorm."),
    (r"^qformer\.layers\.(\d+)\.self_attention\.(query|key|value)\.", r"encoder.layer.\1.attention.attention.\2."),
    (r"^qformer\.layers\.(\d+)\.self_attention\.out\.", r"encoder.layer.\1.attention.output.dense."),
    (r"^qformer\.layers\.(\d+)\.self_attention\.norm\.", r"encoder.layer.\1.attention.output.LayerNorm."),
    (
        r"^qformer\.layers\.(\d+)\.cross_attention\.(query|key|value)\.",
        r"encoder.layer.\1.crossattention.attention.\2.",
    ),
    (r"^qformer\.layers\.(\d+)\.cross_attention\.out\.", r"encoder.layer.\1.crossattention.output.dense."),
    (r"^qformer\.layers\.(\d+)\.cross_attention\.norm\.", r"encoder.layer.\1.crossattention.output.LayerNorm."),
    (r"^qformer\.layers\.(\d+)\.query_feed_forward\.up\.", r"encoder.layer.\1.intermediate_query.dense."),
    (r"^qformer\.layers\.(\d+)\.query_feed_forward\.down\.", r"encoder.layer.\1.output_query.dense."),
    (r"^qformer\.layers\.(\d+)\.query_feed_forward\.norm\.", r"encoder.layer.\1.output_query.LayerNorm."),
    (r"^qformer\.layers\.(\d+)\.word_feed_forward\.up\.", r"encoder.layer.\1.intermediate.dense."),
    (r"^qformer\.layers\.(\d+)\.word_feed_forward\.down\.", r"encoder.layer.\1.output.dense."),
    (r"^qformer\.layers\.(\d+)\.word_feed_forward\.norm\.", r"encoder.layer.\1.output.LayerNorm."),
    (r"^projection\.norm\.", "proj_layer.LayerNorm."),
    (r"^projection\.up\.", "proj_layer.dense1."),
    (r"^projection\.down\.", "proj_layer.dense2."),
    (r"^image_encoder\.norm\.", "visual_encoder.post_layernorm."),
    (r"^image_encoder\.tower\.vision\.pre_layrnorm\.", "visual_encoder.pre_layernorm."),
    (r"^image_encoder\.tower\.vision\.embeddings\.position_embedding\.weight$",
     "visual_encoder.embeddings.position_embedding"),
    (r"^image_encoder\.tower\.vision\.(.*)\.self_attn\.out_proj\.", r"visual_encoder.\1.self_attn.projection."),
    (r"^image_encoder\.tower\.vision\.", "visual_encoder."),
    (r"^image_encoder\.", "visual_encoder."),
)  # fmt: skip
UNREAD = re.compile(r"(^|\.)position_ids$")
"""Buffers that older libraries saved and that are not needed."""


def published_name(name: str) -> str:
    """Return the published name of a parameter of `SubjectEncoder`."""
    return _first_match(RENAMES, name) or name


def _first_match(renames: Sequence[tuple[str, str]], name: str) -> str | None:
    """Return a name after the first of the renames that matches it; `None` if none does."""
    for pattern, replacement in renames:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return None


def subject_encoder_to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state of a `SubjectEncoder` to the published names; q, k and v of the tower are fused."""
    fused: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if re.search(r"tower\.vision\..*\.q_proj\.", name):
            parts = [state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            fused[published_name(name).replace("q_proj", "qkv")] = torch.cat(parts)
        elif re.search(r"tower\.vision\..*\.[kv]_proj\.", name):
            continue
        else:
            published = published_name(name)
            fused[published] = tensor.view(_published_shape(published, tensor))
    return fused


def subject_encoder_from_published(published: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a published state to this library's names. Raises `CheckpointError` listing differences from `target`."""
    available = {name: tensor for name, tensor in published.items() if not UNREAD.search(name)}
    state: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, like in target.items():
        source, part = _source(name)
        used.add(source)
        if source in available:
            tensor = available[source]
            if part is not None and tensor.ndim and len(tensor) % 3 == 0:
                tensor = tensor.chunk(3)[part]
            same = _without_ones(tensor.shape) == _without_ones(like.shape)
            state[name] = tensor.view(like.shape) if same else tensor
    check_state(state, target, extra=sorted(available.keys() - used), where="the Q-Former")
    return state


def _source(name: str) -> tuple[str, int | None]:
    if fused := re.search(r"tower\.vision\..*\.([qkv])_proj\.", name):
        return published_name(name.replace(f"{fused[1]}_proj", "qkv")), "qkv".index(fused[1])
    return published_name(name), None


def _published_shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    if name == "visual_encoder.embeddings.class_embedding":
        return (1, 1, *tensor.shape)
    if name == "visual_encoder.embeddings.position_embedding":
        return (1, *tensor.shape)
    return tuple(tensor.shape)


def _without_ones(shape: Sequence[int]) -> list[int]:
    return [length for length in shape if length != 1]


VAE_RENAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of the VAE's attention in diffusers up to 0.16, and today's."""


def modern_vae_name(name: str) -> str:
    """Return the current name of a VAE parameter."""
    old = re.search(r"\.attentions\.\d+\.(query|key|value|proj_attn)\.", name)
    return name.replace(f".{old[1]}.", f".{VAE_RENAMES[old[1]]}.") if old else name


# Published names to LAVIS', tried in order.
LAVIS_RENAMES = (
    (r"^embeddings\.", "Qformer.bert.embeddings."),
    (r"^encoder\.layer\.(\d+)\.(attention|crossattention)\.attention\.", r"Qformer.bert.encoder.layer.\1.\2.self."),
    (r"^encoder\.layer\.", "Qformer.bert.encoder.layer."),
    (r"^visual_encoder\.post_layernorm\.", "ln_vision."),
    (r"^visual_encoder\.pre_layernorm\.", "visual_encoder.ln_pre."),
    (r"^visual_encoder\.embeddings\.class_embedding$", "visual_encoder.class_embedding"),
    (r"^visual_encoder\.embeddings\.position_embedding$", "visual_encoder.positional_embedding"),
    (r"^visual_encoder\.embeddings\.patch_embedding\.", "visual_encoder.conv1."),
    (r"^(visual_encoder\.)encoder\.layers\.(\d+)\.layer_norm([12])\.", r"\1transformer.resblocks.\2.ln_\3."),
    (r"^(visual_encoder\.)encoder\.layers\.(\d+)\.self_attn\.qkv\.", r"\1transformer.resblocks.\2.attn.in_proj_"),
    (r"^(visual_encoder\.)encoder\.layers\.(\d+)\.self_attn\.projection\.",
     r"\1transformer.resblocks.\2.attn.out_proj."),
    (r"^(visual_encoder\.)encoder\.layers\.(\d+)\.mlp\.fc1\.", r"\1transformer.resblocks.\2.mlp.c_fc."),
    (r"^(visual_encoder\.)encoder\.layers\.(\d+)\.mlp\.fc2\.", r"\1transformer.resblocks.\2.mlp.c_proj."),
)  # fmt: skip
LAVIS_HEADS = {
    "contrastive.vision.weight": "vision_proj.weight",
    "contrastive.vision.bias": "vision_proj.bias",
    "contrastive.text.weight": "text_proj.weight",
    "contrastive.text.bias": "text_proj.bias",
    "contrastive.temperature": "temp",
    "matching.weight": "itm_head.weight",
    "matching.bias": "itm_head.bias",
    "language.dense.weight": "Qformer.cls.predictions.transform.dense.weight",
    "language.dense.bias": "Qformer.cls.predictions.transform.dense.bias",
    "language.norm.weight": "Qformer.cls.predictions.transform.LayerNorm.weight",
    "language.norm.bias": "Qformer.cls.predictions.transform.LayerNorm.bias",
    "language.bias": "Qformer.cls.predictions.bias",
}
"""Stage 1's heads: this library's names to LAVIS'."""
LAVIS_TIED = {
    "Qformer.cls.predictions.decoder.weight": "Qformer.bert.embeddings.word_embeddings.weight",
    "Qformer.cls.predictions.decoder.bias": "Qformer.cls.predictions.bias",
}
"""Tensors that LAVIS writes twice."""


def lavis_name(published: str) -> str:
    """Return LAVIS' name of a parameter in the published Q-Former folder, except `proj_layer`."""
    for pattern, replacement in LAVIS_RENAMES:
        renamed, count = re.subn(pattern, replacement, published)
        if count:
            return renamed
    return published


def old_vae_name(name: str) -> str:
    """Return the name of a VAE parameter in diffusers up to 0.16, which LAVIS pins."""
    for old, modern in VAE_RENAMES.items():
        name = re.sub(rf"(\.attentions\.\d+\.){re.escape(modern)}\.", rf"\1{old}.", name)
    return name


# Our names of BLIP-2's parameters to those in transformers' folders, tried in order.
BLIP2_RENAMES = (
    (r"^image_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"^image_encoder\.tower\.vision\.", "vision_model."),
    (r"^qformer\.query_tokens$", "query_tokens"),
    (r"^qformer\.norm\.", "qformer.layernorm."),
    (r"^qformer\.(word_embeddings|position_embeddings)\.", r"embeddings.\1."),
    (r"^language\.projection\.", "language_projection."),
    (r"^language\.language_model\.", "language_model."),
    (r"^contrastive\.(vision|text)\.", r"\1_projection."),
    (r"^matching\.", "itm_head."),
)
# Those in transformers' folders to LAVIS', tried in order.
LAVIS_BLIP2_RENAMES = (
    (r"^vision_model\.post_layernorm\.", "ln_vision."),
    (r"^vision_model\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.", r"visual_encoder.blocks.\1.norm\2."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv\.", r"visual_encoder.blocks.\1.attn.qkv."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection\.", r"visual_encoder.blocks.\1.attn.proj."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.", r"visual_encoder.blocks.\1.mlp."),
    (r"^qformer\.layernorm\.", "Qformer.bert.embeddings.LayerNorm."),
    (r"^qformer\.encoder\.layer\.(\d+)\.(attention|crossattention)\.attention\.",
     r"Qformer.bert.encoder.layer.\1.\2.self."),
    (r"^qformer\.", "Qformer.bert."),
    (r"^embeddings\.", "Qformer.bert.embeddings."),
    (r"^(vision|text)_projection\.", r"\1_proj."),
)  # fmt: skip


def transformers_blip2_name(name: str) -> str:
    """Return transformers' name of a parameter of `Blip2`."""
    if (renamed := _first_match(BLIP2_RENAMES, name)) is not None:
        return renamed
    return f"qformer.{published_name(name)}" if name.startswith("qformer.") else name


def lavis_blip2_name(name: str, *, encoder_decoder: bool = False) -> str:
    """Return LAVIS' name of a parameter of `Blip2`; its layer to the language model is named for that model."""
    if name == "contrastive.temperature":
        return "temp"
    theirs = transformers_blip2_name(name)
    if theirs.startswith(("language_projection.", "language_model.")):
        own = "t5" if encoder_decoder else "opt"
        return theirs.replace("language_projection.", f"{own}_proj.").replace("language_model.", f"{own}_model.")
    return _first_match(LAVIS_BLIP2_RENAMES, theirs) or theirs


def split_qkv_bias(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state in which LAVIS' `attn.qkv.bias` is `q_bias` and `v_bias`; that of the keys is always zero."""
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".attn.qkv.bias"):
            query, _, value = tensor.chunk(3)
            stem = name.removesuffix("qkv.bias")
            split |= {f"{stem}q_bias": query, f"{stem}v_bias": value}
        else:
            split[name] = tensor
    return split


def join_qkv_bias(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `split_qkv_bias`."""
    joined = {name: tensor for name, tensor in state.items() if not name.endswith((".q_bias", ".v_bias"))}
    for name, query in state.items():
        if name.endswith(".attn.q_bias"):
            stem = name.removesuffix("q_bias")
            value = state.get(f"{stem}v_bias", torch.zeros_like(query))
            joined[f"{stem}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return joined
