"""One optimizer step: gradients of the micro-batches, flags shared by all processes, the update, the average."""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from torch import Tensor

from blip_diffusion.training import checkpointing
from blip_diffusion.training.objective import Losses, StepContext
from blip_diffusion.training.optim import learning_rate, set_learning_rate
from blip_diffusion.training.prefetch import size_of, to_device
from blip_diffusion.training.run import DivergedError, Run, in_time, result_of


def train_step(run: Run, *, stop: Callable[[], bool]) -> None:
    """Take one optimizer step: the shared context, gradients of all micro-batches, clipping, the update, the average.

    Args:
        run: The run; its state advances by one step.
        stop: Returns whether a signal has arrived.

    Raises:
        DivergedError: If a loss or the gradient is not finite; the weights are unchanged.
    """
    began = time.monotonic()
    batches, contexts = _micro_batches(run)
    shared = _gather_step_context(run, batches, contexts)
    losses = [
        _backward(run, batch, replace(context, shared=shared)) for batch, context in zip(batches, contexts, strict=True)
    ]
    norm = run.accelerator.clip_grad_norm_(run.trainable.values(), run.config.optim.clip or math.inf)
    _sync_stop_flags(run, losses, norm, stop=stop())
    set_learning_rate(run.optimizer, learning_rate(run.state.step, run.config.optim, run.config.steps))
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.ema.update(run.state.step)
    _count(run, [*losses, {"gradient_norm": norm}], sum(size_of(batch) for batch in batches), time.monotonic() - began)


def _micro_batches(run: Run) -> tuple[list[Any], list[StepContext]]:
    """Return this process's batches of the step, on the device, and their contexts."""
    accelerator, step = run.accelerator, run.state.step
    batches, contexts = [], []
    for a in range(run.config.gradient_accumulation_steps):
        number = step * run.config.gradient_accumulation_steps + a
        position = a * accelerator.num_processes + accelerator.process_index
        rng = torch.Generator(accelerator.device).manual_seed(_seed(run, "context", run.batches.index(number)))
        contexts.append(StepContext(step=step, rng=rng, position=position))
        batches.append(to_device(run.batches(number), accelerator.device))
    return batches, contexts


def _gather_step_context(run: Run, batches: Sequence[Any], contexts: Sequence[StepContext]) -> Any:
    """Compute the shared context of the micro-batches; the global generator has the same seed on every process."""

    def gather(tensor: Tensor) -> Tensor:
        return gather_in_order(run.accelerator, tensor, run.config.gradient_accumulation_steps)

    torch.manual_seed(_seed(run, "share", run.state.step))
    with torch.no_grad(), run.accelerator.autocast():
        return run.objective.gather_step_context(batches, contexts, gather)


def gather_in_order(accelerator: Accelerator, tensor: Tensor, gradient_accumulation_steps: int) -> Tensor:
    """Gather (A * n, ...) of every process to (A * processes * n, ...), ordered by `StepContext.position`.

    The order is by micro-batch first and by process second, so that it does not matter how the positions of a step
    are divided between accumulation and processes.
    """
    if len(tensor) % gradient_accumulation_steps:
        raise ValueError(
            f"{len(tensor)} rows can't be divided equally among {gradient_accumulation_steps} micro-batches"
        )
    if accelerator.num_processes == 1:
        return tensor.detach()
    by_rank: Tensor = accelerator.gather(tensor.detach().contiguous())
    shape = (
        accelerator.num_processes,
        gradient_accumulation_steps,
        len(tensor) // gradient_accumulation_steps,
        *tensor.shape[1:],
    )
    return by_rank.reshape(shape).transpose(0, 1).flatten(0, 2)


def _backward(run: Run, batch: Any, context: StepContext) -> Losses:
    """Add a micro-batch's gradient, synchronized at the last one; return its losses, detached."""
    torch.manual_seed(_seed(run, "global", run.batches.index_at(context.step, context.position)))
    last = context.position >= (run.config.gradient_accumulation_steps - 1) * run.accelerator.num_processes
    with nullcontext() if last else run.accelerator.no_sync(run.model):
        losses: Losses = run.model(batch, context)
        run.accelerator.backward(losses["loss"] / run.config.gradient_accumulation_steps)
    return {name: value.detach() for name, value in losses.items()}


def _sync_stop_flags(run: Run, losses: Sequence[Losses], norm: Tensor, *, stop: bool) -> None:
    """Share flags of any process with all of them: losses that are not finite, the end of the time, signals.

    This synchronises with the device once per step, when the step is queued and the next batch is being prepared.
    """
    finite = torch.stack([loss["loss"].float() for loss in losses]).isfinite().all()
    scaler = run.accelerator.scaler
    if scaler is None or scaler.get_scale() <= 1:  # above, GradScaler handles gradients that overflow
        finite = finite & norm.isfinite()
    requests = torch.tensor([stop, not in_time(run), _save_time(run)], device=norm.device)
    flags = torch.cat([~finite[None], requests]).float()
    diverged, stop, late, save = (run.accelerator.reduce(flags, "sum") > 0).tolist()
    if diverged:
        raise _diverged(run, losses, norm)
    last = run.state.step + 1 == run.config.steps
    run.stopped = "signal" if stop else "minutes" if late and not last else ""
    run.save_due = save


def _diverged(run: Run, losses: Sequence[Losses], norm: Tensor) -> DivergedError:
    values = gather_object([f"{name} {value.item():.4g}" for one in losses for name, value in one.items()])
    last = f"the last checkpoint is {checkpointing.name(run.saved)}" if run.saved >= 0 else "there is no checkpoint yet"
    return DivergedError(
        f"Step {run.state.step} was not taken because its loss or gradient is not finite: {', '.join(values)}, "
        f"gradient norm {norm.item():.4g}; {last}; lower the learning rate, or check the batch.",
        result_of(run, "diverged"),
    )


def _save_time(run: Run) -> bool:
    every = run.config.save_minutes
    return every is not None and time.monotonic() - run.clock.last_save > 60 * every


def _count(run: Run, losses: Sequence[Losses], samples: int, seconds: float) -> None:
    for one in losses:
        for name, value in one.items():
            total, count = run.window.get(name, (0.0, 0))
            run.window[name] = (total + value.detach().float(), count + 1)
    run.state.step += 1
    run.state.samples += samples * run.accelerator.num_processes
    run.state.seconds += seconds
    run.clock.step = max(seconds, run.clock.step / 2)  # the first steps are slow, so their time decays


def _seed(run: Run, purpose: str, index: int) -> int:
    """Return a seed for one purpose, so that dropout and noise are independent."""
    digest = hashlib.blake2b(f"{run.config.seed} {purpose} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
