"""Small GGUF files, of which each hostile one is spoiled in one place."""

import struct
from collections.abc import Callable

Tensor = tuple[str, tuple[int, ...], int, int]
"""Name, shape, type and place of a tensor."""
SETTINGS: dict[str, tuple[str, float]] = {
    "llama.block_count": ("I", 1), "llama.context_length": ("I", 64), "llama.embedding_length": ("I", 32),
    "llama.feed_forward_length": ("I", 32), "llama.attention.head_count": ("I", 2),
    "llama.attention.layer_norm_rms_epsilon": ("f", 1e-5), "llama.rope.freq_base": ("f", 1e4),
    "llama.vocab_size": ("I", 32),
}  # fmt: skip
CODES = {"B": 0, "I": 4, "i": 5, "f": 6, "Q": 10}
TENSORS: list[Tensor] = [(f"blk.0.{name}", (32, 32), 0, number * 4096) for number, name in enumerate("abcdef")]


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(
    settings: list[tuple[str, tuple[str, float]]] | None = None,
    tensors: list[Tensor] | None = None,
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    data: int = 6 * 4096,
) -> bytes:
    """Return a file with these settings and tensors, and so many bytes of data."""
    settings = list(SETTINGS.items()) if settings is None else settings
    tensors = TENSORS if tensors is None else tensors
    out = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(settings))))
    for name, (code, value) in settings:
        out += _text(name) + struct.pack(f"<I{code}", CODES[code], value)
    for name, shape, kind, place in tensors:
        out += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, place)
    return out + bytes(-len(out) % 32 + data)


def _setting(name: str, code: str, value: float) -> Callable[[], bytes]:
    return lambda: gguf([*(SETTINGS | {name: (code, value)}).items()])


def _tensor(number: int, *changed: object) -> Callable[[], bytes]:
    """A tensor's name, shape, type and place, from the second on."""

    def make() -> bytes:
        tensors = list(TENSORS)
        tensors[number] = (tensors[number][0], *changed)  # type: ignore[assignment]
        return gguf(tensors=tensors)

    return make


FILES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "web page": lambda: b"<!doctype html>" * 99,
    "big endian": lambda: b"GGUF" + struct.pack(">IQQ", 3, 1, 1),
    "version 1": lambda: gguf(version=1),
    "no end of the header": lambda: gguf()[:200],
    "no end of the data": lambda: gguf()[:-4096],
    "more data than tensors": lambda: gguf(data=7 * 4096),
    "fewer tensors than data": lambda: gguf(tensors=TENSORS[:-1]),
    "countless tensors": lambda: gguf(counts=(2**63, 8)),
    "countless settings": lambda: gguf(counts=(6, 2**64 - 1)),
    "setting twice": lambda: gguf([*SETTINGS.items(), ("llama.block_count", ("I", 1))]),
    "tensor twice": lambda: gguf(tensors=[*TENSORS[:-1], ("blk.0.a", (32, 32), 0, 5 * 4096)]),
    "no layers": _setting("llama.block_count", "I", 0),
    "layers below zero": _setting("llama.block_count", "i", -1),
    "too many layers": _setting("llama.block_count", "I", 10**6),
    "context below zero": _setting("llama.context_length", "i", -1),
    "huge context": _setting("llama.context_length", "Q", 2**62),
    "no heads": _setting("llama.attention.head_count", "I", 0),
    "epsilon below zero": _setting("llama.attention.layer_norm_rms_epsilon", "f", -1.0),
    "epsilon is NaN": _setting("llama.attention.layer_norm_rms_epsilon", "f", float("nan")),
    "frequency of zero": _setting("llama.rope.freq_base", "f", 0.0),
    "huge frequency": _setting("llama.rope.freq_base", "Q", 2**62),
    "more words than weights": _setting("llama.vocab_size", "I", 10**6),
    "alignment of 3": _setting("general.alignment", "I", 3),
    "alignment of 0": _setting("general.alignment", "I", 0),
    "huge alignment": _setting("general.alignment", "I", 2**31),
    "place between numbers": _tensor(1, (32, 32), 0, 4097),
    "place of the tensor before": _tensor(1, (32, 32), 0, 0),
    "place beyond the file": _tensor(1, (32, 32), 0, 2**40),
    "place below zero": _tensor(1, (32, 32), 0, 2**64 - 32),
    "type of other size": _tensor(1, (32, 32), 1, 4096),
    "quantized in place of floats": _tensor(1, (32, 32), 8, 4096),
    "unknown type": _tensor(1, (32, 32), 99, 4096),
    "rows that blocks don't divide": _tensor(1, (31, 32), 2, 4096),
    "no numbers": _tensor(1, (0, 32), 0, 4096),
    "countless numbers": _tensor(1, (2**40, 2**30), 0, 4096),
    "no dimensions": _tensor(1, (), 0, 4096),
    "five dimensions": _tensor(1, (1, 1, 1, 32, 32), 0, 4096),
}
"""Files that are no language models."""
