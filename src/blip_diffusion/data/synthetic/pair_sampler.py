"""Training pictures, composed: an `PairSpec` says in words and numbers what a pair shall show, tensors do the rest.

Words and layout are drawn one sample at a time in Python; no pixel is. So it runs as well on a GPU as on a CPU.
"""

import bisect
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Generator, Tensor
from torch.nn import functional as F

from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.synthetic import backgrounds, prompt_templates, styles
from blip_diffusion.data.synthetic.assets import AssetLibrary, CutOut
from blip_diffusion.data.synthetic.backgrounds import RGB, Background
from blip_diffusion.data.synthetic.placement import (
    WORN,
    CutoutGeometry,
    Jitter,
    Placement,
    layers_of,
    measure,
    place,
    place_reference,
)
from blip_diffusion.data.synthetic.prompt_templates import PromptSpec
from blip_diffusion.data.synthetic.resample import read_windows, resample_matrix
from blip_diffusion.errors import ConfigError, DataError

_NOUNS = {"bow": ("bow", "ribbon")}  # categories of an accessory, where they differ from its word


@dataclass(frozen=True)
class SyntheticConfig:
    """What the pictures are like. Shares are of all samples; what they leave over is plain recontextualisation."""

    size: int = 128  # side of a picture
    object_crop_size: int = 32  # side of the object crop
    split: str = "train"  # of identities and of scenes
    procedural: float = 0.4  # how many targets stand in drawn places rather than photographs
    reference_plain: float = 0.5  # how many references stand before one colour rather than in another scene
    same_view: float = 0.5  # how often reference and target are one picture of the subject though there are others
    azimuth: float = 45.0  # degrees: how far apart the two views of a solid usually are; never more than 90
    kind_temperature: float = 0.5  # 1: every identity alike; 0: every kind alike
    outlines: float = 0.5  # how much a line drawing counts beside any other kind of picture
    layout: float = 1.0  # 0: a target's place, size and light are what the words say; 1: within their ranges, any
    mirror: float = 0.0  # share: the whole pair seen in a mirror, where no word has a left or a right
    rotation: float = 8.0  # largest rotation of a reference, in degrees; half of them stay upright
    colours: float = 0.06  # share: the subject painted in a named colour
    counts: float = 0.05  # share: two or three of them
    sizes: float = 0.05  # share: small, big
    positions: float = 0.06  # share: at the left ...; half as many again have a size as well
    accessories: float = 0.04  # share: wearing a hat, next to an apple; none where the world has no such thing
    styles: float = 0.06  # share: as pixel art ...

    def __post_init__(self) -> None:
        for name, step in (("size", 16), ("object_crop_size", 4)):
            if (value := getattr(self, name)) < step or value % step:
                raise ConfigError(f"data.synthetic.{name} is {value}: use a multiple of {step}.")
        if not 0 <= self.layout <= 1:
            raise ConfigError(f"data.synthetic.layout is {self.layout}: use 0 to 1.")
        if not self.azimuth > 0:
            raise ConfigError(f"data.synthetic.azimuth is {self.azimuth}: use some degrees, 45 is usual.")


@dataclass(frozen=True)
class PairSpec:
    """One pair to compose. Cut-outs and scenes are rows of the composer's world, of any split."""

    reference: int
    target: int
    request: PromptSpec
    backdrop: Background
    reference_backdrop: Background
    prompt: str = ""  # empty: the first paraphrase of `request`
    accessory: int = -1  # the cut-out of the request's accessory; -1: any that fits


class PairSampler:
    """The batch of an index: `Batches` over a world. A pure function of (world, config, seed, index)."""

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
        self._pixels = world.pixels.to(self.device)
        self._scenes = world.scene_pixels.to(self.device)
        self._shapes = measure(self._pixels)
        self._scene_colours = [(r, g, b) for r, g, b in (self._scenes.float().mean((2, 3)) / 255).tolist()]
        self._subjects = _Subjects(world.cutouts, config)
        self._places = _rows_by([scene.word if scene.split == config.split else None for scene in world.scenes])
        names = sorted({cutout.identity for cutout in world.cutouts})
        self._identities = {name: i for i, name in enumerate(names)}

    def __call__(self, index: int) -> SubjectBatch:
        rng = random.Random(f"{self.seed} {index}")
        orders = [self.order(rng) for _ in range(self.batch_size)]
        batch = self.compose(orders, rng)
        if share := self.config.mirror:
            _mirror(batch, [i for i, order in enumerate(orders) if rng.random() < share and _sideless(order)])
        return batch

    def order(self, rng: random.Random) -> PairSpec:
        """A random pair of the configured split."""
        reference, target = self._subjects.pair(rng)
        request, accessory = self._property(target, rng)
        backdrop = self.backdrop(rng, away_from=self._colour(target, request))
        if request.style == "sketch":
            backdrop = replace(backdrop, phrase="", word="", horizon=None)  # paper
        request = replace(request, scene=backdrop.phrase)
        behind = self._reference_backdrop(reference, backdrop.word, rng)
        return PairSpec(reference, target, request, backdrop, behind, prompt_templates.prompt(request, rng), accessory)

    def backdrop(self, rng: random.Random, *, away_from: RGB | None = None) -> Background:
        """A random place of the configured split, its plain colours away from `away_from`."""
        if rng.random() < self.config.procedural or not self._places:
            return backgrounds.procedural(rng, away_from=away_from)
        for _ in range(4):
            row = rng.choice(self._places[rng.choice(list(self._places))])
            if away_from is None or not backgrounds.is_close(self._scene_colours[row], away_from, 0.25):
                break
        return self._photograph(row, rng)

    def place(self, words: str, rng: random.Random, *, split: str | None = None) -> Background:
        """The place of a phrase or class word, for evaluation: a photograph of `split` (default: the configured one).

        Where the world has no such photograph, a drawn place. Raises `DataError` where there is neither.
        """
        split = split or self.config.split
        rows = [
            i
            for i, scene in enumerate(self.world.scenes)
            if scene.split == split and words in (scene.word, *scene.phrases)
        ]
        if rows:
            row = rng.choice(rows)
            spoken = words if words in self.world.scenes[row].phrases else None
            return self._photograph(row, rng, phrase=spoken)
        drawn = backgrounds.named(words, rng)
        if drawn is None:
            raise DataError(f"No {split} scene and no drawn place is called {words!r}.")
        return drawn

    def has(self, accessory: str) -> bool:
        """Whether the world can show an accessory, in the configured split."""
        return accessory in self._subjects.things

    def compose(self, orders: Sequence[PairSpec], rng: random.Random) -> SubjectBatch:
        """The pictures of these orders, exactly; `rng` only jitters place, size and light."""
        noise = Generator(self.device)
        noise.manual_seed(rng.getrandbits(62))
        target, target_alpha = self._targets(orders, rng, noise)
        reference = self._references(orders, rng, noise)
        cutouts = [self.world.cutouts[order.target] for order in orders]
        prompts = [order.prompt or prompt_templates.prompt(order.request) for order in orders]
        identities = [self._identities[cutout.identity] for cutout in cutouts]
        return SubjectBatch(
            reference=reference,
            reference_caption=[
                prompt_templates.caption(cutout.category, order.reference_backdrop.phrase)
                for cutout, order in zip(cutouts, orders, strict=True)
            ],
            object_crop=self._object_crops([order.reference for order in orders]),
            category=[cutout.category for cutout in cutouts],
            prompt=prompts,
            caption=[prompt_templates.caption(cutout.category, p) for cutout, p in zip(cutouts, prompts, strict=True)],
            target=target,
            target_alpha=target_alpha,
            identity=torch.tensor(identities, device=self.device),
        )

    # Choosing.

    def _property(self, target: int, rng: random.Random) -> tuple[PromptSpec, int]:
        """At most one property (a position may come with a size), and the accessory's cut-out."""
        config, draw = self.config, rng.random()
        choices: tuple[tuple[float, Callable[[], PromptSpec]], ...] = (
            (config.colours, lambda: PromptSpec(colour=rng.choice(prompt_templates.PAINTS))),
            (config.counts, lambda: PromptSpec(count=rng.choice((2, 2, 3)))),
            (config.sizes, lambda: PromptSpec(size=rng.choice(("small", "big")))),
            (config.positions, lambda: PromptSpec(position=rng.choice(list(prompt_templates.POSITIONS)),
                                               size="small" if rng.random() < 1 / 3 else "")),
            (config.styles, lambda: PromptSpec(style=rng.choice(list(prompt_templates.STYLES)))),
        )  # fmt: skip
        for share, make in choices:
            if draw < share:
                return make(), -1
            draw -= share
        if draw < config.accessories:
            accessory, row = self._subjects.accessory(target, rng)
            return PromptSpec(accessory=accessory), row
        return PromptSpec(), -1

    def _colour(self, cutout: int, request: PromptSpec) -> RGB:
        """The colour that a background has to stay away from."""
        if request.style == "silhouette":
            return backgrounds.PALETTE["black"]
        return backgrounds.PALETTE[request.colour] if request.colour else self._shapes[cutout].colour

    def _reference_backdrop(self, reference: int, word: str, rng: random.Random) -> Background:
        colour = self._shapes[reference].colour
        if rng.random() >= self.config.reference_plain:
            for _ in range(4):
                backdrop = self.backdrop(rng, away_from=colour)
                if backdrop.word != word:
                    return backdrop
        return backgrounds.plain_reference(rng, colour)

    def _photograph(self, row: int, rng: random.Random, phrase: str | None = None) -> Background:
        height, width = self._scenes.shape[2:]
        return backgrounds.photograph(row, self.world.scenes[row], height, width, rng, phrase=phrase)

    # Drawing.

    def _targets(self, orders: Sequence[PairSpec], rng: random.Random, noise: Generator) -> tuple[Tensor, Tensor]:
        placements: list[Placement] = []
        for row, order in enumerate(orders):
            for placement in self._placed(row, order, rng):
                placements.append(replace(placement, light=_light(order.backdrop, self._chance(rng))))
        canvas = backgrounds.draw([order.backdrop for order in orders], self._scenes, self.config.size, noise)
        sketched = [i for i, order in enumerate(orders) if order.request.style == "sketch"]
        canvas[sketched] = 1.0  # paper
        canvas, alpha = self._paste(canvas, placements, sketched)
        for style, apply in styles.FILTERS.items():
            if rows := [i for i, order in enumerate(orders) if order.request.style == style]:
                canvas[rows] = apply(canvas[rows])
        return canvas.clamp_(0, 1), alpha

    def _placed(self, row: int, order: PairSpec, rng: random.Random) -> list[Placement]:
        request, shape = order.request, self._shapes[order.target]
        extra = None
        if request.accessory:
            thing = order.accessory if order.accessory >= 0 else self._subjects.accessory_of(request.accessory, rng)
            extra = (thing, self._shapes[thing])
        placements = place(row, order.target, shape, request, order.backdrop.horizon, self._chance(rng), extra)
        looks = {"paint": request.colour, "silhouette": request.style == "silhouette"}
        return [replace(p, **looks) if p.subject else p for p in placements]  # type: ignore[arg-type]

    def _chance(self, rng: random.Random) -> Jitter:
        return Jitter(rng, self.config.layout)

    def _references(self, orders: Sequence[PairSpec], rng: random.Random, noise: Generator) -> Tensor:
        placements = []
        for row, order in enumerate(orders):
            shape, backdrop = self._shapes[order.reference], order.reference_backdrop
            placement = place_reference(row, order.reference, shape, backdrop.horizon, self.config.rotation, rng)
            placements.append(replace(placement, light=_light(backdrop, Jitter(rng))))
        backdrops = [order.reference_backdrop for order in orders]
        canvas = backgrounds.draw(backdrops, self._scenes, self.config.size, noise)
        return self._paste(canvas, placements, [])[0].clamp_(0, 1)

    def _paste(self, canvas: Tensor, placements: Sequence[Placement], sketched: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Puts placements on pictures (B, 3, S, S), and says where subjects are then seen: (B, 1, S, S)."""
        covered = canvas.new_zeros(len(canvas), 1, *canvas.shape[2:])
        for layer in layers_of(placements, len(canvas)):
            chosen = [placements[i] for i in layer]
            rows = torch.tensor([p.row for p in chosen], device=self.device)
            colour, alpha = self._cut(chosen)  # (P, 3, S, S) premultiplied, (P, 1, S, S)
            shadow = self._shadows(chosen)
            everyone = len(chosen) == len(canvas)
            below = canvas if everyone else canvas[rows]
            pasted = torch.addcmul(colour, below * shadow, 1 - alpha)
            drawn = [i for i, p in enumerate(chosen) if p.row in set(sketched)]
            if drawn:
                pasted[drawn] = below[drawn].minimum(styles.sketch(colour[drawn], alpha[drawn]))
            is_subject = torch.tensor([float(p.subject) for p in chosen], device=self.device).view(-1, 1, 1, 1)
            seen = (covered if everyone else covered[rows]) * (1 - alpha) + alpha * is_subject
            if everyone:
                canvas, covered = pasted, seen
            else:
                canvas[rows], covered[rows] = pasted, seen
        return canvas, covered

    def _cut(self, placements: Sequence[Placement]) -> tuple[Tensor, Tensor]:
        """Cut-outs in the size, place, light and paint of their placements: premultiplied colour, and alpha."""
        size = self.config.size
        windows = torch.tensor([_window(p, self._shapes[p.cutout]) for p in placements], device=self.device)
        picture = self._read([p.cutout for p in placements], windows, size)
        turned = [i for i, p in enumerate(placements) if p.angle]
        if turned:
            picture[turned] = _turn(picture[turned], [placements[i] for i in turned])
        colour, alpha = picture[:, :3], picture[:, 3:].clamp(0, 1)
        for rows, looks in self._looks(placements):
            colour[rows] = looks(colour[rows], alpha[rows])
        light = torch.tensor([p.light for p in placements], device=self.device)
        return torch.minimum(colour * light[:, :, None, None], alpha), alpha

    def _looks(self, placements: Sequence[Placement]) -> Iterator[tuple[list[int], Callable[[Tensor, Tensor], Tensor]]]:
        painted = [i for i, p in enumerate(placements) if p.paint]
        if painted:
            paints = torch.tensor([backgrounds.PALETTE[placements[i].paint] for i in painted], device=self.device)
            yield painted, lambda colour, alpha: styles.paint(colour, alpha, paints)
        shaded = [i for i, p in enumerate(placements) if p.silhouette]
        if shaded:
            yield shaded, styles.silhouette

    def _read(self, cutouts: Sequence[int], windows: Tensor, size: int) -> Tensor:
        """Windows (P, 3: left, top, side) in pixels of cut-outs: premultiplied (P, 4, size, size)."""
        picture = self._pixels[torch.tensor(cutouts, device=self.device)].float()  # (P, 4, 128, 128)
        picture[:, :3] *= picture[:, 3:] / 255
        left, top, side = windows.T
        rows = resample_matrix(top, side, picture.shape[2], size)
        columns = resample_matrix(left, side, picture.shape[3], size)
        return read_windows(picture, rows / 255, columns)

    def _object_crops(self, cutouts: Sequence[int]) -> Tensor:
        shapes = [self._shapes[i] for i in cutouts]
        sides = [max(shape.width, shape.height) for shape in shapes]
        windows = [(s.x - side / 2, s.y - side / 2, side) for s, side in zip(shapes, sides, strict=True)]
        return self._read(cutouts, torch.tensor(windows, device=self.device), self.config.object_crop_size).clamp_(0, 1)

    def _shadows(self, placements: Sequence[Placement]) -> Tensor:
        """Soft contact shadows, as factors (P, 1, S, S) on what lies below."""
        measures = torch.tensor([_shadow(p, self._shapes[p.cutout]) for p in placements], device=self.device)
        x, y, wide, high, strength = measures.view(-1, 5, 1).unbind(1)  # (P, 1) each
        at = (torch.arange(self.config.size, device=self.device) + 0.5) / self.config.size
        across = torch.exp(-(((at - x) / wide) ** 2))  # (P, S)
        down = torch.exp(-(((at - y) / high) ** 2)) * strength
        return (1 - down[:, :, None] * across[:, None, :])[:, None]


class _Subjects:
    """Who is drawn, and which two pictures of them."""

    def __init__(self, cutouts: Sequence[CutOut], config: SyntheticConfig) -> None:
        self.cutouts, self.config = cutouts, config
        inside = [cutout.split == config.split for cutout in cutouts]
        self.views = _rows_by([cutout.identity if keep else None for cutout, keep in zip(cutouts, inside, strict=True)])
        if not self.views:
            raise DataError(f"The world has no {config.split} subjects.")
        self.names = list(self.views)
        kinds = [cutouts[rows[0]].kind for rows in self.views.values()]
        each = {kind: kinds.count(kind) ** (config.kind_temperature - 1) for kind in set(kinds)}
        each["outline"] = each.get("outline", 0.0) * config.outlines
        weights = [each[kind] for kind in kinds]
        self.cumulative = list(itertools.accumulate(weights))
        self.things = {
            accessory: rows
            for accessory in prompt_templates.ACCESSORIES
            if (
                rows := [
                    i
                    for i, cutout in enumerate(cutouts)
                    if inside[i] and cutout.kind != "outline" and _is_a(cutout, accessory)
                ]
            )
        }

    def pair(self, rng: random.Random) -> tuple[int, int]:
        """Reference and target: two pictures of one subject."""
        at = bisect.bisect(self.cumulative, rng.random() * self.cumulative[-1])
        views = self.views[self.names[min(at, len(self.names) - 1)]]
        target = rng.choice(views)
        if len(views) == 1 or rng.random() < self.config.same_view:
            return target, target
        others = [view for view in views if view != target]
        weights = [self._nearness(view, target) for view in others]
        return (rng.choices(others, weights)[0] if sum(weights) > 0 else target), target

    def accessory(self, target: int, rng: random.Random) -> tuple[str, int]:
        """An accessory that suits the subject, and its cut-out; ("", -1) where the world has none."""
        subject = self.cutouts[target]
        fitting = [name for name in self.things if (subject.animate or name not in WORN) and not _is_a(subject, name)]
        if not fitting:
            return "", -1
        name = rng.choice(fitting)
        return name, self.accessory_of(name, rng)

    def accessory_of(self, name: str, rng: random.Random) -> int:
        if name not in self.things:
            raise DataError(f"The world has no {name} among its {self.config.split} cut-outs.")
        return rng.choice(self.things[name])

    def _nearness(self, a: int, b: int) -> float:
        """How much two pictures of one subject make a pair: near views rather than opposite ones."""
        first, second = _azimuth(self.cutouts[a]), _azimuth(self.cutouts[b])
        if first is None or second is None:
            return 1.0
        apart = abs((first - second + 180) % 360 - 180)
        return float(0.5 ** ((apart / self.config.azimuth) ** 2)) if apart <= 90 else 0.0


def sentences(world: AssetLibrary) -> Iterator[str]:
    """Sentences with every word that a composer of this world can say."""
    scenes = itertools.chain(backgrounds.phrases(), (phrase for scene in world.scenes for phrase in scene.phrases))
    return prompt_templates.sentences(scenes, (cutout.category for cutout in world.cutouts))


def sheet(batch: SubjectBatch, path: str | Path, *, columns: int = 4, side: int = 128) -> None:
    """A page of samples to look at: reference, object crop and target, the caption below."""
    n, bar = len(batch["caption"]), 26
    page = Image.new("RGB", (columns * (3 * side + 12), -(-n // columns) * (side + bar)), "white")
    pen = ImageDraw.Draw(page)
    object_crop = batch["object_crop"][:, :3] + (1 - batch["object_crop"][:, 3:]) * 0.85
    for i in range(n):
        left, top = i % columns * (3 * side + 12), i // columns * (side + bar)
        for j, pictures in enumerate((batch["reference"], object_crop, batch["target"])):
            page.paste(_picture(pictures[i], side), (left + j * side, top))
        pen.text((left + 2, top + side + 1), batch["caption"][i][:66], fill="black")
        pen.text((left + 2, top + side + 12), batch["reference_caption"][i][:66], fill="grey")
    page.save(path)


def _picture(tensor: Tensor, side: int) -> Image.Image:
    pixels = (tensor.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)


def _sideless(order: PairSpec) -> bool:
    """Whether a pair means the same in a mirror. An accessory stands at the right, though no word says so."""
    return not order.request.accessory and not {"left", "right"} & set(order.request.position.split())


def _mirror(batch: SubjectBatch, rows: list[int]) -> None:
    """Turns all pictures of these rows, in place."""
    for pictures in (batch["reference"], batch["object_crop"], batch["target"], batch["target_alpha"]):
        pictures[rows] = pictures[rows].flip(-1)


def _light(backdrop: Background, chance: Jitter) -> RGB:
    """Light on a subject, independent of the backdrop's but for dark places."""
    gain = chance.between(0.88, 1.1) * (0.8 if backdrop.word in ("starry night", "sunset") else 1.0)
    tint = chance.about(0.03)
    return gain * (1 + tint), gain, gain * (1 - tint)


def _window(placement: Placement, shape: CutoutGeometry) -> tuple[float, float, float]:
    """What the whole frame shows, in the cut-out's pixels: left, top, side."""
    side = max(shape.width, shape.height) / placement.side
    return shape.x - placement.x * side, shape.y - placement.y * side, side


def _shadow(placement: Placement, shape: CutoutGeometry) -> tuple[float, float, float, float, float]:
    """Centre, reach across and down, and strength of a contact shadow, in frames."""
    longest = max(shape.width, shape.height)
    width, height = placement.side * shape.width / longest, placement.side * shape.height / longest
    x = placement.x + (shape.foot - 0.5) * width
    wide = max(shape.foot_width * width, 0.25 * width) * 0.6
    return x, placement.y + height / 2 - 0.008, wide, max(0.14 * wide, 0.012), 0.5 if placement.ground else 0.0


def _turn(pictures: Tensor, placements: Sequence[Placement]) -> Tensor:
    """Pictures turned about their placements' centres."""
    angles = torch.tensor([p.angle for p in placements], device=pictures.device).deg2rad()
    x, y = (torch.tensor([[p.x, p.y] for p in placements], device=pictures.device) * 2 - 1).T
    cos, sin = angles.cos(), angles.sin()
    matrix = torch.stack((cos, -sin, x - x * cos + y * sin, sin, cos, y - x * sin - y * cos), 1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, align_corners=False)


def _rows_by(keys: Sequence[str | None]) -> dict[str, list[int]]:
    """Row numbers by key; rows without a key are left out."""
    rows: dict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        if key is not None:
            rows[key].append(i)
    return dict(rows)


def _is_a(cutout: CutOut, noun: str) -> bool:
    """Whether a cut-out can serve as an accessory: emoji of a person with a ball are no ball."""
    return cutout.category in _NOUNS.get(noun, (noun,)) and "person" not in cutout.name


def _azimuth(cutout: CutOut) -> float | None:
    try:
        return float(cutout.view)
    except ValueError:
        return None
