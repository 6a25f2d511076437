"""Structure control, compared with the published code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blip_diffusion.pipelines.control import ControlRequest
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", ["image", "condtioning_image"])
def test_image_with_a_controlnet(name: str) -> None:
    rng = np.random.RandomState(7)  # as `make_golden.py` draws
    reference = Image.fromarray(rng.randint(0, 256, (40, 32, 3), dtype=np.uint8))
    control = Image.fromarray(rng.randint(0, 256, (32, 32, 3), dtype=np.uint8))
    latents = torch.from_numpy(rng.randn(1, 4, 16, 16).astype("float32"))
    pipe = BlipDiffusionPipeline.from_pretrained(
        GOLDEN / "pipe", qformer_tokenizer=GOLDEN / "tok" / "bert", controlnet=GOLDEN / "controlnet"
    )
    pipe.set_progress_bar_config(disable=True)
    generated = pipe(
        "swimming underwater", reference, "teapot", "dog", latents=latents, height=32, width=32, num_inference_steps=5,
        resize_mode="squash", output_type="pt", **{name: control},
    ).images  # fmt: skip
    with np.load(GOLDEN / "controlnet.npz") as golden:
        torch.testing.assert_close(generated, torch.from_numpy(golden["image_controlnet"]), atol=5e-5, rtol=0)


def test_control_image_preprocessing() -> None:
    """The published code hands it over twice, once for each half of guidance."""
    rng = np.random.RandomState(7)
    rng.randint(0, 256, (40, 32, 3), dtype=np.uint8)
    control = Image.fromarray(rng.randint(0, 256, (32, 32, 3), dtype=np.uint8))
    request = ControlRequest([None], [control], [1.0], [0.0], [1.0], resample="bicubic")
    with np.load(GOLDEN / "controlnet.npz") as golden:
        theirs = torch.from_numpy(golden["control_image"])
    assert torch.equal(request.controls(2, 1, 32, 32)[0].image, theirs)
