"""Folders of metrics' networks and files of language models: one sentence, within limits."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import ViTConfig, ViTModel

from blip_diffusion.checkpoint.language import load_language_model
from blip_diffusion.errors import CheckpointError
from blip_diffusion.evaluation.features.dino import Dino

from .conftest import limited
from .weights import CONFIGS, PICKLES, SAFETENSORS

VIT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "image_size": 16,
       "patch_size": 8}  # fmt: skip
Spoil = Callable[[Path], object]


@pytest.fixture
def dino(tmp_path: Path) -> Path:
    """The folder of a network that works."""
    folder = tmp_path / "dino"
    ViTModel(ViTConfig(**VIT), add_pooling_layer=False).save_pretrained(folder)
    return folder


def config(**change: object) -> Spoil:
    return lambda folder: (folder / "config.json").write_text(json.dumps({"model_type": "vit", **VIT, **change}))


def replaced(name: str, make: Callable[[Path], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return spoil


def pickled(make: Callable[[], bytes]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(make())

    return spoil


def not_finite(folder: Path) -> None:
    state = ViTModel(ViTConfig(**VIT), add_pooling_layer=False).state_dict()
    save_file({name: torch.full_like(tensor, float("nan")) for name, tensor in state.items()},
              folder / "model.safetensors", {"format": "pt"})  # fmt: skip


WEIGHTS = "model.safetensors"
JUDGES: dict[str, Spoil] = {
    "many layers": config(num_hidden_layers=10**7),
    "wide": config(hidden_size=10**9),
    "layers that are text": config(num_hidden_layers="x"),
    "eps that is not finite": config(layer_norm_eps=float("nan")),
    "weights that are not finite": not_finite,
    "no configuration": lambda folder: (folder / "config.json").unlink(),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    **{
        f"{kind} as {name}": replaced(name, make)
        for name in ("config.json", WEIGHTS)
        for kind, make in (
            ("named pipe", os.mkfifo),
            ("device", lambda path: path.symlink_to("/dev/zero")),
            ("folder", Path.mkdir),
        )
    },
    **{
        f"configuration: {name}": replaced("config.json", lambda path, make=make: path.write_bytes(make()))
        for name, make in CONFIGS.items()
        if name != "escape"
    },
    **{
        f"weights: {name}": replaced(WEIGHTS, lambda path, make=make: path.write_bytes(make()))
        for name, make in SAFETENSORS.items()
        if name in ("empty", "lying header", "no json", "overlapping", "beyond the end", "pickle")
    },
    **{f"pickle: {name}": pickled(make) for name, make in PICKLES.items() if name != "empty"},
}  # type: ignore[dict-item]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spoil", JUDGES.values(), ids=JUDGES.keys())
def test_a_metric_reads_a_network(spoil: Spoil, dino: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Dino(str(dino)).network.config.hidden_size == 8
    spoil(dino)
    with limited(), pytest.raises(CheckpointError) as caught:
        Dino(str(dino))
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value) and not Path("executed").exists()


def test_an_implementation_of_attention_in_a_file_is_ignored(dino: Path) -> None:
    config(_attn_implementation="owner/repo", attn_implementation="owner/repo")(dino)
    assert Dino(str(dino)).network.config._attn_implementation == "sdpa"


# ---------------------------------------------------------------------------------------------------------- GGUF


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def number(name: bytes, value: int) -> bytes:
    return text(name) + struct.pack("<II", 4, value)


def gguf(
    *values: bytes, tensors: tuple[bytes, ...] = (), version: int = 3, counts: tuple[int, int] | None = None
) -> bytes:
    held = counts or (len(tensors), len(values))
    return b"GGUF" + struct.pack("<IQQ", version, *held) + b"".join(values) + b"".join(tensors) + bytes(64)


def tensor(*shape: int) -> bytes:
    return text(b"token_embd.weight") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, 0)


ARCHITECTURE = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
SETTINGS = [ARCHITECTURE, number(b"llama.embedding_length", 4), number(b"llama.feed_forward_length", 4)]
GGUF: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "magic alone": lambda: b"GGUF",
    "another kind": lambda: b"GGML" + bytes(100),
    "another version": lambda: gguf(version=1),
    "another byte order": lambda: b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "many values": lambda: gguf(counts=(0, 2**60)),
    "many tensors": lambda: gguf(counts=(2**60, 0)),
    "long name": lambda: gguf(struct.pack("<Q", 2**62)),
    "long text": lambda: gguf(text(b"a") + struct.pack("<IQ", 8, 2**62)),
    "unknown type": lambda: gguf(text(b"a") + struct.pack("<I", 99)),
    "long list": lambda: gguf(text(b"a") + struct.pack("<IIQ", 9, 0, 2**50)),
    "long list of texts": lambda: gguf(text(b"a") + struct.pack("<IIQ", 9, 8, 2**50)),
    "list of lists": lambda: gguf(text(b"a") + struct.pack("<IIQ", 9, 9, 1)),
    "not finite": lambda: gguf(text(b"llama.rope.freq_base") + struct.pack("<If", 6, float("nan"))),
    "many layers": lambda: gguf(*SETTINGS, number(b"llama.block_count", 10**6)),
    "many layers, told twice": lambda: gguf(number(b"a.block_count", 10**6), number(b"b.block_count", 1)),
    "wide": lambda: gguf(number(b"llama.embedding_length", 2**31), number(b"llama.vocab_size", 2**31)),
    "wide heads": lambda: gguf(*SETTINGS, number(b"llama.attention.key_length", 2**31)),
    "many experts": lambda: gguf(*SETTINGS, number(b"llama.expert_count", 10**9)),
    "stretched tensor": lambda: gguf(ARCHITECTURE, tensors=(tensor(2**40, 2**20),)),
    "tensor of many dimensions": lambda: gguf(ARCHITECTURE, tensors=(tensor(*[1] * 200),)),
    "truncated": lambda: gguf(*SETTINGS)[:60],
    "pickle": PICKLES["command"],
}


@pytest.mark.parametrize("make", GGUF.values(), ids=GGUF.keys())
def test_a_language_model_is_read(make: Callable[[], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the library reads it, whose loops over claimed lengths don't end."""
    monkeypatch.chdir(tmp_path)
    Path("a.gguf").write_bytes(make())
    with limited(), pytest.raises(CheckpointError, match="is not a readable GGUF file") as caught:
        load_language_model(Path("a.gguf"))
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value) and not Path("executed").exists()


@pytest.mark.parametrize("spoil", [CONFIGS[name] for name in CONFIGS if name != "empty"], ids=lambda _: "")
def test_a_folder_of_a_language_model_is_read(spoil: Callable[[], bytes], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(spoil())
    with limited(), pytest.raises(CheckpointError):
        load_language_model(tmp_path)


def test_code_of_a_tokenizer_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where a user would answer yes to the library's question."""
    from blip_diffusion.checkpoint.language import load_tokenizer

    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    for name in ("config.json", "tokenizer_config.json"):
        table = {"model_type": "evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None], "AutoConfig": "evil.Evil"}}
        (tmp_path / name).write_text(json.dumps(table))
    with pytest.raises(CheckpointError):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "executed").exists()
