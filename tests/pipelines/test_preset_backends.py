"""Presets with another backend: OpenVINO, torch.compile, a tiny autoencoder."""

import importlib.util
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from blip_diffusion.errors import CheckpointError
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import FAST, Preset

from .sampling import mean_difference, sample_images

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers' own sigmas, with numpy 2
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept"),
]
OPENVINO = [
    {"dtype": "bfloat16", "channels_last": True},
    {"split_cfg_batch": True, "deepcache_interval": 2, "guidance_interval": (0.0, 0.5)},
]


@pytest.mark.parametrize("choices", OPENVINO, ids=["bfloat16", "shortened"])
def test_openvino_generates_the_same_image(
    fresh_pipe: BlipDiffusionPipeline, dog: Image.Image, unet_batch_sizes: list[int], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, choices: dict[str, Any],
) -> None:  # fmt: skip
    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fresh_pipe.set_preset(Preset(**choices))
    plain = sample_images(fresh_pipe, dog)
    fresh_pipe.set_preset(Preset(**choices, engine="openvino"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # no falling back
        assert mean_difference(sample_images(fresh_pipe, dog), plain) < 0.02
        unet_batch_sizes.clear()
        sample_images(fresh_pipe, dog, "in the snow")
    assert unet_batch_sizes == []
    other = sample_images(fresh_pipe, dog, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        fresh_pipe.unet.conv_out.bias.add_(1)
    assert (
        mean_difference(sample_images(fresh_pipe, dog, generator=torch.Generator().manual_seed(3)), other) > 0.01
    )  # the weights' own


@pytest.mark.parametrize("choices", OPENVINO, ids=["bfloat16", "shortened"])
def test_torch_runs_if_openvino_fails(
    fresh_pipe: BlipDiffusionPipeline, dog: Image.Image, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, choices: Any
) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "blip-diffusion").write_text("a file where the cache's folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fresh_pipe.set_preset(Preset(**choices))
    plain = sample_images(fresh_pipe, dog)
    fresh_pipe.set_preset(Preset(**choices, engine="openvino"))
    with pytest.warns(UserWarning, match="OpenVINO can't run the"):
        assert mean_difference(sample_images(fresh_pipe, dog), plain) < 5e-3  # bfloat16 rounds to 2^-9


def test_tiny_autoencoder_decodes_the_latents(
    fresh_pipe: BlipDiffusionPipeline, dog: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    widths = (8, 8, 8, 8)
    diffusers.AutoencoderTiny(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    ).save_pretrained(tmp_path)  # fmt: skip
    plain = sample_images(fresh_pipe, dog)
    fresh_pipe.set_preset(Preset(tiny_vae=str(tmp_path)))
    tiny = sample_images(fresh_pipe, dog)
    assert tiny.shape == plain.shape and mean_difference(tiny, plain) > 1e-3
    latents = torch.zeros(1, fresh_pipe.vae.config.latent_channels, 4, 4)
    assert fresh_pipe._decode_latents(latents).device.type == "cpu"
    assert fresh_pipe._decode_latents(latents.to("meta")).device.type == fresh_pipe._tiny_vae.device.type == "meta"
    if importlib.util.find_spec("openvino"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        fresh_pipe.set_preset(Preset(tiny_vae=str(tmp_path), engine="openvino"))
        assert mean_difference(sample_images(fresh_pipe, dog), tiny) < 0.1 * mean_difference(tiny, plain)
    fresh_pipe.set_preset(Preset())
    assert torch.equal(sample_images(fresh_pipe, dog), plain)
    with pytest.raises(CheckpointError, match="no AutoencoderTiny"):
        fresh_pipe.set_preset(Preset(tiny_vae=str(tmp_path / "none")))


def test_incompatible_tiny_autoencoder_keeps_the_preset(fresh_pipe: BlipDiffusionPipeline, tmp_path: Path) -> None:
    fresh_pipe.vae.save_pretrained(tmp_path / "vae")
    widths = (8, 8, 8, 8)
    wide = diffusers.AutoencoderTiny(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, latent_channels=7
    )
    wide.save_pretrained(tmp_path / "wide")
    before = fresh_pipe.scheduler
    for name, problem in (("vae", "another kind of network"), ("wide", "latents of 7 channels")):
        with pytest.raises(CheckpointError, match=problem):
            fresh_pipe.set_preset(replace(FAST, dtype="default", tiny_vae=str(tmp_path / name)))
        assert fresh_pipe.scheduler is before and fresh_pipe.preset == Preset()


def test_compiling_on_a_cpu_warns(fresh_pipe: BlipDiffusionPipeline) -> None:
    with pytest.warns(match="compiled takes minutes on a CPU before the first image"):
        fresh_pipe.set_preset(Preset(engine="compiled"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh_pipe.set_preset(Preset())


def test_compiled_unet_works_with_deepcache(fresh_pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    fresh_pipe.set_preset(Preset(deepcache_interval=2))
    plain = sample_images(fresh_pipe, dog, num_inference_steps=2)
    fresh_pipe.set_preset(Preset())
    fresh_pipe.unet.compile(backend="eager")
    sample_images(fresh_pipe, dog, num_inference_steps=2)
    fresh_pipe.preset = fresh_pipe._requested = Preset(engine="compiled", deepcache_interval=2)
    torch.testing.assert_close(sample_images(fresh_pipe, dog, num_inference_steps=2), plain)
