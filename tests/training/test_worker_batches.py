"""Worker processes compose what the training process composes, and give the same weights."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from blip_diffusion.training.pretrain import run
from blip_diffusion.training.worker_batches import WorkerBatches
from tests.data.captioned.written import folder_of

DEBUG = Path(__file__).parents[2] / "configs" / "debug"


def compose(index: int) -> Any:
    return {"caption": [str(index)], "image": torch.full((1, 2), float(index)), "process": torch.tensor([os.getpid()])}


def test_order_and_content_are_the_same() -> None:
    own, other = (list(WorkerBatches(compose, count).sequence([3, 1, 4, 1, 5])) for count in (0, 2))
    assert [batch["caption"] for batch in own] == [batch["caption"] for batch in other] == [[c] for c in "31415"]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(own, other, strict=True))
    assert len({int(batch["process"]) for batch in other} - {os.getpid()}) == 2
    assert {int(batch["process"]) for batch in own} == {os.getpid()}


def test_only_what_is_kept_is_passed_on() -> None:
    assert [set(batch) for batch in WorkerBatches(compose, 1, ["image"]).sequence([0])] == [{"image"}]


@pytest.mark.parametrize("pool", [0, 3])
def test_workers_do_not_change_the_weights(pool: int, tmp_path: Path) -> None:
    data = folder_of(tmp_path / "photos", texts=True)
    weights = []
    for workers in (0, 2):
        options = [f"data.path={data}", "data.category=dog", "data.batch_size=2", f"data.workers={workers}"]
        options += [
            f"data.pool={pool}",
            "model.init_from=[]",
            "train.device=cpu",
            "train.steps=4",
            "train.sample_every=0",
        ]
        options += ["representation.reconstruction_weight=0", "representation.multimodal_every=1"] if pool else []
        out = tmp_path / str(workers)
        run(DEBUG / "representation.toml", out, overrides=options)
        weights.append(load_file(out / "export" / "qformer" / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    start = load_file(out / "start" / "qformer" / "model.safetensors")
    assert any(not torch.equal(start[name], weights[0][name]) for name in start)
