import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.data.synthetic.pair_spec import SyntheticConfig
from blip_diffusion.data.synthetic.tokenizers import category_tokenizer, prompt_tokenizer, tokenizer_corpus
from blip_diffusion.errors import BlipDiffusionError
from blip_diffusion.training.recipe import pool as pools
from blip_diffusion.training.recipe.packing import Packer, to_bytes
from blip_diffusion.training.recipe.pool import Feeder, Pool

from ...data.synthetic.synthetic_world import make_world

WORLD = make_world()
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sampler() -> PairSampler:
    return PairSampler(WORLD, SyntheticConfig(size=32, object_crop_size=16), batch_size=4, seed=3)


@pytest.fixture(scope="module")
def packer() -> Packer:
    corpus = tokenizer_corpus(WORLD)
    return Packer(prompt_tokenizer(corpus, 1024, 32), category_tokenizer(corpus, 1024), 28, 24, 8)


@pytest.fixture
def feeder(sampler: PairSampler, packer: Packer) -> Iterator[Feeder]:
    started = Feeder(sampler, packer, workers=2, slots=3)
    yield started
    started.close()


def test_rows_describe_the_batch(sampler: PairSampler, packer: Packer) -> None:
    batch = sampler(0)
    rows = packer(batch)
    assert {len(value) for value in rows.values()} == {4}
    assert rows["reference"].dtype == torch.uint8 and rows["mask"].shape == (4, 1, 8, 8)
    assert (rows["reference"].float() / 255 - batch["reference"]).abs().max() <= 0.5 / 255 + 1e-6
    read = packer.tokenizer.decode(rows["prompt"][0], skip_special_tokens=True)
    assert read.split() == f"a {batch['category'][0]} {batch['prompt'][0]}".split()
    assert (rows["frames"][:, batch["frames"].shape[1] :] == 0).all()


def test_pool_returns_the_pairs_of_the_workers(feeder: Feeder, sampler: PairSampler, packer: Packer) -> None:
    pool = Pool(16, CPU)
    feeder.fill(pool, 16)
    expected = [packer(sampler(index)) for index in range(12)]  # one worker may be ahead of the other
    for start in range(0, 16, 4):
        result = pool.take(torch.arange(start, start + 4), list(expected[0]))
        assert any(all(torch.equal(result[name], rows[name]) for name in rows) for rows in expected)


def test_batches_are_ordered_without_workers(sampler: PairSampler, packer: Packer) -> None:
    pool, new_feeder = Pool(8, CPU), Feeder(sampler, packer, workers=0, slots=1, first=5)
    new_feeder.fill(pool, 8)
    new_feeder.drain(pool, at_most=4)
    newest, older = (pool.rows["target"][:4], pool.rows["target"][4:])
    assert torch.equal(newest, to_bytes(sampler(7)["target"])) and torch.equal(older, to_bytes(sampler(6)["target"]))


def test_pool_wraps_within_a_batch_and_keeps_derived_columns() -> None:
    pool = Pool(5, CPU)
    pool.add({"x": torch.arange(3)})
    pool.derive(lambda rows: {"double": 2 * rows["x"]})
    pool.add({"x": torch.arange(3, 7)})
    assert pool.count == 5 and pool.rows["x"].tolist() == [5, 6, 2, 3, 4]
    assert pool.rows["double"].tolist() == [10, 12, 4, 6, 8]
    assert set(pool.sample(100, torch.Generator().manual_seed(0)).tolist()) == set(range(5))


def test_dead_worker_raises_an_error(packer: Packer, sampler: PairSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(index: int) -> SubjectBatch:
        if index:
            raise SystemExit(1)
        return sampler(index)

    monkeypatch.setattr(pools, "PATIENCE", 0.05)
    new_feeder = Feeder(broken, packer, workers=1, slots=2)
    try:
        with pytest.raises(BlipDiffusionError, match="worker process"):
            new_feeder.fill(Pool(16, CPU), 16)
    finally:
        new_feeder.close()


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs /proc")
def test_workers_end_with_a_killed_process(
    packer: Packer, sampler: PairSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "PATIENCE", 0.05)
    reader, writer = os.pipe()
    if not (child := os.fork()):
        started = Feeder(sampler, packer, workers=1, slots=1)
        os.write(writer, str(started._workers[0].pid).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    worker = int(os.read(reader, 20))
    os.waitpid(child, 0)
    deadline = time.monotonic() + 30
    while _is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(worker)


def _is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_shared_memory_leaves_no_file(tmp_path: Path) -> None:
    shared = pools._shared((2, 3), torch.int32)
    shared[1] = 7
    assert shared.sum() == 21 and not list(tmp_path.iterdir())
