"""Evaluation during training: logged scores, from the same noise at every step, without an effect on the run."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from blip_diffusion import config as configuration
from blip_diffusion.data.benchmarks.minibench import build_bench
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.errors import ConfigError, DataError
from blip_diffusion.evaluation.callback import EvalCallback
from blip_diffusion.evaluation.generators.conditions import ConditionRunner
from blip_diffusion.training.pretrain import run
from blip_diffusion.training.run_config import RunConfig

CONFIG = Path(__file__).parents[2] / "configs" / "debug" / "subject.toml"


@pytest.fixture(scope="module")
def world_path(bench_folder: Path) -> Path:
    build_bench(AssetLibrary.load(bench_folder / "world.zip"), bench_folder / "bench")
    return bench_folder / "world.zip"


def overrides(world: Path, start: Path) -> list[str]:
    options = [f"data.path={world}", f"model.init_from={json.dumps([str(start)])}", "train.device=cpu"]
    return [*options, "train.steps=2", "train.sample_every=1", "train.log_every=1"]


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_callback_logs_scores_without_changing_the_run(
    world_path: Path, tiny_folder: Path, tiny_dino: Path, tmp_path: Path
) -> None:
    options = overrides(world_path, tiny_folder)
    score = functools.partial(EvalCallback, metrics=(f"dino={tiny_dino}",))
    run(CONFIG, tmp_path / "with", overrides=options, extra_hooks=[score])
    run(CONFIG, tmp_path / "without", overrides=options)
    scored = [line for line in log(tmp_path / "with") if "eval/DINO cosine_similarity" in line]
    assert [line["step"] for line in scored] == [1, 2]
    assert all("eval/DINO fidelity" in line for line in scored)
    losses = [[line["loss"] for line in log(tmp_path / name) if "loss" in line] for name in ("with", "without")]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    folders = sorted(path.name for path in (tmp_path / "with" / "eval").iterdir())
    assert folders == ["00000001", "00000002", "curve.png", "fixed"]
    with Image.open(tmp_path / "with" / "eval" / "curve.png") as curve:
        assert curve.size[0] > 400


def test_scores_of_a_bf16_run_are_computed_in_float32(
    world_path: Path, tiny_folder: Path, tiny_dino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `evaluate` computes them."""
    computed_in: list[torch.dtype] = []
    run_conditions = ConditionRunner.run

    def watched(*given: Any, **named: Any) -> Any:
        computed_in.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return run_conditions(*given, **named)

    monkeypatch.setattr(ConditionRunner, "run", watched)
    options = [*overrides(world_path, tiny_folder), "train.mixed_precision=bf16", "train.steps=1"]
    score = functools.partial(EvalCallback, metrics=(f"dino={tiny_dino}",))
    run(CONFIG, tmp_path, overrides=options, extra_hooks=[score])
    assert computed_in and set(computed_in) == {torch.float32}


def config(world: Path, *further: str) -> RunConfig:
    raw = configuration.read(CONFIG, [f"data.path={world}", *further])
    return configuration.build(RunConfig, raw)


def test_unscorable_runs_are_refused_at_the_start(
    world_path: Path, world: AssetLibrary, tiny_dino: Path, tmp_path: Path
) -> None:
    score = functools.partial(EvalCallback, metrics=(f"dino={tiny_dino}",))
    with pytest.raises(ConfigError, match="representation does not"):
        score(config(world_path, "objective=representation"), world)
    with pytest.raises(ConfigError, match=r"train\.sample_every"):
        score(config(world_path, "train.sample_every=0"), world)
    with pytest.raises(DataError, match="another dataset"):
        score(config(world_path), world)
    with pytest.raises(DataError, match=f"no MiniBench at .*: make it with .* --benchmark --out {tmp_path}`"):
        score(config(tmp_path / "world.zip"), world)
