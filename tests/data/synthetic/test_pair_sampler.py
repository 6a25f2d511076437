"""Training pairs: reproducible batches, references, captions and the held-out split."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.synthetic import backgrounds, placement
from blip_diffusion.data.synthetic.pair_sampler import sentences, sheet
from blip_diffusion.data.synthetic.pair_spec import PairSpec, SyntheticConfig
from blip_diffusion.data.synthetic.prompt_templates import PromptSpec
from blip_diffusion.errors import DataError

from .compositing import PLAIN, WORLD, pair_sampler, row, specs

BUSY = SyntheticConfig(size=64, colours=0.2, counts=0.15, sizes=0.1, positions=0.15, accessories=0.15, styles=0.2)


def same(a: SubjectBatch, b: SubjectBatch) -> bool:
    return all(torch.equal(v, b[k]) if isinstance(v, Tensor) else v == b[k] for k, v in a.items())  # type: ignore[literal-required]


def test_shapes_and_ranges() -> None:
    batch = pair_sampler(BUSY)(0)
    assert batch["reference"].shape == batch["target"].shape == (24, 3, 64, 64)
    assert batch["object_crop"].shape == (24, 4, 32, 32) and batch["target_alpha"].shape == (24, 1, 64, 64)
    assert batch["identity"].dtype == torch.int64
    for key in ("reference", "object_crop", "target", "target_alpha"):
        image = batch[key]  # type: ignore[literal-required]
        assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1
    assert (batch["object_crop"][:, :3] <= batch["object_crop"][:, 3:] + 0.01).all(), "premultiplied"


def test_batch_depends_on_seed_and_index_only() -> None:
    assert same(pair_sampler(BUSY)(3), pair_sampler(BUSY)(3))
    assert not same(pair_sampler(BUSY)(3), pair_sampler(BUSY)(4))
    assert not same(pair_sampler(BUSY)(3), pair_sampler(BUSY, seed=1)(3))


def test_transparent_pixels_do_not_affect_edge_colours() -> None:
    """The colour of transparent pixels (here bright green) must not be visible."""
    pixels = WORLD.pixels.clone()
    pixels[:, 1] = torch.where(pixels[:, 3] == 0, 255, pixels[:, 1])
    assert same(pair_sampler(world=replace(WORLD, pixels=pixels))(0), pair_sampler()(0))


def test_global_random_state_is_unchanged() -> None:
    before = torch.get_rng_state(), random.getstate()
    pair_sampler(BUSY)(0)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()


def test_captions_consist_of_category_and_prompt() -> None:
    pairs = pair_sampler(BUSY)
    known = {word for sentence in sentences(WORLD) for word in sentence.split()}
    for index in range(6):
        batch = pairs(index)
        for category, prompt, caption in zip(batch["category"], batch["prompt"], batch["caption"], strict=True):
            assert caption == f"a {category} {prompt}"
        words = {word for caption in batch["caption"] + batch["reference_caption"] for word in caption.split()}
        assert words <= known


def test_mirroring_flips_pairs_without_left_or_right() -> None:
    config = replace(PLAIN, positions=0.4, accessories=0.2)
    pairs = pair_sampler(config)
    straight, turned = pairs(3), pair_sampler(replace(config, mirror=1.0))(3)
    assert straight["caption"] == turned["caption"]
    rng = random.Random("0 3")
    requests = [pairs.sample(rng).request for _ in range(pairs.batch_size)]
    sided = [bool(r.accessory) or "left" in r.position or "right" in r.position for r in requests]
    assert 0 < sum(sided) < len(sided)
    for name in ("reference", "object_crop", "target", "target_alpha"):
        for plain, covered, side in zip(straight[name], turned[name], sided, strict=True):  # type: ignore[literal-required]
            assert torch.equal(plain if side else plain.flip(-1), covered)


def test_reference_is_another_near_view_if_available() -> None:
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


def test_reference_has_another_background() -> None:
    shapes = placement.measure(WORLD.pixels)
    for spec in specs(PLAIN):
        if spec.reference_background.word != "plain":
            assert spec.reference_background.word != spec.background.word
        for background, cutout in ((spec.background, spec.target), (spec.reference_background, spec.reference)):
            if background.kind == "plain":
                assert not backgrounds.is_close(backgrounds.PALETTE[background.names[0]], shapes[cutout].colour)


def test_targets_without_a_scene_have_a_plain_background() -> None:
    config = replace(BUSY, no_scene=0.5)
    pairs = pair_sampler(config)
    phrases = {pairs.background(random.Random(seed)).phrase for seed in range(200)}
    sampled = specs(config, 200)
    unnamed = [spec for spec in sampled if not spec.request.scene and spec.request.style != "sketch"]
    assert 60 < len(unnamed) < 140
    assert all(spec.background.kind == "plain" for spec in unnamed)
    assert not any(phrase in spec.prompt for spec in unnamed for phrase in phrases)
    batch = pairs.render([replace(unnamed[0], request=PromptSpec(), accessory=-1, anywhere=False)], random.Random(0))
    corners = batch["target"][0, :, [0, 0, -1, -1], [0, -1, 0, -1]]  # (3, 4)
    assert (corners - corners[:, :1]).abs().max() < 0.1, "one colour, but for its shading"


def test_heldout_assets_are_not_in_training_pairs() -> None:
    for spec in specs(BUSY):
        assert WORLD.cutouts[spec.reference].split == WORLD.cutouts[spec.target].split == "train"
        for background in (spec.background, spec.reference_background):
            assert background.kind != "photo" or WORLD.scenes[background.scene].split == "train"
    assert all(WORLD.cutouts[o.target].split == "heldout" for o in specs(replace(BUSY, split="heldout")))


def test_heldout_scenes_are_available_for_evaluation() -> None:
    pairs, rng = pair_sampler(), random.Random(0)
    assert WORLD.scenes[pairs.scene("forest", rng, split="heldout").scene].split == "heldout"
    assert pairs.scene("in a forest", rng).phrase == "in a forest"
    with pytest.raises(DataError, match="submarine"):
        pairs.scene("submarine", rng)


def test_world_without_subjects_of_the_split_is_refused() -> None:
    with pytest.raises(DataError, match="no heldout subjects"):
        pair_sampler(replace(PLAIN, split="heldout"), world=WORLD.subset(split="train"))


def test_reference_crop_and_target_show_the_specified_cutouts() -> None:
    pairs, rng = pair_sampler(replace(PLAIN, rotation=0.0)), random.Random(0)
    white = pairs.scene("on a plain white background", rng)
    wide, tall = row("pot1", "0"), row("dog1")  # blue ellipses of 110 x 60 and 70 x 120
    batch = pairs.render([PairSpec(wide, tall, PromptSpec(scene=white.phrase), white, white)], rng)

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
def test_frames_locate_the_reference_in_the_target(config: SyntheticConfig) -> None:
    batch = pair_sampler(replace(config, same_view=1.0, rotation=0.0, object_crop_size=64), batch_size=12)(5)
    at = (torch.arange(64) + 0.5) / 64
    y, x = torch.meshgrid(at, at, indexing="ij")
    covered = torch.zeros(12, 64, 64)
    for pair, frames in enumerate(batch["frames"]):
        for left, top, width, height in frames.tolist():
            if width:
                grid = torch.stack([(x - left) / width, (y - top) / height], dim=-1) * 2 - 1
                alpha = F.grid_sample(batch["object_crop"][pair, 3:][None], grid[None], align_corners=False)
                covered[pair] = torch.maximum(covered[pair], alpha[0, 0])
    truth = F.interpolate(batch["target_alpha"], (64, 64), mode="area")[:, 0]
    both, either = (covered > 0.5) & (truth > 0.5), (covered > 0.5) | (truth > 0.5)
    assert (both.sum((1, 2)) / either.sum((1, 2))).median() > 0.9


def test_colour_matrix_is_applied_to_reference_crop_and_target() -> None:
    pairs = pair_sampler(replace(PLAIN, light=0.0))
    swap = (0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)  # red and blue
    white = pairs.scene("on a plain white background", random.Random(0))
    spec = PairSpec(row("dog1"), row("dog1"), PromptSpec(scene=white.phrase), white, white)
    plain, swapped = (pairs.render([s], random.Random(1)) for s in (spec, replace(spec, colour_matrix=swap)))
    torch.testing.assert_close(swapped["object_crop"][:, [2, 1, 0, 3]], plain["object_crop"])
    inside = plain["target_alpha"][0, 0] > 0.99
    torch.testing.assert_close(
        swapped["target"][0, [2, 1, 0]][:, inside], plain["target"][0][:, inside], atol=1e-3, rtol=0
    )


def test_sheet_is_a_page_of_all_samples(tmp_path: Path) -> None:
    sheet(pair_sampler(BUSY, batch_size=6)(0), tmp_path / "sheet.png")
    page = Image.open(tmp_path / "sheet.png").convert("RGB")
    assert page.width > 1000 and len(page.getcolors(1 << 20) or []) > 500
