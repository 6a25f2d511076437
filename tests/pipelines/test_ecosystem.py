"""Other autoencoders, offloading, half precision, and compilation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel
from PIL import Image

from blip_diffusion.errors import InputError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

from .sampling import Sample

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of the libraries' own


@pytest.mark.parametrize("levels", [1, 2, 4, 5])
def test_latent_size_follows_the_vae_factor(model: BlipDiffusion, sample: Sample, levels: int) -> None:
    """The published pipeline derives the latent size from the U-Net instead of the VAE."""
    torch.manual_seed(0)
    model.vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels, norm_num_groups=2,
    ).eval()  # fmt: skip
    pipe = BlipDiffusionPipeline.from_model(model)
    pipe.set_progress_bar_config(disable=True)
    factor = 2 ** (levels - 1)
    assert sample(pipe).shape[-2:] == (4 * factor, 4 * factor)
    assert sample(pipe, height=2 * factor, width=6 * factor).shape[-2:] == (2 * factor, 6 * factor)
    with pytest.raises(InputError, match=f"give a multiple of {2 * factor} "):
        sample(pipe, height=2 * factor + 1)


def test_slicing_and_tiling(fresh_pipe: BlipDiffusionPipeline, sample: Sample) -> None:
    whole = sample(fresh_pipe, num_images_per_prompt=2)
    fresh_pipe.vae.enable_slicing()
    torch.testing.assert_close(sample(fresh_pipe, num_images_per_prompt=2), whole, atol=1e-5, rtol=0)
    fresh_pipe.vae.enable_tiling()
    assert sample(fresh_pipe, height=64, width=64).isfinite().all()


@pytest.fixture(params=["plain", "controlled"])
def options(request: pytest.FixtureRequest, fresh_pipe: BlipDiffusionPipeline) -> dict[str, Any]:
    """The bundled ControlNet must be moved to the device too."""
    if request.param == "plain":
        return {}
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(fresh_pipe.unet, conditioning_embedding_out_channels=(8, 8, 8, 8)).eval()
    torch.nn.init.normal_(net.controlnet_mid_block.weight)
    fresh_pipe.register_modules(controlnet=net)
    return {"image": Image.effect_noise((32, 32), 80).convert("RGB")}


def test_sequential_cpu_offload_generates_the_same_image(
    fresh_pipe: BlipDiffusionPipeline, sample: Sample, dog: Image.Image, options: dict[str, Any], tmp_path: Path
) -> None:
    """What `enable_sequential_cpu_offload` does, with the CPU as the device that computes."""
    from accelerate import cpu_offload

    plain = sample(fresh_pipe, **options)
    parts = [part for part in fresh_pipe.components.values() if isinstance(part, torch.nn.Module)]
    for part in parts:
        cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)
    assert len(parts) == 4 + len(options) and {next(part.parameters()).device.type for part in parts} == {"meta"}
    assert torch.equal(sample(fresh_pipe, **options), plain)
    assert fresh_pipe.encode_subject(dog, "dog").device.type == "cpu"
    with pytest.raises(InputError, match="can't be read now: load and save before enable_sequential_cpu_offload"):
        fresh_pipe.save_pretrained(tmp_path)


def test_model_cpu_offload_generates_the_same_image(
    fresh_pipe: BlipDiffusionPipeline, sample: Sample, options: dict[str, Any]
) -> None:
    plain = sample(fresh_pipe, **options)
    fresh_pipe.enable_model_cpu_offload(device="cpu")
    hooked = {name for name, part in fresh_pipe.components.items() if hasattr(part, "_hf_hook")}
    assert hooked == {"qformer", "text_encoder", "unet", "vae", *(["controlnet"] if options else [])}
    assert torch.equal(sample(fresh_pipe, **options), plain) and torch.equal(sample(fresh_pipe, **options), plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(
    tiny_folder: Path, fresh_pipe: BlipDiffusionPipeline, sample: Sample, dtype: torch.dtype
) -> None:
    rough = BlipDiffusionPipeline.from_pretrained(tiny_folder, torch_dtype=dtype)
    rough.set_progress_bar_config(disable=True)
    parts = (rough.qformer, rough.text_encoder, rough.unet, rough.vae)
    assert {parameter.dtype for part in parts for parameter in part.parameters()} == {dtype}
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    image = sample(rough, latents=noise)
    assert image.dtype == torch.float32
    assert 0 < (image - sample(fresh_pipe, latents=noise)).abs().mean() < 0.05


@pytest.mark.parametrize("controlled", [False, True])
def test_the_unet_compiles_in_one_graph(fresh_pipe: BlipDiffusionPipeline, sample: Sample, controlled: bool) -> None:
    """With `fullgraph`, a break is an error."""
    net = ControlNetModel.from_unet(fresh_pipe.unet, conditioning_embedding_out_channels=(8, 8, 8, 8)).eval()
    room = Image.effect_noise((32, 32), 80).convert("RGB")
    options = {"image": room, "controlnet": net} if controlled else {}
    plain = sample(fresh_pipe, **options)
    fresh_pipe.unet.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(sample(fresh_pipe, **options), plain, atol=1e-5, rtol=0)
    assert fresh_pipe.unet._compiled_call_impl is not None


@pytest.mark.slow
def test_compiled_unet_generates_the_same_image(fresh_pipe: BlipDiffusionPipeline, sample: Sample) -> None:
    plain = sample(fresh_pipe)
    fresh_pipe.unet = torch.compile(fresh_pipe.unet, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(sample(fresh_pipe), plain, atol=1e-4, rtol=0)


# -------------------------------------------------------------------------------------------- weights that are mapped


def test_saving_to_the_source_folder(fresh_pipe: BlipDiffusionPipeline, tmp_path: Path, sample: Sample) -> None:
    """The weights are the file, mapped: it must not be written into."""
    fresh_pipe.save_pretrained(tmp_path)
    loaded = BlipDiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    loaded.save_pretrained(tmp_path)
    assert torch.equal(sample(loaded), sample(fresh_pipe))
    assert torch.equal(sample(BlipDiffusionPipeline.from_pretrained(tmp_path)), sample(fresh_pipe))


def test_mapped_weights_can_be_trained_and_leave_the_file_alone(
    fresh_pipe: BlipDiffusionPipeline, tmp_path: Path
) -> None:
    fresh_pipe.save_pretrained(tmp_path)
    before = (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    loaded = BlipDiffusionPipeline.from_pretrained(tmp_path)
    with torch.no_grad():
        loaded.unet.conv_in.weight += 1
    assert (loaded.unet.conv_in.weight - fresh_pipe.unet.conv_in.weight).abs().min() > 0.5
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == before
