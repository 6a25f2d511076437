"""Pickles of torch, which come from untrusted files: only dense tensors and plain values are read."""

import io
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blip_diffusion.errors import CheckpointError, reason
from blip_diffusion.nn_utils import holds_all_numbers

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""Of files of `torch.save`."""
MAX_PICKLE = 64 * 2**20
"""Most bytes of the part of a file that describes its objects; the numbers of tensors are stored elsewhere."""
MAX_OPERATIONS = 10**6
"""Most operations of a pickle; a tensor takes about 40."""
MAX_MEMBERS = 100_000
OLD_PICKLES = 5
"""Pickles at the start of a file of torch before 1.6."""
ZIP = b"PK\x03\x04"
REBUILT = ("torch._utils _rebuild_", "torch._tensor _rebuild_", "torch.serialization _get_layout")
"""Functions that make tensors of other kinds than `DENSE`."""
DENSE = ("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3",
         "torch._utils _rebuild_parameter")  # fmt: skip
RUNNING = "holds more than weights or is damaged, and running it could do harm: it is refused."


def read_pickle(path: Path) -> Any:
    """Read a pickle of dense tensors and plain tables on the CPU, memory-mapped if possible.

    Args:
        path: A file of `torch.save`.

    Returns:
        The object, whose tensors have all their numbers in memory.

    Raises:
        CheckpointError: For any other file, and for tensors of other kinds: sparse, meta, nested, quantized,
            subclasses, and those that use a number in memory for several elements.
    """
    try:
        _check_operations(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except CheckpointError:
        raise
    except Exception as error:  # for damaged files, libraries raise errors of many types
        raise _unreadable(path, error) from error
    _check_tensors(content, path)
    return content


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    if not _begins_as_pickle(path):  # a web page or a Git LFS pointer, for example
        return CheckpointError(f"{path} is not a file of weights: fetch it again.")
    if isinstance(error, pickle.UnpicklingError):  # whose message advises to run the file's code
        return CheckpointError(f"{path} {RUNNING}")
    return CheckpointError(f"{path} is not a file of weights ({reason(error)}): fetch it again.")


def check_pickles(folder: Path) -> None:
    """Check the pickles in a folder that another library reads. Raises `CheckpointError`."""
    for path in sorted(folder.iterdir()):
        if path.suffix in PICKLES and path.is_file():
            read_pickle(path)


def check_dense(name: str, tensor: Tensor, path: Path) -> None:
    """Raise `CheckpointError` unless each element of a tensor has its own number in memory.

    A pickle may hold one number with the shape of a layer; a fused optimizer would write beyond its memory.
    """
    plain = type(tensor) in (Tensor, nn.Parameter)
    plain = plain and not (tensor.is_conj() or tensor.is_neg())  # whose numbers are changed when they are read
    if not plain or tensor.is_meta or tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided:
        raise CheckpointError(
            f"{path} holds {name[:200]} without all its numbers (meta, sparse, nested or quantized): save a dense "
            "tensor."
        )
    if not holds_all_numbers(tensor):
        raise CheckpointError(f"{path} holds {name[:200]!r} with fewer numbers than its shape has: it is damaged.")


def _check_operations(path: Path) -> None:
    """Check what a file creates before anything is created."""
    if _is_zip(path):
        streams, data = 1, _zipped_pickle(path)
    else:
        with path.open("rb") as file:
            streams, data = OLD_PICKLES, file.read(MAX_PICKLE)
    stream, operations = io.BytesIO(data), 0
    for _ in range(streams):
        if stream.tell() == len(data):
            break  # a single pickle, as of `pickle.dump`, which torch refuses
        for operation, argument, _ in pickletools.genops(stream):
            operations += 1
            if operations > MAX_OPERATIONS:
                raise CheckpointError(f"{path} has more than {MAX_OPERATIONS} objects: it is no file of weights.")
            if operation.name == "GLOBAL":
                _check_name(str(argument), path)


def _check_name(name: str, path: Path) -> None:
    """Check the name of a class or function that a pickle uses."""
    if name in DENSE or name == "collections OrderedDict":
        return
    if name.startswith(REBUILT):
        raise CheckpointError(
            f"{path} holds tensors without all their numbers (meta, sparse, nested or quantized): save dense tensors."
        )
    if not name.startswith("torch ") and name not in ("torch.storage TypedStorage", "torch.storage UntypedStorage"):
        raise CheckpointError(f"{path} {RUNNING}")


def _zipped_pickle(path: Path) -> bytes:
    """Return the pickle inside a zip archive, whose members are not compressed."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MAX_MEMBERS or sum(one.file_size for one in members) > path.stat().st_size:
            raise ValueError("its members are compressed or too many")
        pickles = [one for one in members if one.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE:
            raise ValueError("it has no pickle")
        return archive.read(pickles[0])


def _is_zip(path: Path) -> bool:
    """Return whether torch reads a file as a zip archive."""
    with path.open("rb") as file:
        return file.read(len(ZIP)) == ZIP


def _begins_as_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) in (b"PK", *(bytes((0x80, protocol)) for protocol in range(2, 6)))


def _check_tensors(content: Any, path: Path) -> None:
    """Check the tensors of nested tables and lists, each of which is visited once."""
    seen: set[int] = set()
    remaining: list[tuple[str, Any]] = [("a tensor", content)]
    while remaining:
        name, value = remaining.pop()
        if isinstance(value, Tensor):
            check_dense(name, value, path)
        elif isinstance(value, Mapping | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            inner = value.items() if isinstance(value, Mapping) else ((name, one) for one in value)
            remaining.extend((str(key), one) for key, one in inner)
