"""Properties in a prompt hold in the image: position, size, number, colour, style, accessory."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.synthetic import backgrounds, placement, prompt_templates
from blip_diffusion.data.synthetic.pair_spec import PairSpec
from blip_diffusion.data.synthetic.prompt_templates import PromptSpec
from blip_diffusion.errors import ConfigError, DataError

from .compositing import PLAIN, WORLD, pair_sampler, row


def composite(request: PromptSpec, *, identity: str = "dog1", place: str = "on a plain white background", n: int = 8,
            seed: int = 0) -> SubjectBatch:  # fmt: skip
    """A batch of one request, in one place."""
    pairs, rng = pair_sampler(), random.Random(seed)
    chosen_backgrounds = [pairs.scene(place, rng) for _ in range(n)]
    specs = [PairSpec(row(identity), row(identity), replace(request, scene=b.phrase), b, b) for b in chosen_backgrounds]
    return pairs.render(specs, rng)


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


def test_alpha_covers_the_subject() -> None:
    batch = composite(PromptSpec(), identity="dog1")  # blue, on white
    blue = (batch["target"][:, 2] - batch["target"][:, 0] > 0.25).float()
    assert ((blue > 0) == (batch["target_alpha"][:, 0] > 0.5)).float().mean() > 0.99
    assert (batch["target_alpha"].mean((1, 2, 3)) > 0.1).all()


def test_subject_is_centred_by_default() -> None:
    batch = composite(PromptSpec(), n=32)
    x, y = centroid(batch["target_alpha"])
    assert (x - 0.5).abs().max() < 0.08 and (y - 0.5).abs().max() < 0.08
    sides = extents(batch["target_alpha"])
    assert sides.min() > 0.52 and sides.max() < 0.79


@pytest.mark.parametrize(
    "request_", [PromptSpec(), PromptSpec(size="big"), PromptSpec(position="at the left"), PromptSpec(count=2),
                 PromptSpec(accessory="hat"), PromptSpec(accessory="tree")], ids=str,
)  # fmt: skip
def test_fixed_layout_is_deterministic(request_: PromptSpec) -> None:
    """With a fixed layout, the outline depends only on reference and prompt. By default, position and size vary."""
    shape = placement.measure(WORLD.pixels[[row("dog1")]])[0]
    accessory = (row("dog1"), shape) if request_.accessory else None

    def placed(amount: float, seed: int) -> list[placement.Placement]:
        return placement.place(0, 0, shape, request_, 0.6, placement.Jitter(random.Random(seed), amount), accessory)

    assert placed(0.0, 1) == placed(0.0, 2)
    assert placed(1.0, 1) != placed(1.0, 2)
    many = [placed(1.0, seed)[0] for seed in range(400)]
    fixed = placed(0.0, 1)[0]
    assert sum(p.side for p in many) / len(many) == pytest.approx(fixed.side, abs=0.01)
    assert sum(p.x for p in many) / len(many) == pytest.approx(fixed.x, abs=0.01)


def test_pair_sampler_can_fix_the_layout() -> None:
    pairs = pair_sampler(replace(PLAIN, layout=0.0))
    specs = [pairs.sample(random.Random(1)) for _ in range(6)]
    alphas = [pairs.render(specs, random.Random(seed))["target_alpha"] for seed in (1, 2)]
    torch.testing.assert_close(*alphas)
    with pytest.raises(ConfigError, match=r"azimuth is 0.0: use some degrees"):
        replace(PLAIN, azimuth=0.0)
    with pytest.raises(ConfigError, match="use 0 to 1"):
        replace(PLAIN, layout=1.5)


def test_fixed_layout_has_fixed_horizon_and_light() -> None:
    pairs = pair_sampler(replace(PLAIN, layout=0.0, light=0.0))
    flat, place = row("pot0", "0"), pairs.scene("in front of a brick wall", random.Random(0))
    lower = replace(place, horizon=0.5)
    rendered = [
        pairs.render([PairSpec(flat, flat, PromptSpec(scene=place.phrase), behind, behind)], random.Random(seed))
        for seed, behind in ((1, place), (2, place), (1, lower))
    ]
    torch.testing.assert_close(rendered[0]["target_alpha"], rendered[2]["target_alpha"])
    inside = (rendered[0]["target_alpha"] > 0.99).expand(-1, 3, -1, -1)
    torch.testing.assert_close(rendered[0]["target"][inside], rendered[1]["target"][inside], atol=0.01, rtol=0)


def test_subject_stands_on_the_ground() -> None:
    pairs = pair_sampler()
    flat, place = row("pot0", "0"), pairs.scene("in front of a brick wall", random.Random(0))
    batch = pairs.render([PairSpec(flat, flat, PromptSpec(scene=place.phrase), place, place)], random.Random(0))
    seen = batch["target_alpha"][0, 0] > 0.5
    assert place.horizon is not None
    assert float(seen.any(1).nonzero().max()) / 64 > place.horizon + 0.05


@pytest.mark.parametrize("place", ["on a plain white background", "on grass"])
@pytest.mark.parametrize("position", prompt_templates.POSITIONS)
def test_position_words_hold(position: str, place: str) -> None:
    x, y = centroid(composite(PromptSpec(position=position), place=place)["target_alpha"])
    words = position.split()
    assert ("left" in words) == bool((x < 0.4).all()) and ("right" in words) == bool((x > 0.6).all())
    if "top" in words:
        assert (y < 0.42).all()
    if "bottom" in words:
        assert (y > 0.6).all()


def test_size_words_hold() -> None:
    small, usual, big = (extents(composite(PromptSpec(size=size))["target_alpha"]) for size in ("small", "", "big"))
    assert small.max() < usual.min() - 0.1 and usual.max() < big.min() - 0.05


@pytest.mark.parametrize("identity", ["dog1", "pot1"])
@pytest.mark.parametrize("count", prompt_templates.COUNTS)
def test_counts_hold(count: int, identity: str) -> None:
    batch = composite(PromptSpec(count=count), identity=identity, n=6)
    assert [regions(alpha[0] > 0.3) for alpha in batch["target_alpha"]] == [count] * 6


@pytest.mark.parametrize("colour", prompt_templates.PAINTS)
@pytest.mark.parametrize("identity", ["dog0", "dog2"])
def test_paint_words_hold(colour: str, identity: str) -> None:
    batch = composite(PromptSpec(colour=colour), identity=identity)
    alpha = (batch["target_alpha"] > 0.95).float()
    for mean in (batch["target"] * alpha).sum((2, 3)) / alpha.sum((2, 3)):
        named = min(prompt_templates.PAINTS, key=lambda c: float((torch.tensor(backgrounds.PALETTE[c]) - mean).norm()))
        assert named == colour


def test_plain_backgrounds_have_the_colour_of_the_prompt() -> None:
    for colour in ("red", "green", "yellow"):
        corner = composite(PromptSpec(), place=f"on a plain {colour} background")["target"][:, :, :4, :4].mean((2, 3))
        torch.testing.assert_close(corner, torch.tensor(backgrounds.PALETTE[colour]).expand(8, 3), atol=0.16, rtol=0)


def test_silhouette_is_dark_and_sketch_is_on_white() -> None:
    dark = composite(PromptSpec(style="silhouette"), identity="dog0")
    assert (dark["target"] * (dark["target_alpha"] > 0.99)).max() < 0.2
    rendered = composite(PromptSpec(style="sketch"), identity="dog2", place="on grass")["target"]
    assert (rendered[:, :, 0] > 0.9).all() and (rendered.amin((1, 2, 3)) < 0.5).all()


def test_accessories_are_next_to_the_subject_or_on_it() -> None:
    alone, hat = composite(PromptSpec()), composite(PromptSpec(accessory="hat"))
    red = (hat["target"][:, 0] - hat["target"][:, 2] > 0.25).float()[:, None]
    assert (red.sum((1, 2, 3)) > 10).all(), "a red hat on a blue dog"
    assert (centroid(red)[1] < centroid(hat["target_alpha"])[1] - 0.15).all(), "on its head"
    apple = composite(PromptSpec(accessory="apple"))
    red = (apple["target"][:, 0] - apple["target"][:, 2] > 0.25).float()[:, None]
    assert (centroid(red)[0] > centroid(apple["target_alpha"])[0] + 0.2).all()
    assert not (alone["target"][:, 0] - alone["target"][:, 2] > 0.25).any()


def test_missing_accessories_are_never_sampled() -> None:
    pairs, rng = pair_sampler(replace(PLAIN, accessories=1.0)), random.Random(0)
    accessories = {pairs.sample(rng).request.accessory for _ in range(300)}
    assert {"hat", "balloon", "apple"} <= accessories <= {"", "hat", "balloon", "apple"}
    with pytest.raises(DataError, match="no crown"):
        composite(PromptSpec(accessory="crown"))


def test_hats_are_sampled_for_animate_subjects_only() -> None:
    pairs, rng = pair_sampler(replace(PLAIN, accessories=1.0)), random.Random(0)
    hatted = [spec.target for spec in (pairs.sample(rng) for _ in range(300)) if spec.request.accessory == "hat"]
    assert hatted and all(WORLD.cutouts[i].animate for i in hatted)
