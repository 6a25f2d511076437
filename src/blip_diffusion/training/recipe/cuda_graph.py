"""Forward and backward pass of a loss, eager or as a CUDA graph, compiled or not, checked against the eager one."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from blip_diffusion.control_characters import print_text
from blip_diffusion.devices import fastest_dtype
from blip_diffusion.errors import BlipDiffusionError
from blip_diffusion.escaping import warn
from blip_diffusion.training.objective import Losses
from blip_diffusion.training.recipe.packing import Rows

Loss = Callable[[Rows], Losses]
Step = Callable[[Rows], Losses]
"""Writes the gradients of `loss` to the parameters and returns the losses, detached."""

WARMUP = 3  # eager passes on the side stream before the capture
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 0.02, 0.1  # relative; sums in bfloat16 depend on their order


class GraphMismatchError(BlipDiffusionError):
    """A captured graph whose results differ from the eager step's."""


def make_step(
    loss: Loss, parameters: Sequence[nn.Parameter], example: Rows, *, graph: bool, compiled: bool = False
) -> Step:
    """Return the step of a loss: a CUDA graph if requested and possible, else the eager step.

    Args:
        loss: Computes the losses of rows. For a graph it must not sample random numbers or synchronise with the device.
        parameters: The trainable parameters.
        example: Rows with the shapes of all later rows.
        graph: Whether to capture a graph; it needs a CUDA device.
        compiled: Whether to try the kernels of `torch.compile`. The faster of the two graphs is used.
    """
    if not graph or parameters[0].device.type != "cuda":
        return eager_step(loss, parameters)
    step = _graphed_or_none(loss, parameters, example)
    if step is None or not compiled:
        return step or eager_step(loss, parameters)
    plain, step = seconds_of(step, example), None  # frees the graph's memory
    step = _graphed_or_none(loss, parameters, example, compiled=True)
    if step is None or (seconds := seconds_of(step, example)) >= plain:
        return _graphed_or_none(loss, parameters, example) or eager_step(loss, parameters)
    print_text(f"torch.compile: {1000 * seconds:.1f} ms per step instead of {1000 * plain:.1f} ms")
    return step


def _graphed_or_none(
    loss: Loss, parameters: Sequence[nn.Parameter], example: Rows, *, compiled: bool = False
) -> Step | None:
    """Return `graphed_step`; on failure warn, and return `None`."""
    try:
        return graphed_step(loss, parameters, example, compiled=compiled)
    except (RuntimeError, GraphMismatchError) as error:
        torch.cuda.synchronize()
        missing = "torch.compile" if compiled else "CUDA graphs"
        warn(f"Training continues without {missing}: {str(error).splitlines()[0]}", stacklevel=3)
        return None


def seconds_of(step: Step, rows: Rows, *, repeats: int = 10) -> float:
    """Return the seconds that a step takes on a GPU: the mean of some repetitions."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        step(rows)
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def eager_step(loss: Loss, parameters: Sequence[nn.Parameter]) -> Step:
    """Return a step that runs operation by operation."""

    def step(rows: Rows) -> Losses:
        _clear(parameters)
        with autocast(parameters[0].device):
            losses = loss(rows)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        return _detached(losses)

    return step


def graphed_step(loss: Loss, parameters: Sequence[nn.Parameter], example: Rows, *, compiled: bool = False) -> Step:
    """Return a step that replays a captured graph. Raises `GraphMismatchError` if it differs from the eager step."""
    static = {name: value.clone() for name, value in example.items()}
    expected = _numbers(eager_step(loss, parameters)(static)), _norm(parameters)
    graph = torch.cuda.CUDAGraph()
    losses = _captured(graph, torch.compile(loss, dynamic=False) if compiled else loss, parameters, static)

    def step(rows: Rows) -> Losses:
        for name, value in rows.items():
            static[name].copy_(value)
        graph.replay()
        return losses

    check_close((_numbers(step(static)), _norm(parameters)), expected)
    return step


def check_close(result: tuple[dict[str, float], float], expected: tuple[dict[str, float], float]) -> None:
    """Raise `GraphMismatchError` unless losses and gradient norms agree.

    Args:
        result: Losses by name and the norm of the gradients, from the graph.
        expected: The same from the eager step.
    """
    for name, value in expected[0].items():
        if not abs(result[0][name] - value) <= LOSS_TOLERANCE * abs(value) + 1e-6:
            raise GraphMismatchError(f"The CUDA graph's {name} is {result[0][name]:.5g} instead of {value:.5g}.")
    if not abs(result[1] - expected[1]) <= GRADIENT_TOLERANCE * expected[1]:
        raise GraphMismatchError(f"The CUDA graph's gradient norm is {result[1]:.5g} instead of {expected[1]:.5g}.")


def _captured(graph: torch.cuda.CUDAGraph, loss: Loss, parameters: Sequence[nn.Parameter], static: Rows) -> Losses:
    """Capture forward and backward pass; the gradients live in the graph's memory from then on."""

    def forward_backward() -> Losses:
        with autocast(parameters[0].device, cache=False):
            losses = loss(static)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        return _detached(losses)

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            _clear(parameters)
            forward_backward()
    torch.cuda.current_stream().wait_stream(stream)
    _clear(parameters)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        return forward_backward()


def autocast(device: torch.device, *, cache: bool = True) -> AbstractContextManager[None]:
    """Return a context that computes in bfloat16 on devices for which that is the fastest type."""
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
