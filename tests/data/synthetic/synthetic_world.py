"""A tiny training set of drawn shapes and simple scenes. No files, no network."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from blip_diffusion.data.synthetic.assets import AssetLibrary, CutOut, CutOutImage, Scene, is_3d, pack

COLOURS = {"red": (215, 40, 40), "blue": (40, 80, 215), "black": (18, 18, 20), "grey": (128, 128, 130)}


def make_world() -> AssetLibrary:
    cutouts, pixels = [], []
    for i, (name, colour) in enumerate(COLOURS.items()):
        for azimuth in (0, 30, 60, 180):  # the image tells the view: taller with azimuth
            cutouts.append(_row(f"pot{i}", "teapot", f"{name} teapot", "3d", view=str(azimuth)))
            pixels.append(_ellipse(colour, 110, 60 + azimuth // 4))
        cutouts.append(_row(f"dog{i}", "dog", f"{name} dog", "emoji", animate=True))
        pixels.append(_ellipse(colour, 70, 120))
        cutouts.append(_row(f"held{i}", "dog", f"{name} dog", "emoji", split="heldout"))
        pixels.append(_ellipse(colour, 120, 90))
    for noun in ("hat", "balloon", "apple"):
        cutouts.append(_row(noun, noun, f"red {noun}", "photo"))
        pixels.append(_ellipse((230, 60, 50), 100, 80))
    scenes = [_scene(word, split) for word in ("forest", "beach", "space") for split in ("train", "train", "heldout")]
    rng = torch.Generator().manual_seed(0)
    scene_pixels = [_scene_pixels(scene, rng) for scene in scenes]
    return AssetLibrary(tuple(cutouts), torch.stack(pixels), tuple(scenes), torch.stack(scene_pixels))


def pack_geometric_world(path: Path) -> Path:
    """Write `make_world()` with the depth and normals of ellipsoids; one 3D model is held out."""
    world = make_world()
    rows = [replace(row, split="heldout") if row.identity == "pot3" else row for row in world.cutouts]
    images = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in world.pixels]
    shapes = [ellipsoid(image.getchannel("A")) if is_3d(row) else None for row, image in zip(rows, images, strict=True)]
    scenes = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in world.scene_pixels]
    pack(path, list(map(CutOutImage, rows, images, shapes)), list(zip(world.scenes, scenes, strict=True)), "")
    return path


def ellipsoid(alpha: Image.Image) -> Image.Image:
    """The geometry of the surface z = sqrt(1 - (x/a)² - (y/b)²), in longest sides, over an alpha channel's ellipse."""
    left, top, right, bottom = alpha.getbbox() or (0, 0, 0, 0)
    half = torch.tensor([right - left, bottom - top]) / 2
    y, x = torch.meshgrid(torch.arange(128.0) + 0.5, torch.arange(128.0) + 0.5, indexing="ij")
    u, v = (x - (left + right) / 2) / half[0], ((top + bottom) / 2 - y) / half[1]
    z = (1 - u**2 - v**2).clamp(min=1e-3).sqrt()
    normal = torch.stack([u / half[0], v / half[1], z / (2 * half.max())])
    normal /= normal.norm(dim=0)
    planes = torch.stack([128 + 127 * normal[0], 128 + 127 * normal[1], 255 / (2 - z)], dim=-1)
    return Image.fromarray((planes * (u**2 + v**2 < 1)[..., None]).round().byte().numpy())


def _row(identity: str, category: str, name: str, kind: str, *, view: str = "", animate: bool = False,
         split: str = "train") -> CutOut:  # fmt: skip
    return CutOut(identity, category, name, kind, "drawn", "PD", view=view, animate=animate, split=split)


def _scene(word: str, split: str) -> Scene:
    phrases = (f"in the {word}", f"in a {word}")
    return Scene(phrases, word, "drawn", "PD", horizon=1.0 if word == "space" else 0.6, split=split)


def _scene_pixels(scene: Scene, rng: torch.Generator) -> Tensor:
    """Heldout scenes are magenta, which no training scene is: so a leak shows."""
    base = {"forest": (40, 100, 50), "beach": (220, 200, 150), "space": (10, 10, 30)}[scene.word]
    colour = torch.tensor((255, 0, 255) if scene.split == "heldout" else base).view(3, 1, 1)
    return (colour + torch.randint(0, 12, (3, 160, 208), generator=rng)).clamp(0, 255).byte()


def _ellipse(colour: tuple[int, int, int], width: int, height: int) -> Tensor:
    """A shaded ellipse with a light spot, so that it has tones."""
    image = Image.new("RGBA", (128, 128))
    pen, left, top = ImageDraw.Draw(image), (128 - width) // 2, (128 - height) // 2
    pen.ellipse((left, top, left + width - 1, top + height - 1), fill=(*colour, 255))
    light = tuple(min(255, c + 50) for c in colour)
    pen.ellipse((left + width // 4, top + height // 6, left + width // 2, top + height // 2), fill=(*light, 255))
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
