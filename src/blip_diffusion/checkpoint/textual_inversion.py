"""Embeddings of new words (Gal et al. 2022), in the files of diffusers, Automatic1111 and kohya's scripts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip_diffusion.checkpoint.weights import SAFE, read_file
from blip_diffusion.errors import CheckpointError, quoted
from blip_diffusion.nn_utils import is_finite
from blip_diffusion.pickles import PICKLES, read_pickle
from blip_diffusion.protocols import Tokenizer

TENSOR_NAMES = {"emb_params", "embedding", "embeddings", "learned_embeds", "vector", "vectors", "weight", "tensor"}
"""Tensor names that don't name a word: the file's name is used instead."""
FILES = ("learned_embeds.safetensors", "learned_embeds.bin")
MAX_WORD = 200
"""Most letters of a word."""
MAX_NUMBER = 1e4
"""Largest number of a vector; embeddings of text encoders are below 10."""
MAX_VECTORS = 75
"""Most vectors of a word: the words of a prompt."""


def add_word(tokenizer: Tokenizer, text_encoder: Any, word: str, vectors: Tensor) -> None:
    """Add a word to a tokenizer and its vectors (N, D) to a text encoder, under diffusers' names for the N tokens.

    Raises:
        CheckpointError: If the tokenizer has the word, or the vectors have another width.
    """
    table = text_encoder.get_input_embeddings().weight
    if vectors.shape[1] != table.shape[1]:
        raise CheckpointError(
            f"The textual inversion isn't for this model, whose embeddings are {table.shape[1]} wide: its own are "
            f"{vectors.shape[1]}."
        )
    tokens = [word, *(f"{word}_{number}" for number in range(1, len(vectors)))]
    if known := [token for token in tokens if token in tokenizer.get_vocab()]:
        raise CheckpointError(
            f"The tokenizer knows the word {known[0]!r} already: give each textual inversion its own."
        )
    tokenizer.add_tokens(tokens)
    text_encoder.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        table = text_encoder.get_input_embeddings().weight
        table[tokenizer.convert_tokens_to_ids(tokens)] = vectors.to(table)


def find_embeddings(source: str | Path, subfolder: str | None = None, weight_name: str | None = None) -> Path:
    """Return the file of a file or folder. Raises `CheckpointError` if there is none."""
    path = Path(source)
    if path.is_file():
        return path
    folder = path / subfolder if subfolder else path
    for name in (weight_name,) if weight_name else FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"There is no textual inversion in {folder}: it must hold {weight_name or FILES[0]}.")


def read_embeddings(path: Path) -> tuple[str, Tensor]:
    """Return the word and its vectors (N, D) in a file; a file that names no word is named after itself."""
    if path.suffix not in (SAFE, *PICKLES):
        raise CheckpointError(f"{path} is not a textual inversion: use a {', '.join((SAFE, *PICKLES))} file.")
    return parse_embeddings(read_file(path) if path.suffix == SAFE else read_pickle(path), path.stem)


def parse_embeddings(table: Any, fallback: str | None) -> tuple[str, Tensor]:
    """Return the word and its vectors (N, D).

    Args:
        table: A tensor; {word: tensor}; or Automatic1111's table.
        fallback: The word if the table has none.

    Raises:
        CheckpointError: If the table has another format, or the vectors can't be used.
    """
    word, vectors = _word_and_vectors(table, fallback)
    check_word(word)
    if not isinstance(vectors, Tensor) or vectors.is_meta or not vectors.is_floating_point():
        raise CheckpointError("The textual inversion holds no tensor of floats.")
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or not 1 <= len(vectors) <= MAX_VECTORS or not 1 <= vectors.shape[1] <= 2**16:
        raise CheckpointError(f"The textual inversion is {tuple(vectors.shape)}: use (1 to {MAX_VECTORS}, width).")
    if not is_finite(vectors):
        raise CheckpointError("The textual inversion has numbers that are not finite (NaN or infinity).")
    vectors = vectors.detach().to("cpu", torch.float32).contiguous()
    if float(vectors.abs().max()) > MAX_NUMBER:
        raise CheckpointError(f"The textual inversion has numbers above {MAX_NUMBER:g}: it is damaged.")
    return word, vectors


def check_word(word: Any) -> None:
    """Raise `CheckpointError` for a value that can't be a new word of a prompt."""
    usable = isinstance(word, str) and word.split() == [word] and word.isprintable() and len(word) <= MAX_WORD
    if not usable:
        raise CheckpointError(
            f"The textual inversion has the word {quoted(word)}: give one with token=, for example <rex>."
        )


def _word_and_vectors(table: Any, fallback: str | None) -> tuple[Any, Any]:
    if isinstance(table, Tensor):
        return fallback, table
    if not isinstance(table, Mapping):
        raise CheckpointError(f"The textual inversion is a {type(table).__name__}, not a table of embeddings.")
    if isinstance(table.get("string_to_param"), Mapping):
        params = list(table["string_to_param"].values())
        name = table.get("name")
        return name if isinstance(name, str) and name.strip() else fallback, params[0] if len(params) == 1 else None
    tensors = {name: value for name, value in table.items() if isinstance(value, Tensor)}
    names = list(tensors)
    if len(names) != 1:
        known = "is for Stable Diffusion XL" if "clip_g" in names else f"holds {len(names)} tensors"
        listed = ", ".join(str(name) for name in names[:4])
        raise CheckpointError(f"The textual inversion {known} ({listed}), not the embedding of one word.")
    word = fallback if names[0] in TENSOR_NAMES and fallback else names[0]
    return word, tensors[names[0]]
