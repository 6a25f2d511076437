"""Pickles of torch: dense tensors and plain values are read, all else is refused before it takes memory."""

import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blip_diffusion.errors import CheckpointError
from blip_diffusion.pickles import check_dense, check_pickles, read_pickle


class Named(Tensor):
    """A subclass of tensors."""


def strided(storage: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> Tensor:
    return torch.zeros(storage).as_strided(shape, strides, offset)


OVERLAPPING: dict[str, Callable[[], Tensor]] = {
    "expanded": lambda: torch.zeros(1).expand(4, 4),
    "expanded rows": lambda: torch.zeros(1, 4).expand(4, 4),
    "overlapping": lambda: strided(16, (4, 4), (1, 1)),
    "overlapping by one": lambda: strided(16, (4, 4), (3, 1)),
}
OTHER_KINDS: dict[str, Callable[[], Any]] = {
    "meta": lambda: torch.empty(3, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed rows": lambda: torch.eye(3).to_sparse_csr(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "negated": lambda: torch.ones(3, dtype=torch.complex64).conj().imag,
    "subclass": lambda: torch.ones(3).as_subclass(Named),
}
WHOLE: dict[str, Callable[[], Any]] = {
    "transposed": lambda: torch.arange(6).reshape(2, 3).t(),
    "part of a storage": lambda: torch.arange(10)[4:8],
    "channels last": lambda: torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "empty": lambda: torch.ones(0, 3),
    "one number": lambda: torch.tensor(3.0),
    "parameter": lambda: nn.Parameter(torch.ones(3)),
    "eight bits": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "plain values": lambda: OrderedDict(a=[1, 2.5, None, True, "x"], b=(1,), c={}),
}


def written(value: object, path: Path, *, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def holding(data: bytes, path: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write an archive of torch with any pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("make", WHOLE.values(), ids=WHOLE.keys())
def test_dense_tensors_and_plain_values_are_read(tmp_path: Path, make: Callable[[], Any], zipped: bool) -> None:
    value = make()
    if not zipped and getattr(value, "dtype", None) == torch.float8_e4m3fn:
        pytest.skip("torch itself doesn't read such files")
    read = read_pickle(written({"a": value}, tmp_path / "a.pt", zipped=zipped))["a"]
    if isinstance(value, Tensor):
        assert read.shape == value.shape and torch.equal(read.float(), value.float())
    else:
        assert read == value


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("make", OVERLAPPING.values(), ids=OVERLAPPING.keys())
def test_tensors_that_use_a_number_twice_are_refused(tmp_path: Path, make: Callable[[], Tensor], zipped: bool) -> None:
    path = written({"state": [{"exp_avg": make()}]}, tmp_path / "a.pt", zipped=zipped)
    with pytest.raises(CheckpointError, match="holds 'exp_avg' with fewer numbers than its shape has"):
        read_pickle(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", OTHER_KINDS.values(), ids=OTHER_KINDS.keys())
def test_tensors_of_other_kinds_are_refused(tmp_path: Path, make: Callable[[], Any]) -> None:
    value = make()
    with pytest.raises(CheckpointError, match="without all its numbers"):
        check_dense("a", value, tmp_path)
    with pytest.raises(CheckpointError, match=r"without all (its|their) numbers|more than weights"):
        read_pickle(written({"a": value}, tmp_path / "a.pt"))


PICKLES: dict[str, Callable[[], bytes]] = {
    "many objects": lambda: b"\x80\x02(" + b"}" * (10**6 + 1) + b"l.",
    "memory": lambda: b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R.",
    "nested levels": lambda: b"\x80\x02" + b"]" * 900_000 + b"a" * 899_999 + b".",
    "lying length": lambda: b"\x80\x02X\xff\xff\xff\x7fabc.",
}


@pytest.mark.parametrize("make", PICKLES.values(), ids=PICKLES.keys())
def test_absurd_pickles_are_refused(tmp_path: Path, make: Callable[[], bytes]) -> None:
    with pytest.raises(CheckpointError, match=r"objects|more than weights|not a file of weights"):
        read_pickle(holding(make(), tmp_path / "a.pt"))


def test_values_that_contain_themselves_are_visited_once(tmp_path: Path) -> None:
    level: list[Any] = [torch.ones(1)]
    for _ in range(60):  # 2^60 paths to the tensor
        level = [level, level]
    assert len(read_pickle(written(level, tmp_path / "a.pt"))) == 2


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    path = holding(bytes(10**7), tmp_path / "a.pt", zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="its members are compressed"):
        read_pickle(path)


def test_folders_for_other_libraries_are_checked(tmp_path: Path) -> None:
    written({"a": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    check_pickles(tmp_path)
    written({"a": torch.ones(1).expand(3)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="fewer numbers"):
        check_pickles(tmp_path)
