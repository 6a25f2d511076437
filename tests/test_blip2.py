from pathlib import Path

import pytest
import torch

from blip_diffusion.blip2 import Blip2
from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.pipelines.image_search import ImageSearch
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from tests.models import save_blip2


@pytest.fixture
def model(pipe: BlipDiffusionPipeline, tmp_path: Path) -> Blip2:
    return ImageSearch.from_pretrained(str(save_blip2(pipe.model, tmp_path / "model"))).model


def test_the_posterior_is_the_noise_times_the_odds(model: Blip2) -> None:
    """The best classifier of p against samples of q = softmax(cosine / τ) restores p."""
    temperature = 0.05
    with torch.no_grad():
        model.itc_head.temperature.fill_(temperature)
    p, cosines = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.1, 0.5, 0.45])
    log_odds = p.log() - (cosines / temperature).log_softmax(dim=0)
    logits = torch.stack([torch.tensor([3.0, -1.0, 0.5]), torch.zeros(3)], dim=1)
    logits[:, 1] = logits[:, 0] + log_odds
    scores = model.rerank_scores(logits, cosines, "posterior")
    assert torch.allclose(scores.softmax(dim=0), p)
    assert torch.allclose(model.rerank_scores(logits, cosines), logits[:, 1] + cosines)


def test_a_posterior_needs_a_trained_temperature(model: Blip2) -> None:
    model.has_temperature = False
    with pytest.raises(CheckpointError, match="temperature"):
        model.rerank_scores(torch.zeros(1, 2), torch.zeros(1), "posterior")
    with pytest.raises(InputError, match="no rerank_score 'sum': use published or posterior"):
        model.rerank_scores(torch.zeros(1, 2), torch.zeros(1), "sum")  # type: ignore[arg-type]
