"""Helpers of the tests of objectives: overfitting one batch, and gradients."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from blip_diffusion.training.objective import Objective, StepContext
from blip_diffusion.training.optim import set_trainable


def context(step: int = 0, seed: int = 0, **more: Any) -> StepContext:
    return StepContext(step=step, rng=torch.Generator().manual_seed(seed), **more)


def overfit(make_objective: Any, batch: Any, *, steps: int, lr: float) -> tuple[float, float]:
    """The loss on one batch under the same noise, before and after."""
    assert isinstance(make_objective, Objective)
    make_objective.train()
    trainable = set_trainable(make_objective, make_objective.parameter_groups())
    optimizer = torch.optim.AdamW(trainable.values(), lr)
    losses = []
    for step in range(steps):
        loss = make_objective(batch, context(step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def with_gradient(parameters: Iterable[nn.Parameter]) -> list[bool]:
    return [parameter.grad is not None and bool(parameter.grad.abs().sum() > 0) for parameter in parameters]


def ids(parameters: Iterable[nn.Parameter]) -> set[int]:
    return {id(parameter) for parameter in parameters}


def moved_parameters(make_objective: Objective) -> set[int]:
    """Of all groups; none may be in two."""
    groups = [parameter for group in make_objective.parameter_groups() for parameter in group.parameters]
    assert len(ids(groups)) == len(groups)
    return ids(groups)
