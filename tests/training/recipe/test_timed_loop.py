from pathlib import Path

import pytest
import torch
from torch import nn

from blip_diffusion.errors import CheckpointError
from blip_diffusion.training.objective import Losses, Objective, ParameterGroup, StepContext
from blip_diffusion.training.optim import OptimConfig, learning_rate_by_time
from blip_diffusion.training.recipe.config import PhaseConfig
from blip_diffusion.training.recipe.packing import Rows
from blip_diffusion.training.recipe.timed_loop import PhaseLoop, Settings, claimed
from blip_diffusion.training.run import DivergedError

SETTINGS = Settings(torch.device("cpu"), log_every=10)


class Regression(Objective):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)

    def forward(self, rows: Rows, context: StepContext) -> Losses:
        return {"loss": (self.layer(rows["x"]) - rows["x"].sum(1, keepdim=True)).square().mean()}

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup("layer", list(self.layer.parameters()), 1.0)]


def rows(_elapsed: float, rng: torch.Generator) -> Rows:
    return {"x": torch.randn(8, 3, generator=rng)}


def loop(folder: Path, lr: float = 0.02) -> PhaseLoop:
    return PhaseLoop(Regression(), rows, PhaseConfig(OptimConfig(lr=lr), 0.9), SETTINGS, folder)


@torch.no_grad()
def error(training_loop: PhaseLoop) -> float:
    return float(
        training_loop.objective(rows(0.0, torch.Generator().manual_seed(9)), StepContext(0, training_loop.rng))["loss"]
    )


def test_loop_trains_until_the_time_limit(tmp_path: Path) -> None:
    training_loop = loop(tmp_path)
    before = error(training_loop)
    state = training_loop.run(0.5)
    assert 0.5 <= state.seconds < 2 and state.samples == 8 * state.step and error(training_loop) < 0.1 * before
    assert (tmp_path / "log.jsonl").read_text().count("\n") == state.step // 10


def test_loop_resumes_where_it_stopped(tmp_path: Path) -> None:
    first = loop(tmp_path)
    first.run(0.2)
    second = loop(tmp_path)
    second.resume()
    assert second.state.step == first.state.step and error(second) == error(first)
    assert all(torch.equal(a, b) for a, b in zip(first.ema.state_dict().values(), second.ema.state_dict().values(),
                                                 strict=True))  # fmt: skip
    steps = second.state.step
    assert second.run(0.2).step == steps  # the time is over
    assert second.run(0.4).step > steps
    with pytest.raises(CheckpointError, match="--resume"), claimed(tmp_path.parent, resume=False):
        pass


def test_resuming_without_a_checkpoint_warns(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="holds no checkpoint: the run starts"), claimed(tmp_path, resume=True):
        pass


def test_divergence_stops_the_loop(tmp_path: Path) -> None:
    training_loop = loop(tmp_path)
    training_loop.next_rows = lambda *_: {"x": torch.full((8, 3), torch.nan)}
    with pytest.raises(DivergedError, match="The loss is nan"):
        training_loop.run(5)


def test_step_with_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    training_loop = loop(tmp_path)
    clean = training_loop.next_rows
    seen = []

    def sometimes_nan(elapsed: float, rng: torch.Generator) -> Rows:
        seen.append(training_loop.objective.layer.weight.detach().clone())  # type: ignore[union-attr,operator]
        values = clean(elapsed, rng)
        return values if len(seen) != 4 else {"x": torch.full_like(values["x"], torch.nan)}

    training_loop.next_rows = sometimes_nan
    training_loop.run(0.2)
    assert torch.equal(seen[3], seen[4]) and not torch.equal(seen[4], seen[5])
    assert all(weight.isfinite().all() for weight in seen)


def test_learning_rate_depends_on_elapsed_time() -> None:
    config = OptimConfig(lr=1.0, warmup=10, schedule="cosine", stable_fraction=0.5, min_lr_ratio=0.1)
    rates = [
        learning_rate_by_time(step, elapsed, config) for step, elapsed in ((4, 0.0), (99, 0.5), (99, 0.75), (99, 1))
    ]
    assert rates == pytest.approx([0.5, 1.0, 0.55, 0.1])
