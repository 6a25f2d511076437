"""Weights on disk: the published folder layout, read and written, and every foreign key map.

model_index.json        the pipeline's own settings, and the class of each part
qformer/                image encoder, Q-Former, projection       config.json  model.safetensors
text_encoder/ tokenizer/ unet/ vae/ scheduler/                    as Stable Diffusion has them
image_processor/        preprocessor_config.json
qformer_tokenizer/      the Q-Former's WordPiece list (ours; the published folder lacks it)
"""

import copy
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig

from blip_diffusion.errors import CheckpointError
from blip_diffusion.model import (
    CLIP_MEAN,
    CLIP_STD,
    BlipDiffusion,
    InferenceConfig,
    ModelConfig,
    ReferenceConfig,
    SubjectEncoder,
    build_subject_encoder,
)
from blip_diffusion.modules.image_encoder import ImageEncoderConfig
from blip_diffusion.modules.qformer import QFormerConfig
from blip_diffusion.modules.text_encoder import SubjectTextEncoder
from blip_diffusion.prompts import insert_position

ASSETS = Path(__file__).parent / "assets"

# Our names to the published ones, tried in order; what none of them matches keeps its name.
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
"""Buffers that older libraries saved and nothing reads."""


def published_name(name: str) -> str:
    """What the published checkpoint calls a parameter of `SubjectEncoder`."""
    for pattern, replacement in RENAMES:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return name


def subject_encoder_to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a `SubjectEncoder` under the published names: q, k and v of the image tower fused, as there."""
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


def subject_encoder_from_published(published: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The other way: `wanted` is a state with our names and shapes. Raises `CheckpointError` listing what differs."""
    found = {name: tensor for name, tensor in published.items() if not UNREAD.search(name)}
    state: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, like in wanted.items():
        source, part = _source(name)
        used.add(source)
        if source in found:
            tensor = found[source]
            if part is not None and len(tensor) % 3 == 0:
                tensor = tensor.chunk(3)[part]
            same = _without_ones(tensor.shape) == _without_ones(like.shape)
            state[name] = tensor.view(like.shape) if same else tensor
    check_state(state, wanted, extra=sorted(found.keys() - used), where="the Q-Former")
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


def check_state(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, extra: list[str] | None = None, where: str
) -> None:
    """Raises `CheckpointError` unless the names and shapes are those wanted."""
    missing = sorted(wanted.keys() - state.keys())
    unexpected = sorted(state.keys() - wanted.keys()) + (extra or [])
    wrong = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in sorted(state.keys() & wanted.keys())
        if state[name].shape != wanted[name].shape
    ]
    _check_none(where, missing=missing, unexpected=unexpected, wrong=wrong)


def _check_none(where: str, *, missing: list[str], unexpected: list[str], wrong: list[str]) -> None:
    complaints = [
        f"{len(names)} {kind} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
        if names
    ]
    if complaints:
        raise CheckpointError(f"The weights don't fit {where}: {'; '.join(complaints)}.")


def read_state(folder: Path, *names: str) -> dict[str, Tensor]:
    """The tensors of the first of `names` that lies in a folder: safetensors mapped, pickles as weights alone."""
    for name in names:
        path = folder / name
        if path.is_file():
            try:
                return load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
            except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
                raise CheckpointError(f"{path} is not a file of weights ({error}): fetch it again.") from error
    raise CheckpointError(f"There are no weights in {folder}: it should hold {' or '.join(names)}.")


def _unpickled(path: Path) -> dict[str, Tensor]:
    import pickle
    import zipfile

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than weights, and running it could do harm: it is refused."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(f"{path} is not a table of tensors.")
    return state


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `CheckpointError` where there is none."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: the model's folder is incomplete.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read ({error}).") from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{path} is not a JSON object.")
    return table


def write_json(path: Path, table: Mapping[str, Any]) -> None:
    """A JSON object, sorted and indented."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def contiguous(state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Tensors as a file wants them: on the CPU, contiguous, and floats of one dtype where one is given."""
    return {
        name: (tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in state.items()
    }


def save_subject_encoder(encoder: SubjectEncoder, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """The `qformer/` folder."""
    write_json(folder / "config.json", subject_encoder_config(encoder))
    published = subject_encoder_to_published(encoder.state_dict())
    save_file(contiguous(published, dtype), folder / "model.safetensors", metadata={"format": "pt"})


def load_subject_encoder(folder: Path) -> SubjectEncoder:
    """The `qformer/` folder, ours or published."""
    encoder = build_subject_encoder(subject_encoder_shapes(read_json(folder / "config.json")))
    published = read_state(folder, "model.safetensors", "pytorch_model.bin")
    encoder.load_state_dict(subject_encoder_from_published(published, encoder.state_dict()))
    return encoder.eval()


def subject_encoder_config(encoder: SubjectEncoder) -> dict[str, Any]:
    """The `config.json` of `qformer/`, in the words of the published one."""
    vision, config = encoder.image_encoder.config, encoder.qformer.config
    return {
        "model_type": "blip-2",
        "num_query_tokens": config.queries,
        "projection_inner": encoder.projection.up.out_features,
        "vision_config": {
            "tower": vision.tower,
            "timm_name": vision.timm_name,
            "hidden_size": vision.width,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "intermediate_size": vision.inner,
            "image_size": vision.image_size,
            "patch_size": vision.patch,
            "hidden_act": vision.activation,
            "layer_norm_eps": vision.eps,
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
    """The shapes that a `config.json` of `qformer/` names; what it leaves out is as published."""
    vision, qformer = table.get("vision_config") or {}, table.get("qformer_config") or {}
    plain = QFormerConfig()
    default = ImageEncoderConfig()
    width = qformer.get("hidden_size", plain.width)
    return ModelConfig(
        image_encoder=ImageEncoderConfig(
            tower=vision.get("tower", default.tower),
            timm_name=vision.get("timm_name", ""),
            image_size=vision.get("image_size", default.image_size),
            eps=vision.get("layer_norm_eps", default.eps),
            width=vision.get("hidden_size", default.width),
            layers=vision.get("num_hidden_layers", default.layers),
            heads=vision.get("num_attention_heads", default.heads),
            inner=vision.get("intermediate_size", default.inner),
            patch=vision.get("patch_size", default.patch),
            activation=vision.get("hidden_act", default.activation),
        ),
        qformer=QFormerConfig(
            width=width,
            layers=qformer.get("num_hidden_layers", plain.layers),
            heads=qformer.get("num_attention_heads", plain.heads),
            inner=qformer.get("intermediate_size", plain.inner),
            vocabulary=qformer.get("vocab_size", plain.vocabulary),
            positions=qformer.get("max_position_embeddings", plain.positions),
            vision_width=qformer.get("encoder_hidden_size", plain.vision_width),
            queries=table.get("num_query_tokens", plain.queries),
            cross_attention_every=qformer.get("cross_attention_frequency", plain.cross_attention_every),
            eps=qformer.get("layer_norm_eps", plain.eps),
            dropout=qformer.get("hidden_dropout_prob", plain.dropout),
        ),
        projection_inner=table.get("projection_inner", 4 * width),
    )


def load_text_encoder(folder: Path) -> SubjectTextEncoder:
    """The `text_encoder/` folder. Its names may carry the prefix `text_model.` that transformers 4 wrote, or not."""
    table = read_json(folder / "config.json")
    unread = {"model_type", "architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path"}
    encoder = SubjectTextEncoder(CLIPTextConfig(**{key: table[key] for key in table.keys() - unread}))
    state = read_state(folder, "model.safetensors", "pytorch_model.bin")
    ours = {name.removeprefix("text_model."): t for name, t in state.items() if not UNREAD.search(name)}
    check_state(ours, encoder.state_dict(), where="the text encoder")
    encoder.load_state_dict(ours)
    return encoder.eval()


def save_text_encoder(encoder: SubjectTextEncoder, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """The `text_encoder/` folder, with the prefix that the published one and Stable Diffusion's have."""
    encoder.config.save_pretrained(folder)
    state = {f"text_model.{name}": tensor for name, tensor in encoder.state_dict().items()}
    save_file(contiguous(state, dtype), folder / "model.safetensors", metadata={"format": "pt"})


def save_reference(config: ReferenceConfig, folder: Path) -> None:
    """The `image_processor/` folder."""
    size = {"height": config.size, "width": config.size}
    table = {
        "image_processor_type": "BlipImageProcessor",
        "size": size,
        "image_mean": config.mean,
        "image_std": config.std,
    }
    write_json(folder / "preprocessor_config.json", table)


def load_reference(folder: Path, *, mean: Any = None, std: Any = None) -> ReferenceConfig:
    """The `image_processor/` folder; `mean` and `std` of `model_index.json` win where they are given."""
    table = read_json(folder / "preprocessor_config.json")
    size = table.get("size", 224)
    side = size if isinstance(size, int) else size.get("height") or size.get("shortest_edge") or 224
    return dataclasses.replace(
        ReferenceConfig(),
        size=int(side),
        mean=tuple(mean or table.get("image_mean") or CLIP_MEAN),
        std=tuple(std or table.get("image_std") or CLIP_STD),
    )


def bert_tokenizer(path: str | Path | None = None) -> Any:
    """The Q-Former's tokenizer: a folder or vocabulary file, or bert-base-uncased's list, which ships with the package.

    `[DEC]`, which begins a sentence that is to be generated, is added where the list lacks it.
    """
    from transformers import BertTokenizer

    path = Path(path) if path is not None else ASSETS / "bert-base-uncased" / "vocab.txt"
    try:
        vocabulary = path / "vocab.txt" if path.is_dir() else path
        if vocabulary.is_file():
            tokenizer = BertTokenizer(vocab=str(vocabulary), do_lower_case=True)
        else:
            tokenizer = BertTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"There is no WordPiece vocabulary at {path} ({error}).") from error
    if "[DEC]" not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer


# -------------------------------------------------------------------------------------------------- a model's folder

PARTS = ("qformer", "image_processor", "qformer_tokenizer", "text_encoder", "tokenizer", "unet", "vae", "scheduler")


@dataclasses.dataclass
class Parts:
    """The parts of a model's folder, as far as they were found; each is of the class that the folder's config names."""

    subject_encoder: SubjectEncoder | None = None
    reference: ReferenceConfig | None = None
    qformer_tokenizer: Any = None
    text_encoder: Any = None
    tokenizer: Any = None
    unet: Any = None
    vae: Any = None
    scheduler: Any = None


def read_parts(folder: Path, *, qformer_tokenizer: str | Path | None = None) -> Parts:
    """Every part that lies in a folder. A part that is there but broken is a `CheckpointError`."""
    if not folder.is_dir():
        raise CheckpointError(f"There is no model at {folder}.")
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    has = {name: (folder / name).is_dir() for name in PARTS}
    parts = Parts()
    if has["qformer"]:
        parts.subject_encoder = load_subject_encoder(folder / "qformer")
        own = folder / "qformer_tokenizer"
        parts.qformer_tokenizer = bert_tokenizer(qformer_tokenizer or (own if has["qformer_tokenizer"] else None))
    if has["image_processor"]:
        parts.reference = load_reference(folder / "image_processor", mean=index.get("mean"), std=index.get("std"))
    for name in ("text_encoder", "tokenizer", "unet", "vae", "scheduler"):
        if has[name]:
            setattr(parts, name, _load_part(folder, name, index))
    return parts


def _load_part(folder: Path, name: str, index: Mapping[str, Any]) -> Any:
    from transformers import CLIPTokenizer

    scheduler = (index.get("scheduler") or (None, "PNDMScheduler"))[1]
    if name == "text_encoder":
        return load_text_encoder(folder / name)
    classes = {
        "tokenizer": CLIPTokenizer,
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "scheduler": getattr(diffusers, str(scheduler), diffusers.PNDMScheduler),
    }
    more = {"output_loading_info": True} if name in ("unet", "vae") else {}
    try:
        loaded = classes[name].from_pretrained(folder / name, local_files_only=True, **more)
    except Exception as error:  # tokenizers knows no other kind
        raise CheckpointError(f"The {name} in {folder} can't be loaded: {str(error).splitlines()[0]}") from error
    if not more:
        return loaded
    part, found = loaded
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    _check_none(f"the {name}", missing=missing, unexpected=unexpected, wrong=[])
    return part.eval()


def find_model(name_or_path: str | Path, **hub: Any) -> Path:
    """The folder of a model: `mini`, a folder, or a hub id, which alone is downloaded."""
    if str(name_or_path) == "mini":
        return ASSETS / "mini"
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name_or_path)):
        raise CheckpointError(f"There is no model {name_or_path}: use mini, a folder, or a hub id such as owner/name.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name_or_path), **hub))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"There is no folder {name_or_path}, and it can't be had from the hub ({reason}): check the name."
        ) from error


def whole(parts: Parts, folder: Path) -> BlipDiffusion:
    """A model of parts, none of which may be missing."""
    missing = [field.name for field in dataclasses.fields(parts) if getattr(parts, field.name) is None]
    if missing:
        raise CheckpointError(f"The model in {folder} is incomplete: {', '.join(missing)} missing.")
    return BlipDiffusion(
        parts.subject_encoder,  # type: ignore[arg-type]  # checked above
        parts.text_encoder,
        parts.unet,
        parts.vae,
        tokenizer=parts.tokenizer,
        qformer_tokenizer=parts.qformer_tokenizer,
        scheduler=parts.scheduler,
        reference=parts.reference,  # type: ignore[arg-type]
        inference=inference_of(folder),
    )


def inference_of(folder: Path) -> InferenceConfig:
    """How the model in a folder wants to be asked; what its index leaves unsaid is as published."""
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    names = [field.name for field in dataclasses.fields(InferenceConfig)]
    return InferenceConfig(**{name: index[name] for name in names if name in index})


def save_model(model: BlipDiffusion, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """The whole folder; floats in `dtype` where one is given."""
    save_subject_model(model.subject_encoder, model.qformer_tokenizer, model.reference, folder, dtype=dtype)
    model.tokenizer.save_pretrained(folder / "tokenizer")
    model.scheduler.save_pretrained(folder / "scheduler")
    save_text_encoder(model.text_encoder, folder / "text_encoder", dtype=dtype)
    for name, part in (("unet", model.unet), ("vae", model.vae)):
        (part if dtype is None else nn.Module.to(copy.deepcopy(part), dtype)).save_pretrained(folder / name)
        table = read_json(folder / name / "config.json")
        table.pop("_name_or_path", None)  # where it was loaded from is no one's business
        write_json(folder / name / "config.json", table)
    write_json(folder / "model_index.json", _index(model))


def _index(model: BlipDiffusion) -> dict[str, Any]:
    """`model_index.json`, with the class names that the published one has."""
    parts = {
        "image_processor": ("blip_diffusion", "BlipImageProcessor"),
        "qformer": ("blip_diffusion", "Blip2QFormerModel"),
        "text_encoder": ("blip_diffusion", "ContextCLIPTextModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "scheduler": ("diffusers", type(model.scheduler).__name__),
    }
    names = {"_class_name": "BlipDiffusionPipeline", "_diffusers_version": diffusers.__version__}
    own = {"ctx_begin_pos": insert_position(model.tokenizer), "mean": model.reference.mean, "std": model.reference.std}
    return {**names, **parts, **own, **dataclasses.asdict(model.inference)}


def save_subject_model(
    encoder: SubjectEncoder,
    tokenizer: Any,
    reference: ReferenceConfig,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """The folders that make subject tokens: `qformer/`, `qformer_tokenizer/`, `image_processor/`."""
    save_subject_encoder(encoder, folder / "qformer", dtype=dtype)
    save_reference(reference, folder / "image_processor")
    tokenizer.save_pretrained(folder / "qformer_tokenizer")


def save_heads(heads: Mapping[str, nn.Module], folder: Path) -> None:
    """Heads that only training has, in `heads.safetensors`, so that it can go on."""
    state = {f"{name}.{key}": value for name, head in heads.items() for key, value in head.state_dict().items()}
    save_file(contiguous(state), folder / "heads.safetensors")


def load_heads(heads: Mapping[str, nn.Module], folder: Path) -> list[str]:
    """Fills those of `heads` that a folder has, and answers their names."""
    if not (folder / "heads.safetensors").is_file():
        return []
    state = read_state(folder, "heads.safetensors")
    loaded = []
    for name, head in heads.items():
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        if own:
            check_state(own, head.state_dict(), where=f"the {name} head")
            head.load_state_dict(own)
            loaded.append(name)
    return loaded
