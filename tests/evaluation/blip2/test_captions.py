import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from blip_diffusion.blip2 import Blip2
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.caption_parser import CaptionFacts, CaptionParser, scene_words
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.data.synthetic.pair_spec import SyntheticConfig
from blip_diffusion.data.synthetic.prompt_templates import caption
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.blip2.caption_probe import probe_accuracy
from blip_diffusion.evaluation.blip2.captions import BATCH, SYNTHETIC, HeldOut, caption_sheet, held_out
from blip_diffusion.evaluation.blip2.report import evaluate_captions
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from tests.conftest import WORLD
from tests.models import save_blip2


def test_every_caption_is_parsed_back(world: AssetLibrary) -> None:
    """Whatever the sampler says, the parser finds the same in it."""
    sampler = PairSampler(world, SyntheticConfig(size=32, object_crop_size=16), batch_size=1, seed=0)
    parse, rng = CaptionParser(scene_words(world)), random.Random(0)
    for _ in range(300):
        spec = sampler.sample(rng)
        found = parse(caption(world.cutouts[spec.target].category, spec.prompt))
        request = spec.request
        assert found.category == world.cutouts[spec.target].category
        assert (found.accessory, found.colour, found.size) == (request.accessory, request.colour, request.size)
        assert (found.position, found.style) == (request.position, request.style)
        assert found.count == ("" if request.count == 1 else str(request.count))
        assert found.scene.startswith(spec.background.word) and bool(found.scene) == bool(request.scene)


def test_other_words_say_nothing(world: AssetLibrary) -> None:
    parse = CaptionParser(scene_words(world))
    assert parse("a dog flying , upside down") == CaptionFacts(category="dog flying")
    assert parse("") == CaptionFacts()


def test_paraphrases_have_the_same_facts(world: AssetLibrary) -> None:
    sampler = PairSampler(
        world, SyntheticConfig(size=32, object_crop_size=16, counts=0.3, sizes=0.3), batch_size=1, seed=0
    )
    parse, rng = CaptionParser(scene_words(world)), random.Random(1)
    for _ in range(100):
        spec = sampler.sample(rng)
        sentence = caption(world.cutouts[spec.target].category, spec.prompt)
        same = parse.paraphrases(sentence)
        assert sentence in same and len(set(same)) == len(same)
        assert {parse(one) for one in same} == {parse(sentence)}


def test_wrong_images_show_other_subjects(world: AssetLibrary) -> None:
    held = held_out(world, 8)
    assert all(held.subjects[i] != held.subjects[j] for i, j in enumerate(held.mismatched))
    for count in (1, 10**9):
        with pytest.raises(InputError, match=f"is {count}: use 2 to 20000"):
            held_out(world, count)


def test_a_probe_names_what_it_was_fitted_to(pipe: BlipDiffusionPipeline, world: AssetLibrary) -> None:
    batch = PairSampler(world, replace(SYNTHETIC, split="train"), batch_size=BATCH, seed=4)(0)
    fitted = HeldOut(batch["target"], batch["caption"], batch["identity"])
    encoder = pipe.model.subject_encoder
    model = Blip2(encoder.image_encoder, encoder.qformer, reference=pipe.model.reference)
    accuracy = probe_accuracy(model, world, fitted, images=BATCH, seed=4)
    assert accuracy["category"].value > 0.8 and accuracy["scene"].value > 0.8
    shuffled = replace(fitted, captions=fitted.captions[1:] + fitted.captions[:1])
    accuracy = probe_accuracy(model, world, shuffled, images=BATCH, seed=4)
    assert accuracy["category"].value < 0.5 and accuracy["scene"].value < 0.5


def test_a_report_of_captions_and_retrieval(pipe: BlipDiffusionPipeline, tmp_path: Path) -> None:
    folder = save_blip2(pipe.model, tmp_path / "model")
    models = {"model": str(folder), "search_model": str(folder)}
    text = evaluate_captions(
        WORLD, tmp_path / "out", **models, num_images=6, num_beams=1, rerank=2, vqa=True, probe_images=32
    )
    assert "| right image |" in text and "R@1" in text and "| BLEU-4 |" in text
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert len(report["captions"]["captions"]) == 6
    assert report["captions"]["advantage"].keys() == {"wrong image", "no image"}
    assert report["captions"]["similarity"].keys() == {"CIDEr-D", "BLEU-4"}
    assert report["answers"]["category"].keys() == {"right image", "wrong image", "no image"}
    assert report["retrieval"]["recalls"].keys() == {"ITC", "published", "posterior"}
    for recalls in report["retrieval"]["recalls"].values():
        for direction in recalls.values():
            values = [one["value"] for one in direction.values()]
            assert values == sorted(values)
    assert "| image to text, ITC, then ITM of the best 2, score posterior |" in text
    assert "| text to image, published above ITC |" in text
    assert report["probe"].keys() == {"images", "category", "scene"} and "linear probe of the image encoder" in text
    assert (tmp_path / "out/sheet.png").is_file()
    text = evaluate_captions(WORLD, tmp_path / "itc", search_model=str(folder), num_images=6, rerank=0)
    assert "| image to text, ITC |" in text and "ITM" not in text
    zero_shot = json.loads((tmp_path / "itc/report.json").read_text())["zero_shot_category"]
    assert f"zero-shot: top 1 {zero_shot['1']['value']:.3f}" in text and zero_shot["1"]["value"] < 0.5
    with pytest.raises(InputError, match="nothing to score"):
        evaluate_captions(WORLD, tmp_path / "none")
    for more in ({"vqa": True}, {"probe_images": 32}):
        with pytest.raises(InputError, match="give one \\(--model\\)"):
            evaluate_captions(WORLD, tmp_path / "none", search_model=str(folder), **more)  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()


def test_a_sheet_shows_whole_captions() -> None:
    """A long caption makes every row taller, and ink is below each image only."""
    pixels = torch.zeros(2, 3, 16, 16) - 1
    short = caption_sheet(pixels, ["a dog"] * 2, ["a cat"] * 2, columns=2)
    long = caption_sheet(pixels, ["a dog", "a dog beside a candle, " * 4], ["a cat"] * 2, columns=2)
    assert long.width == short.width == 400
    assert long.height == short.height + 2 * 13
    below = np.asarray(long.convert("L"))[192:]
    assert (below[30:, :190] == 255).all()  # the short one
    assert (below[30:, 200:] < 128).any()
