"""Render pair specifications to tensors, in batches, on any device."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.synthetic import backgrounds, prompt_templates, styles
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.backgrounds import RGB, Background
from blip_diffusion.data.synthetic.geometry import read_planes
from blip_diffusion.data.synthetic.pair_spec import PairSpec, SyntheticConfig
from blip_diffusion.data.synthetic.placement import (
    CutoutGeometry,
    Jitter,
    Placement,
    frame_of,
    layers_of,
    measure,
    place,
    place_anywhere,
    place_reference,
)
from blip_diffusion.data.synthetic.resample import read_windows, resample_matrix
from blip_diffusion.data.synthetic.subject_index import SubjectIndex
from blip_diffusion.errors import DataError


class Compositor:
    """Renderer of pair specifications: pastes cut-outs on backgrounds."""

    def __init__(
        self, world: AssetLibrary, config: SyntheticConfig, subjects: SubjectIndex, device: torch.device
    ) -> None:
        self.world, self.config, self.device = world, config, device
        self._subjects = subjects
        self._pixels = world.pixels.to(device)
        self._scenes = world.scene_pixels.to(device)
        self._planes = _planes(world, device) if config.geometry else None
        self.geometry = measure(self._pixels)
        names = sorted({cutout.identity for cutout in world.cutouts})
        self._identities = {name: i for i, name in enumerate(names)}

    def scene_colours(self) -> list[RGB]:
        """Return the mean colour of each scene, in [0, 1]."""
        return [(r, g, b) for r, g, b in (self._scenes.float().mean((2, 3)) / 255).tolist()]

    def render(self, specs: Sequence[PairSpec], rng: random.Random) -> SubjectBatch:
        """Render pair specifications to a batch; `rng` only jitters position, size and light."""
        noise = Generator(self.device)
        noise.manual_seed(rng.getrandbits(62))
        target_placements = [self._place(row, spec, rng) for row, spec in enumerate(specs)]
        reference_placements = [self._place_reference(row, spec, rng) for row, spec in enumerate(specs)]
        placed = [p for row in target_placements for p in row]
        target, target_alpha = self._targets(specs, placed, noise)
        reference = self._references(specs, reference_placements, noise)
        cutouts = [self.world.cutouts[spec.target] for spec in specs]
        prompts = [spec.prompt or prompt_templates.prompt(spec.request) for spec in specs]
        identities = [self._identities[cutout.identity] for cutout in cutouts]
        batch = SubjectBatch(
            reference=reference,
            reference_caption=[
                prompt_templates.caption(cutout.category, spec.reference_background.phrase)
                for cutout, spec in zip(cutouts, specs, strict=True)
            ],
            object_crop=torch.cat(self._cut(reference_placements, self.config.object_crop_size), dim=1).clamp_(0, 1),
            category=[cutout.category for cutout in cutouts],
            prompt=prompts,
            caption=[prompt_templates.caption(cutout.category, p) for cutout, p in zip(cutouts, prompts, strict=True)],
            target=target,
            target_alpha=target_alpha,
            frames=_frames(target_placements, reference_placements).to(self.device),
            identity=torch.tensor(identities, device=self.device),
        )
        if self._planes is not None:
            batch["target_depth"], batch["target_normals"] = self._target_geometry(self._planes, placed, len(specs))
        return batch

    def _targets(
        self, specs: Sequence[PairSpec], placements: Sequence[Placement], noise: Generator
    ) -> tuple[Tensor, Tensor]:
        canvas = backgrounds.render([spec.background for spec in specs], self._scenes, self.config.size, noise)
        sketched = [i for i, spec in enumerate(specs) if spec.request.style == "sketch"]
        canvas[sketched] = 1.0  # paper
        canvas, alpha = self._paste(canvas, placements, sketched)
        for style, apply in styles.FILTERS.items():
            if rows := [i for i, spec in enumerate(specs) if spec.request.style == style]:
                canvas[rows] = apply(canvas[rows])
        return canvas.clamp_(0, 1), alpha

    def _target_geometry(self, planes: Tensor, placements: Sequence[Placement], images: int) -> tuple[Tensor, Tensor]:
        """Return depth (B, 1, S, S) and normals (B, 3, S, S) of targets, which are never rotated.

        The background is infinitely far, and faces the viewer.
        """
        size = self.config.size
        depth = torch.zeros(images, 1, size, size, device=self.device)
        normals = torch.tensor([0.0, 0.0, 1.0], device=self.device).view(1, 3, 1, 1).repeat(images, 1, size, size)
        for layer in layers_of(placements, images):
            chosen = [placements[i] for i in layer]
            rows = torch.tensor([p.row for p in chosen], device=self.device)
            cutouts, windows = self._windows(chosen)
            alpha = self._read(cutouts, windows, size)[:, 3:].clamp(0, 1)
            near, facing = read_planes(planes[cutouts], windows / self._pixels.shape[-1], size)
            depth[rows] = torch.lerp(depth[rows], near, alpha)
            normals[rows] = torch.lerp(normals[rows], facing, alpha)
        return depth, F.normalize(normals, dim=1)

    def _place(self, row: int, spec: PairSpec, rng: random.Random) -> list[Placement]:
        request, shape = spec.request, self.geometry[spec.target]
        extra = None
        if request.accessory:
            thing = spec.accessory if spec.accessory >= 0 else self._subjects.accessory_of(request.accessory, rng)
            extra = (thing, self.geometry[thing])
        if spec.anywhere:
            placements = [place_anywhere(row, spec.target, shape, spec.background.horizon, rng)]
        else:
            jitter = Jitter(rng, self.config.layout)
            placements = place(row, spec.target, shape, request, spec.background.horizon, jitter, extra)
        look = partial(
            replace,
            paint=request.colour,
            silhouette=request.style == "silhouette",
            colour_matrix=spec.colour_matrix,
        )
        placements = [look(p) if p.subject else p for p in placements]
        return [replace(p, light=_light(spec.background, self._light_jitter(rng))) for p in placements]

    def _light_jitter(self, rng: random.Random) -> Jitter:
        return Jitter(rng, self.config.light)

    def _place_reference(self, row: int, spec: PairSpec, rng: random.Random) -> Placement:
        config, background = self.config, spec.reference_background
        placement = place_reference(
            row, spec.reference, background.horizon, config.reference_fill, config.reference_drift, config.rotation, rng
        )
        light = _light(background, self._light_jitter(rng))
        return replace(placement, light=light, colour_matrix=spec.colour_matrix)

    def _references(self, specs: Sequence[PairSpec], placements: Sequence[Placement], noise: Generator) -> Tensor:
        chosen = [spec.reference_background for spec in specs]
        canvas = backgrounds.render(chosen, self._scenes, self.config.size, noise)
        return self._paste(canvas, placements, [])[0].clamp_(0, 1)

    def _paste(self, canvas: Tensor, placements: Sequence[Placement], sketched: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Paste placements on images (B, 3, S, S); return the images and the visible subjects (B, 1, S, S)."""
        covered = canvas.new_zeros(len(canvas), 1, *canvas.shape[2:])
        for layer in layers_of(placements, len(canvas)):
            chosen = [placements[i] for i in layer]
            rows = torch.tensor([p.row for p in chosen], device=self.device)
            colour, alpha = self._cut(chosen, self.config.size)  # (P, 3, S, S) premultiplied, (P, 1, S, S)
            shadow = self._shadows(chosen)
            all_images = len(chosen) == len(canvas)
            below = canvas if all_images else canvas[rows]
            pasted = torch.addcmul(colour, below * shadow, 1 - alpha)
            sketches = [i for i, p in enumerate(chosen) if p.row in set(sketched)]
            if sketches:
                pasted[sketches] = below[sketches].minimum(styles.sketch(colour[sketches], alpha[sketches]))
            is_subject = torch.tensor([float(p.subject) for p in chosen], device=self.device).view(-1, 1, 1, 1)
            visible = (covered if all_images else covered[rows]) * (1 - alpha) + alpha * is_subject
            if all_images:
                canvas, covered = pasted, visible
            else:
                canvas[rows], covered[rows] = pasted, visible
        return canvas, covered

    def _cut(self, placements: Sequence[Placement], size: int) -> tuple[Tensor, Tensor]:
        """Return premultiplied colour and alpha of cut-outs with the size, position, light and paint of placements."""
        image = self._read(*self._windows(placements), size)
        rotated = [i for i, p in enumerate(placements) if p.angle]
        if rotated:
            image[rotated] = _rotate(image[rotated], [placements[i] for i in rotated])
        colour, alpha = image[:, :3], image[:, 3:].clamp(0, 1)
        for rows, apply in self._effects(placements):
            colour[rows] = apply(colour[rows], alpha[rows])
        light = torch.tensor([p.light for p in placements], device=self.device)
        return torch.minimum(colour * light[:, :, None, None], alpha), alpha

    def _effects(
        self, placements: Sequence[Placement]
    ) -> Iterator[tuple[list[int], Callable[[Tensor, Tensor], Tensor]]]:
        rotated = [i for i, p in enumerate(placements) if p.colour_matrix is not None]
        if rotated:
            matrices = torch.tensor([placements[i].colour_matrix for i in rotated], device=self.device).view(-1, 3, 3)
            yield rotated, lambda colour, _alpha: torch.einsum("pij,pjyx->piyx", matrices, colour).clamp(min=0)
        painted = [i for i, p in enumerate(placements) if p.paint]
        if painted:
            paints = torch.tensor([backgrounds.PALETTE[placements[i].paint] for i in painted], device=self.device)
            yield painted, lambda colour, alpha: styles.paint(colour, alpha, paints)
        shaded = [i for i, p in enumerate(placements) if p.silhouette]
        if shaded:
            yield shaded, styles.silhouette

    def _windows(self, placements: Sequence[Placement]) -> tuple[Tensor, Tensor]:
        """Return the cut-outs (P,) of placements and the frames of their images in them (P, 3), as `_read` takes it."""
        windows = [_window(p, self.geometry[p.cutout]) for p in placements]
        cutouts = [p.cutout for p in placements]
        return torch.tensor(cutouts, device=self.device), torch.tensor(windows, device=self.device)

    def _read(self, cutouts: Tensor, windows: Tensor, size: int) -> Tensor:
        """Read windows (P, 3: left, top, side), in pixels of cut-outs, to premultiplied images (P, 4, size, size)."""
        image = self._pixels[cutouts].float()  # (P, 4, 128, 128)
        image[:, :3] *= image[:, 3:] / 255
        left, top, side = windows.T
        rows = resample_matrix(top, side, image.shape[2], size)
        columns = resample_matrix(left, side, image.shape[3], size)
        return read_windows(image, rows / 255, columns)

    def _shadows(self, placements: Sequence[Placement]) -> Tensor:
        """Return soft contact shadows, as factors (P, 1, S, S) for the image below."""
        measures = torch.tensor([_shadow(p, self.geometry[p.cutout]) for p in placements], device=self.device)
        x, y, wide, high, strength = measures.view(-1, 5, 1).unbind(1)  # (P, 1) each
        at = (torch.arange(self.config.size, device=self.device) + 0.5) / self.config.size
        across = torch.exp(-(((at - x) / wide) ** 2))  # (P, S)
        down = torch.exp(-(((at - y) / high) ** 2)) * strength
        return (1 - down[:, :, None] * across[:, None, :])[:, None]


def _planes(world: AssetLibrary, device: torch.device) -> Tensor:
    """Return the planes of all cut-outs. Raises `DataError` for a library that was loaded without them."""
    if world.geometry is None:
        raise DataError("The asset library has no depth and normals: load it with geometry=True.")
    return world.geometry.to(device)


def _frames(target_placements: Sequence[Sequence[Placement]], reference_placements: Sequence[Placement]) -> Tensor:
    """Return the frames (B, K, 4) of the copies of each subject; a frame of width 0 is padding."""
    rows = [
        [frame_of(p, reference) for p in placements if p.subject]
        for placements, reference in zip(target_placements, reference_placements, strict=True)
    ]
    most = max(map(len, rows))
    return torch.tensor([row + [(0.0, 0.0, 0.0, 0.0)] * (most - len(row)) for row in rows])


def _light(background: Background, jitter: Jitter) -> RGB:
    """Return the light on a subject, random except for dark scenes."""
    gain = jitter.between(0.88, 1.1) * (0.8 if background.word in ("starry night", "sunset") else 1.0)
    tint = jitter.about(0.03)
    return gain * (1 + tint), gain, gain * (1 - tint)


def _window(placement: Placement, shape: CutoutGeometry) -> tuple[float, float, float]:
    """Return the frame of the image in the cut-out's pixels: left, top, side."""
    side = max(shape.width, shape.height) / placement.side
    return shape.x - placement.x * side, shape.y - placement.y * side, side


def _shadow(placement: Placement, shape: CutoutGeometry) -> tuple[float, float, float, float, float]:
    """Return centre, extent across and down, and strength of a contact shadow, in frames."""
    longest = max(shape.width, shape.height)
    width, height = placement.side * shape.width / longest, placement.side * shape.height / longest
    x = placement.x + (shape.foot - 0.5) * width
    wide = max(shape.foot_width * width, 0.25 * width) * 0.6
    return x, placement.y + height / 2 - 0.008, wide, max(0.14 * wide, 0.012), 0.5 if placement.ground else 0.0


def _rotate(images: Tensor, placements: Sequence[Placement]) -> Tensor:
    """Rotate images about their placements' centres."""
    angles = torch.tensor([p.angle for p in placements], device=images.device).deg2rad()
    x, y = (torch.tensor([[p.x, p.y] for p in placements], device=images.device) * 2 - 1).T
    cos, sin = angles.cos(), angles.sin()
    matrix = torch.stack((cos, -sin, x - x * cos + y * sin, sin, cos, y - x * sin - y * cos), 1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
