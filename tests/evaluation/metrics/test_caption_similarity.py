import pytest
import torch

from blip_diffusion.evaluation.metrics.caption_similarity import bleu, bleu_counts, cider_d

CAPTIONS = ["a dog on the beach", "a red teapot next to a box", "two cats in the snow at night", "a car"]
REFERENCES = [
    ["a dog on the beach", "a dog at the sea side"],
    ["a teapot painted red beside a box", "a red teapot next to a box in a room", "a teapot"],
    ["a cat in the snow"],
    ["an old car in a city at night", "a car in the city"],
]


def test_values_of_pycocoevalcap() -> None:
    """pycocoevalcap 1.2, `Cider` and `Bleu(4)`, gives these for the same words."""
    assert cider_d(CAPTIONS, REFERENCES).tolist() == pytest.approx([5.68184725, 3.33566289, 2.18029297, 1.70519494])
    counts = bleu_counts(CAPTIONS, REFERENCES)
    assert float(bleu(counts.sum(dim=1, keepdim=True))) == pytest.approx(0.6789892940521463, abs=1e-6)


def test_best_and_worst() -> None:
    same = [[caption] for caption in CAPTIONS]
    assert cider_d(CAPTIONS[:3], same[:3]).tolist() == pytest.approx([10, 10, 10])
    assert float(bleu(bleu_counts(CAPTIONS, same).sum(dim=1, keepdim=True))) == 1
    nothing = ["", "!", "xyz", ""]
    assert cider_d(nothing, REFERENCES).tolist() == [0, 0, 0, 0]
    assert float(bleu(bleu_counts(nothing, REFERENCES).sum(dim=1, keepdim=True))) == 0


def test_short_captions_are_penalised_and_repeated_words_count_once() -> None:
    reference = [["a dog on the beach in the snow at night"]]
    full, short = ["a dog on the beach in the snow at night"], ["a dog on the beach"]
    assert float(bleu(bleu_counts(short, reference))) == pytest.approx(float(torch.tensor(1 - 10 / 5).exp()))
    repeated = bleu_counts(["the the the the"], reference)
    assert repeated[0, 0] == 2 and repeated[4, 0] == 4  # clipped to the reference's two
    references = [*reference, ["a cat"]]
    assert cider_d([*full, "a cat"], references)[0] > cider_d([*short, "a cat"], references)[0] > 0
