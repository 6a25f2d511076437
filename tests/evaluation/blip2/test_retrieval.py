from pathlib import Path

import pytest
import torch

from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.caption_parser import CaptionParser, scene_words
from blip_diffusion.evaluation.blip2.captions import held_out
from blip_diffusion.evaluation.blip2.retrieval import image_features, score_retrieval, zero_shot_accuracy
from blip_diffusion.evaluation.metrics.retrieval import recall_at
from blip_diffusion.pipelines.image_search import ImageSearch
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.prompts import Words
from tests.models import save_blip2


def test_recall() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    relevant = torch.tensor([[False, True, False], [False, False, True]])
    assert recall_at(scores, relevant, 1).tolist() == [0, 1]
    assert recall_at(scores, relevant, 2).tolist() == [1, 1]
    assert recall_at(scores, relevant, 10).tolist() == [1, 1]


def test_zero_shot_categories_are_ranked_by_itc(
    pipe: BlipDiffusionPipeline, world: AssetLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The true category has the best cosine, then the second best."""
    model = ImageSearch.from_pretrained(str(save_blip2(pipe.model, tmp_path / "model"))).model
    held = held_out(world, 6)
    parse = CaptionParser(scene_words(world))
    categories = sorted({cutout.category for cutout in world.cutouts})
    true = torch.tensor([categories.index(parse(caption).category) for caption in held.captions])
    for shift, first in ((0, 1.0), (1, 0.0)):
        cosines = torch.zeros(len(held), len(categories)).scatter(1, ((true + shift) % len(categories))[:, None], 1.0)
        cosines = cosines.scatter(1, true[:, None], 1.0 if not shift else 0.5)
        monkeypatch.setattr(model, "itc", lambda images, sentences, table=cosines: table)
        accuracy = zero_shot_accuracy(model, world, held, image_features(model, held))
        assert accuracy[1].value == first and accuracy[10].value == 1


def test_matching_reranks_the_candidates_of_itc(
    pipe: BlipDiffusionPipeline, world: AssetLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ITC has the true pair second, and ITM's odds are the true probability over ITC's."""
    model = ImageSearch.from_pretrained(str(save_blip2(pipe.model, tmp_path / "model"))).model
    held = held_out(world, 6)
    features = image_features(model, held)
    sentences = sorted(set(held.captions))
    true = torch.tensor([sentences.index(caption) for caption in held.captions])
    assert len(sentences) == len(held)
    cosines = torch.zeros(6, 6)
    cosines[torch.arange(6), (true + 1) % 6], cosines[torch.arange(6), true] = 0.9, 0.8
    log_odds = torch.full((6, 6), -1.0)
    log_odds[torch.arange(6), true] = 1.0  # 2 above, and ITC has the other 0.1 / 0.07 = 1.43 above
    image_of = {tuple(row.flatten().tolist()): i for i, row in enumerate(features)}
    sentence_of = {tuple(row.tolist()): i for i, row in enumerate(model.sentence_words(sentences).input_ids)}

    def itm(some: torch.Tensor, words: Words) -> torch.Tensor:
        rows = [image_of[tuple(row.flatten().tolist())] for row in some]
        odds = log_odds[rows, [sentence_of[tuple(row.tolist())] for row in words.input_ids]]
        return torch.stack([-odds, torch.zeros_like(odds)], dim=1)  # equal logits of a match: only the odds say which

    monkeypatch.setattr(model, "itc", lambda images, sentences: cosines)
    monkeypatch.setattr(model, "itm", itm)
    scores = score_retrieval(model, held, features, rerank=2)
    at_1 = {name: [row[1].value for row in recalls.values()] for name, recalls in scores.recalls.items()}
    assert at_1 == {"ITC": [0, 0], "published": [0, 0], "posterior": [1, 1]}
    assert scores.gain["posterior"]["image to text"][1].value == 1
    only_one = score_retrieval(model, held, features, rerank=1)
    assert only_one.recalls["posterior"]["image to text"][1].value == 0  # the true pair was not a candidate
    assert only_one.recalls["posterior"] == only_one.recalls["ITC"]  # which ranks the others
