"""Elastic deformations."""

import random

import torch
from torch.nn import functional as F

from blip_diffusion.data.synthetic.resample import elastic_grid, warp_images


def test_deformation_stays_within_its_limit() -> None:
    grid = elastic_grid(8, 64, 0.1, random.Random(0))
    identity = F.affine_grid(torch.eye(2, 3).expand(8, -1, -1), [8, 1, 64, 64], align_corners=False)
    moved = (grid - identity).abs().amax((1, 2, 3)) / 2  # in sides of the image
    assert moved.max() < 0.11 and moved.min() < moved.max() / 2
    images = torch.rand(8, 3, 64, 64)
    torch.testing.assert_close(warp_images(images, identity), images, atol=1e-5, rtol=0)
    assert torch.equal(grid, elastic_grid(8, 64, 0.1, random.Random(0)))
