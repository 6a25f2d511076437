"""Folders saved by other versions of diffusers: the images equal those of the published code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from blip_diffusion.checkpoint.key_maps import VAE_RENAMES
from blip_diffusion.errors import CheckpointError
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

HERE = Path(__file__).parent
GOLDEN, LAYOUTS = HERE / "golden", HERE / "layouts"
PARTS = {"qformer": "model", "text_encoder": "model", "unet": "diffusion_pytorch_model",
         "vae": "diffusion_pytorch_model"}  # fmt: skip
State = dict[str, Tensor]
Write = Callable[[State, Path, str], None]


def safetensors(state: State, folder: Path, stem: str) -> None:
    save_file(state, folder / f"{stem}.safetensors")


def pickled(state: State, folder: Path, stem: str) -> None:
    torch.save(state, folder / f"{'pytorch_model' if stem == 'model' else stem}.bin")


def half(state: State, folder: Path, stem: str) -> None:
    save_file({name: tensor.half() for name, tensor in state.items()}, folder / f"{stem}.fp16.safetensors")


def shards(state: State, folder: Path, stem: str) -> None:
    table = {name: f"{stem}-{index % 2 + 1:05}-of-00002.safetensors" for index, name in enumerate(state)}
    for file in set(table.values()):
        save_file({name: tensor for name, tensor in state.items() if table[name] == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": table}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def assembled(folder: Path, layout: Path, write: Write = safetensors) -> Path:
    """Golden's weights in the files of a layout."""
    shutil.copytree(layout, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for part, stem in PARTS.items():
        (weights,) = (GOLDEN / "pipe" / part).glob("*.safetensors")
        write(load_file(weights), folder / part, stem)
    return folder


def generate_image(folder: Path, *, controlled: bool = False) -> Tensor:
    """The image of `dump.npz`, or of `controlnet.npz`."""
    rng = np.random.RandomState(7)  # as `make_golden.py` draws
    reference = Image.fromarray(rng.randint(0, 256, (40, 32, 3), dtype=np.uint8))
    edges = Image.fromarray(rng.randint(0, 256, (32, 32, 3), dtype=np.uint8))
    latents = torch.from_numpy(rng.randn(1, 4, 16, 16).astype("float32"))
    pipe = BlipDiffusionPipeline.from_pretrained(folder, qformer_tokenizer=GOLDEN / "tok" / "bert")
    pipe.set_progress_bar_config(disable=True)
    return pipe("swimming underwater", reference, "teapot", "dog", latents=latents, height=32, width=32,
                num_inference_steps=5, resize_mode="squash", output_type="pt",
                image=edges if controlled else None).images  # fmt: skip


@pytest.fixture(scope="module")
def golden() -> Tensor:
    with np.load(GOLDEN / "dump.npz") as file:
        return torch.from_numpy(file["image"])


@pytest.mark.parametrize(
    ("version", "write"),
    [("0.18.2", pickled), ("0.22.0", safetensors), ("0.30.3", safetensors), ("0.42.1", safetensors)],
)
def test_layouts_of_each_diffusers_version(tmp_path: Path, golden: Tensor, version: str, write: Write) -> None:
    folder = assembled(tmp_path / "model", LAYOUTS / version, write)
    torch.testing.assert_close(generate_image(folder), golden, atol=5e-5, rtol=0)


@pytest.mark.parametrize(("write", "error"), [(pickled, 5e-5), (shards, 5e-5), (half, 0.05)])
def test_each_kind_of_file(tmp_path: Path, golden: Tensor, write: Write, error: float) -> None:
    folder = assembled(tmp_path / "model", GOLDEN / "pipe", write)
    torch.testing.assert_close(generate_image(folder), golden, atol=error, rtol=0)


def test_extra_files_of_the_published_repository(tmp_path: Path, golden: Tensor) -> None:
    """A `vision_encoder/` and a `controlnet/` that its index doesn't name, and no `position_ids`."""

    def bare(state: State, folder: Path, stem: str) -> None:
        pickled({name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}, folder, stem)

    folder = assembled(tmp_path / "model", LAYOUTS / "0.18.2", bare)
    for part in ("vision_encoder", "controlnet"):
        (folder / part).mkdir()
        (folder / part / "config.json").write_text("{}")
    torch.testing.assert_close(generate_image(folder), golden, atol=5e-5, rtol=0)


def test_published_repository_with_a_controlnet(tmp_path: Path) -> None:
    folder = assembled(tmp_path / "model", LAYOUTS / "0.18.2", pickled)
    (folder / "controlnet").mkdir()
    pickled(load_file(GOLDEN / "controlnet" / "diffusion_pytorch_model.safetensors"), folder / "controlnet",
            "diffusion_pytorch_model")  # fmt: skip
    shutil.copy(GOLDEN / "controlnet" / "config.json", folder / "controlnet")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "BlipDiffusionControlNetPipeline", "controlnet": ["diffusers", "ControlNetModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with np.load(GOLDEN / "controlnet.npz") as file:
        golden = torch.from_numpy(file["image_controlnet"])
    torch.testing.assert_close(generate_image(folder, controlled=True), golden, atol=5e-5, rtol=0)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells")
def test_weights_are_mapped_and_not_copied(tmp_path: Path) -> None:
    """Of both kinds of file."""
    for write in (safetensors, pickled):
        folder = assembled(tmp_path / write.__name__, GOLDEN / "pipe", write)
        pipe = BlipDiffusionPipeline.from_pretrained(folder)
        maps = Path("/proc/self/maps").read_text()
        assert all(str(path) in maps for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin"))
        del pipe


def test_vae_attention_with_old_names(tmp_path: Path, golden: Tensor) -> None:
    def old(state: State, folder: Path, stem: str) -> None:
        for was, now in VAE_RENAMES.items():
            state = {name.replace(f"attentions.0.{now}.", f"attentions.0.{was}."): t for name, t in state.items()}
        pickled(state, folder, stem)

    folder = assembled(tmp_path / "model", LAYOUTS / "0.18.2")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    old(load_file(GOLDEN / "pipe" / "vae" / "diffusion_pytorch_model.safetensors"), folder / "vae", PARTS["vae"])
    named = torch.load(folder / "vae" / "diffusion_pytorch_model.bin", weights_only=True)
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in named
    torch.testing.assert_close(generate_image(folder), golden, atol=5e-5, rtol=0)


def test_text_encoder_of_early_stable_diffusion(tmp_path: Path, golden: Tensor) -> None:
    """Configurations once held every setting of text generation; and `eos_token_id` was wrong."""
    folder = assembled(tmp_path / "model", LAYOUTS / "0.18.2")
    path = folder / "text_encoder" / "config.json"
    old = {"_name_or_path": "openai/clip-vit-large-patch14", "bos_token_id": 0, "eos_token_id": 2, "dropout": 0.0,
           "num_beams": 1, "is_decoder": False, "torchscript": False, "pad_token_id": 1}  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | old))
    torch.testing.assert_close(generate_image(folder), golden, atol=5e-5, rtol=0)


def test_shards_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    folder = assembled(tmp_path / "model", GOLDEN / "pipe", shards)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(index.read_text().replace("diffusion_pytorch_model-00001", "../vae/diffusion_pytorch_model-00001"))
    with pytest.raises(CheckpointError, match="which is not in its folder"):
        BlipDiffusionPipeline.from_pretrained(folder)
