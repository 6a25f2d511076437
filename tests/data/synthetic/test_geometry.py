"""Depth and normals: their form in the asset library, and what placing, mirroring and warping does to them."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.geometry import (
    FLAT,
    PER_SHEET,
    mirror_normals,
    planes_in,
    planes_of,
    read_planes,
    sheet_of,
    warp_normals,
)
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.data.synthetic.pair_spec import PairSpec
from blip_diffusion.data.synthetic.prompt_templates import PromptSpec
from blip_diffusion.data.synthetic.resample import elastic_grid, warp_images
from blip_diffusion.errors import DataError

from .compositing import PLAIN, WORLD

SOLID = replace(PLAIN, geometry=True)


@pytest.fixture(scope="module")
def solids(geometric_world: Path) -> AssetLibrary:
    return AssetLibrary.load(geometric_world, geometry=True)


def slope_normals(depth: torch.Tensor) -> torch.Tensor:
    """The normals of surfaces z (B, 1, H, W), in sides of the image."""
    down, right = torch.gradient(depth[:, 0] * depth.shape[-1], dim=(1, 2))
    return F.normalize(torch.stack([-right, down, torch.ones_like(down)], dim=1), dim=1)


def test_planes_are_centred_and_filled() -> None:
    geometry = Image.new("RGB", (40, 20), (200, 100, 50))
    alpha = Image.new("L", (40, 20))
    alpha.paste(255, (0, 0, 20, 20))
    geometry.paste((0, 0, 0), (20, 0, 40, 20))  # beside the subject
    planes = planes_of(geometry, alpha)
    assert planes.shape == (3, 64, 64) and planes.dtype == np.uint8
    assert (planes == np.array([200, 100, 50]).reshape(3, 1, 1)).all()
    alpha.paste(255, (20, 0, 40, 20))
    planes = planes_of(geometry, alpha)
    assert planes[:, 32, 22:32].max(1).tolist() == [200, 100, 50] and planes[:, 32, 32:42].max() == 0


def test_sheets_keep_planes() -> None:
    planes = np.random.default_rng(0).integers(0, 256, (5, 3, 64, 64), dtype=np.uint8)
    sheet = sheet_of(list(planes))
    assert sheet.mode == "L" and sheet.size == (1536, 512)
    read = planes_in(sheet)
    assert len(read) == PER_SHEET and np.array_equal(read[:5], planes) and read[5:].max() == 0
    with pytest.raises(ValueError, match="a sheet of geometry is 1536 x 64, not 1536 x 512"):
        planes_in(sheet.crop((0, 0, 1536, 64)))


def test_planes_are_read_in_windows() -> None:
    planes = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    planes[:, 0, :, 32:], planes[:, 2] = 128 + 76, 51  # the right half faces the right
    depth, normals = read_planes(planes, torch.tensor([[0.25, 0.25, 0.5]]), 16)
    torch.testing.assert_close(depth, torch.full((1, 1, 16, 16), 0.2))
    torch.testing.assert_close(normals[0, :, 8, 2], torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(normals[0, :, 8, 13], torch.tensor([76 / 127, 0.0, (1 - (76 / 127) ** 2) ** 0.5]))
    beyond, _ = read_planes(planes, torch.tensor([[-0.5, -0.5, 2.0]]), 16)
    torch.testing.assert_close(beyond, torch.full((1, 1, 16, 16), 0.2))  # no dark border


def test_mirrored_normals_are_those_of_the_mirrored_surface() -> None:
    depth = torch.rand(2, 1, 4, 4).mul(0.3)
    surface = F.interpolate(depth, (64, 64), mode="bicubic", align_corners=True)
    torch.testing.assert_close(mirror_normals(slope_normals(surface)), slope_normals(surface.flip(-1)))


def test_warped_normals_are_those_of_the_warped_surface() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 128), torch.linspace(-1, 1, 128), indexing="ij")
    surface = (0.2 * torch.cos(2 * x + 0.5) * torch.cos(1.5 * y)).expand(4, 1, -1, -1)
    grid = elastic_grid(4, 128, 0.12, random.Random(0))
    warped = F.grid_sample(surface, grid, padding_mode="reflection", align_corners=False)
    found, expected = warp_normals(slope_normals(surface), grid), slope_normals(warped)
    smooth = grid.abs().amax(-1) < 0.96  # beyond, the image is mirrored at a crease
    assert (found * expected).sum(1)[smooth].min() > 0.999
    assert (slope_normals(surface) * expected).sum(1)[smooth].quantile(0.1) < 0.99
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4, 128, 128))


def one(solids: AssetLibrary, side: float) -> tuple[PairSampler, PairSpec]:
    sampler = PairSampler(solids, replace(SOLID, layout=0.0), batch_size=1, seed=0)
    size = "small" if side < 0.5 else ""
    background = sampler.scene("forest", random.Random(0))
    return sampler, PairSpec(0, 0, PromptSpec(size=size, scene="in the forest"), background, background)


@pytest.mark.parametrize("side", [0.7, 0.3])
def test_composites_have_the_depth_and_normals_of_their_subject(solids: AssetLibrary, side: float) -> None:
    sampler, spec = one(solids, side)
    batch = sampler.render([spec], random.Random(0))
    alpha = batch["target_alpha"][0, 0]
    wide, high = (float(alpha.sum(axis).max()) / 2 for axis in (1, 0))  # half axes
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    u, v = (x - (x * alpha).sum() / alpha.sum()) / wide, ((y * alpha).sum() / alpha.sum() - y) / high
    z = (1 - u**2 - v**2).clamp(min=0).sqrt()
    expected = F.normalize(torch.stack([u / wide, v / high, z / (2 * wide)]), dim=0)
    middle = u**2 + v**2 < 0.7
    assert (expected * batch["target_normals"][0]).sum(0)[middle].min() > 0.98
    torch.testing.assert_close(batch["target_depth"][0, 0][middle], 1 / (2 - z)[middle], atol=0.04, rtol=0)
    outside = alpha == 0
    assert (batch["target_depth"][0, 0][outside] == 0).all() and (batch["target_normals"][0, 2][outside] == 1).all()


def test_cut_outs_without_geometry_face_the_viewer(solids: AssetLibrary) -> None:
    assert solids.geometry is not None
    flat = [i for i, row in enumerate(solids.cutouts) if row.kind != "3d"]
    assert (solids.geometry[flat] == torch.tensor(FLAT).view(3, 1, 1)).all()
    assert len(solids.subset(split="train").geometry) == sum(row.split == "train" for row in solids.cutouts)  # type: ignore[arg-type]


def test_only_3d_models_are_sampled(solids: AssetLibrary) -> None:
    sampler = PairSampler(solids, SOLID, batch_size=16, seed=0)
    specs = [sampler.sample(random.Random(i)) for i in range(64)]
    assert {solids.cutouts[row].kind for spec in specs for row in (spec.target, spec.reference)} == {"3d"}
    flat = replace(solids, cutouts=tuple(replace(row, kind="emoji") for row in solids.cutouts))
    with pytest.raises(DataError, match="has no train subjects that are 3D models"):
        PairSampler(flat, SOLID, batch_size=1, seed=0)
    assert "target_depth" not in PairSampler(solids, PLAIN, batch_size=2, seed=0)(0)
    with pytest.raises(DataError, match=r"load it with geometry=True"):
        PairSampler(WORLD, SOLID, batch_size=1, seed=0)


def test_mirrored_pairs_have_mirrored_geometry(solids: AssetLibrary) -> None:
    plain, mirrored = (PairSampler(solids, replace(SOLID, mirror=share), batch_size=8, seed=0)(0) for share in (0, 1))
    assert torch.equal(mirrored["target"], plain["target"].flip(-1))
    assert torch.equal(mirrored["target_depth"], plain["target_depth"].flip(-1))
    assert torch.equal(mirrored["target_normals"], mirror_normals(plain["target_normals"]))


def test_geometry_is_warped_with_the_image(solids: AssetLibrary) -> None:
    batch = PairSampler(solids, replace(SOLID, warp=0.12), batch_size=4, seed=0)(0)
    covered = batch["target_alpha"] > 0.95
    assert (batch["target_depth"][covered] > 0.4).all() and (
        batch["target_depth"][batch["target_alpha"] == 0] == 0
    ).all()
    plain = PairSampler(solids, SOLID, batch_size=4, seed=0)(0)
    rng = random.Random("0 0")
    assert batch["target_depth"].shape == warp_images(plain["target_depth"], elastic_grid(4, 64, 0.1, rng)).shape


def test_library_without_geometry_is_loaded_but_not_for_depth() -> None:
    fixture = Path(__file__).parents[2] / "fixtures" / "world.zip"
    assert AssetLibrary.load(fixture).geometry is None
    with pytest.raises(DataError, match="has no depth and normals of 3D models: build it again"):
        AssetLibrary.load(fixture, geometry=True)
