from collections.abc import Callable

import pytest
import torch
from torch import nn

from blip_diffusion.training.objective import Losses
from blip_diffusion.training.recipe.cuda_graph import (
    GraphMismatchError,
    HalfNorms,
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


def test_on_a_cpu_the_step_is_eager() -> None:
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
def test_a_graph_that_differs_is_refused(losses: dict[str, float], norm: float, message: str) -> None:
    check_close(({"loss": 1.001}, 2.01), ({"loss": 1.0}, 2.0))
    with pytest.raises(GraphMismatchError, match=message):
        check_close((losses, norm), ({"loss": 1.0}, 2.0))


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(GraphMismatchError):
        check_close(({"loss": float("nan")}, 1.0), ({"loss": 1.0}, 1.0))


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.GroupNorm(2, 8)])
def test_norms_stay_in_the_type_of_their_input(norm: nn.Module) -> None:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    with HalfNorms():
        half, whole = norm(x.bfloat16()), norm(x)
    assert half.dtype == torch.bfloat16 and whole.dtype == torch.float32
    torch.testing.assert_close(half.float(), whole, atol=0.02, rtol=0.02)
    half.float().square().sum().backward()
    assert norm.weight.grad is not None and norm.weight.grad.dtype == torch.float32


@pytest.mark.gpu
def test_a_graph_computes_what_the_eager_step_does() -> None:
    layer, rows = regression("cuda")
    parameters = list(layer.parameters())
    graph = make_step(loss_of(layer), parameters, rows, graph=True)
    other = {"x": torch.randn(8, 3, device="cuda")}
    found = float(graph(other)["loss"])
    assert found == pytest.approx(float(eager_step(loss_of(layer), parameters)(other)["loss"]), rel=1e-2)


@pytest.mark.gpu
def test_what_cannot_be_captured_runs_eagerly() -> None:
    layer, rows = regression("cuda")

    def reads_the_device(rows: Rows) -> Losses:
        loss = layer(rows["x"]).square().mean()
        return {"loss": loss * float(loss.detach() > -1)}

    with pytest.warns(UserWarning, match="without CUDA graphs"):
        step = make_step(reads_the_device, list(layer.parameters()), rows, graph=True)
    assert torch.isfinite(step(rows)["loss"])
