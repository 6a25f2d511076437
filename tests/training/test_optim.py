from typing import Any

import pytest
import torch
from torch import nn

from blip_diffusion.errors import ConfigError
from blip_diffusion.training.objective import ParameterGroup
from blip_diffusion.training.optim import (
    OptimConfig,
    adamw,
    learning_rate,
    load_optimizer_state,
    optimizer_state_by_name,
    set_learning_rate,
    set_trainable,
)


def test_schedule_is_constant_after_linear_warmup() -> None:
    config = OptimConfig(lr=1.0, warmup=4)
    assert [learning_rate(step, config, 100) for step in (0, 1, 3, 4, 50, 99)] == [0.25, 0.5, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.1),
        (9, 1.0),
        (10, 1.0),
        (50, 1.0),
        (75, 0.6),
        (100, 0.2),
        (1000, 0.2),
        (62.5, 0.2 + 0.8 * 0.8535533905932737),
    ],
)
def test_cosine_schedule_at_known_points(step: int, rate: float) -> None:
    config = OptimConfig(lr=1.0, warmup=10, schedule="cosine", stable_fraction=0.5, min_lr_ratio=0.2)
    assert learning_rate(step, config, 100) == pytest.approx(rate, abs=1e-12)


def test_cosine_schedule_starts_after_warmup() -> None:
    config = OptimConfig(lr=1.0, warmup=20, schedule="cosine")
    assert learning_rate(20, config, 100) == 1.0
    assert learning_rate(60, config, 100) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"lr": 0.0}, "lr must be positive and finite, not 0.0."),
        ({"lr": float("nan")}, "lr must be positive and finite, not nan."),
        ({"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\), not \(0.9, 1.0\)."),
        ({"warmup": -1}, "warmup must be finite and not negative, not -1."),
        ({"stable_fraction": 1.0}, "stable_fraction is a fraction"),
        ({"min_lr_ratio": 1.5}, "min_lr_ratio is a fraction"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        OptimConfig(**values)


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1).bfloat16(), nn.Linear(1, 1).bfloat16())


def test_only_parameter_groups_are_trained_in_float32() -> None:
    net = model()
    trainable = set_trainable(net, [ParameterGroup("head", list(net[2].parameters()), 1.0)])
    assert list(trainable) == ["2.weight", "2.bias"]
    assert net[2].weight.dtype == torch.float32 and net[3].weight.dtype == torch.bfloat16
    assert [name for name, value in net.named_parameters() if value.requires_grad] == ["2.weight", "2.bias"]


def test_groups_must_name_registered_parameters_once() -> None:
    net = model()
    group = ParameterGroup("head", [net[0].weight], 1.0)
    with pytest.raises(ValueError, match="twice"):
        set_trainable(net, [group, group])
    with pytest.raises(ValueError, match="names 2 parameters, of which the module has 1"):
        set_trainable(net, [group, ParameterGroup("stray", [nn.Parameter(torch.zeros(1))], 1.0)])
    with pytest.raises(ValueError, match="nothing to train"):
        set_trainable(net, [])


def test_lr_scales_multiply_and_vectors_have_no_weight_decay() -> None:
    net = model()
    groups = [
        ParameterGroup("linear", list(net[0].parameters()), 2.0),
        ParameterGroup("norm", list(net[1].parameters()), 0.5, weight_decay=0.3),
        ParameterGroup("head", [net[2].weight], 1.0, weight_decay=0.0),
    ]
    optimizer = adamw(groups, OptimConfig(weight_decay=0.1))
    set_learning_rate(optimizer, 0.01)
    result = {
        id(value): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for value in group["params"]
    }
    assert result[id(net[0].weight)] == (0.02, 0.1)
    assert result[id(net[0].bias)] == (0.02, 0.0)
    assert result[id(net[1].weight)] == (0.005, 0.0)
    assert result[id(net[2].weight)] == (0.01, 0.0)


def test_moments_are_restored_by_parameter_name() -> None:
    def build(order: list[int]) -> tuple[nn.Sequential, torch.optim.AdamW, dict[str, nn.Parameter]]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        groups = [ParameterGroup(str(n), list(net[n].parameters()), 1.0) for n in order]
        return net, adamw(groups, OptimConfig(lr=0.1)), set_trainable(net, groups)

    first, optimizer, trainable = build([0, 1])
    first(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    saved = optimizer_state_by_name(optimizer, trainable)
    assert set(saved) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    _, other, again = build([1, 0])
    load_optimizer_state(other, again, saved)
    for name, value in again.items():
        assert torch.equal(other.state[value]["exp_avg"], saved[name]["exp_avg"])
    assert other.param_groups[0]["lr"] == 0.1
