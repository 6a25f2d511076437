"""Small hostile files of weights, settings and archives."""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable

import torch
from safetensors.torch import save

Spec = dict[str, object]


def safetensors(header: Spec | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file of any header; its length may differ from what is claimed."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def spec(shape: list[object], offsets: list[int], dtype: str = "F32") -> Spec:
    """Return the entry of a tensor in a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


class Command:
    """An object whose pickle runs a command."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch executed",)


def torch_file(value: object) -> bytes:
    """Return a file of `torch.save`."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def tar(*members: tarfile.TarInfo) -> bytes:
    """Return a gzipped tar archive whose files hold zeros."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)) if member.isfile() else None)
    return buffer.getvalue()


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """Return the entry of a file in an archive."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


def archive_of(files: dict[str, bytes]) -> bytes:
    """Return a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


NAN = {"weight": torch.full((2, 2), float("nan"))}
SAFETENSORS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "eight bytes": lambda: bytes(8),
    "lying header": lambda: safetensors({}, length=2**40),
    "longest header": lambda: safetensors({}, length=2**64 - 1),
    "no json": lambda: safetensors(b"{" * 4096),
    "deep json": lambda: safetensors(b"[" * 100_000),
    "overlapping": lambda: safetensors({"a": spec([1], [0, 4]), "b": spec([1], [0, 4])}, bytes(4)),
    "negative shape": lambda: safetensors({"a": spec([-1], [0, 4])}, bytes(4)),
    "overflowing": lambda: safetensors({"a": spec([2**40, 2**40], [0, 4])}, bytes(4)),
    "beyond the end": lambda: safetensors({"a": spec([1], [0, 4])}),
    "unknown dtype": lambda: safetensors({"a": spec([1], [0, 4], "F99")}, bytes(4)),
    "no size": lambda: safetensors({"a": spec([0], [0, 0])}),
    "terminal escape": lambda: safetensors({"\x1b]0;x\x07\nname": spec([1], [0, 4])}, bytes(4)),
    "not finite": lambda: save(NAN),
    "integers": lambda: save({"weight": torch.zeros(2, 2, dtype=torch.int32)}),
    "metadata": lambda: save(NAN, {"blip-diffusion": "[" * 5000, "ss_network_dim": "1e999", "format": "\0"}),
    "expression": lambda: save(
        {"unet.a.lora_A.weight": torch.ones(1, 1)},
        {"lora_adapter_metadata": json.dumps({"unet.target_modules": "(.*.*)*(.*.*)*z", "unet.r": 10**9})},
    ),
    "pickle": lambda: pickle.dumps(Command()),
}

PICKLES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "command": lambda: pickle.dumps(Command()),
    "command in torch": lambda: torch_file({"model": Command()}),
    "list": lambda: torch_file([1, 2]),
    "number": lambda: torch_file({"model": 3}),
    "expanded": lambda: torch_file({"model": {"weight": torch.zeros(1).expand(10**10)}}),
    "truncated": lambda: torch_file({"model": NAN})[:300],
    "not finite": lambda: torch_file({"model": NAN}),
    "zip bomb": lambda: archive_of({"archive/data.pkl": bytes(50_000_000)}),
}

ARCHIVES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"not an archive",
    "parent": lambda: tar(member("../outside.txt", 4)),
    "absolute": lambda: tar(member("/tmp/outside.txt", 4)),
    "link": lambda: tar(member("model", kind=tarfile.SYMTYPE, link="/etc"), member("model/passwd", 4)),
    "hard link": lambda: tar(member("model", kind=tarfile.LNKTYPE, link="/etc/passwd")),
    "device": lambda: tar(member("model", kind=tarfile.CHRTYPE)),
    "fifo": lambda: tar(member("model", kind=tarfile.FIFOTYPE)),
    "many members": lambda: tar(*(member(f"m/{number}") for number in range(5_000))),
    "long name": lambda: tar(member("n" * 3_000_000)),
    "truncated": lambda: tar(member("model/config.json", 5000))[:60],
    "no model": lambda: tar(member("readme.txt", 100)),
}

HUGE = 10**9
CONFIGS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "list": lambda: b"[]",
    "deep": lambda: b"[" * 100_000,
    "not UTF-8": lambda: b'{"a": "\xff\xfe"}',
    "not a number": lambda: b'{"num_hidden_layers": NaN, "hidden_size": Infinity}',
    "huge": lambda: json.dumps(
        {"num_hidden_layers": HUGE, "hidden_size": HUGE, "vocab_size": HUGE, "layers_per_block": HUGE,
         "num_train_timesteps": HUGE, "in_channels": HUGE, "sample_size": HUGE, "prompt_reps": HUGE}
    ).encode(),
    "digits": lambda: b'{"sample_size": ' + b"9" * 10_000 + b"}",
    "wrong types": lambda: json.dumps(
        {"num_hidden_layers": "x", "hidden_size": None, "block_out_channels": {}, "layers_per_block": [],
         "num_train_timesteps": [], "prompt_reps": "many", "vocab_size": -1}
    ).encode(),
    "escape": lambda: json.dumps({"_class_name": "\x1b]0;x\x07\nblip-diffusion: all is well"}).encode(),
    "class": lambda: json.dumps({"_class_name": ["os", "system"]}).encode(),
    "key given twice": lambda: b'{"_class_name": "A", "sample_size": 8, "sample_size": 16}',
    "large": lambda: b'{"a": "' + b"x" * 20_000_000 + b'"}',
}  # fmt: skip
