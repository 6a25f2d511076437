"""The tokenizers of prompts and of the Q-Former."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip_diffusion.checkpoint.locate import ASSETS, check_source
from blip_diffusion.checkpoint.weights import read_json, write_json
from blip_diffusion.errors import CheckpointError, reason
from blip_diffusion.fileio import path_exists
from blip_diffusion.protocols import Tokenizer

SHORTEST = 8
"""Fewest tokens of a prompt."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"
)  # fmt: skip


def check_tokenizer_files(folder: Path) -> None:
    """Raise `CheckpointError` for a file that is no JSON object or has a key twice, before transformers reads it."""
    for name in TOKENIZER_FILES:
        if path_exists(folder / name):
            read_json(folder / name)


def check_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer that reads a prompt. Raises `ValueError`, or whatever else it raises, for one that doesn't."""
    longest = getattr(tokenizer, "model_max_length", None)
    if isinstance(longest, bool) or not isinstance(longest, int | float) or not longest >= SHORTEST:
        raise ValueError(f"model_max_length is {str(longest)[:60]!r}, use a whole number from {SHORTEST}")
    backend = tokenizer.backend_tokenizer  # keeps the last padding and truncation, which are saved with it
    before = backend.padding, backend.truncation
    for padding in (True, "max_length"):
        tokenizer(["a dog", ""], padding=padding, truncation=True, max_length=SHORTEST, return_tensors="pt")
    _restore_lengths(backend, *before)
    return tokenizer


def _restore_lengths(backend: Any, padding: Mapping[str, Any] | None, truncation: Mapping[str, Any] | None) -> None:
    """Set padding and truncation of a tokenizer of the library tokenizers."""
    if padding is None:
        backend.no_padding()
    else:
        backend.enable_padding(**padding)
    if truncation is None:
        backend.no_truncation()
    else:
        backend.enable_truncation(**truncation)


def bert_tokenizer(path: str | Path | None = None) -> Tokenizer:
    """Load the Q-Former's tokenizer from a folder or vocabulary file; default: bert-base-uncased's.

    `[DEC]` starts a caption to be generated; it is added if the vocabulary lacks it.
    """
    from transformers import BertTokenizer

    if path is not None:
        check_source(path, "WordPiece vocabulary")
    path = Path(path) if path is not None else ASSETS / "bert-base-uncased" / "vocab.txt"
    vocabulary = path / "vocab.txt" if path_exists(path, Path.is_dir) else path
    in_vocabulary = path_exists(vocabulary, Path.is_file)
    if not in_vocabulary:
        check_tokenizer_files(path)
    try:
        if in_vocabulary:
            tokenizer = BertTokenizer(vocab=str(vocabulary), do_lower_case=True)
        else:
            tokenizer = check_tokenizer(BertTokenizer.from_pretrained(path))
            special = set(getattr(tokenizer, "all_special_ids", ()))
            if len(tokenizer) <= len(special):  # transformers makes one of a place without files
                raise ValueError("it has no words")
    except Exception as error:  # tokenizers raises plain exceptions
        raise CheckpointError(f"There is no WordPiece vocabulary at {path} ({reason(error)}).") from error
    if tokenizer.bos_token != "[DEC]":
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer as transformers 5 does, and the two files of transformers 4, which the published code reads."""
    tokenizer.save_pretrained(folder)
    table = read_json(folder / "tokenizer.json")["model"]
    write_json(folder / "vocab.json", table["vocab"])
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in table["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
