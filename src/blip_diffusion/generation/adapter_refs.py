"""LoRAs and embeddings in a request: path, weight, and a digest that proves the file is unchanged."""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.fileio import path_exists, sha256_of

PREFIX = "lora-"
"""Adapter names of a request's LoRAs: this and a number."""


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
        if not isfinite(self.weight):
            raise InputError(f"The weight of --lora {self.path} is {self.weight}: use a number, for example 0.5.")


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


def load_adapters(pipe: Any, loras: tuple[LoraRef, ...], embeddings: tuple[EmbeddingRef, ...]) -> None:
    """Load LoRAs and embeddings into a pipeline and activate the LoRAs with their weights.

    Raises:
        CheckpointError: If a file is missing, has changed, or doesn't fit the model.
    """
    names = [f"{PREFIX}{number}" for number in range(len(loras))]
    for path, sha256 in [(ref.path, ref.sha256) for ref in loras] + [(ref.path, ref.sha256) for ref in embeddings]:
        if _digest(Path(path), "file") != sha256:
            raise CheckpointError(f"{path} has changed since the image was made: find the old file.")
    for name, lora in zip(names, loras, strict=True):
        pipe.load_lora_weights(lora.path, adapter_name=name)
    for embedding in embeddings:
        pipe.load_textual_inversion(embedding.path)
    if names:
        pipe.set_adapters(names, [lora.weight for lora in loras])


def unload_adapters(pipe: Any) -> None:
    """Remove the LoRAs that `load_adapters` loaded into a pipeline; other LoRAs and embeddings stay."""
    loaded = {name for names in pipe.get_list_adapters().values() for name in names if name.startswith(PREFIX)}
    if loaded:
        pipe.delete_adapters(sorted(loaded))


def _digest(path: Path, what: str) -> str:
    if not path_exists(path, Path.is_file):
        raise CheckpointError(f"There is no {what} at {path}: check the path.")
    return sha256_of(path)
