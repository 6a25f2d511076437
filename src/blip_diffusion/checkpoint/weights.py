"""Files of weights, read with suspicion and written whole."""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from blip_diffusion.errors import CheckpointError, InputError, quoted, reason
from blip_diffusion.fileio import atomic_file, write_text
from blip_diffusion.nn_utils import is_finite
from blip_diffusion.pickles import PICKLES, read_pickle
from blip_diffusion.strict_json import parse_json

Module = TypeVar("Module", bound=nn.Module)


State = dict[str, Tensor]
STEMS = ("model", "pytorch_model", "diffusion_pytorch_model")
"""File names of weights, without suffix."""
SAFE, PICKLED = ".safetensors", ".bin"
MAX_JSON = 64 * 2**20
"""Largest JSON file in bytes; tokenizers have the largest ones."""
MAX_CONFIG = 2**16
"""Largest configuration in bytes."""
CONFIG_ERRORS = (
    TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError, StrictDataclassError
)  # fmt: skip
"""Errors that libraries raise for an invalid configuration."""


@dataclass(frozen=True)
class WeightFiles:
    """Which files hold the weights of a part.

    Args:
        variant: The word before the suffix, such as "fp16" in `model.fp16.safetensors`. A part without such a file is
            read from the one without a variant. `None`: written without a variant, and read with any.
        safe: Whether the files are safetensors. `None`: safetensors are written, and preferred for reading.

    Raises:
        InputError: If the variant is not a word.
    """

    variant: str | None = None
    safe: bool | None = None

    def __post_init__(self) -> None:
        if self.variant is not None and not (isinstance(self.variant, str) and re.fullmatch(r"[\w-]+", self.variant)):
            raise InputError(f"variant is {quoted(self.variant)}: use a word, for example fp16.")
        if self.safe is not None and not isinstance(self.safe, bool):
            raise InputError(f"use_safetensors and safe_serialization are True or False, not {quoted(self.safe)}.")

    def name(self, stem: str) -> str:
        """Return the name of the file to write; `stem` is that of a safetensors file."""
        stem = "pytorch_model" if stem == "model" and self.safe is False else stem
        return f"{stem}{_dotted(self.variant)}{PICKLED if self.safe is False else SAFE}"

    def choices(self) -> list[tuple[str, str]]:
        """Return the variants and suffixes to look for, the best one first."""
        suffixes = {None: (SAFE, PICKLED), True: (SAFE,), False: (PICKLED,)}[self.safe]
        if self.variant is not None:
            return list(itertools.product((_dotted(self.variant), ""), suffixes))
        return [(variant, suffix) for suffix in suffixes for variant in ("", ".fp16", ".bf16")]


ANY_FILES = WeightFiles()


def _dotted(variant: str | None) -> str:
    return f".{variant}" if variant else ""


def read_state(folder: Path, files: WeightFiles = ANY_FILES) -> State:
    """Read the weights in a part's folder, in one file or in shards."""
    for (variant, suffix), stem in itertools.product(files.choices(), STEMS):
        if (path := folder / f"{stem}{variant}{suffix}").is_file():
            return read_file(path)
        for index in _index_names(stem, variant, suffix):
            if (folder / index).is_file():
                return _read_shards(folder, index)
    names = {None: "model.safetensors or pytorch_model.bin", True: "model.safetensors", False: "pytorch_model.bin"}
    raise CheckpointError(f"There are no weights in {folder}: it must hold {names[files.safe]}.")


def _index_names(stem: str, variant: str, suffix: str) -> tuple[str, str]:
    return f"{stem}{suffix}.index{variant}.json", f"{stem}{variant}{suffix}.index.json"


def read_file(path: Path) -> State:
    """Read the tensors of one file, memory-mapped if possible; of a pickle, only tensors."""
    if path.suffix not in (".safetensors", *PICKLES):
        raise CheckpointError(f"{path} is not a file of weights: use a {', '.join(('.safetensors', *PICKLES))} file.")
    if path.suffix != ".safetensors":
        return table_of_tensors(read_pickle(path), path)
    try:
        return load_file(path)
    except Exception as error:  # for damaged files, libraries raise errors of many types
        raise CheckpointError(f"{path} is not a file of weights ({reason(error)}): fetch it again.") from error


def _read_shards(folder: Path, index: str) -> State:
    table = read_json(folder / index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise CheckpointError(f"{folder / index} has no weight_map: download it again.")
    state: State = {}
    for name in sorted(set(table.values())):
        if Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / index} names the file {name!r}, which is not in its folder: download it again."
            )
        state |= read_file(folder / name)
    return state


def table_of_tensors(table: Any, path: Path) -> State:
    """Return the tensors of a table, which training frameworks may wrap in `state_dict` or `model`."""
    for key in ("state_dict", "model"):
        if isinstance(table, dict) and isinstance(table.get(key), dict):
            table = table[key]
    if not isinstance(table, dict):
        raise CheckpointError(f"{path} is not a table of tensors.")
    state = {str(name): value for name, value in table.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(f"{path} is not a table of tensors.")
    return state


def check_loaded(network: nn.Module, missing: Iterable[str]) -> None:
    """Raise `ValueError` for a network whose weights a library found missing, or that are not finite.

    Args:
        network: The network.
        missing: The `missing_keys` of transformers' loading info. These weights are random numbers now.
    """
    if names := sorted(missing):
        raise ValueError(f"{names[0]} is missing")
    if not all(is_finite(one) for one in network.parameters()):
        raise ValueError("it has weights that are not finite")


def save_part(
    state: Mapping[str, Tensor],
    folder: Path,
    stem: str,
    *,
    dtype: torch.dtype | None = None,
    files: WeightFiles = ANY_FILES,
) -> None:
    """Write the weights of a part, and remove older files of the same variant, which would be read instead."""
    name = files.name(stem)
    save_state(state, folder / name, dtype)
    variant = _dotted(files.variant)
    for other, suffix in itertools.product(STEMS, (SAFE, PICKLED)):
        for old in {f"{other}{variant}{suffix}", *_index_names(other, variant, suffix)} - {name}:
            (folder / old).unlink(missing_ok=True)


def save_state(
    state: Mapping[str, Tensor],
    path: Path,
    dtype: torch.dtype | None = None,
    *,
    header: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file, or a pickle of tensors, atomically, floats in `dtype` if one is given.

    A The file is replaced, never written into, because the tensors may be mapped from it.
    """
    with atomic_file(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # of the umask; safetensors would make the file private
        if path.suffix == SAFE:
            save_file(contiguous(state, dtype), partial, metadata={"format": "pt", **(header or {})})
        else:
            torch.save(contiguous(state, dtype), partial)
        partial.chmod(mode)


class _EmptyOnMeta(TorchFunctionMode):
    """A mode in which `torch.empty`, which creates parameters, allocates no memory. Buffers get their values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **({**(kwargs or {}), "device": "meta"} if func is torch.empty else kwargs or {}))


@contextmanager
def meta_init() -> Iterator[None]:
    """Context manager: build modules without memory for parameters, which `load_into` assigns.

    Unlike accelerate's `init_empty_weights`, which replaces methods of `nn.Module`, it affects only this thread.
    """
    with _EmptyOnMeta():
        yield


def load_into(module: Module, state: Mapping[str, Tensor], *, where: str, dtype: torch.dtype | None = None) -> Module:
    """Load a state into a module, without a copy if it has the `dtype` already.

    The default `dtype` is float32. Raises `CheckpointError` unless names and shapes are the module's.
    """
    check_state(state, module.state_dict(), where=where)
    floats = dtype or torch.float32
    module.load_state_dict(
        {name: tensor.to(floats) if tensor.is_floating_point() else tensor for name, tensor in state.items()},
        assign=True,
    )
    module.eval()
    return module


def check_materialized(*parts: nn.Module) -> None:
    """Raise `InputError` for weights that accelerate loads only during computation."""
    if any(tensor.is_meta for part in parts for tensor in part.parameters()):
        raise InputError(
            "The weights are loaded only during computation, so they can't be read now: load and save before "
            "enable_sequential_cpu_offload, or call remove_all_hooks."
        )


def read_json(path: Path, *, finite: bool = True, most: int = MAX_JSON) -> dict[str, Any]:
    """Read a JSON object of at most so many bytes, by default of finite numbers.

    Raises `CheckpointError` if there is none.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is not a file")
        if path.is_file() and path.stat().st_size > most:
            raise ValueError(f"it has more than {most // 2**10} KiB")
        table = parse_json(path.read_text(encoding="utf-8"), finite=finite)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: the model's folder is incomplete.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read ({reason(error)[:200]}).") from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{path} is not a JSON object.")
    return table


@contextmanager
def config_errors(what: str) -> Iterator[None]:
    """Context manager: turn a library's errors for an invalid configuration into `CheckpointError`."""
    try:
        yield
    except CONFIG_ERRORS as error:
        raise CheckpointError(f"The configuration of {what} can't be used: {reason(error)}.") from error


def write_json(path: Path, table: Mapping[str, Any]) -> None:
    """Write a JSON object, sorted and indented."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(table, indent=2, sort_keys=True) + "\n")


def contiguous(state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return tensors for a file: on the CPU, contiguous, and floats in `dtype` if one is given."""
    return {
        name: (tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in state.items()
    }


def check_state(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, extra: list[str] | None = None, where: str
) -> None:
    """Raise `CheckpointError` unless names, shapes and kinds of numbers are those of `expected`."""
    problem = format_mismatches(
        missing=expected.keys() - state.keys(),
        unexpected=[*(state.keys() - expected.keys()), *(extra or [])],
        wrong=shape_mismatches(state, {name: tuple(tensor.shape) for name, tensor in expected.items()}),
        not_finite=[name for name in state.keys() & expected.keys() if not is_finite(state[name])],
        not_floats=[
            f"{name} is {state[name].dtype}".replace("torch.", "")
            for name in state.keys() & expected.keys()
            if expected[name].is_floating_point() and not state[name].is_floating_point()
        ],
    )
    if problem:
        raise CheckpointError(f"The weights don't fit {where}: {problem}.")


def shape_mismatches(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Describe each tensor whose shape differs from the expected one."""
    return [
        f"{name} is {tuple(state[name].shape)}, not {expected[name]}"
        for name in sorted(state.keys() & expected.keys())
        if tuple(state[name].shape) != expected[name]
    ]


def format_mismatches(
    *,
    missing: Iterable[str],
    unexpected: Iterable[str],
    wrong: Iterable[str],
    not_floats: Iterable[str] = (),
    not_finite: Iterable[str] = (),
) -> str:
    """Return the number and the first names of each kind of mismatch; empty without any."""
    kinds = (
        ("missing", sorted(missing)),
        ("unexpected", sorted(unexpected)),
        ("of another shape", sorted(wrong)),
        ("not of floats", sorted(not_floats)),
        ("not finite (NaN or infinity)", sorted(not_finite)),
    )
    return "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"
        for kind, names in kinds
        if names
    )
