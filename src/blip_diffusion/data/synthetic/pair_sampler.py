"""Sample and render training pairs: a `PairSpec` describes a pair in words and numbers, and tensor code renders it.

Python samples words and layout, pair by pair. Pixels are computed in batches, on a CPU or a GPU.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.synthetic import backgrounds, prompt_templates
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.backgrounds import RGB, Background
from blip_diffusion.data.synthetic.compositor import Compositor
from blip_diffusion.data.synthetic.geometry import mirror_normals, warp_normals
from blip_diffusion.data.synthetic.pair_spec import PairSpec, SyntheticConfig
from blip_diffusion.data.synthetic.prompt_templates import PromptSpec
from blip_diffusion.data.synthetic.resample import elastic_grid, warp_images
from blip_diffusion.data.synthetic.subject_index import SubjectIndex, rows_by
from blip_diffusion.errors import DataError
from blip_diffusion.fileio import save_image


class PairSampler:
    """The batch of an index (`Batches`), a pure function of asset library, config, seed and index."""

    def __init__(
        self,
        world: AssetLibrary,
        config: SyntheticConfig,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.world, self.config = world, config
        self.batch_size, self.seed, self.device = batch_size, seed, torch.device(device)
        self._subjects = SubjectIndex(world.cutouts, config)
        self._compositor = Compositor(world, config, self._subjects, self.device)
        self._scene_colours = self._compositor.scene_colours()
        self._scene_rows = rows_by([scene.word if scene.split == config.split else None for scene in world.scenes])

    def __call__(self, index: int) -> SubjectBatch:
        rng = random.Random(f"{self.seed} {index}")
        specs = [self.sample(rng) for _ in range(self.batch_size)]
        batch = self.render(specs, rng)
        if self.config.warp:
            grid = elastic_grid(self.batch_size, self.config.size, self.config.warp, rng)
            batch["target"] = warp_images(batch["target"], grid)
            batch["target_alpha"] = warp_images(batch["target_alpha"], grid)
            if self.config.geometry:
                batch["target_depth"] = warp_images(batch["target_depth"], grid)
                batch["target_normals"] = warp_normals(batch["target_normals"], grid)
        if share := self.config.mirror:
            _mirror(batch, [i for i, spec in enumerate(specs) if rng.random() < share and _sideless(spec)])
        return batch

    def sample(self, rng: random.Random) -> PairSpec:
        """Sample a random pair of the configured split."""
        reference, target = self._subjects.pair(rng)
        request, accessory = self._property(target, rng)
        background = self._target_background(self._colour(target, request), request, rng)
        request = replace(request, scene=background.phrase)
        reference_background = self._reference_background(reference, background.word, rng)
        prompt = prompt_templates.prompt(request, rng)
        anywhere = rng.random() < self.config.anywhere and request == PromptSpec(scene=request.scene)
        recoloured = rng.random() < self.config.hue_rotation and not request.colour
        matrix = _hue_rotation(rng) if recoloured else None
        return PairSpec(
            reference, target, request, background, reference_background, prompt, accessory, matrix, anywhere
        )

    def background(self, rng: random.Random, *, away_from: RGB | None = None) -> Background:
        """Sample a background of the configured split, with plain colours different from `away_from`."""
        if rng.random() < self.config.procedural or not self._scene_rows:
            return backgrounds.procedural(rng, away_from=away_from)
        for _ in range(4):
            row = rng.choice(self._scene_rows[rng.choice(list(self._scene_rows))])
            if away_from is None or not backgrounds.is_close(self._scene_colours[row], away_from, 0.25):
                break
        return self._photograph(row, rng)

    def scene(self, words: str, rng: random.Random, *, split: str | None = None) -> Background:
        """Sample a background of a phrase or class word: a photograph of `split` (default: the configured one).

        Without such a photograph, a procedural background. Raises `DataError` if there is neither.
        """
        split = split or self.config.split
        rows = [
            i
            for i, scene in enumerate(self.world.scenes)
            if scene.split == split and words in (scene.word, *scene.phrases)
        ]
        if rows:
            row = rng.choice(rows)
            phrase = words if words in self.world.scenes[row].phrases else None
            return self._photograph(row, rng, phrase=phrase)
        background = backgrounds.named(words, rng)
        if background is None:
            raise DataError(f"There is no {split} scene and no procedural background for {words!r}.")
        return background

    def render(self, specs: Sequence[PairSpec], rng: random.Random) -> SubjectBatch:
        """Render these pairs; `rng` only jitters position, size and light."""
        return self._compositor.render(specs, rng)

    def has(self, accessory: str) -> bool:
        """Return whether the asset library has an accessory in the configured split."""
        return accessory in self._subjects.things

    def _property(self, target: int, rng: random.Random) -> tuple[PromptSpec, int]:
        """Sample at most one property (a position may have a size too), and the accessory's cut-out."""
        config, uniform = self.config, rng.random()
        choices: tuple[tuple[float, Callable[[], PromptSpec]], ...] = (
            (config.colours, lambda: PromptSpec(colour=rng.choice(prompt_templates.PAINTS))),
            (config.counts, lambda: PromptSpec(count=rng.choice((2, 2, 3)))),
            (config.sizes, lambda: PromptSpec(size=rng.choice(("small", "big")))),
            (config.positions, lambda: PromptSpec(position=rng.choice(list(prompt_templates.POSITIONS)),
                                               size="small" if rng.random() < 1 / 3 else "")),
            (config.styles, lambda: PromptSpec(style=rng.choice(list(prompt_templates.STYLES)))),
        )  # fmt: skip
        for share, make in choices:
            if uniform < share:
                return make(), -1
            uniform -= share
        if uniform < config.accessories:
            accessory, row = self._subjects.accessory(target, rng)
            return PromptSpec(accessory=accessory), row
        return PromptSpec(), -1

    def _colour(self, cutout: int, request: PromptSpec) -> RGB:
        """Return the colour from which a background must differ."""
        if request.style == "silhouette":
            return backgrounds.PALETTE["black"]
        return backgrounds.PALETTE[request.colour] if request.colour else self._compositor.geometry[cutout].colour

    def _target_background(self, colour: RGB, request: PromptSpec, rng: random.Random) -> Background:
        """Sample a background; a sketch's, which is paper, and a share of the others are not named in the prompt."""
        if self.config.no_scene and rng.random() < self.config.no_scene:
            return backgrounds.unnamed(backgrounds.plain_reference(rng, colour))
        background = self.background(rng, away_from=colour)
        return backgrounds.unnamed(background) if request.style == "sketch" else background

    def _reference_background(self, reference: int, word: str, rng: random.Random) -> Background:
        colour = self._compositor.geometry[reference].colour
        if rng.random() >= self.config.reference_plain:
            for _ in range(4):
                background = self.background(rng, away_from=colour)
                if background.word != word:
                    return background
        return backgrounds.plain_reference(rng, colour)

    def _photograph(self, row: int, rng: random.Random, phrase: str | None = None) -> Background:
        height, width = self.world.scene_pixels.shape[2:]
        return backgrounds.photograph(row, self.world.scenes[row], height, width, rng, phrase=phrase)


class CaptionSampler:
    """The captions of a sampler's targets alone, hundreds of times as fast as with their images."""

    def __init__(self, pairs: PairSampler) -> None:
        self.pairs = pairs

    def __call__(self, index: int) -> dict[str, list[str]]:
        """Return `{"caption": [...]}`, the same that the sampler's batch of this index has."""
        rng = random.Random(f"{self.pairs.seed} {index}")
        specs = [self.pairs.sample(rng) for _ in range(self.pairs.batch_size)]
        rows = self.pairs.world.cutouts
        return {"caption": [prompt_templates.caption(rows[spec.target].category, spec.prompt) for spec in specs]}


def sentences(world: AssetLibrary) -> Iterator[str]:
    """Yield sentences with all words of the prompts of this asset library."""
    scenes = itertools.chain(backgrounds.phrases(), (phrase for scene in world.scenes for phrase in scene.phrases))
    return prompt_templates.sentences(scenes, (cutout.category for cutout in world.cutouts))


def sheet(batch: SubjectBatch, path: str | Path, *, columns: int = 4, side: int = 128) -> None:
    """Save a page of samples: reference, object crop and target, captions below."""
    n, bar = len(batch["caption"]), 26
    page = Image.new("RGB", (columns * (3 * side + 12), -(-n // columns) * (side + bar)), "white")
    pen = ImageDraw.Draw(page)
    object_crop = batch["object_crop"][:, :3] + (1 - batch["object_crop"][:, 3:]) * 0.85
    for i in range(n):
        left, top = i % columns * (3 * side + 12), i // columns * (side + bar)
        for j, images in enumerate((batch["reference"], object_crop, batch["target"])):
            page.paste(_image(images[i], side), (left + j * side, top))
        pen.text((left + 2, top + side + 1), batch["caption"][i][:66], fill="black")
        pen.text((left + 2, top + side + 12), batch["reference_caption"][i][:66], fill="grey")
    save_image(page, Path(path))


def _image(tensor: Tensor, side: int) -> Image.Image:
    pixels = (tensor.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)


def _sideless(spec: PairSpec) -> bool:
    """Return whether a pair may be mirrored. Accessories are at the right, so those pairs may not."""
    return not spec.request.accessory and not {"left", "right"} & set(spec.request.position.split())


def _mirror(batch: SubjectBatch, rows: list[int]) -> None:
    """Mirror all images of these rows, in place."""
    for images in (batch["reference"], batch["object_crop"], batch["target"], batch["target_alpha"]):
        images[rows] = images[rows].flip(-1)
    if "target_depth" in batch:
        batch["target_depth"][rows] = batch["target_depth"][rows].flip(-1)
        batch["target_normals"][rows] = mirror_normals(batch["target_normals"][rows])
    left, width = batch["frames"][rows, :, 0], batch["frames"][rows, :, 2]
    batch["frames"][rows, :, 0] = 1 - left - width


def _hue_rotation(rng: random.Random) -> tuple[float, ...]:
    """Return a rotation of RGB about the grey axis by 30 to 330 degrees (Rodrigues' formula), row by row."""
    angle = math.radians(rng.uniform(30, 330))
    cos, sin = math.cos(angle), math.sin(angle) / math.sqrt(3)
    same, plus, minus = cos + (1 - cos) / 3, (1 - cos) / 3 + sin, (1 - cos) / 3 - sin
    return same, minus, plus, plus, same, minus, minus, plus, same
