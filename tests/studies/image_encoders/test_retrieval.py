"""Retrieval of subjects by the features of image encoders."""

from pathlib import Path

import pytest
import torch

from blip_diffusion.data.synthetic.pair_sampler import PairSampler, sentences
from blip_diffusion.data.synthetic.pair_spec import SyntheticConfig
from blip_diffusion.data.synthetic.tokenizers import prompt_tokenizer
from studies.image_encoders.clip_baseline import LONGEST, WORDS, loss_of, train
from studies.image_encoders.clip_baseline import clip as untrained
from studies.image_encoders.retrieval import Gallery, Result, Tower, accuracy, clip, gallery, main, retrieve, table
from tests.evaluation.fakes import SIZE, WORLD

IMAGES = gallery(WORLD, 4, split="heldout", size=SIZE)


def test_gallery_shows_each_subject_four_times() -> None:
    assert IMAGES.images.shape == (4, 4, 3, SIZE, SIZE)
    assert IMAGES.masks.shape == (4, 4, 1, SIZE, SIZE)
    assert (IMAGES.masks.amax((2, 3, 4)) > 0.9).all()
    assert not IMAGES.turned.any()  # the synthetic set has no held-out 3D subject
    assert gallery(WORLD, 6, size=SIZE).turned.tolist() == [True] * 3 + [False] * 3
    again = gallery(WORLD, 4, split="heldout", size=SIZE)
    torch.testing.assert_close(again.images, IMAGES.images, atol=0, rtol=0)


def test_mean_colours_retrieve_coloured_subjects() -> None:
    colours = Tower((("colours", 0), ("nothing", 7)), lambda pixels: [pixels, torch.ones_like(pixels)])
    sees, blind = retrieve(colours, IMAGES)
    assert sees.scores["A"][0] == 1.0
    assert blind.scores["A"][0] <= 0.25
    assert "C" not in sees.scores


def test_other_views_are_evaluated_for_3d_subjects_only() -> None:
    turned = Gallery(IMAGES.images, IMAGES.masks, torch.tensor([True, True, False, False]))
    (results,) = retrieve(Tower((("colours", 0),), lambda pixels: [pixels]), turned)
    assert results.scores["C"][0] in (0.0, 0.5, 1.0)


def test_accuracy_against_a_loop() -> None:
    rng = torch.Generator().manual_seed(0)
    queries, outputs = torch.randn(9, 4, generator=rng), torch.randn(9, 4, generator=rng)
    right = 0
    for i in range(9):
        x = queries[i] - queries.mean(0)
        cosines = [torch.cosine_similarity(x, outputs[j] - outputs.mean(0), dim=0).item() for j in range(9)]
        right += cosines.index(max(cosines)) == i
    share, error = accuracy(queries, outputs)
    assert share == pytest.approx(right / 9)
    assert error == pytest.approx((share * (1 - share) / 9) ** 0.5)


def test_table_omits_missing_tasks() -> None:
    text = table([Result("one", 1_500_000, {"A": (0.5, 0.1)})])
    assert text.splitlines()[-1] == "| one | 1.50 M | 0.50 |  |  |"


def test_missing_world_raises_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dataset", str(tmp_path / "none.zip")]) == 2
    assert "There is no dataset" in capsys.readouterr().out


def test_small_clip_is_trained_and_compared(tmp_path: Path) -> None:
    model = train(WORLD, minutes=0.02, batch=4, size=SIZE)
    model.save_pretrained(tmp_path)
    tower = clip(tmp_path)
    assert [name for name, _ in tower.depths] == [f"CLIP of this world, layer {layer}" for layer in (2, 4, 6)]
    assert tower.depths[0][1] < tower.depths[1][1] < tower.depths[2][1] < sum(p.numel() for p in model.parameters())
    maps = tower.maps(IMAGES.images[0])
    assert [seen.shape for seen in maps] == [(4, 192, SIZE // 16, SIZE // 16)] * 3
    results = retrieve(tower, IMAGES)
    assert all(0 <= result.scores["A"][0] <= 1 for result in results)


def test_clip_overfits_one_batch() -> None:
    torch.manual_seed(0)
    tokenizer = prompt_tokenizer(sentences(WORLD), WORDS, LONGEST)
    model = untrained(SIZE, width=64, layers=2, words=len(tokenizer))
    pairs = PairSampler(WORLD, SyntheticConfig(size=SIZE), batch_size=4, seed=1)(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        losses.append(loss_of(model, tokenizer, pairs["target"], pairs["caption"]))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0]
