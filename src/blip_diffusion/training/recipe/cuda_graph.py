"""Forward and backward pass of a loss, eager or as one CUDA graph that is checked against the eager one."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from blip_diffusion.devices import fastest_dtype
from blip_diffusion.errors import BlipDiffusionError
from blip_diffusion.training.objective import Losses
from blip_diffusion.training.recipe.packing import Rows

Loss = Callable[[Rows], Losses]
Step = Callable[[Rows], Losses]
"""Leaves the gradients of `loss` in the parameters and returns the losses, detached."""

WARMUP = 3  # eager passes on the side stream before the capture
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 0.02, 0.1  # relative; bfloat16 sums in another order


class GraphMismatchError(BlipDiffusionError):
    """A captured graph computes something else than the eager step."""


def make_step(loss: Loss, parameters: Sequence[nn.Parameter], example: Rows, *, graph: bool) -> Step:
    """Return the step of a loss: a CUDA graph where that is asked for and possible, else the eager one.

    Args:
        loss: The losses of some rows. For a graph it may neither draw random numbers nor read the device.
        parameters: What gets gradients.
        example: Rows of the shapes that all later rows have.
        graph: Whether to capture a graph; it needs a CUDA device.
    """
    device = parameters[0].device
    if not graph or device.type != "cuda":
        return eager_step(loss, parameters)
    try:
        return graphed_step(loss, parameters, example)
    except (RuntimeError, GraphMismatchError) as error:
        torch.cuda.synchronize()
        warnings.warn(f"Training goes on without CUDA graphs: {str(error).splitlines()[0]}", stacklevel=2)
        return eager_step(loss, parameters)


def eager_step(loss: Loss, parameters: Sequence[nn.Parameter]) -> Step:
    """Return a step that runs operation by operation."""

    def step(rows: Rows) -> Losses:
        _clear(parameters)
        with autocast(parameters[0].device):
            losses = loss(rows)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        return _detached(losses)

    return step


def graphed_step(loss: Loss, parameters: Sequence[nn.Parameter], example: Rows) -> Step:
    """Return a step that replays a captured graph. Raises `GraphMismatchError` where it differs from the eager step."""
    static = {name: value.clone() for name, value in example.items()}
    expected = _numbers(eager_step(loss, parameters)(static)), _norm(parameters)
    graph = torch.cuda.CUDAGraph()
    losses = _captured(graph, loss, parameters, static)

    def step(rows: Rows) -> Losses:
        for name, value in rows.items():
            static[name].copy_(value)
        graph.replay()
        return losses

    check_close((_numbers(step(static)), _norm(parameters)), expected)
    return step


def check_close(found: tuple[dict[str, float], float], expected: tuple[dict[str, float], float]) -> None:
    """Raise `GraphMismatchError` unless losses and gradient norms agree.

    Args:
        found: Losses by name and the norm of the gradients, from the graph.
        expected: The same from the eager step.
    """
    for name, value in expected[0].items():
        if not abs(found[0][name] - value) <= LOSS_TOLERANCE * abs(value) + 1e-6:
            raise GraphMismatchError(f"The CUDA graph's {name} is {found[0][name]:.5g} instead of {value:.5g}.")
    if not abs(found[1] - expected[1]) <= GRADIENT_TOLERANCE * expected[1]:
        raise GraphMismatchError(f"The CUDA graph's gradient norm is {found[1]:.5g} instead of {expected[1]:.5g}.")


def _captured(graph: torch.cuda.CUDAGraph, loss: Loss, parameters: Sequence[nn.Parameter], static: Rows) -> Losses:
    """Capture forward and backward pass; the gradients live in the graph's memory from then on."""

    def both() -> Losses:
        with autocast(parameters[0].device, cache=False), HalfNorms():
            losses = loss(static)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        return _detached(losses)

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            _clear(parameters)
            both()
    torch.cuda.current_stream().wait_stream(stream)
    _clear(parameters)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        return both()


class HalfNorms(TorchFunctionMode):
    """Compute normalizations in the type of their input, where autocast would take float32.

    The kernels sum in float32 all the same. What is saved is reading and writing: the U-Net's activations stay in
    bfloat16 from one convolution to the next.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (F.group_norm, F.layer_norm) or args[0].dtype != torch.bfloat16:
            return func(*args, **(kwargs or {}))
        values = [value.to(torch.bfloat16) if isinstance(value, Tensor) else value for value in args]
        with torch.autocast(args[0].device.type, enabled=False):
            return func(*values, **(kwargs or {}))


def autocast(device: torch.device, *, cache: bool = True) -> AbstractContextManager[None]:
    """bfloat16 where the device computes fastest in it."""
    if fastest_dtype(device) != torch.bfloat16:
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=cache)


def _clear(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _detached(losses: Losses) -> Losses:
    return {name: value.detach() for name, value in losses.items()}


def _numbers(losses: Losses) -> dict[str, float]:
    return {name: float(value) for name, value in losses.items()}


def _norm(parameters: Sequence[nn.Parameter]) -> float:
    gradients: list[Tensor] = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return float(torch.stack([gradient.float().norm() for gradient in gradients]).norm())
