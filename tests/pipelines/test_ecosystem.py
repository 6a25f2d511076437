"""How users of Stable Diffusion run it: other autoencoders, little memory, half precision, compilers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel
from PIL import Image
from torch import Tensor

from blip_diffusion.errors import InputError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

Draw = Callable[..., Tensor]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of the libraries' own


@pytest.fixture
def draw(dog: Image.Image) -> Draw:
    def draw(pipe: BlipDiffusionPipeline, prompt: str = "on the beach", **asked: Any) -> Tensor:
        noise = torch.Generator().manual_seed(0)
        return pipe(prompt, dog, "dog", **{"generator": noise, "output_type": "pt", **asked}).images

    return draw


@pytest.mark.parametrize("levels", [1, 2, 4, 5])
def test_any_factor_of_the_vae(model: BlipDiffusion, draw: Draw, levels: int) -> None:
    """The peer takes the size of latents from the U-Net, and is right by chance."""
    torch.manual_seed(0)
    model.vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels, norm_num_groups=2,
    ).eval()  # fmt: skip
    pipe = BlipDiffusionPipeline.from_model(model)
    pipe.set_progress_bar_config(disable=True)
    factor = 2 ** (levels - 1)
    assert draw(pipe).shape[-2:] == (4 * factor, 4 * factor)
    assert draw(pipe, height=2 * factor, width=6 * factor).shape[-2:] == (2 * factor, 6 * factor)
    with pytest.raises(InputError, match=f"give a multiple of {2 * factor} "):
        draw(pipe, height=2 * factor + 1)


def test_slicing_and_tiling(own: BlipDiffusionPipeline, draw: Draw) -> None:
    whole = draw(own, num_images_per_prompt=2)
    own.vae.enable_slicing()
    torch.testing.assert_close(draw(own, num_images_per_prompt=2), whole, atol=1e-5, rtol=0)
    own.vae.enable_tiling()
    assert draw(own, height=64, width=64).isfinite().all()


@pytest.fixture(params=["plain", "controlled"])
def asked(request: pytest.FixtureRequest, own: BlipDiffusionPipeline) -> dict[str, Any]:
    """The model's own ControlNet has to be brought too."""
    if request.param == "plain":
        return {}
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(own.unet, conditioning_embedding_out_channels=(8, 8, 8, 8)).eval()
    torch.nn.init.normal_(net.controlnet_mid_block.weight)
    own.register_modules(controlnet=net)
    return {"image": Image.effect_noise((32, 32), 80).convert("RGB")}


def test_weights_that_are_brought_only_meanwhile(
    own: BlipDiffusionPipeline, draw: Draw, dog: Image.Image, asked: dict[str, Any], tmp_path: Path
) -> None:
    """What `enable_sequential_cpu_offload` does, with the CPU as the device that computes."""
    from accelerate import cpu_offload

    plain = draw(own, **asked)
    parts = [part for part in own.components.values() if isinstance(part, torch.nn.Module)]
    for part in parts:
        cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)
    assert len(parts) == 4 + len(asked) and {next(part.parameters()).device.type for part in parts} == {"meta"}
    assert torch.equal(draw(own, **asked), plain)
    assert own.encode_subject(dog, "dog").device.type == "cpu"
    with pytest.raises(InputError, match="can't be read now: load and save before enable_sequential_cpu_offload"):
        own.save_pretrained(tmp_path)


def test_parts_that_are_brought_one_after_another(
    own: BlipDiffusionPipeline, draw: Draw, asked: dict[str, Any]
) -> None:
    plain = draw(own, **asked)
    own.enable_model_cpu_offload(device="cpu")
    hooked = {name for name, part in own.components.items() if hasattr(part, "_hf_hook")}
    assert hooked == {"qformer", "text_encoder", "unet", "vae", *(["controlnet"] if asked else [])}
    assert torch.equal(draw(own, **asked), plain) and torch.equal(draw(own, **asked), plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tiny_folder: Path, own: BlipDiffusionPipeline, draw: Draw, dtype: torch.dtype) -> None:
    rough = BlipDiffusionPipeline.from_pretrained(tiny_folder, torch_dtype=dtype)
    rough.set_progress_bar_config(disable=True)
    parts = (rough.qformer, rough.text_encoder, rough.unet, rough.vae)
    assert {parameter.dtype for part in parts for parameter in part.parameters()} == {dtype}
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    image = draw(rough, latents=noise)
    assert image.dtype == torch.float32
    assert 0 < (image - draw(own, latents=noise)).abs().mean() < 0.05


@pytest.mark.parametrize("controlled", [False, True])
def test_the_unet_compiles_in_one_graph(own: BlipDiffusionPipeline, draw: Draw, controlled: bool) -> None:
    """With `fullgraph`, a break is an error."""
    net = ControlNetModel.from_unet(own.unet, conditioning_embedding_out_channels=(8, 8, 8, 8)).eval()
    room = Image.effect_noise((32, 32), 80).convert("RGB")
    asked = {"image": room, "controlnet": net} if controlled else {}
    plain = draw(own, **asked)
    own.unet.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(draw(own, **asked), plain, atol=1e-5, rtol=0)
    assert own.unet._compiled_call_impl is not None


@pytest.mark.slow
def test_the_compiled_unet_draws_the_same(own: BlipDiffusionPipeline, draw: Draw) -> None:
    plain = draw(own)
    own.unet = torch.compile(own.unet, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(draw(own), plain, atol=1e-4, rtol=0)


# -------------------------------------------------------------------------------------------- weights that are mapped


def test_saving_where_it_was_loaded_from(own: BlipDiffusionPipeline, tmp_path: Path, draw: Draw) -> None:
    """The weights are the file, mapped: it must not be written into."""
    own.save_pretrained(tmp_path)
    loaded = BlipDiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    loaded.save_pretrained(tmp_path)
    assert torch.equal(draw(loaded), draw(own))
    assert torch.equal(draw(BlipDiffusionPipeline.from_pretrained(tmp_path)), draw(own))


def test_mapped_weights_can_be_trained_and_leave_the_file_alone(own: BlipDiffusionPipeline, tmp_path: Path) -> None:
    own.save_pretrained(tmp_path)
    before = (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    loaded = BlipDiffusionPipeline.from_pretrained(tmp_path)
    with torch.no_grad():
        loaded.unet.conv_in.weight += 1
    assert (loaded.unet.conv_in.weight - own.unet.conv_in.weight).abs().min() > 0.5
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == before
