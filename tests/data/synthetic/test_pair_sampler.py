"""Batches: reproducible, honest to their words, and never a peek at what is held out."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.synthetic import backgrounds, placement, prompt_templates
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import PairSampler, sentences, sheet
from blip_diffusion.data.synthetic.pair_spec import PairSpec, SyntheticConfig
from blip_diffusion.data.synthetic.prompt_templates import PromptSpec
from blip_diffusion.errors import ConfigError, DataError

from .synthetic_world import make_world

WORLD = make_world()
PLAIN = SyntheticConfig(size=64, colours=0, counts=0, sizes=0, positions=0, accessories=0, styles=0)
BUSY = SyntheticConfig(size=64, colours=0.2, counts=0.15, sizes=0.1, positions=0.15, accessories=0.15, styles=0.2)


def sampler(
    config: SyntheticConfig = PLAIN, *, world: AssetLibrary = WORLD, batch_size: int = 24, seed: int = 0
) -> PairSampler:
    return PairSampler(world, config, batch_size=batch_size, seed=seed)


def row(identity: str, view: str = "") -> int:
    return next(i for i, c in enumerate(WORLD.cutouts) if c.identity == identity and view in ("", c.view))


def compose(request: PromptSpec, *, identity: str = "dog1", place: str = "on a plain white background", n: int = 8,
            seed: int = 0) -> SubjectBatch:  # fmt: skip
    """A batch of one request, in one place."""
    maker, rng = sampler(), random.Random(seed)
    chosen_backgrounds = [maker.scene(place, rng) for _ in range(n)]
    specs = [PairSpec(row(identity), row(identity), replace(request, scene=b.phrase), b, b) for b in chosen_backgrounds]
    return maker.render(specs, rng)


def centroid(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 1, S, S) -> x and y (B,), in frames."""
    at = (torch.arange(alpha.shape[-1]) + 0.5) / alpha.shape[-1]
    mass = alpha.sum((1, 2, 3))
    return (alpha.sum((1, 2)) @ at) / mass, (alpha.sum((1, 3)) @ at) / mass


def extents(alpha: Tensor) -> Tensor:
    """Longest side of what is seen (B,), in frames."""
    seen = alpha[:, 0] > 0.5
    return torch.maximum(seen.any(1).sum(1), seen.any(2).sum(1)) / alpha.shape[-1]


def regions(mask: Tensor) -> int:
    """How many connected regions a mask (S, S) has."""
    left, count = {(int(y), int(x)) for y, x in mask.nonzero()}, 0
    while left:
        count, edge = count + 1, [left.pop()]
        while edge:
            y, x = edge.pop()
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= near
            edge.extend(near)
    return count


def same(a: SubjectBatch, b: SubjectBatch) -> bool:
    return all(torch.equal(v, b[k]) if isinstance(v, Tensor) else v == b[k] for k, v in a.items())  # type: ignore


def test_shapes_and_ranges() -> None:
    batch = sampler(BUSY)(0)
    assert batch["reference"].shape == batch["target"].shape == (24, 3, 64, 64)
    assert batch["object_crop"].shape == (24, 4, 32, 32) and batch["target_alpha"].shape == (24, 1, 64, 64)
    assert batch["identity"].dtype == torch.int64
    for key in ("reference", "object_crop", "target", "target_alpha"):
        image = batch[key]  # type: ignore[literal-required]
        assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1
    assert (batch["object_crop"][:, :3] <= batch["object_crop"][:, 3:] + 0.01).all(), "premultiplied"


def test_a_batch_is_a_function_of_seed_and_index() -> None:
    assert same(sampler(BUSY)(3), sampler(BUSY)(3))
    assert not same(sampler(BUSY)(3), sampler(BUSY)(4))
    assert not same(sampler(BUSY)(3), sampler(BUSY, seed=1)(3))


def test_cut_edges_keep_the_colour_of_the_subject() -> None:
    """What a cut-out's transparent pixels hold must not show: here it is bright green."""
    pixels = WORLD.pixels.clone()
    pixels[:, 1] = torch.where(pixels[:, 3] == 0, 255, pixels[:, 1])
    assert same(sampler(world=replace(WORLD, pixels=pixels))(0), sampler()(0))


def test_a_batch_does_not_touch_the_global_generators() -> None:
    before = torch.get_rng_state(), random.getstate()
    sampler(BUSY)(0)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()


def test_captions_are_made_of_category_and_prompt() -> None:
    maker = sampler(BUSY)
    known = {word for sentence in sentences(WORLD) for word in sentence.split()}
    for index in range(6):
        batch = maker(index)
        for category, prompt, caption in zip(batch["category"], batch["prompt"], batch["caption"], strict=True):
            assert caption == f"a {category} {prompt}"
        said = {word for caption in batch["caption"] + batch["reference_caption"] for word in caption.split()}
        assert said <= known


def test_alpha_lies_where_the_subject_is() -> None:
    batch = compose(PromptSpec(), identity="dog1")  # blue, on white
    blue = (batch["target"][:, 2] - batch["target"][:, 0] > 0.25).float()
    assert ((blue > 0) == (batch["target_alpha"][:, 0] > 0.5)).float().mean() > 0.99
    assert (batch["target_alpha"].mean((1, 2, 3)) > 0.1).all()


def test_without_a_word_the_subject_stands_in_the_middle() -> None:
    batch = compose(PromptSpec(), n=32)
    x, y = centroid(batch["target_alpha"])
    assert (x - 0.5).abs().max() < 0.08 and (y - 0.5).abs().max() < 0.08
    sides = extents(batch["target_alpha"])
    assert sides.min() > 0.52 and sides.max() < 0.79


@pytest.mark.parametrize(
    "request_", [PromptSpec(), PromptSpec(size="big"), PromptSpec(position="at the left"), PromptSpec(count=2),
                 PromptSpec(accessory="hat"), PromptSpec(accessory="tree")], ids=str,
)  # fmt: skip
def test_a_fixed_layout_leaves_nothing_to_chance(request_: PromptSpec) -> None:
    """So that an outline is a function of the reference and the words; by default, place and size vary about it."""
    shape = placement.measure(WORLD.pixels[[row("dog1")]])[0]
    thing = (row("dog1"), shape) if request_.accessory else None

    def placed(amount: float, seed: int) -> list[placement.Placement]:
        return placement.place(0, 0, shape, request_, 0.6, placement.Jitter(random.Random(seed), amount), thing)

    assert placed(0.0, 1) == placed(0.0, 2)
    assert placed(1.0, 1) != placed(1.0, 2)
    many = [placed(1.0, seed)[0] for seed in range(400)]
    fixed = placed(0.0, 1)[0]
    assert sum(p.side for p in many) / len(many) == pytest.approx(fixed.side, abs=0.01)
    assert sum(p.x for p in many) / len(many) == pytest.approx(fixed.x, abs=0.01)


def test_the_composer_can_fix_the_layout() -> None:
    maker = sampler(replace(PLAIN, layout=0.0))
    specs = [maker.sample(random.Random(1)) for _ in range(6)]
    alphas = [maker.render(specs, random.Random(seed))["target_alpha"] for seed in (1, 2)]
    torch.testing.assert_close(*alphas)
    with pytest.raises(ConfigError, match=r"azimuth is 0.0: use some degrees"):
        replace(PLAIN, azimuth=0.0)
    with pytest.raises(ConfigError, match="use 0 to 1"):
        replace(PLAIN, layout=1.5)


def test_in_a_fixed_layout_neither_the_horizon_nor_the_light_is_left_to_chance() -> None:
    maker = sampler(replace(PLAIN, layout=0.0, light=0.0))
    flat, place = row("pot0", "0"), maker.scene("in front of a brick wall", random.Random(0))
    lower = replace(place, horizon=0.5)
    drawn = [
        maker.render([PairSpec(flat, flat, PromptSpec(scene=place.phrase), behind, behind)], random.Random(seed))
        for seed, behind in ((1, place), (2, place), (1, lower))
    ]
    torch.testing.assert_close(drawn[0]["target_alpha"], drawn[2]["target_alpha"])
    inside = (drawn[0]["target_alpha"] > 0.99).expand(-1, 3, -1, -1)
    torch.testing.assert_close(drawn[0]["target"][inside], drawn[1]["target"][inside], atol=0.01, rtol=0)


def test_a_mirror_turns_whole_pairs_that_have_no_side() -> None:
    config = replace(PLAIN, positions=0.4, accessories=0.2)
    maker = sampler(config)
    straight, turned = maker(3), sampler(replace(config, mirror=1.0))(3)
    assert straight["caption"] == turned["caption"]
    rng = random.Random("0 3")
    asked = [maker.sample(rng).request for _ in range(maker.batch_size)]
    sided = [bool(r.accessory) or "left" in r.position or "right" in r.position for r in asked]
    assert 0 < sum(sided) < len(sided)
    for name in ("reference", "object_crop", "target", "target_alpha"):
        for plain, seen, side in zip(straight[name], turned[name], sided, strict=True):  # type: ignore[literal-required]
            assert torch.equal(plain if side else plain.flip(-1), seen)


def test_it_stands_on_the_ground_where_there_is_some() -> None:
    maker = sampler()
    flat, place = row("pot0", "0"), maker.scene("in front of a brick wall", random.Random(0))
    batch = maker.render([PairSpec(flat, flat, PromptSpec(scene=place.phrase), place, place)], random.Random(0))
    seen = batch["target_alpha"][0, 0] > 0.5
    assert place.horizon is not None
    assert float(seen.any(1).nonzero().max()) / 64 > place.horizon + 0.05


@pytest.mark.parametrize("place", ["on a plain white background", "on grass"])
@pytest.mark.parametrize("position", prompt_templates.POSITIONS)
def test_position_words_hold(position: str, place: str) -> None:
    x, y = centroid(compose(PromptSpec(position=position), place=place)["target_alpha"])
    words = position.split()
    assert ("left" in words) == bool((x < 0.4).all()) and ("right" in words) == bool((x > 0.6).all())
    if "top" in words:
        assert (y < 0.42).all()
    if "bottom" in words:
        assert (y > 0.6).all()


def test_size_words_hold() -> None:
    small, usual, big = (extents(compose(PromptSpec(size=size))["target_alpha"]) for size in ("small", "", "big"))
    assert small.max() < usual.min() - 0.1 and usual.max() < big.min() - 0.05


@pytest.mark.parametrize("identity", ["dog1", "pot1"])
@pytest.mark.parametrize("count", prompt_templates.COUNTS)
def test_counts_hold(count: int, identity: str) -> None:
    batch = compose(PromptSpec(count=count), identity=identity, n=6)
    assert [regions(alpha[0] > 0.3) for alpha in batch["target_alpha"]] == [count] * 6


@pytest.mark.parametrize("colour", prompt_templates.PAINTS)
@pytest.mark.parametrize("identity", ["dog0", "dog2"])
def test_paint_words_hold(colour: str, identity: str) -> None:
    batch = compose(PromptSpec(colour=colour), identity=identity)
    alpha = (batch["target_alpha"] > 0.95).float()
    for mean in (batch["target"] * alpha).sum((2, 3)) / alpha.sum((2, 3)):
        named = min(prompt_templates.PAINTS, key=lambda c: float((torch.tensor(backgrounds.PALETTE[c]) - mean).norm()))
        assert named == colour


def test_plain_words_hold_in_the_image() -> None:
    for colour in ("red", "green", "yellow"):
        corner = compose(PromptSpec(), place=f"on a plain {colour} background")["target"][:, :, :4, :4].mean((2, 3))
        torch.testing.assert_close(corner, torch.tensor(backgrounds.PALETTE[colour]).expand(8, 3), atol=0.16, rtol=0)


def test_a_silhouette_is_dark_and_a_sketch_is_on_paper() -> None:
    dark = compose(PromptSpec(style="silhouette"), identity="dog0")
    assert (dark["target"] * (dark["target_alpha"] > 0.99)).max() < 0.2
    drawn = compose(PromptSpec(style="sketch"), identity="dog2", place="on grass")["target"]
    assert (drawn[:, :, 0] > 0.9).all() and (drawn.amin((1, 2, 3)) < 0.5).all()


def test_accessories_stand_beside_the_subject_or_on_it() -> None:
    alone, hat = compose(PromptSpec()), compose(PromptSpec(accessory="hat"))
    red = (hat["target"][:, 0] - hat["target"][:, 2] > 0.25).float()[:, None]
    assert (red.sum((1, 2, 3)) > 10).all(), "a red hat on a blue dog"
    assert (centroid(red)[1] < centroid(hat["target_alpha"])[1] - 0.15).all(), "on its head"
    apple = compose(PromptSpec(accessory="apple"))
    red = (apple["target"][:, 0] - apple["target"][:, 2] > 0.25).float()[:, None]
    assert (centroid(red)[0] > centroid(apple["target_alpha"])[0] + 0.2).all()
    assert not (alone["target"][:, 0] - alone["target"][:, 2] > 0.25).any()


def test_accessories_that_the_world_lacks_are_never_ordered() -> None:
    maker, rng = sampler(replace(PLAIN, accessories=1.0)), random.Random(0)
    accessories = {maker.sample(rng).request.accessory for _ in range(300)}
    assert {"hat", "balloon", "apple"} <= accessories <= {"", "hat", "balloon", "apple"}
    with pytest.raises(DataError, match="no crown"):
        compose(PromptSpec(accessory="crown"))


def test_hats_are_for_the_animate() -> None:
    maker, rng = sampler(replace(PLAIN, accessories=1.0)), random.Random(0)
    hatted = [spec.target for spec in (maker.sample(rng) for _ in range(300)) if spec.request.accessory == "hat"]
    assert hatted and all(WORLD.cutouts[i].animate for i in hatted)


def specs(config: SyntheticConfig, n: int = 400) -> list[PairSpec]:
    maker, rng = sampler(config), random.Random(0)
    return [maker.sample(rng) for _ in range(n)]


def test_reference_is_another_and_a_near_view_where_there_is_one() -> None:
    pairs = [(WORLD.cutouts[o.reference], WORLD.cutouts[o.target]) for o in specs(replace(PLAIN, same_view=0.0))]
    assert all(a.identity == b.identity for a, b in pairs)
    solids = [(a, b) for a, b in pairs if a.kind == "3d" and b.view != "180"]
    assert solids and all(a.view != b.view and a.view != "180" for a, b in solids)
    assert all(a == b for a, b in pairs if b.kind != "3d" or b.view == "180")
    assert all(o.reference == o.target for o in specs(replace(PLAIN, same_view=1.0)))


def test_kinds_are_balanced_by_temperature() -> None:
    def share(temperature: float) -> float:
        chosen = specs(replace(PLAIN, kind_temperature=temperature), 1500)
        return sum(WORLD.cutouts[o.target].kind == "photo" for o in chosen) / len(chosen)

    assert share(0.0) == pytest.approx(1 / 3, abs=0.05)
    assert share(1.0) == pytest.approx(3 / 11, abs=0.05)


def test_reference_stands_elsewhere() -> None:
    shapes = placement.measure(WORLD.pixels)
    for spec in specs(PLAIN):
        if spec.reference_background.word != "plain":
            assert spec.reference_background.word != spec.background.word
        for background, cutout in ((spec.background, spec.target), (spec.reference_background, spec.reference)):
            if background.kind == "plain":
                assert not backgrounds.is_close(backgrounds.PALETTE[background.names[0]], shapes[cutout].colour)


def test_heldout_never_leaks_into_train() -> None:
    for spec in specs(BUSY):
        assert WORLD.cutouts[spec.reference].split == WORLD.cutouts[spec.target].split == "train"
        for background in (spec.background, spec.reference_background):
            assert background.kind != "photo" or WORLD.scenes[background.scene].split == "train"
    assert all(WORLD.cutouts[o.target].split == "heldout" for o in specs(replace(BUSY, split="heldout")))


def test_evaluation_may_ask_for_heldout_scenes() -> None:
    maker, rng = sampler(), random.Random(0)
    assert WORLD.scenes[maker.scene("forest", rng, split="heldout").scene].split == "heldout"
    assert maker.scene("in a forest", rng).phrase == "in a forest"
    with pytest.raises(DataError, match="submarine"):
        maker.scene("submarine", rng)


def test_a_world_without_subjects_of_the_split_is_refused() -> None:
    with pytest.raises(DataError, match="no heldout subjects"):
        sampler(replace(PLAIN, split="heldout"), world=WORLD.subset(split="train"))


def test_reference_and_canonical_show_the_reference_and_target_the_target() -> None:
    maker, rng = sampler(replace(PLAIN, rotation=0.0)), random.Random(0)
    white = maker.scene("on a plain white background", rng)
    wide, tall = row("pot1", "0"), row("dog1")  # blue ellipses of 110 x 60 and 70 x 120
    batch = maker.render([PairSpec(wide, tall, PromptSpec(scene=white.phrase), white, white)], rng)

    def proportion(alpha: Tensor) -> float:
        return float(alpha.any(0).sum() / alpha.any(1).sum())

    object_crop = batch["object_crop"][0, 3] > 0.5
    assert proportion(batch["reference"][0, 0] < 0.6) == pytest.approx(110 / 60, rel=0.15)
    assert proportion(object_crop) == pytest.approx(110 / 60, rel=0.15)
    assert proportion(batch["target"][0, 0] < 0.6) == pytest.approx(70 / 120, rel=0.15)
    assert 0.76 * 32 - 1 <= int(object_crop.any(0).sum()) <= 0.97 * 32 + 1


@pytest.mark.parametrize(
    "config", [replace(PLAIN, counts=0.5), replace(PLAIN, anywhere=1.0), replace(PLAIN, mirror=1.0)]
)
def test_frames_say_where_the_reference_lies_in_the_target(config: SyntheticConfig) -> None:
    batch = sampler(replace(config, same_view=1.0, rotation=0.0, object_crop_size=64), batch_size=12)(5)
    at = (torch.arange(64) + 0.5) / 64
    y, x = torch.meshgrid(at, at, indexing="ij")
    seen = torch.zeros(12, 64, 64)
    for row, frames in enumerate(batch["frames"]):
        for left, top, width, height in frames.tolist():
            if width:
                grid = torch.stack([(x - left) / width, (y - top) / height], dim=-1) * 2 - 1
                alpha = F.grid_sample(batch["object_crop"][row, 3:][None], grid[None], align_corners=False)
                seen[row] = torch.maximum(seen[row], alpha[0, 0])
    truth = F.interpolate(batch["target_alpha"], (64, 64), mode="area")[:, 0]
    both, either = (seen > 0.5) & (truth > 0.5), (seen > 0.5) | (truth > 0.5)
    assert (both.sum((1, 2)) / either.sum((1, 2))).median() > 0.9


def test_a_colour_matrix_changes_reference_crop_and_target_alike() -> None:
    maker = sampler(replace(PLAIN, light=0.0))
    swap = (0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)  # red and blue
    white = maker.scene("on a plain white background", random.Random(0))
    spec = PairSpec(row("dog1"), row("dog1"), PromptSpec(scene=white.phrase), white, white)
    plain, swapped = (maker.render([s], random.Random(1)) for s in (spec, replace(spec, colour_matrix=swap)))
    torch.testing.assert_close(swapped["object_crop"][:, [2, 1, 0, 3]], plain["object_crop"])
    inside = plain["target_alpha"][0, 0] > 0.99
    torch.testing.assert_close(
        swapped["target"][0, [2, 1, 0]][:, inside], plain["target"][0][:, inside], atol=1e-3, rtol=0
    )


def test_sheet_is_a_page_of_all_samples(tmp_path: Path) -> None:
    sheet(sampler(BUSY, batch_size=6)(0), tmp_path / "sheet.png")
    page = Image.open(tmp_path / "sheet.png").convert("RGB")
    assert page.width > 1000 and len(page.getcolors(1 << 20) or []) > 500
