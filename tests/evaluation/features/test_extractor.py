"""Folders of judges that a stranger made: no code of theirs runs, and each is one sentence."""

import json
import pickle
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from transformers import CLIPModel, CLIPTokenizer, ViTModel

from blip_diffusion.errors import CheckpointError
from blip_diffusion.evaluation.features.clip import Clip
from blip_diffusion.evaluation.features.extractor import load_pretrained


class Opener:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", [CLIPModel, CLIPTokenizer, ViTModel])
def test_code_in_a_folder_never_runs(kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where a user would answer yes to the library's question."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    canary = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    names = ("AutoConfig", "AutoModel", "AutoTokenizer")
    table = {"model_type": "evil", "auto_map": dict.fromkeys(names, "evil.Evil")}
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps(table))
    with suppress(CheckpointError):  # of a tokenizer, nothing of the folder is used
        load_pretrained(kind, str(tmp_path))
    assert not canary.exists()


def test_a_clip_without_a_tokenizer_is_refused(tiny_clip: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_clip / name, tmp_path)
    with pytest.raises(CheckpointError, match=r"The tokenizer in .* has \d words, and its CLIP knows 1024"):
        Clip(str(tmp_path))
    assert Clip(str(tiny_clip)).encode_text(["a dog"]).shape == (1, 16)


def test_a_pickle_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1}))
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Opener(tmp_path / "canary"), protocol=2))
    with pytest.raises(CheckpointError, match="can't be loaded from") as caught:
        load_pretrained(ViTModel, str(tmp_path))
    assert str(caught.value).count("\n") == 0 and not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "change", [{"hidden_size": -1}, {"hidden_size": "x"}, {"num_attention_heads": 0}, {"layers": []}]
)
def test_senseless_shapes_are_one_sentence(change: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", **change}))
    with pytest.raises(CheckpointError, match="can't be loaded from"):
        load_pretrained(ViTModel, str(tmp_path))
