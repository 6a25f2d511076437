"""LoRAs and embeddings in a request: path, weight, and a digest that proves the file is unchanged."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip_diffusion.config import check_types
from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.fileio import path_exists, sha256_of

REQUESTED = "requested-"
"""Begins the names of adapters that a request brings."""


@dataclass(frozen=True)
class LoraRef:
    """A LoRA file and its weight. PNG metadata hold the file's digest, not the file.

    Args:
        path: The file.
        sha256: Digest of the file.
        weight: Scale of the LoRA; finite, 1 is usual.

    Raises:
        InputError: If `weight` is not finite.
    """

    path: str
    sha256: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_types(self, InputError)


@dataclass(frozen=True)
class EmbeddingRef:
    """A file of a textual inversion. PNG metadata hold the file's digest, not the file.

    Args:
        path: The file.
        sha256: Digest of the file.
    """

    path: str
    sha256: str


def lora_ref(path: Path, weight: float = 1.0) -> LoraRef:
    """Refer to a LoRA file. Raises `CheckpointError` if there is none."""
    return LoraRef(str(path), _digest(path, "LoRA"), weight)


def embedding_ref(path: Path) -> EmbeddingRef:
    """Refer to a file of a textual inversion. Raises `CheckpointError` if there is none."""
    return EmbeddingRef(str(path), _digest(path, "embedding"))


@contextmanager
def loaded_adapters(pipe: Any, loras: Sequence[LoraRef], embeddings: Sequence[EmbeddingRef]) -> Iterator[None]:
    """Context manager: a pipeline has these LoRAs, active with their weights, and these words; afterwards none of them.

    Raises:
        CheckpointError: If a file is missing, has changed, or doesn't fit the model.
    """
    check_unchanged(loras, embeddings)
    names: list[str] = []
    known = set(pipe.tokenizer.get_added_vocab())
    try:
        for number, lora in enumerate(loras):
            pipe.load_lora_weights(lora.path, adapter_name=f"{REQUESTED}{number}")
            names.append(f"{REQUESTED}{number}")
        for embedding in embeddings:
            pipe.load_textual_inversion(embedding.path)
        if names:
            pipe.set_adapters(names, [lora.weight for lora in loras])
        yield
    finally:
        if names:
            pipe.delete_adapters(names)
        if words := [word for word in pipe.tokenizer.get_added_vocab() if word not in known]:
            pipe.unload_textual_inversion(words)


def check_unchanged(loras: Sequence[LoraRef], embeddings: Sequence[EmbeddingRef]) -> None:
    """Raise `CheckpointError` for a file that is missing or has changed."""
    for path, sha256 in [(ref.path, ref.sha256) for ref in loras] + [(ref.path, ref.sha256) for ref in embeddings]:
        if _digest(Path(path), "file") != sha256:
            raise CheckpointError(f"{path} has changed since the image was generated: restore the old file.")


def _digest(path: Path, what: str) -> str:
    if not path_exists(path, Path.is_file):
        raise CheckpointError(f"There is no {what} at {path}: check the path.")
    return sha256_of(path)
