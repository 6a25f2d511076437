"""The shipped model: its size, and images that follow the reference and the prompt."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from blip_diffusion import BlipDiffusionPipeline
from blip_diffusion.checkpoint.locate import ASSETS
from blip_diffusion.pipelines.presets import TURBO

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def mini() -> BlipDiffusionPipeline:
    pipe = BlipDiffusionPipeline.from_pretrained("mini")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: BlipDiffusionPipeline, prompts: list[str], name: str, *, steps: int | None = 8) -> torch.Tensor:
    """(B, 3) mean colours of the middle, then of the four corners, all from one noise."""
    image = Image.open(EXAMPLES / name)
    noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0)).expand(len(prompts), -1, -1, -1)
    settings = {"num_inference_steps": steps, "output_type": "pt", "latents": noise}
    pixels = pipe(prompts, image, Path(name).stem, Path(name).stem, **settings).images
    corners = torch.cat([pixels[:, :, :24, :24], pixels[:, :, -24:, -24:]], dim=-1)
    return torch.stack([pixels[:, :, 40:88, 40:88].mean(dim=(2, 3)), corners.mean(dim=(2, 3))])


def test_mini_fits_in_the_package() -> None:
    assert sum(path.stat().st_size for path in (ASSETS / "mini").rglob("*")) <= 64 * 2**20


def test_mini_follows_the_prompt(mini: BlipDiffusionPipeline) -> None:
    _, corners = generate(mini, ["on a plain blue background", "on a plain red background"], "apple.png")
    assert corners[0, 2] > corners[0, 0] + 0.2  # blue
    assert corners[1, 0] > corners[1, 2] + 0.2  # red


def test_mini_follows_the_reference(mini: BlipDiffusionPipeline) -> None:
    (apple, _), (dog, _) = (generate(mini, ["on grass"], name) for name in ("apple.png", "dog.png"))
    assert apple[0, 0] > apple[0, 2] + 0.2  # a red apple
    assert dog[0, 2] > dog[0, 0] + 0.2  # a blue dog


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_turbo_follows_prompt_and_reference() -> None:
    pipe = BlipDiffusionPipeline.from_pretrained("mini")
    pipe.set_progress_bar_config(disable=True)
    pipe.set_preset(replace(TURBO, dtype="float32"))
    calls: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda module, given: calls.append(len(given[0])))
    (apple, _), (dog, corners) = (
        generate(pipe, ["on a plain red background"], name, steps=None) for name in ("apple.png", "dog.png")
    )
    assert calls == [1] * 4
    assert apple[0, 0] > apple[0, 2] + 0.2 and dog[0, 2] > dog[0, 0] + 0.1
    assert corners[0, 0] > corners[0, 2] + 0.2
