"""Draws from a pool of prepared batches are a function of seed and index, and never repeat a row."""

from typing import Any

import torch

from blip_diffusion.training.pooled_batches import PooledBatches


def compose(index: int) -> Any:
    rows = torch.arange(4) + 4 * index
    return {"caption": [str(row) for row in rows.tolist()], "features": rows[:, None].float(), "identity": rows}


def pool(**more: Any) -> PooledBatches:
    return PooledBatches(compose, lambda batch: batch, 3, **more)


def test_a_sample_is_a_function_of_seed_and_index() -> None:
    whole, resumed = pool(batch_size=6, every=2, seed=1), pool(batch_size=6, every=2, seed=1)
    sampled = [whole(index) for index in range(5)]
    assert torch.equal(sampled[4]["identity"], resumed(4)["identity"])
    assert not torch.equal(sampled[4]["identity"], sampled[3]["identity"])
    assert not torch.equal(sampled[4]["identity"], pool(batch_size=6, every=2, seed=2)(4)["identity"])


def test_the_values_of_a_row_stay_together_and_no_row_comes_twice() -> None:
    for index in range(6):
        batch = pool(batch_size=6)(index)
        assert batch["caption"] == [str(row) for row in batch["identity"].tolist()]
        assert torch.equal(batch["features"][:, 0], batch["identity"].float())
        assert len(batch["identity"].unique()) == 6


def test_the_pool_grows_until_it_is_full() -> None:
    seen = pool(batch_size=4, every=2)
    largest = [max(int(seen(index)["identity"].max()) for index in range(start, start + 2)) for start in (0, 2)]
    assert largest[0] < 4 and largest[1] < 8
    assert {int(row) for index in range(4, 40) for row in seen(index)["identity"]} == set(range(12))


def test_features_are_kept_in_half_precision() -> None:
    batch = PooledBatches(compose, lambda batch: {**batch, "features": batch["features"] / 3}, 1, dtype=torch.bfloat16)(
        0
    )
    exact = batch["identity"][:, None] / 3
    assert batch["features"].dtype == torch.float32
    assert not torch.equal(batch["features"], exact)
    torch.testing.assert_close(batch["features"], exact, rtol=0.01, atol=0)


def test_features_are_computed_in_the_autocast_type_and_batches_composed_without() -> None:
    """1 + 2⁻⁹ is not a bfloat16 number: a product in bfloat16 rounds it to 1, one in float32 keeps it."""

    def product() -> torch.Tensor:
        return torch.full((4, 1), 1 + 2**-9) @ torch.ones(1, 1)

    def composed(index: int) -> Any:
        assert float(product()[0]) == 1 + 2**-9
        return compose(index)

    def features(autocast: torch.dtype) -> float:
        batches = PooledBatches(composed, lambda batch: batch | {"features": product()}, 3, autocast=autocast)
        return float(batches(0)["features"][0])

    assert features(torch.float32) == 1 + 2**-9
    assert features(torch.bfloat16) == 1
