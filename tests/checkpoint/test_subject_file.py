"""Subject files: round trips, size, and untrusted files that are refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from blip_diffusion.checkpoint.subject_file import (
    TABLE,
    Subject,
    fingerprint,
    read_subject,
    thumbnail,
    write_subject,
)
from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.training.lora import add_lora


def subject(**more: object) -> Subject:
    embedding = torch.randn(1, 16, 768, generator=torch.Generator().manual_seed(0))
    metadata = {"steps": 40, "model": "mini", "seed": 3}
    return Subject("rex", "dog", embedding, "f" * 32, metadata=metadata, **more)  # type: ignore[arg-type]


def lora(rank: int = 8) -> dict[str, torch.Tensor]:
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    return {f"{name}.lora_A.weight": torch.randn(rank, 32), f"{name}.lora_B.weight": torch.randn(32, rank)}


def test_subject_file_round_trips(tmp_path: Path, dog: Image.Image) -> None:
    weights = {"conv_in.bias": torch.randn(32).half()}
    first = subject(lora=lora(), alpha=8.0, weights=weights, thumbnail=thumbnail(dog))
    write_subject(first, tmp_path / "deep" / "rex.safetensors")
    result = read_subject(tmp_path / "deep" / "rex.safetensors")
    assert torch.equal(result.embedding, first.embedding)
    assert result.rank == 8 and result.thumbnail == first.thumbnail
    for name in ("name", "category", "base", "alpha", "metadata", "version"):
        assert getattr(result, name) == getattr(first, name)
    for mine, theirs in ((result.lora, first.lora), (result.weights, first.weights)):
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["rex.safetensors"]  # nothing half-written beside it


def test_subject_file_is_small_at_published_size(tmp_path: Path) -> None:
    """An embedding with the largest thumbnail, and the LoRA of rank 8 on Stable Diffusion 1.5's attention."""
    noise = Image.effect_noise((300, 300), 100).convert("RGB")
    write_subject(subject(thumbnail=thumbnail(noise)), tmp_path / "small.safetensors")
    assert (tmp_path / "small.safetensors").stat().st_size <= 100_000
    state = published_lora(8)
    write_subject(subject(lora=state, alpha=8.0, thumbnail=thumbnail(noise)), tmp_path / "lora.safetensors")
    assert (tmp_path / "lora.safetensors").stat().st_size <= 8_000_000


def published_lora(rank: int) -> dict[str, torch.Tensor]:
    from diffusers import UNet2DConditionModel

    from blip_diffusion.model import ModelConfig

    with torch.device("meta"):
        unet = UNet2DConditionModel(**ModelConfig().unet)
    add_lora(unet, rank)
    names = {name.replace(".trained", ""): p for name, p in unet.named_parameters() if ".lora_" in name}
    return {name: torch.zeros(parameter.shape) for name, parameter in names.items()}


def test_header_is_readable_json(tmp_path: Path, dog: Image.Image) -> None:
    write_subject(subject(lora=lora(), alpha=8.0, thumbnail=thumbnail(dog)), tmp_path / "rex.safetensors")
    with safe_open(tmp_path / "rex.safetensors", "pt") as file:
        header = file.metadata()
        assert all("lora" in name for name in file.keys())  # noqa: SIM118  # what diffusers asks of a LoRA's keys
    assert header["modelspec.title"] == "rex" and header["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    adapter = json.loads(header["lora_adapter_metadata"])
    assert adapter["unet.r"] == 8 and adapter["unet.lora_alpha"] == 8


# ----------------------------------------------------------------------------------------------------- untrusted files


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no subject at .*make one with blip-diffusion tune"):
        read_subject(tmp_path / "nowhere.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(CheckpointError, match="is not a subject file, or it is damaged"):
        read_subject(tmp_path / "text.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="holds weights but no subject"):
        read_subject(tmp_path / "weights.safetensors")


def header(**more: object) -> str:
    table = {"name": "rex", "category": "dog", "base": "b", "version": "1", "alpha": 0, "details": {}}
    return json.dumps(table | more)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"name": "rex"}', header(alpha=float("nan")), header(alpha=1e300), header(alpha=-1),
     header(alpha=True), header(alpha="1"), header(details=[["a", 1]]), header(name=5), header(category=["dog"]),
     header(base=None), header(version={}), header().replace('"alpha": 0', '"alpha": 1e999'),
     header(details={"a": float("inf")}), header().replace("{}", '{"a": ' * 200 + "1" + "}" * 200),
     header(alpha="x"), header(details=5), header(name="../rex"),
     header().replace("{", '{"alpha": 1, ', 1), header(category="a very big brown dog")],
)  # fmt: skip
def test_damaged_headers_are_refused(tmp_path: Path, text: str) -> None:
    save_file({"subject_embedding.lora": torch.ones(1, 2, 3)}, tmp_path / "x.safetensors", metadata={TABLE: text})
    with pytest.raises(CheckpointError, match="is not a subject file, or it is damaged"):
        read_subject(tmp_path / "x.safetensors")


LORA_LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("name", "tensor", "sentence"),
    [
        ("other", torch.ones(2), "is no part of a subject"),
        ("text_encoder.layer.lora_A.weight", torch.ones(2, 2), "is no part of a subject"),
        (f"{LORA_LAYER}.lora_magnitude_vector", torch.ones(2), "is no part of a subject"),
        ("a\x1b[2J\n", torch.ones(2), r"a\\x1b\[2J\\n"),
        (f"{LORA_LAYER}.lora_A.weight", torch.full((2, 32), float("inf")), "no finite floats"),
        ("weights.conv_in.bias", torch.full((32,), float("nan")), "no finite floats"),
        ("weights.conv_in.bias", torch.ones(32, dtype=torch.int32), "no finite floats"),
        ("weights.conv_in.bias", torch.ones(32, dtype=torch.bool), "no finite floats"),
        ("weights.conv_in.bias", torch.ones(32, dtype=torch.complex64), "no finite floats"),
    ],
)
def test_tensors_are_finite_floats_of_known_names(
    tmp_path: Path, name: str, tensor: torch.Tensor, sentence: str
) -> None:
    state = {"subject_embedding.lora": torch.ones(1, 2, 3), name: tensor}
    save_file(state, tmp_path / "x.safetensors", metadata={TABLE: header()})
    with pytest.raises(CheckpointError, match=sentence):
        read_subject(tmp_path / "x.safetensors")


def test_damaged_tensors_are_refused() -> None:
    with pytest.raises(CheckpointError, match="not finite numbers"):
        replace(subject(), embedding=torch.full((1, 2, 3), float("nan")))
    with pytest.raises(CheckpointError, match="shape"):
        replace(subject(), embedding=torch.zeros(2, 3))


def test_invalid_names_and_categories_are_refused() -> None:
    for name in ("", "../rex", "a b", "x" * 65):
        with pytest.raises(InputError, match="can't be used"):
            replace(subject(), name=name)
    with pytest.raises(InputError, match="is too long: name the subject in a word or two"):
        replace(subject(), category="a very big brown dog")
    with pytest.raises(InputError, match="category is empty"):
        replace(subject(), category=" ")


def test_unwritable_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="can't be written"):
        write_subject(subject(), tmp_path / "file" / "rex.safetensors")


# --------------------------------------------------------------------------------------------------------- fingerprint


def test_fingerprint_ignores_precision_and_adapters(model: BlipDiffusion) -> None:
    expected = fingerprint(model.unet, model.text_encoder)
    for dtype in (torch.float16, torch.bfloat16):
        assert fingerprint(model.unet.to(dtype), model.text_encoder.to(dtype)) == expected
    model.float()
    add_lora(model.unet, 2)
    model.text_encoder.resize_token_embeddings(1030)
    assert fingerprint(model.unet, model.text_encoder) == expected


def test_fingerprints_of_models_differ(model: BlipDiffusion) -> None:
    expected = fingerprint(model.unet, model.text_encoder)
    with torch.no_grad():
        model.unet.mid_block.resnets[0].conv1.weight.mul_(-1)
    assert fingerprint(model.unet, model.text_encoder) != expected
