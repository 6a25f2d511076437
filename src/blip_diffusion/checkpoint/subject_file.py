"""Subject files: small files with the result of tuning and the fingerprint of its base model.

subject_embedding.lora        (1, Q, D): the subject tokens
unet.….lora_A.weight          if a LoRA was trained, under diffusers' and PEFT's names
weights.…                     U-Net weights that replace the base model's, if weights were trained

The other fields are JSON in the header; the thumbnail has modelspec's key. A plain Stable Diffusion pipeline reads the
file as a LoRA; it refuses files with a key without "lora", hence the embedding's name.
"""

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from blip_diffusion import __version__
from blip_diffusion.argument_checks import instance, number, one_text
from blip_diffusion.checkpoint.lora import DOWN, UP, adapter_header
from blip_diffusion.checkpoint.lora_source import MAX_SCALE
from blip_diffusion.checkpoint.subject_header import (
    DATA_URI,
    EMBEDDING,
    LORA,
    TABLE,
    THUMBNAIL,
    WEIGHTS,
    decode_thumbnail,
    text_of,
)
from blip_diffusion.checkpoint.weights import State, check_materialized, save_state
from blip_diffusion.errors import CheckpointError, InputError, quoted, reason
from blip_diffusion.fileio import as_path, path_exists
from blip_diffusion.nn_utils import base_parameters, is_finite
from blip_diffusion.strict_json import parse_json

Kind = TypeVar("Kind", bound=Tensor)

THUMBNAIL_SIDE = 128
MOST_WORDS, MOST_LETTERS = 4, 100
SAMPLED = 64  # weights of every tensor, for a fingerprint


@dataclass(frozen=True, eq=False)
class Subject:
    """A tuned subject: an embedding, and optionally a LoRA or changed weights of the U-Net it was tuned for.

    Raises:
        InputError: If the name or the category cannot be used.
        CheckpointError: If the embedding is not finite or not of shape (1, Q, D).

    Example:
        >>> read_subject("rex.safetensors").category
        'dog'
    """

    name: str
    category: str
    embedding: Tensor  # (1, Q, D)
    base: str  # `fingerprint` of the model that it was tuned for
    lora: State = field(default_factory=dict)  # by PEFT's names in the U-Net
    alpha: float = 0.0  # of the LoRA; the rank follows from its shapes
    weights: State = field(default_factory=dict)  # by names in the U-Net
    thumbnail: bytes = b""  # JPEG
    metadata: Mapping[str, Any] = field(default_factory=dict)  # for users: steps, method, name of the base model …
    version: str = __version__  # of the library that wrote it

    def __post_init__(self) -> None:
        check_name(self.name)
        check_category(self.category)
        self._check_types()
        if self.embedding.ndim != 3 or len(self.embedding) != 1 or not self.embedding.isfinite().all():
            raise CheckpointError(f"The embedding of {self.name!r} is not finite numbers of shape (1, Q, D).")

    def _check_types(self) -> None:
        """Raise `InputError` for fields of wrong types."""
        instance("embedding", self.embedding, Tensor)
        instance("thumbnail", self.thumbnail, bytes)
        instance("metadata", self.metadata, dict)
        one_text("base", self.base)
        one_text("version", self.version)
        number("alpha", self.alpha, 0)
        for name in ("lora", "weights"):
            for key, tensor in instance(name, getattr(self, name), dict).items():
                instance(f"{name}[{quoted(key)}]", tensor, Tensor)

    @property
    def rank(self) -> int:
        """Rank of the LoRA; 0 without one."""
        return next((len(tensor) for name, tensor in self.lora.items() if ".lora_A." in name), 0)


def check_name(name: str) -> None:
    """Raise `InputError` unless a name can name a file and an adapter."""
    one_text("name", name)
    if not 0 < len(name) <= 64 or not all(letter.isalnum() or letter in "-_" for letter in name):
        raise InputError(f"The name {quoted(name)} can't be used: use letters, digits, - and _, for example rex.")


def check_category(category: str) -> None:
    """Raise `InputError` unless a category can be used in a prompt."""
    one_text("category", category)
    if not category.strip():
        raise InputError("The category is empty: name the subject, for example dog.")
    if len(category.split()) > MOST_WORDS or len(category) > MOST_LETTERS:
        raise InputError(
            f"The category {category[:MOST_LETTERS]!r} is too long: name the subject in a word or two, for example dog."
        )


def write_subject(subject: Subject, path: str | Path) -> None:
    """Write a subject file (safetensors) atomically.

    Args:
        subject: The subject.
        path: The file, replaced if it exists.

    Raises:
        InputError: If an argument is of another type, or the path is empty.
        CheckpointError: If the file cannot be written.
    """
    subject, path = instance("subject", subject, Subject), as_path("path", path)
    tensors = {EMBEDDING: subject.embedding.float()}
    tensors |= {f"{LORA}{name}": tensor for name, tensor in subject.lora.items()}
    tensors |= {f"{WEIGHTS}{name}": tensor for name, tensor in subject.weights.items()}
    try:
        save_state({name: tensor.detach() for name, tensor in tensors.items()}, path, header=_header(subject))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be written ({error}): choose another path.") from error


def read_subject(path: str | Path) -> Subject:
    """Read a subject file, of this or an earlier version.

    Args:
        path: The file.

    Returns:
        The subject, with tensors on the CPU.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds no subject.
    """
    path = as_path("subject", path)
    if not path_exists(path, Path.is_file):
        raise CheckpointError(f"There is no subject at {path}: check the path, or make one with blip-diffusion tune.")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if TABLE not in header:
                raise CheckpointError(f"{path} holds weights but no subject: blip-diffusion tune makes such files.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _check_tensors(tensors)
        return _subject(header, tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a subject file, or it is damaged ({reason(error)}).") from error


def check_place(path: Path) -> None:
    """Raise `InputError` if `path` is a file that is not a subject's: it is not overwritten."""
    if path_exists(path, Path.is_file):
        try:
            read_subject(path)
        except CheckpointError:
            raise InputError(f"{path} exists already and isn't a subject file: choose another --out.") from None


def _header(subject: Subject) -> dict[str, str]:
    """Return the header; safetensors allows only strings."""
    table = {"name": subject.name, "category": subject.category, "base": subject.base, "alpha": subject.alpha}
    table |= {"version": subject.version, "details": dict(subject.metadata)}
    header = {TABLE: json.dumps(table, sort_keys=True), "modelspec.title": subject.name}
    if subject.thumbnail:
        header[THUMBNAIL] = DATA_URI + base64.b64encode(subject.thumbnail).decode()
    if subject.lora:
        header |= adapter_header({"unet": subject.lora}, rank=subject.rank, alpha=subject.alpha)
    return header


def _subject(header: Mapping[str, str], tensors: State) -> Subject:
    table = parse_json(header[TABLE], finite=True)
    known = {key: text_of(table, key) for key in ("name", "category", "base", "version")}
    alpha, details = table["alpha"], table["details"]
    if type(alpha) not in (int, float) or not 0 <= alpha <= MAX_SCALE:
        raise ValueError(f"its alpha is {str(alpha)[:60]!r}")
    if not isinstance(details, dict):
        raise ValueError("its details are no table")
    return Subject(
        **known,
        embedding=tensors[EMBEDDING].float(),
        lora={name.removeprefix(LORA): tensor for name, tensor in tensors.items() if name.startswith(LORA)},
        alpha=float(alpha),
        weights={name.removeprefix(WEIGHTS): tensor for name, tensor in tensors.items() if name.startswith(WEIGHTS)},
        thumbnail=decode_thumbnail(header),
        metadata=details,
    )


def _check_tensors(tensors: State) -> None:
    """Raise `ValueError` for tensors of other names, and for numbers that are not finite floats."""
    for name, tensor in tensors.items():
        known = name == EMBEDDING or (name.startswith(LORA) and name.endswith((DOWN, UP))) or name.startswith(WEIGHTS)
        if not known:
            raise ValueError(f"it holds the tensor {name[:100]!r}, which is no part of a subject")
        if not tensor.is_floating_point() or not is_finite(tensor):
            raise ValueError(f"its tensor {name[:100]!r} has numbers that are no finite floats")


def thumbnail(image: Image.Image) -> bytes:
    """Return a small JPEG of an image."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def fingerprint(unet: nn.Module, text_encoder: nn.Module) -> str:
    """Return a hash of the base model: the signs of some weights of every tensor.

    Signs are the same in every precision. Adapters and word embeddings, which textual inversion extends, are
    ignored, and so is the VAE, which users exchange.
    """
    check_materialized(unet, text_encoder)
    digest = hashlib.sha256()
    for part in (unet, text_encoder):
        for name, tensor in sorted(base_parameters(part).items()):
            if not name.endswith("token_embedding.weight"):
                flat = tensor.detach().flatten()
                chosen = flat[torch.arange(SAMPLED, device=flat.device) * (len(flat) - 1) // (SAMPLED - 1)]
                signs = torch.signbit(chosen).cpu().numpy().tobytes()
                digest.update(f"{name} {tuple(tensor.shape)}".encode() + signs)
    return digest.hexdigest()[:32]
