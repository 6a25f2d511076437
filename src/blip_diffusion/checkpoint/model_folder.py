"""Read and write a model's folder."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel

from blip_diffusion.checkpoint.components import (
    load_diffusers,
    load_reference,
    load_subject_encoder,
    load_subject_finder,
    load_text_encoder,
    save_diffusers,
    save_reference,
    save_subject_encoder,
    save_subject_finder,
    save_text_encoder,
)
from blip_diffusion.checkpoint.config_limits import check_config
from blip_diffusion.checkpoint.diffusers_export import advice
from blip_diffusion.checkpoint.lora import copy_lora
from blip_diffusion.checkpoint.tokenizers import bert_tokenizer, check_tokenizer, check_tokenizer_files, save_tokenizer
from blip_diffusion.checkpoint.weights import (
    ANY_FILES,
    MAX_CONFIG,
    WeightFiles,
    check_materialized,
    config_errors,
    read_json,
    write_json,
)
from blip_diffusion.diffusion.concatenation import inpainting_channels
from blip_diffusion.diffusion.scheduler_checks import check_settings
from blip_diffusion.errors import CheckpointError, InputError, quoted, reason
from blip_diffusion.fileio import as_path
from blip_diffusion.model import BlipDiffusion, InferenceConfig, ReferenceConfig, SubjectEncoder
from blip_diffusion.modules.heads import SubjectFinder
from blip_diffusion.nn_utils import uncompiled
from blip_diffusion.prompts import insert_position
from blip_diffusion.protocols import Scheduler, Tokenizer

CONSISTENCY_LORA = "consistency_lora.safetensors"
"""File of the LoRA for sampling in a few steps without guidance."""
T2I_ADAPTERS = "t2i_adapter"
"""Folder of T2I-Adapters, each in a subfolder named after the kind of its control map."""
PARTS = ("qformer", "image_processor", "qformer_tokenizer", "text_encoder", "tokenizer", "unet", "vae", "scheduler",
         "controlnet", "subject_finder")  # fmt: skip

NEEDED = ("qformer", "text_encoder", "tokenizer", "unet", "vae", "scheduler")
"""The parts of a complete model."""
OPTIONAL = ("controlnet", "inference", "consistency_lora", "subject_finder", "t2i_adapters")


@dataclasses.dataclass
class Parts:
    """The parts of a model's folder, `None` for missing ones; each is of the class in its configuration."""

    subject_encoder: SubjectEncoder | None = None
    reference: ReferenceConfig | None = None
    qformer_tokenizer: Any = None
    text_encoder: Any = None
    tokenizer: Any = None
    unet: Any = None
    vae: Any = None
    scheduler: Any = None
    controlnet: Any = None  # optional, as are the following
    inference: InferenceConfig | None = None
    consistency_lora: Path | None = None
    subject_finder: SubjectFinder | None = None  # for the resize mode "subject"
    t2i_adapters: dict[str, Any] | None = None  # by kind of control map


Precision = torch.dtype | Mapping[str, torch.dtype] | None
"""A data type for all parts, or a dict by names of parts, with "default" for the others (float32 if missing)."""


def read_parts(
    folder: Path,
    *,
    qformer_tokenizer: str | Path | None = None,
    dtype: Precision = None,
    files: WeightFiles = ANY_FILES,
) -> Parts:
    """Read all parts of a folder, floats in `dtype`. Raises `CheckpointError` for a damaged part."""
    if not folder.is_dir():
        raise CheckpointError(f"There is no model at {folder}.")
    _check_variant(folder, files.variant)
    check_precision(dtype)
    has = {name: (folder / name).is_dir() for name in PARTS}
    index = _read_index(folder, whole=all(has[name] for name in NEEDED))
    parts = Parts()
    if has["qformer"]:
        parts.subject_encoder = load_subject_encoder(folder / "qformer", dtype=dtype_of(dtype, "qformer"), files=files)
        parts.qformer_tokenizer = bert_tokenizer(_vocabulary(folder / "qformer_tokenizer", qformer_tokenizer))
    if has["image_processor"]:
        parts.reference = load_reference(folder / "image_processor", mean=index.get("mean"), std=index.get("std"))
    if has["text_encoder"]:
        words = folder / "text_encoder"
        parts.text_encoder = load_text_encoder(words, dtype=dtype_of(dtype, "text_encoder"), files=files)
    for name in ("unet", "vae", "controlnet"):
        if has[name] and (name != "controlnet" or "controlnet" in index):  # the published base has one that is unused
            setattr(parts, name, load_diffusers(name, folder / name, dtype=dtype_of(dtype, name), files=files))
    if has["tokenizer"]:
        parts.tokenizer = _load_tokenizer(folder)
    if has["scheduler"]:
        parts.scheduler = _load_scheduler(folder, index)
    if has["subject_finder"]:
        finder = folder / "subject_finder"
        parts.subject_finder = load_subject_finder(finder, dtype=dtype_of(dtype, "subject_finder"), files=files)
    parts.t2i_adapters = _load_adapters(folder / T2I_ADAPTERS, dtype_of(dtype, "t2i_adapter"), files)
    parts.inference = _inference_of(index, folder)
    parts.consistency_lora = path if (path := folder / CONSISTENCY_LORA).is_file() else None
    return parts


def _vocabulary(included: Path, given: Any) -> str | Path | None:
    """Return the place of the Q-Former's vocabulary: the given one, the folder's, or `None` for the usual one."""
    if given is None:
        return included if included.is_dir() else None
    as_path("qformer_tokenizer", given)
    return given


def _load_adapters(folder: Path, dtype: torch.dtype | None, files: WeightFiles) -> dict[str, Any] | None:
    kinds = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return {kind: load_diffusers("t2i_adapter", folder / kind, dtype=dtype, files=files) for kind in kinds} or None


def _read_index(folder: Path, *, whole: bool) -> dict[str, Any]:
    """Return the table of `model_index.json`, which only a complete model must have."""
    if (folder / "model_index.json").is_file():
        return read_json(folder / "model_index.json", most=MAX_CONFIG)
    if whole:
        raise CheckpointError(
            f"model_index.json is missing in {folder}: download it again, it has the model's settings."
        )
    return {}


def dtype_of(precision: Precision, part: str) -> torch.dtype | None:
    """Return the dtype of one part."""
    if isinstance(precision, Mapping):
        return precision.get(part, precision.get("default", torch.float32))
    return precision


def check_dtype(dtype: Any) -> None:
    """Raise `InputError` unless a value is one float dtype, or `None`."""
    if isinstance(dtype, Mapping):
        raise InputError("torch_dtype is a dict: use one float type here, for example torch.float16.")
    check_precision(dtype)


def check_precision(precision: Any) -> None:
    """Raise `InputError` unless a value is a float dtype, or a dict of them by names of parts."""
    table = precision if isinstance(precision, Mapping) else {"default": precision}
    table = {"default": torch.float32} if precision is None else table
    for name, dtype in table.items():
        if name not in (*PARTS, "default"):
            raise InputError(f"torch_dtype names {name!r}: use a part of the model, or default.")
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise InputError(f"torch_dtype is {quoted(dtype)}: use a float type, for example torch.float16.")


def _check_variant(folder: Path, variant: str | None) -> None:
    """Raise `InputError` if no part has weights of that variant; the message starts like diffusers'."""
    if variant is None or any(path for part in PARTS for path in (folder / part).glob(f"*.{variant}.*")):
        return
    raise InputError(
        f"You are trying to load the model files of the `variant={variant}`, but no such modeling files are available "
        f"in {folder}: leave variant out, or name another."
    )


def _load_tokenizer(folder: Path) -> Tokenizer:
    from transformers import CLIPTokenizer

    check_tokenizer_files(folder / "tokenizer")
    try:
        return check_tokenizer(CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True))
    except Exception as error:  # tokenizers raises plain exceptions
        raise CheckpointError(f"The tokenizer in {folder} can't be loaded: {reason(error)}.") from error


def _load_scheduler(folder: Path, index: Mapping[str, Any]) -> Scheduler:
    table = read_json(folder / "scheduler" / "scheduler_config.json", finite=False, most=MAX_CONFIG)
    if table.get("lambda_min_clipped") == -math.inf:  # a default of diffusers, which it writes as no JSON number
        del table["lambda_min_clipped"]
    with config_errors("the scheduler"):
        check_config(table)
        name = table.get("_class_name") or (index.get("scheduler") or (None, "PNDMScheduler"))[1]
    kind = getattr(diffusers, str(name), None)
    if missing := getattr(kind, "_backends", ()):
        raise CheckpointError(f"The scheduler in {folder} needs {' and '.join(missing)}: pip install {missing[0]}.")
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise CheckpointError(f"The scheduler in {folder} is a {name!r}, which diffusers doesn't have.")
    try:
        scheduler = getattr(diffusers, name).from_config(table)
        check_settings(scheduler)
    except Exception as error:  # for impossible settings, diffusers raises errors of many types
        raise CheckpointError(f"The configuration of the scheduler can't be used: {reason(error)}.") from error
    return scheduler


def assemble(parts: Parts, folder: Path) -> BlipDiffusion:
    """Build the model from parts. Raises `CheckpointError` if one is missing."""
    needed = [field.name for field in dataclasses.fields(parts) if field.name not in OPTIONAL]
    missing = [name for name in needed if getattr(parts, name) is None]
    if missing:
        raise CheckpointError(f"The model in {folder} is incomplete: {', '.join(missing)} missing.{advice(missing)}")
    model = BlipDiffusion(
        parts.subject_encoder,  # type: ignore[arg-type]  # checked above
        parts.text_encoder,
        parts.unet,
        parts.vae,
        tokenizer=parts.tokenizer,
        qformer_tokenizer=parts.qformer_tokenizer,
        scheduler=parts.scheduler,
        reference=parts.reference,  # type: ignore[arg-type]
        inference=parts.inference,
        subject_finder=parts.subject_finder,
    )
    check_fit(model)
    return model


def check_fit(model: BlipDiffusion) -> None:
    """Raise `CheckpointError` unless the parts fit each other."""
    with config_errors("the image processor"):
        model.subject_encoder.image_encoder.tower.check_side(model.reference.size)
    tokens, text = model.subject_encoder.qformer.config.width, int(model.text_encoder.config.hidden_size)
    context, channels = model.unet.config.cross_attention_dim, int(model.unet.config.in_channels)
    queries = model.subject_encoder.qformer.config.queries
    if model.place_width and math.isqrt(queries) ** 2 != queries:
        raise CheckpointError(f"The parts don't fit: {queries} queries, and placed tokens lie on a square grid.")
    latents = int(model.vae.config.latent_channels)
    if channels == inpainting_channels(latents) or model.upscales:
        channels = latents
    pairs = (
        ("subject tokens", tokens, "text encoder", text),
        ("text encoder", text + model.place_width, "U-Net", context),
        ("VAE's latents", latents, "U-Net's input", channels),
    )
    for part, width, other, expected in pairs:
        if width != expected:
            raise CheckpointError(f"The parts don't fit: {part} {width} wide, {other} {expected}.")
    words = max(len(model.tokenizer), 1 + max(model.tokenizer.get_vocab().values(), default=0))  # ids may leave gaps
    known = int(model.text_encoder.config.vocab_size)
    if words > known:
        raise CheckpointError(f"The parts don't fit: the tokenizer has {words} words, the text encoder {known}.")


def _inference_of(index: Mapping[str, Any], folder: Path) -> InferenceConfig | None:
    """Return the sampling settings of a model's index, with published values for missing ones; `None` without any."""
    values = {field: index[field.name] for field in dataclasses.fields(InferenceConfig) if field.name in index}
    for field, value in values.items():
        kinds = (int,) if type(field.default) is int else (int, float)
        if type(value) not in kinds or not abs(value) < 1e6:  # false for NaN too
            expected = "number" if float in kinds else "whole number"
            raise CheckpointError(f"{folder / 'model_index.json'} has {field.name} {value!r}: it must be a {expected}.")
    return InferenceConfig(**{field.name: value for field, value in values.items()}) if values else None


def save_model(
    model: BlipDiffusion,
    folder: Path,
    *,
    controlnet: Any = None,
    consistency_lora: Path | None = None,
    t2i_adapters: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    files: WeightFiles = ANY_FILES,
) -> None:
    """Write the model's folder, without LoRAs; floats in `dtype` if one is given.

    `consistency_lora` is a file to copy, and `t2i_adapters` are by kind of control map.

    Raises:
        InputError: If there are several ControlNets, or weights are offloaded to `meta`.
        CheckpointError: If the consistency LoRA can't be read. Nothing is written then.
    """
    if isinstance(controlnet, MultiControlNetModel):
        raise InputError(
            f"A model's folder holds one ControlNet, not {len(controlnet.nets)}: save each by itself, and the "
            "model without them (pipe.controlnet = None)."
        )
    parts = (model, controlnet) if controlnet is not None else (model,)
    check_materialized(*parts)
    if consistency_lora is not None:
        copy_lora(consistency_lora, folder / CONSISTENCY_LORA, dtype)  # first, because it may be missing or damaged
    else:
        (folder / CONSISTENCY_LORA).unlink(missing_ok=True)  # an old one belongs to another U-Net
    save_subject_model(
        model.subject_encoder, model.qformer_tokenizer, model.reference, folder, dtype=dtype, files=files
    )
    save_tokenizer(model.tokenizer, folder / "tokenizer")
    model.scheduler.save_pretrained(folder / "scheduler")
    save_text_encoder(model.text_encoder, folder / "text_encoder", dtype=dtype, files=files)
    save_diffusers(model.unet, folder / "unet", dtype=dtype, files=files)
    save_diffusers(model.vae, folder / "vae", dtype=dtype, files=files)
    if model.subject_finder is not None:
        save_subject_finder(model.subject_finder, folder / "subject_finder", dtype=dtype, files=files)
    if controlnet is not None:
        save_diffusers(controlnet, folder / "controlnet", dtype=dtype, files=files)
    for kind, adapter in (t2i_adapters or {}).items():
        save_diffusers(adapter, folder / T2I_ADAPTERS / kind, dtype=dtype, files=files)
    write_json(folder / "model_index.json", _index(model, controlnet))


def _index(model: BlipDiffusion, controlnet: Any) -> dict[str, Any]:
    """Return the table of `model_index.json`, with the published class names."""
    parts = {
        "image_processor": ("blip_diffusion", "BlipImageProcessor"),
        "qformer": ("blip_diffusion", "Blip2QFormerModel"),
        "text_encoder": ("blip_diffusion", "ContextCLIPTextModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "unet": _class_of(model.unet),
        "vae": _class_of(model.vae),
        "scheduler": ("diffusers", type(model.scheduler).__name__),
    }
    if controlnet is not None:
        parts["controlnet"] = ("diffusers", "ControlNetModel")
    kind = "BlipDiffusionPipeline" if controlnet is None else "BlipDiffusionControlNetPipeline"
    names = {"_class_name": kind, "_diffusers_version": diffusers.__version__}
    extra = {"ctx_begin_pos": insert_position(model.tokenizer), "mean": None, "std": None}  # image_processor/ has them
    return {**names, **parts, **extra, **dataclasses.asdict(model.inference)}


def _class_of(part: Any) -> tuple[str, str]:
    """Return library and class of a part, by the published names."""
    kind = type(uncompiled(part))
    return kind.__module__.partition(".")[0], kind.__name__


def save_subject_model(
    encoder: SubjectEncoder,
    tokenizer: Tokenizer,
    reference: ReferenceConfig,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    files: WeightFiles = ANY_FILES,
) -> None:
    """Write the folders of the subject encoder: `qformer/`, `qformer_tokenizer/`, `image_processor/`."""
    save_subject_encoder(encoder, folder / "qformer", dtype=dtype, files=files)
    save_reference(reference, folder / "image_processor")
    tokenizer.save_pretrained(folder / "qformer_tokenizer")
