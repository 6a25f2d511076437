"""The parts of a model, each in its folder of the published layout."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import diffusers
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig

from blip_diffusion.checkpoint.config_limits import check_config, check_parameters, check_sample_size
from blip_diffusion.checkpoint.key_maps import (
    UNREAD,
    modern_vae_name,
    subject_encoder_from_published,
    subject_encoder_to_published,
)
from blip_diffusion.checkpoint.weights import (
    ANY_FILES,
    MAX_CONFIG,
    WeightFiles,
    check_state,
    config_errors,
    load_into,
    meta_init,
    read_file,
    read_json,
    read_state,
    save_part,
    save_state,
    write_json,
)
from blip_diffusion.config import build
from blip_diffusion.diffusion.latents import check_scale
from blip_diffusion.errors import CheckpointError
from blip_diffusion.images import ResizeMode
from blip_diffusion.model import (
    CLIP_MEAN,
    CLIP_STD,
    ModelConfig,
    ReferenceConfig,
    SubjectEncoder,
    build_subject_encoder,
)
from blip_diffusion.modules.heads import SubjectFinder, SubjectFinderConfig
from blip_diffusion.modules.image_encoder import ImageEncoderConfig
from blip_diffusion.modules.pixel_autoencoder import PixelAutoencoder
from blip_diffusion.modules.placed_unet import PlacedUNet2DConditionModel, is_placed
from blip_diffusion.modules.qformer import QFormerConfig
from blip_diffusion.modules.text_encoder import SubjectTextEncoder
from blip_diffusion.nn_utils import base_state

HEADS = "heads.safetensors"
"""File of the training heads in a model's folder, from which training can continue."""


def save_subject_encoder(
    encoder: SubjectEncoder, folder: Path, *, dtype: torch.dtype | None = None, files: WeightFiles = ANY_FILES
) -> None:
    """Write the `qformer/` folder."""
    write_json(folder / "config.json", subject_encoder_config(encoder))
    published = subject_encoder_to_published(encoder.state_dict())
    save_part(published, folder, "model", dtype=dtype, files=files)


def load_subject_encoder(
    folder: Path, *, dtype: torch.dtype | None = None, files: WeightFiles = ANY_FILES
) -> SubjectEncoder:
    """Load the `qformer/` folder of this library or of the published model."""
    table = read_config(folder / "config.json", "the Q-Former")
    with config_errors("the Q-Former"), meta_init():
        encoder = build_subject_encoder(subject_encoder_shapes(table))
    state = subject_encoder_from_published(read_state(folder, files), encoder.state_dict())
    return load_into(encoder, state, where="the Q-Former", dtype=dtype)


def subject_encoder_config(encoder: SubjectEncoder) -> dict[str, Any]:
    """Return the `config.json` of `qformer/` with the published keys."""
    vision, config = encoder.image_encoder.config, encoder.qformer.config
    return {
        "model_type": "blip-2",
        "num_query_tokens": config.queries,
        "projection_inner": encoder.projection.up.out_features,
        "vision_config": {
            "tower": vision.tower,
            "timm_name": vision.timm_name,
            "colour_cell": vision.colour_cell,
            "hidden_size": vision.width,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "intermediate_size": vision.inner,
            "image_size": vision.image_size,
            "patch_size": vision.patch,
            "hidden_act": vision.activation,
            "layer_norm_eps": vision.eps,
            **({} if vision.norm_eps is None else {"post_layernorm_eps": vision.norm_eps}),
        },
        "qformer_config": {
            "hidden_size": config.width,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "intermediate_size": config.inner,
            "vocab_size": config.vocabulary,
            "max_position_embeddings": config.positions,
            "encoder_hidden_size": config.vision_width,
            "cross_attention_frequency": config.cross_attention_every,
            "layer_norm_eps": config.eps,
            "hidden_dropout_prob": config.dropout,
        },
    }


def subject_encoder_shapes(table: Mapping[str, Any]) -> ModelConfig:
    """Return the shapes in a `config.json` of `qformer/`; missing values are the published ones."""
    vision, qformer = table.get("vision_config") or {}, table.get("qformer_config") or {}
    default_qformer = QFormerConfig()
    default = ImageEncoderConfig()
    width = qformer.get("hidden_size", default_qformer.width)
    return ModelConfig(
        image_encoder=build(
            ImageEncoderConfig,
            {
                "tower": vision.get("tower", default.tower),
                "timm_name": vision.get("timm_name", ""),
                "colour_cell": vision.get("colour_cell", default.colour_cell),
                "image_size": vision.get("image_size", default.image_size),
                "eps": vision.get("layer_norm_eps", default.eps),
                "norm_eps": vision.get("post_layernorm_eps", default.norm_eps),
                "width": vision.get("hidden_size", default.width),
                "layers": vision.get("num_hidden_layers", default.layers),
                "heads": vision.get("num_attention_heads", default.heads),
                "inner": vision.get("intermediate_size", default.inner),
                "patch": vision.get("patch_size", default.patch),
                "activation": vision.get("hidden_act", default.activation),
            },
        ),
        qformer=build(
            QFormerConfig,
            {
                "width": width,
                "layers": qformer.get("num_hidden_layers", default_qformer.layers),
                "heads": qformer.get("num_attention_heads", default_qformer.heads),
                "inner": qformer.get("intermediate_size", default_qformer.inner),
                "vocabulary": qformer.get("vocab_size", default_qformer.vocabulary),
                "positions": qformer.get("max_position_embeddings", default_qformer.positions),
                "vision_width": qformer.get("encoder_hidden_size", default_qformer.vision_width),
                "queries": table.get("num_query_tokens", default_qformer.queries),
                "cross_attention_every": qformer.get(
                    "cross_attention_frequency", default_qformer.cross_attention_every
                ),
                "eps": qformer.get("layer_norm_eps", default_qformer.eps),
                "dropout": qformer.get("hidden_dropout_prob", default_qformer.dropout),
            },
        ),
        projection_inner=table.get("projection_inner", 4 * width),
    )


def load_text_encoder(
    folder: Path, *, dtype: torch.dtype | None = None, files: WeightFiles = ANY_FILES
) -> SubjectTextEncoder:
    """Load the `text_encoder/` folder, with or without the key prefix `text_model.` of transformers 4."""
    table = read_config(folder / "config.json", "the text encoder")
    unread = {"model_type", "architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path"}
    with config_errors("the text encoder"), meta_init():
        encoder = SubjectTextEncoder(CLIPTextConfig(**{key: table[key] for key in table.keys() - unread}))
    saved = read_state(folder, files)
    state = {n.removeprefix("text_model."): tensor for n, tensor in saved.items() if not UNREAD.search(n)}
    return load_into(encoder, state, where="the text encoder", dtype=dtype)


def save_text_encoder(
    encoder: SubjectTextEncoder, folder: Path, *, dtype: torch.dtype | None = None, files: WeightFiles = ANY_FILES
) -> None:
    """Write the `text_encoder/` folder with the published key prefix `text_model.`, without LoRAs."""
    encoder.config.save_pretrained(folder)
    state = {f"text_model.{name}": tensor for name, tensor in base_state(encoder).items()}
    save_part(state, folder, "model", dtype=dtype, files=files)


DIFFUSERS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "controlnet": "ControlNetModel",
    "t2i_adapter": "T2IAdapter",
}
"""The diffusers class of each part."""


def load_diffusers(name: str, folder: Path, *, dtype: torch.dtype | None = None, files: WeightFiles = ANY_FILES) -> Any:
    """Load the U-Net, VAE, ControlNet or T2I-Adapter in a folder; `name` is a key of `DIFFUSERS`."""
    table = read_config(folder / "config.json", f"the {name}")
    kind = table.get("_class_name", DIFFUSERS[name])
    if name == "vae" and kind == PixelAutoencoder.__name__:
        return PixelAutoencoder().to(dtype)  # without weights
    if kind not in (DIFFUSERS[name], PlacedUNet2DConditionModel.__name__ if name == "unet" else None):
        raise CheckpointError(f"{folder} holds a {kind}, not a {DIFFUSERS[name]}.")
    state = {modern_vae_name(n) if name == "vae" else n: tensor for n, tensor in read_state(folder, files).items()}
    return build_diffusers(name, table, state, dtype=dtype)


def build_diffusers(
    name: str, table: Mapping[str, Any], state: Mapping[str, Tensor], *, dtype: torch.dtype | None = None
) -> Any:
    """Build the U-Net, VAE, ControlNet or T2I-Adapter from a configuration and weights."""
    with config_errors(f"the {name}"), meta_init():
        kind = getattr(diffusers, DIFFUSERS[name])
        check_parameters(kind, table)
        placed = name == "unet" and is_placed(table)
        part = (PlacedUNet2DConditionModel if placed else kind).from_config(dict(table))
        if name == "unet":
            check_sample_size(part.config.sample_size)
        elif name == "vae":
            check_scale(part.config)
    return load_into(part, state, where=f"the {name}", dtype=dtype)


def save_diffusers(
    part: Any, folder: Path, *, dtype: torch.dtype | None = None, files: WeightFiles = ANY_FILES
) -> None:
    """Write a part as diffusers does, without the path it was loaded from and without LoRAs."""
    part.save_config(folder)
    table = read_json(folder / "config.json")
    write_json(folder / "config.json", {key: value for key, value in table.items() if key != "_name_or_path"})
    save_part(base_state(part), folder, "diffusion_pytorch_model", dtype=dtype, files=files)


def save_reference(config: ReferenceConfig, folder: Path) -> None:
    """Write the `image_processor/` folder."""
    size = {"height": config.size, "width": config.size}
    table = {
        "image_processor_type": "BlipImageProcessor",
        "size": size,
        "image_mean": config.mean,
        "image_std": config.std,
        "resize_mode": config.resize_mode,
    }
    write_json(folder / "preprocessor_config.json", table)


def load_reference(folder: Path, *, mean: Any = None, std: Any = None) -> ReferenceConfig:
    """Load the `image_processor/` folder; `mean` and `std` of `model_index.json` take precedence."""
    table = read_config(folder / "preprocessor_config.json", "the image processor")
    size = table.get("size", 224)
    with config_errors("the image processor"):
        return ReferenceConfig(
            size=int(size if isinstance(size, int) else size.get("height") or size.get("shortest_edge") or 224),
            mean=_rgb(mean or table.get("image_mean") or CLIP_MEAN),
            std=_std(std or table.get("image_std") or CLIP_STD),
            resize_mode=_resize_mode(table.get("resize_mode", "crop")),
        )


def _resize_mode(value: Any) -> ResizeMode:
    if value not in get_args(ResizeMode):
        raise ValueError(f"resize_mode is {value!r}, which is none of {', '.join(get_args(ResizeMode))}")
    mode: ResizeMode = value
    return mode


def save_subject_finder(
    finder: SubjectFinder, folder: Path, *, dtype: torch.dtype | None = None, files: WeightFiles = ANY_FILES
) -> None:
    """Write the `subject_finder/` folder."""
    write_json(folder / "config.json", dataclasses.asdict(finder.config))
    save_part(finder.state_dict(), folder, "model", dtype=dtype, files=files)


def load_subject_finder(
    folder: Path, *, dtype: torch.dtype | None = None, files: WeightFiles = ANY_FILES
) -> SubjectFinder:
    """Read the `subject_finder/` folder."""
    with config_errors("the subject finder"), meta_init():
        table = read_config(folder / "config.json", "the subject finder")
        finder = SubjectFinder(build(SubjectFinderConfig, table))
    return load_into(finder, read_state(folder, files), where="the subject finder", dtype=dtype)


def read_config(path: Path, what: str) -> dict[str, Any]:
    """Read a part's configuration, without the implementation of attention that it may name.

    Libraries fetch and run compiled code of the hub where a file names a repository as the implementation.

    Raises:
        CheckpointError: For numbers out of range.
    """
    table = read_json(path, most=MAX_CONFIG)
    with config_errors(what):
        check_config(table)
    cleaned: dict[str, Any] = _without_implementations(table)
    return cleaned


def _without_implementations(value: Any) -> Any:
    """Return a table without the keys of implementations, at any depth."""
    if isinstance(value, dict):
        return {key: _without_implementations(one) for key, one in value.items() if "_implementation" not in key}
    return value


def _rgb(values: Any) -> tuple[float, float, float]:
    if not isinstance(values, list | tuple) or any(type(value) not in (int, float) for value in values):
        raise ValueError(f"{str(values)[:60]!r} should be three numbers")
    red, green, blue = (float(value) for value in values)
    if not all(math.isfinite(value) for value in (red, green, blue)):
        raise ValueError(f"{values} should be three numbers")
    return red, green, blue


def _std(values: Any) -> tuple[float, float, float]:
    std = _rgb(values)
    if min(std) <= 0:
        raise ValueError(f"image_std is {values}, use numbers above 0")
    return std


def save_heads(heads: Mapping[str, nn.Module], folder: Path) -> None:
    """Add the file `HEADS` to a folder."""
    state = {f"{name}.{key}": value for name, head in heads.items() for key, value in head.state_dict().items()}
    save_state(state, folder / HEADS)


def load_heads(heads: Mapping[str, nn.Module], folder: Path) -> list[str]:
    """Load those of `heads` that a folder has and return their names."""
    if not (folder / HEADS).is_file():
        return []
    state = read_file(folder / HEADS)
    loaded = []
    for name, head in heads.items():
        weights = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        if weights:
            check_state(weights, head.state_dict(), where=f"the {name} head")
            head.load_state_dict(weights)
            loaded.append(name)
    return loaded
