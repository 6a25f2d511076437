from collections.abc import Callable

import pytest
import torch
from torch import nn

from blip_diffusion.training.objective import Losses
from blip_diffusion.training.recipe.cuda_graph import (
    GraphMismatchError,
    check_close,
    eager_step,
    make_step,
)
from blip_diffusion.training.recipe.packing import Rows


def regression(device: str) -> tuple[nn.Linear, Rows]:
    torch.manual_seed(0)
    return nn.Linear(3, 1).to(device), {"x": torch.randn(8, 3, device=device)}


def loss_of(layer: nn.Linear) -> Callable[[Rows], Losses]:
    return lambda rows: {"loss": (layer(rows["x"]) - rows["x"].sum(1, keepdim=True)).square().mean()}


def test_cpu_step_is_eager() -> None:
    layer, rows = regression("cpu")
    step = make_step(loss_of(layer), list(layer.parameters()), rows, graph=True)
    first, again = step(rows), step(rows)
    assert float(first["loss"]) == float(again["loss"]) and not first["loss"].requires_grad
    gradient = layer.weight.grad
    step(rows)
    assert gradient is not None and torch.equal(gradient, layer.weight.grad)  # type: ignore[arg-type]  # not summed up


@pytest.mark.parametrize(
    ("losses", "norm", "message"), [({"loss": 1.1}, 2.0, "loss is 1.1"), ({"loss": 1.0}, 3.0, "gradient norm is 3")]
)
def test_graph_with_other_results_is_refused(losses: dict[str, float], norm: float, message: str) -> None:
    check_close(({"loss": 1.001}, 2.01), ({"loss": 1.0}, 2.0))
    with pytest.raises(GraphMismatchError, match=message):
        check_close((losses, norm), ({"loss": 1.0}, 2.0))


def test_nan_result_is_refused() -> None:
    with pytest.raises(GraphMismatchError):
        check_close(({"loss": float("nan")}, 1.0), ({"loss": 1.0}, 1.0))


@pytest.mark.gpu
def test_graph_equals_the_eager_step() -> None:
    layer, rows = regression("cuda")
    parameters = list(layer.parameters())
    graph = make_step(loss_of(layer), parameters, rows, graph=True)
    other = {"x": torch.randn(8, 3, device="cuda")}
    result = float(graph(other)["loss"])
    assert result == pytest.approx(float(eager_step(loss_of(layer), parameters)(other)["loss"]), rel=1e-2)


@pytest.mark.gpu
def test_compiled_graph_equals_the_eager_step() -> None:
    layer, rows = regression("cuda")
    parameters = list(layer.parameters())
    graph = make_step(loss_of(layer), parameters, rows, graph=True, compiled=True)
    other = {"x": torch.randn(8, 3, device="cuda")}
    result = float(graph(other)["loss"])
    assert result == pytest.approx(float(eager_step(loss_of(layer), parameters)(other)["loss"]), rel=1e-2)


@pytest.mark.gpu
def test_uncapturable_step_runs_eagerly() -> None:
    layer, rows = regression("cuda")

    def reads_the_device(rows: Rows) -> Losses:
        loss = layer(rows["x"]).square().mean()
        return {"loss": loss * float(loss.detach() > -1)}

    with pytest.warns(UserWarning, match="without CUDA graphs"):
        step = make_step(reads_the_device, list(layer.parameters()), rows, graph=True)
    assert torch.isfinite(step(rows)["loss"])
