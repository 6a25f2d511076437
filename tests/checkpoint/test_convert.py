"""`convert`: what it keeps, replaces and refuses to overwrite."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from blip_diffusion.checkpoint import lavis
from blip_diffusion.checkpoint.convert import convert
from blip_diffusion.checkpoint.model_folder import read_parts
from blip_diffusion.errors import CheckpointError
from blip_diffusion.fileio import locked, replace_path
from blip_diffusion.model import InferenceConfig
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

from .folders import GOLDEN, WORD_LIST


def test_inference_settings_come_from_the_base(lavis_folder: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(GOLDEN, tmp_path / "base"))
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"num_inference_steps": 7, "prompt_reps": 3}))
    convert(str(lavis_folder), tmp_path / "out", base=str(base))
    settings = [read_parts(path, qformer_tokenizer=WORD_LIST).inference for path in (tmp_path / "out", base)]
    assert settings == 2 * [InferenceConfig(prompt_reps=3, num_inference_steps=7)]


def test_target_of_a_symlink_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "model").mkdir(parents=True)
    (tmp_path / "elsewhere" / "model" / "model_index.json").write_text('{"_class_name": "BlipDiffusionPipeline"}')
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "model")
    convert(str(GOLDEN), tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere" / "model" / "unet").is_dir()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["model"]


@pytest.fixture
def controlnet_folder(tmp_path: Path) -> Path:
    """The published folder with a ControlNet and documents."""
    pipe = BlipDiffusionPipeline.from_pretrained(
        GOLDEN, controlnet=GOLDEN.parent / "controlnet", qformer_tokenizer=WORD_LIST
    )
    pipe.save_pretrained(tmp_path / "controlled")
    for name in ("README.md", "LICENCES.md"):
        (tmp_path / "controlled" / name).write_text(f"# {name}")
    return tmp_path / "controlled"


def test_controlnet_and_documents_are_copied(controlnet_folder: Path, tmp_path: Path) -> None:
    convert(str(controlnet_folder), tmp_path / "out", dtype=torch.float16)
    net = "controlnet/diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(tmp_path / "out" / net), load_file(controlnet_folder / net)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name].half()) for name in ours)
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == "BlipDiffusionControlNetPipeline"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in controlnet_folder.iterdir()}
    assert (tmp_path / "out" / "LICENCES.md").read_text() == "# LICENCES.md"


def test_lavis_output_without_controlnet_and_lora(controlnet_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="LAVIS' layout can't hold a ControlNet: convert a copy of the model without"
    ):
        convert(str(controlnet_folder), tmp_path / "out", to="lavis")
    shutil.rmtree(controlnet_folder / "controlnet")
    save_file({"down.lora_A.weight": torch.ones(2, 4)}, controlnet_folder / "consistency_lora.safetensors")
    with pytest.warns(match="consistency LoRA is left out: LAVIS' layout can't hold it"):
        convert(str(controlnet_folder), tmp_path / "out", to="lavis")
    assert (tmp_path / "out" / lavis.BLIP).is_file() and (tmp_path / "out" / "README.md").is_file()


def test_folder_can_be_converted_in_place(controlnet_folder: Path, lavis_folder: Path, tmp_path: Path) -> None:
    save_file({"contrastive.temperature": torch.ones(())}, controlnet_folder / "heads.safetensors")
    save_file({"subject": torch.ones(1, 4, 16)}, controlnet_folder / "lavis-subject.safetensors")
    (controlnet_folder / ".git").mkdir()
    (controlnet_folder / ".git" / "HEAD").write_text("main")
    (controlnet_folder / "notes.txt").write_text("mine")
    (controlnet_folder / "latest").symlink_to("gone")
    (controlnet_folder / ".git" / "up").symlink_to(tmp_path)
    before = {path.relative_to(controlnet_folder) for path in controlnet_folder.rglob("*")}
    convert(str(controlnet_folder), controlnet_folder, dtype=torch.float16)
    assert {path.relative_to(controlnet_folder) for path in controlnet_folder.rglob("*")} == before
    assert (controlnet_folder / "latest").is_symlink() and (controlnet_folder / ".git" / "up").is_symlink()
    assert [path.name for path in tmp_path.iterdir()] == ["controlled"]


def test_failed_replacement_restores_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model").write_text("precious")
    with pytest.raises(FileNotFoundError):
        replace_path(tmp_path / "made", tmp_path / "out", aside=tmp_path / "earlier")
    assert (tmp_path / "out" / "model").read_text() == "precious" and not (tmp_path / "earlier").exists()


@pytest.mark.parametrize("has_earlier", [True, False])
def test_what_killed_conversions_left_is_removed(has_earlier: bool, tmp_path: Path) -> None:
    """An earlier model that was being replaced gets its name back; folders in use stay."""
    left, used = (tmp_path / f".partial-{digit * 32}-out" for digit in "ab")
    for folder in (left, used):
        (folder / "unpacked").mkdir(parents=True)
    if has_earlier:
        shutil.copytree(GOLDEN, left / "earlier")
    with locked(used), pytest.raises(CheckpointError, match="not-finite"):
        convert(str(GOLDEN), tmp_path / "out", unet=str(tmp_path / "not-finite"))
    assert not left.exists() and (used / "unpacked").is_dir()
    assert (tmp_path / "out" / "model_index.json").is_file() == has_earlier
    convert(str(GOLDEN), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_folders_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="exists already and isn't a model's folder"):
        convert(str(GOLDEN), tmp_path / "home")
    (tmp_path / "home" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(CheckpointError, match="exists already and isn't a model's folder"):
        convert(str(GOLDEN), tmp_path / "home")
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_earlier_model_is_replaced_with_its_documents(controlnet_folder: Path, tmp_path: Path) -> None:
    convert(str(controlnet_folder), tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    convert(str(GOLDEN), tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert not {"README.md", "LICENCES.md", "controlnet"} & {path.name for path in (tmp_path / "out").iterdir()}
