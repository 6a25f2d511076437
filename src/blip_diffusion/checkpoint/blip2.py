"""BLIP-2's weights in every layout: this package's folders, transformers' two classes, and LAVIS' `.pth`.

Blip2ForConditionalGeneration      tower, Q-Former without words, projection, language model
Blip2ForImageTextRetrieval         tower, Q-Former with words, heads of ITC and ITM
LAVIS                              what was trained; tower and language model are those of a `base` in another layout
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from blip_diffusion.blip2 import Blip2
from blip_diffusion.checkpoint.components import (
    load_heads,
    load_reference,
    load_subject_encoder,
    read_config,
    save_reference,
)
from blip_diffusion.checkpoint.key_maps import (
    UNREAD,
    join_qkv_bias,
    lavis_blip2_name,
    split_qkv_bias,
    transformers_blip2_name,
)
from blip_diffusion.checkpoint.language import (
    build_language_model,
    load_language,
    load_tied,
    load_tokenizer,
    untied_state,
)
from blip_diffusion.checkpoint.locate import find_model
from blip_diffusion.checkpoint.model_folder import check_dtype
from blip_diffusion.checkpoint.tokenizers import bert_tokenizer
from blip_diffusion.checkpoint.weights import (
    check_materialized,
    config_errors,
    contiguous,
    format_mismatches,
    meta_init,
    read_file,
    read_state,
    save_part,
    shape_mismatches,
    write_json,
)
from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.fileio import as_path, atomic_file, path_exists
from blip_diffusion.model import ReferenceConfig
from blip_diffusion.modules.heads import ContrastiveHead, MatchingHead
from blip_diffusion.modules.image_encoder import ImageEncoder, ImageEncoderConfig
from blip_diffusion.modules.language import LanguagePrefix
from blip_diffusion.modules.qformer import QFormer, QFormerConfig
from blip_diffusion.pickles import PICKLES

LAVIS_EPS = 1e-5
"""Epsilon of LAVIS' `ln_vision`; transformers' `post_layernorm` has 1e-6."""
FROZEN = ("image_encoder.tower.", "language.language_model.")
UNUSED_BY_BLIP2 = ("Qformer.cls.", "Qformer.bert.pooler.")
"""Heads of LAVIS that captions and retrieval don't use, such as ITG's."""


def load_blip2(
    name_or_path: str | Path, *, base: str | Path | None = None, dtype: torch.dtype | None = None, **hub: Any
) -> Blip2:
    """Load BLIP-2's vision-to-language or image-text model.

    Args:
        name_or_path: `mini`, a folder of ours with `qformer/`, a folder or hub id of transformers'
            `Blip2ForConditionalGeneration` or `Blip2ForImageTextRetrieval`, or a `.pth` of LAVIS.
        base: For LAVIS' file: a model of the same shapes, which has the frozen parts and the tokenizers.
        dtype: Precision of the weights; by default float32.
        **hub: Arguments of `snapshot_download`.

    Returns:
        The model in eval mode on the CPU, with the parts that were found.

    Raises:
        CheckpointError: If weights are missing, unexpected or misshapen.
    """
    path = as_path("name_or_path", name_or_path)
    check_dtype(dtype)
    if path.suffix in PICKLES and path_exists(path, Path.is_file):
        if base is None:
            raise CheckpointError(
                f"{path} lacks the image encoder, the language model and the tokenizers: name a model of the same "
                "shapes as base."
            )
        return read_lavis_blip2(path, load_blip2(base, dtype=dtype, **hub))
    if base is not None:
        raise InputError(f"{name_or_path} is a whole model, so base has no effect: leave it out.")
    folder = find_model(name_or_path, **hub)
    if (folder / "qformer").is_dir():
        return _load_own(folder, dtype)
    if (folder / "config.json").is_file():
        return _load_transformers(folder, dtype)
    raise CheckpointError(f"{folder} holds no BLIP-2: it should have qformer/, or the config.json of transformers.")


def _load_own(folder: Path, dtype: torch.dtype | None) -> Blip2:
    encoder = load_subject_encoder(folder / "qformer", dtype=dtype)
    tokenizer = folder / "qformer_tokenizer"
    width = encoder.qformer.config.width
    heads = {"contrastive": ContrastiveHead(width), "matching": MatchingHead(width)}
    found = load_heads(heads, folder)
    language = load_language(folder / "language", width, dtype=dtype) if (folder / "language").is_dir() else None
    model = Blip2(
        encoder.image_encoder,
        encoder.qformer,
        reference=_whole(load_reference(folder / "image_processor")),
        language=language[0] if language else None,
        tokenizer=language[1] if language else None,
        contrastive=heads["contrastive"].to(dtype) if "contrastive" in found else None,  # type: ignore[arg-type]
        matching=heads["matching"].to(dtype) if "matching" in found else None,  # type: ignore[arg-type]
        qformer_tokenizer=bert_tokenizer(tokenizer if tokenizer.is_dir() else None),
    )
    return model.requires_grad_(False).eval()


def _whole(reference: ReferenceConfig) -> ReferenceConfig:
    """A sentence describes a whole image, of which no subject is cut out."""
    return replace(reference, resize_mode="squash") if reference.resize_mode == "subject" else reference


# -------------------------------------------------------------------------------------------------------- transformers


def _load_transformers(folder: Path, dtype: torch.dtype | None) -> Blip2:
    from transformers import Blip2Config

    table = read_config(folder / "config.json", "BLIP-2")
    if table.get("model_type") != "blip-2":
        raise CheckpointError(f"{folder} holds a {table.get('model_type')!r}, not a model of BLIP-2 (blip-2).")
    found = {name: tensor for name, tensor in read_state(folder).items() if not UNREAD.search(name)}
    with config_errors("BLIP-2"), meta_init():
        config = Blip2Config.from_dict(table)
        model = _build(config, has_language="language_projection.weight" in found, compares="itm_head.weight" in found)
    theirs = {transformers_blip2_name(name): name for name in model.state_dict()}
    state = {theirs.get(name, name): tensor for name, tensor in found.items()}
    if model.contrastive is not None:
        state["contrastive.temperature"] = torch.tensor(0.07)  # which transformers leaves out
    load_tied(model, state, where="BLIP-2", dtype=dtype)
    if (folder / "preprocessor_config.json").is_file():
        reference = load_reference(folder)
        resize_mode = read_config(folder / "preprocessor_config.json", "the image processor").get("resize_mode")
        model.reference = reference if resize_mode else replace(reference, resize_mode="squash")
    if model.language is not None:
        model.tokenizer = load_tokenizer(folder)
    if model.contrastive is not None:
        own = any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json"))
        model.qformer_tokenizer = bert_tokenizer(folder if own else None)
    return model


def _build(config: Any, *, has_language: bool, compares: bool) -> Blip2:
    """Build the model of transformers' configuration, with or without its language model and heads."""
    vision, qformer = config.vision_config, config.qformer_config
    if not vision.qkv_bias:
        raise ValueError("the image encoder has no bias in its attention")
    shapes = QFormerConfig(
        width=qformer.hidden_size,
        layers=qformer.num_hidden_layers,
        heads=qformer.num_attention_heads,
        inner=qformer.intermediate_size,
        vocabulary=qformer.vocab_size if compares else 0,
        positions=qformer.max_position_embeddings,
        vision_width=vision.hidden_size,
        queries=config.num_query_tokens,
        cross_attention_every=qformer.cross_attention_frequency,
        eps=qformer.layer_norm_eps,
        dropout=qformer.hidden_dropout_prob,
    )
    tower = ImageEncoderConfig(
        tower="blip2",
        image_size=vision.image_size,
        eps=vision.layer_norm_eps,
        width=vision.hidden_size,
        layers=vision.num_hidden_layers,
        heads=vision.num_attention_heads,
        inner=vision.intermediate_size,
        patch=vision.patch_size,
        activation=vision.hidden_act,
    )
    width = shapes.width
    return Blip2(
        ImageEncoder(tower),
        QFormer(shapes),
        reference=ReferenceConfig(size=tower.image_size, resize_mode="squash"),
        language=LanguagePrefix(width, build_language_model(config.text_config.to_dict())) if has_language else None,
        contrastive=ContrastiveHead(width, config.image_text_hidden_size) if compares else None,
        matching=MatchingHead(width) if compares else None,
        image_token=config.image_token_index,
        has_temperature=False,
    )


def save_blip2(model: Blip2, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write the folder of transformers' class: `Blip2ForConditionalGeneration`, or `...ForImageTextRetrieval`.

    Args:
        model: With a language model or with heads, and with BLIP-2's image encoder.
        folder: Where it is written.
        dtype: Precision of the weights; by default as they are.

    Raises:
        CheckpointError: If transformers has no class for this model.
    """
    vision = model.image_encoder.config
    if vision.tower != "blip2":
        raise CheckpointError(f"transformers' BLIP-2 has its own image encoder, and this model has {vision.tower}.")
    if (model.language is None) == (model.contrastive is None):
        raise CheckpointError("transformers has a class for a language model and one for the heads, none for both.")
    if (model.contrastive is None) != (model.matching is None):
        raise CheckpointError(
            "transformers' class for retrieval has the heads of ITC and of ITM, and this model has one."
        )
    if vision.norm_eps not in (None, vision.eps):
        warnings.warn(f"transformers has no place for the last layer norm's eps {vision.norm_eps}: it becomes "
                      f"{vision.eps}.", stacklevel=2)  # fmt: skip
    check_materialized(model)
    write_json(folder / "config.json", _transformers_config(model))
    state = {
        transformers_blip2_name(name): t for name, t in untied_state(model).items() if name != "contrastive.temperature"
    }
    save_part(state, folder, "model", dtype=dtype)
    save_reference(model.reference, folder)
    tokenizer = model.tokenizer if model.language is not None else model.qformer_tokenizer
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _transformers_config(model: Blip2) -> dict[str, Any]:
    vision, qformer = model.image_encoder.config, model.qformer.config
    reads = bool(qformer.vocabulary)
    name = "Blip2ForConditionalGeneration" if model.language is not None else "Blip2ForImageTextRetrieval"
    table: dict[str, Any] = {
        "architectures": [name],
        "model_type": "blip-2",
        "num_query_tokens": qformer.queries,
        "image_token_index": model.image_token,
        "vision_config": {
            "model_type": "blip_2_vision_model",
            "hidden_size": vision.width,
            "intermediate_size": vision.inner,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch,
            "hidden_act": vision.activation,
            "layer_norm_eps": vision.eps,
        },
        "qformer_config": {
            "model_type": "blip_2_qformer",
            "hidden_size": qformer.width,
            "num_hidden_layers": qformer.layers,
            "num_attention_heads": qformer.heads,
            "intermediate_size": qformer.inner,
            "max_position_embeddings": qformer.positions,
            "encoder_hidden_size": qformer.vision_width,
            "cross_attention_frequency": qformer.cross_attention_every,
            "layer_norm_eps": qformer.eps,
            "hidden_dropout_prob": qformer.dropout,
            "use_qformer_text_input": reads,
            **({"vocab_size": qformer.vocabulary} if reads else {}),
        },
    }
    if model.language is not None:
        table["text_config"] = model.language.language_model.config.to_dict()
    if model.contrastive is not None:
        table["image_text_hidden_size"] = model.contrastive.vision.out_features
    return table


# ---------------------------------------------------------------------------------------------------------------- LAVIS


def read_lavis_blip2(path: Path, base: Blip2) -> Blip2:
    """Load LAVIS' trained weights into a model of the same shapes, which provides missing frozen parts.

    Raises `CheckpointError` for missing, unexpected or misshapen weights.
    """
    found = join_qkv_bias({name: t for name, t in read_file(path).items() if not _is_unused(name)})
    expected = untied_state(base)
    theirs = {_lavis_name(base, name): name for name in expected}
    state = {theirs.get(name, name): tensor for name, tensor in found.items()}
    needed = {name for name in expected if not name.startswith(FROZEN)}
    problem = format_mismatches(
        missing=needed - state.keys(),
        unexpected=state.keys() - expected.keys(),
        wrong=shape_mismatches(state, {name: tuple(tensor.shape) for name, tensor in expected.items()}),
    )
    if problem:
        raise CheckpointError(f"The weights of {path} don't fit its base: {problem}.")
    load_tied(base, {**expected, **state}, where="BLIP-2", dtype=base.dtype)
    encoder = base.image_encoder
    encoder.config = replace(encoder.config, norm_eps=LAVIS_EPS)
    encoder.norm.eps = LAVIS_EPS
    base.has_temperature = True
    return base


def write_lavis_blip2(model: Blip2, path: Path, *, tower: bool = True) -> None:
    """Write a `.pth` of LAVIS: everything but the language model, which it loads by itself.

    Args:
        model: With BLIP-2's image encoder.
        path: The file.
        tower: Whether the frozen tower is written too.
    """
    if model.image_encoder.config.tower != "blip2":
        raise CheckpointError("LAVIS' BLIP-2 has its own image encoder, and this model has another.")
    check_materialized(model)
    left = FROZEN if not tower else FROZEN[1:]
    kept = {name: tensor for name, tensor in untied_state(model).items() if not name.startswith(left)}
    state = split_qkv_bias({_lavis_name(model, name): tensor for name, tensor in contiguous(kept).items()})
    with atomic_file(path) as partial:
        torch.save({"model": {name: tensor.clone() for name, tensor in state.items()}}, partial)


def _lavis_name(model: Blip2, name: str) -> str:
    decoder_only = model.language is None or not model.language.is_encoder_decoder
    return lavis_blip2_name(name, encoder_decoder=not decoder_only)


def _is_unused(name: str) -> bool:
    return bool(UNREAD.search(name)) or name.startswith(UNUSED_BY_BLIP2)
