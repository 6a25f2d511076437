"""The folder `language/`: the projection, and a language model with its tokenizer or a reference to them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blip_diffusion.checkpoint.components import read_config
from blip_diffusion.checkpoint.gguf import SUFFIX, find_gguf, load_gguf
from blip_diffusion.checkpoint.tokenizers import check_tokenizer_files
from blip_diffusion.checkpoint.weights import (
    CONFIG_ERRORS,
    check_materialized,
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
from blip_diffusion.errors import CheckpointError, reason
from blip_diffusion.fileio import sha256_of
from blip_diffusion.modules.language import LanguagePrefix
from blip_diffusion.protocols import Tokenizer

PROJECTION = "projection.safetensors"
SOURCE = "source.json"
"""File with the path and the digest of a language model that is not copied."""


def save_language(
    part: Any, tokenizer: Tokenizer, folder: Path, *, source: Path | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write a `LanguagePrefix`, or a language model without a projection.

    Args:
        part: The prefix or the language model.
        tokenizer: The language model's tokenizer.
        folder: `language/` of a model's folder.
        source: Folder or GGUF file of a language model; only its path and digest are written.
        dtype: Precision of the written weights; by default theirs.
    """
    model = part.language_model if isinstance(part, LanguagePrefix) else part
    check_materialized(part)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(part, LanguagePrefix):
        save_state(part.projection.state_dict(), folder / PROJECTION, dtype)
    if source is not None:
        source = find_gguf(source)
        write_json(folder / SOURCE, {"path": str(source.resolve()), "sha256": weights_digest(source)})
        return
    model.config.save_pretrained(folder)
    save_part(untied_state(model), folder, "model", dtype=dtype)
    tokenizer.save_pretrained(folder)


def load_language(folder: Path, width: int, *, dtype: torch.dtype | None = None) -> tuple[LanguagePrefix, Any]:
    """Load projection, language model and tokenizer from `language/`; `width` is that of the queries."""
    model, tokenizer = load_language_model(folder, dtype=dtype)
    if not (folder / PROJECTION).is_file():
        raise CheckpointError(f"{folder / PROJECTION} is missing: train it with the objective language.")
    with meta_init():
        part = LanguagePrefix(width, model)
    state = read_file(folder / PROJECTION)
    load_into(part.projection, state, where="the projection to the language model", dtype=dtype)
    part.freeze()
    return part, tokenizer


def load_language_model(folder: Path, *, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """Load a language model and its tokenizer.

    Args:
        folder: A folder for transformers' auto classes, `language/` of a model, a GGUF file, or "smollm2".
        dtype: Precision of the weights; by default float32.

    Raises:
        CheckpointError: If there is no language model, or weights are missing, unexpected or of wrong shapes.
    """
    folder = _source_of(find_gguf(folder))
    if folder.suffix == SUFFIX and folder.is_file():
        model, tokenizer = load_gguf(folder, dtype=dtype)
        _check_ids(model, tokenizer, folder)
        return model, tokenizer
    table = read_config(folder / "config.json", "the language model")
    with config_errors("the language model"), meta_init():
        model = build_language_model(table)
    load_tied(model, read_state(folder), where="the language model", dtype=dtype)
    tokenizer = load_tokenizer(folder)
    _check_ids(model, tokenizer, folder)
    return model, tokenizer


def _check_ids(model: Any, tokenizer: Any, place: Path) -> None:
    """Raise `CheckpointError` for a tokenizer or special tokens that the model has no embeddings of."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    words = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    config = model.config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list | tuple) else [config.eos_token_id]
    given = [*ends, *(one for one in (config.bos_token_id, config.pad_token_id) if one is not None)]
    if not ends or not all(type(one) is int and 0 <= one < rows for one in given):
        raise CheckpointError(f"The special tokens of {place} are {given}: its language model has 0 to {rows - 1}.")
    if max(words.values(), default=rows) >= rows:
        raise CheckpointError(f"The tokenizer of {place} doesn't fit its language model of {rows} tokens.")


def build_language_model(table: Mapping[str, Any]) -> Any:
    """Build the model of a configuration of transformers: an encoder-decoder or a decoder-only one."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    if "model_type" not in table:
        raise ValueError("it has no model_type")
    config = AutoConfig.for_model(**table)
    return (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM).from_config(config)


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a language model."""
    from transformers import AutoTokenizer

    check_tokenizer_files(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ImportError, *CONFIG_ERRORS) as error:
        raise CheckpointError(f"The tokenizer in {folder} can't be loaded: {reason(error)}.") from error


def load_tied(model: nn.Module, state: Mapping[str, Tensor], *, where: str, dtype: torch.dtype | None = None) -> None:
    """Load a state dict into a model of transformers; a file may contain tied weights once or twice.

    Floats become float32 without a `dtype`. Raises `CheckpointError` unless names and shapes are the model's.
    """
    first = _first_names(model)
    untied: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if (first_name := first.get(name, name)) == name or first_name not in state:
            untied[first_name] = tensor
    check_state(untied, untied_state(model), where=where)
    floats = dtype or torch.float32
    cast = {name: tensor.to(floats) if tensor.is_floating_point() else tensor for name, tensor in untied.items()}
    model.load_state_dict(cast, assign=True, strict=False)
    for part in model.modules():
        if callable(tie := getattr(part, "tie_weights", None)):
            tie()
    model.requires_grad_(False).eval()


def untied_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict with each tied weight once."""
    first = _first_names(model)
    return {name: tensor for name, tensor in model.state_dict().items() if first.get(name, name) == name}


def _first_names(model: nn.Module) -> dict[str, str]:
    """Return the first name of each parameter, by any of its names."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(p), name) for name, p in model.named_parameters(remove_duplicate=False)}


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 digest of a file, or that of the digests of a folder's weights."""
    if folder.is_file():
        return sha256_of(folder)
    files = sorted(path for kind in ("*.safetensors", "*.bin") for path in folder.glob(kind))
    if not files:
        raise CheckpointError(f"There are no weights in {folder}: name the folder of a language model.")
    return sha256_of("".join(sha256_of(path) for path in files).encode())


def _source_of(folder: Path) -> Path:
    if not folder.exists():
        raise CheckpointError(
            f"There is no language model at {folder}: name a folder that transformers saved, or a GGUF file."
        )
    if not (folder / SOURCE).is_file():
        return folder
    table = read_json(folder / SOURCE)
    source = Path(str(table.get("path")))
    if not source.exists():
        raise CheckpointError(f"The language model of {folder} is missing at {source}: put it there again.")
    if weights_digest(source) != table.get("sha256"):
        raise CheckpointError(f"The language model in {source} is no longer the one that {folder} was trained with.")
    return source
