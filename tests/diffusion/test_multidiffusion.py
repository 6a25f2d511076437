import pytest
import torch
from torch import Tensor

from blip_diffusion.diffusion.guidance import Denoiser
from blip_diffusion.diffusion.multidiffusion import averaged_regions

VISIBILITY = torch.tensor([[[1.0, 1.0, 0.0]], [[0.0, 1.0, 1.0]]])


def build(text: Tensor) -> Denoiser:
    """A denoiser that answers its first text state everywhere."""
    return lambda latents, _: latents + text[:, 0, 0].view(-1, 1, 1, 1)


@pytest.mark.parametrize("doubled", [False, True])
def test_each_place_is_the_mean_of_the_sentences_seen_there(doubled: bool) -> None:
    text = torch.cat([torch.full((2, 4, 1), 10.0), torch.full((2, 4, 1), 30.0)], dim=1)
    empty = torch.full((2, 8, 1), -5.0)
    latents = torch.zeros(2, 1, 1, 3)
    given = torch.cat([empty, text]) if doubled else text
    denoise = averaged_regions(build, given, VISIBILITY, doubled=doubled)
    answer = denoise(latents.repeat(1 + doubled, 1, 1, 1), torch.tensor(0))
    assert answer[-2:, 0, 0].tolist() == [[10, 20, 30]] * 2
    assert len(answer) == 2 + 2 * doubled and (not doubled or (answer[:2] == -5).all())
