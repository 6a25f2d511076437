"""The training loop: accumulate, clip, step, average, report, save, resume and stop, for any objective.

Everything a step does is a pure function of the configuration, the weights and the step's number: a micro-batch has an
index, and the index alone says what is in it and what chance does with it. So a checkpoint holds no data state, and a
resumed run equals an uninterrupted one.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.state import AcceleratorState  # type: ignore[import-untyped]
from accelerate.utils import DistributedDataParallelKwargs, gather_object  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from blip_diffusion.devices import device_of, fastest_dtype
from blip_diffusion.errors import BlipDiffusionError, CheckpointError, ConfigError
from blip_diffusion.training import checkpointing
from blip_diffusion.training.checkpointing import Checkpoint, State, Window
from blip_diffusion.training.config import TrainConfig
from blip_diffusion.training.ema import Ema
from blip_diffusion.training.metric_logger import MetricLogger
from blip_diffusion.training.objective import Losses, Objective, StepContext
from blip_diffusion.training.optim import (
    adamw,
    adamw_8bit,
    learning_rate,
    load_optimizer_state,
    optimizer_state_by_name,
    set_learning_rate,
    set_trainable,
)
from blip_diffusion.training.prefetch import Prefetcher, size_of, to_device
from blip_diffusion.training.signals import signals

PRECISIONS = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}
CHECKPOINTS, EXPORT = "checkpoints", "export"


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    step: int
    samples: int
    seconds: float
    """Spent in training steps, over all resumptions."""
    losses: dict[str, float]
    """The means last reported."""
    stopped: Literal["done", "minutes", "signal", "hook", "diverged"]
    """After a signal nothing is exported: who sends one is in a hurry."""


class DivergedError(BlipDiffusionError):
    """A loss, a gradient or a weight that is no longer a number; `result` is how far the run came."""

    def __init__(self, sentence: str, result: Result) -> None:
        super().__init__(sentence)
        self.result = result


@dataclass(frozen=True)
class HookContext:
    """What a hook gets: the objective in eval mode with the averaged weights in, without gradient."""

    step: int
    objective: Any
    metric_logger: MetricLogger
    ema: Ema
    """`with context.ema.swapped()` gives the raw weights back for a while."""
    seconds: float = 0.0
    """Spent in training steps so far."""


Hook = Callable[[HookContext], bool | None]
"""Called on the main process only, every `sample_every` steps where `minutes` leave time; its own is not counted.
`True` ends the run."""


def fit(
    objective: Objective,
    batches: Callable[[int], Any],
    config: TrainConfig,
    *,
    folder: Path,
    resume: bool | str | Path = False,
    hooks: Sequence[Hook] = (),
    config_text: str = "",
) -> Result:
    """Train an objective for `config.steps` optimizer steps and export its averaged weights to `folder/export`.

    Optimizer step s, micro-batch a of process r takes the batch of index
    (s * gradient_accumulation_steps + a) * processes + r. A checkpoint therefore holds no data state, and on a CPU a
    resumed run equals an uninterrupted one bit for bit.

    Args:
        objective: The module whose forward pass is the loss. It is put in training mode once; one that keeps a frozen
            part in eval mode overrides `train`.
        batches: A pure function of an index. It is called from a thread if `config.prefetch` is above 0.
        config: Duration, precision, reports, checkpoints and optimizer.
        folder: Where checkpoints, logs, samples and the export are written.
        resume: `True` or `"latest"` continues from the newest undamaged checkpoint in `folder`, or starts if there is
            none; a path continues from that checkpoint.
        hooks: Called every `config.sample_every` steps on the main process with the averaged weights.
        config_text: The TOML of the run, saved with each checkpoint.

    Returns:
        The step that was reached, the samples seen, the seconds spent and why the run stopped.

    Raises:
        ConfigError: If this machine lacks what the configuration asks for.
        CheckpointError: If `folder` holds a run and `resume` is false, or if a checkpoint cannot be loaded.
        DivergedError: If a loss, a gradient or a weight is not finite.

    Example:
        >>> fit(objective, sampler, TrainConfig(steps=1000), folder=Path("runs/mine"), resume="latest")
    """
    check_possible(config)
    with (
        _started(objective, batches, config, folder, config_text) as run,
        signals() as arrived,
        sdpa_backend(run.accelerator.device),
    ):
        _resume(run, resume)
        if run.saved > 0:
            _run_hooks(run, hooks)  # a signal may have come before they looked at this step
        while run.state.step < config.steps and not run.stopped:
            _step(run, stop=arrived.is_set)
            _report(run)
            _save_if_due(run)
            _run_hooks(run, hooks)
        return _finish(run)


# ---------------------------------------------------------------------------------------------------------- the run


@dataclass
class _Run:
    """A run's parts and where it stands."""

    objective: Objective
    model: nn.Module  # what accelerate wraps around it
    trainable: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    ema: Ema
    batches: Prefetcher
    accelerator: Accelerator
    config: TrainConfig
    folder: Path
    config_text: str
    clock: "Timing"
    metric_logger: MetricLogger | None = None  # on the main process
    state: State = field(default_factory=State)
    window: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    stopped: Literal["", "minutes", "signal", "hook"] = ""
    save_due: bool = False
    saved: int = -1  # the step of the last checkpoint

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS


@dataclass
class Timing:
    """Wall time: since the call and the last checkpoint, and what one step, one checkpoint and the hooks take."""

    start: float = field(default_factory=time.monotonic)
    last_save: float = field(default_factory=time.monotonic)
    step: float = 0.0
    save: float = 0.0
    hooks: float = 0.0
    reported: tuple[int, float] = (0, 0.0)  # samples and seconds at the last report


@contextmanager
def _started(
    objective: Objective, batches: Callable[[int], Any], config: TrainConfig, folder: Path, config_text: str
) -> Iterator[_Run]:
    """Set up the run, and clean up whatever happens."""
    clock = Timing()
    accelerator = _accelerator(config)
    objective = to_training_mode(objective, accelerator.device)
    groups = objective.parameter_groups()
    trainable = set_trainable(objective, groups)
    optimizer = adamw(groups, config.optim)
    model, prepared = accelerator.prepare(objective, optimizer)
    ahead = Prefetcher(
        batches,
        accelerator,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        steps=config.steps,
        depth=config.prefetch,
    )
    ema = Ema(trainable, config.ema_decay)
    run = _Run(objective, model, trainable, prepared, ema, ahead, accelerator, config, folder, config_text, clock)
    try:
        yield run
    finally:
        ahead.close()
        if run.metric_logger:
            run.metric_logger.close()
        for patched in ("forward", "_original_forward", "_is_accelerate_prepared"):
            vars(objective).pop(patched, None)  # accelerate's traces, by which a second run would go without autocast
        accelerator.free_memory()


def to_training_mode(objective: Objective, device: torch.device) -> Objective:
    """Move an objective to a device, in training mode, in the memory format that is fastest there.

    On an H100 the small autoencoder's step takes 42 ms in contiguous format and 51 ms in channels last: GroupNorm wants
    its channels together, and copies them otherwise. CPUs are faster in channels last.
    """
    objective = objective.to(device).train()
    if device.type == "cpu":
        objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # unknown to torch's stub
    return objective


def sdpa_backend(device: torch.device) -> AbstractContextManager[None]:
    """On a CPU the plain formula: the flash kernel's backward pass is 28 % of a U-Net's step on two Zen 4 cores."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def accelerate_precision(device: torch.device, config: TrainConfig) -> str:
    """Return accelerate's name of `mixed_precision` on a device."""
    return PRECISIONS[fastest_dtype(device)] if config.mixed_precision == "auto" else config.mixed_precision


def check_possible(config: TrainConfig) -> None:
    """Raise `ConfigError` for what this machine lacks."""
    if config.mixed_precision == "fp16" and (config.device == "cpu" or not torch.cuda.is_available()):
        raise ConfigError("mixed_precision fp16 needs a GPU; use auto, bf16 or no.")
    if config.optim.eight_bit:
        adamw_8bit()


def _accelerator(config: TrainConfig) -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)  # a second run in one process may choose otherwise
    unused = DistributedDataParallelKwargs(find_unused_parameters=config.ddp_find_unused_parameters)
    device = device_of(config.device)
    cpu = device.type == "cpu"  # said, or processes would not meet
    accelerator = Accelerator(cpu=cpu, mixed_precision=accelerate_precision(device, config), kwargs_handlers=[unused])
    accelerator.gradient_accumulation_steps = 1  # the division is ours, whatever the environment says
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    return accelerator


# ---------------------------------------------------------------------------------------------------------- a step


def _step(run: _Run, *, stop: Callable[[], bool]) -> None:
    """One optimizer step: gather the micro-batches, let them know each other, descend, average."""
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


def _micro_batches(run: _Run) -> tuple[list[Any], list[StepContext]]:
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


def _gather_step_context(run: _Run, batches: Sequence[Any], contexts: Sequence[StepContext]) -> Any:
    """Compute what the micro-batches share; the global generator is the same on every process."""

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
            f"{len(tensor)} rows can't be the same number from each of {gradient_accumulation_steps} micro-batches"
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


def _backward(run: _Run, batch: Any, context: StepContext) -> Losses:
    """Add a micro-batch's gradient, synchronized at the last one; return its losses, detached."""
    torch.manual_seed(_seed(run, "global", run.batches.index_at(context.step, context.position)))
    last = context.position >= (run.config.gradient_accumulation_steps - 1) * run.accelerator.num_processes
    with nullcontext() if last else run.accelerator.no_sync(run.model):
        losses: Losses = run.model(batch, context)
        run.accelerator.backward(losses["loss"] / run.config.gradient_accumulation_steps)
    return {name: value.detach() for name, value in losses.items()}


def _sync_stop_flags(run: _Run, losses: Sequence[Losses], norm: Tensor, *, stop: bool) -> None:
    """Every process learns what any of them sees: numbers that are none (before they can do harm), time, signals.

    This reads the device once a step, when the step's work is already queued and the next batch is being prepared.
    """
    finite = torch.stack([loss["loss"].float() for loss in losses]).isfinite().all()
    scaler = run.accelerator.scaler
    if scaler is None or scaler.get_scale() <= 1:  # above, a gradient too large is part of finding fp16's scale
        finite = finite & norm.isfinite()
    wishes = torch.tensor([stop, not _in_time(run), _save_time(run)], device=norm.device)
    flags = torch.cat([~finite[None], wishes]).float()
    bad, stop, late, save = (run.accelerator.reduce(flags, "sum") > 0).tolist()
    if bad:
        raise _diverged(run, losses, norm)
    last = run.state.step + 1 == run.config.steps
    run.stopped = "signal" if stop else "minutes" if late and not last else ""
    run.save_due = save


def _diverged(run: _Run, losses: Sequence[Losses], norm: Tensor) -> DivergedError:
    values = gather_object([f"{name} {value.item():.4g}" for one in losses for name, value in one.items()])
    last = f"the last checkpoint is {checkpointing.name(run.saved)}" if run.saved >= 0 else "there is no checkpoint yet"
    return DivergedError(
        f"Step {run.state.step} was not taken because its loss or gradient is not finite: {', '.join(values)}, "
        f"gradient norm {norm.item():.4g}; {last}; lower the learning rate, or look at the batch.",
        _result(run, "diverged"),
    )


def _in_time(run: _Run, seconds: float = 0.0) -> bool:
    """Whether there is time for something that takes so long, one more step after it, and a checkpoint."""
    if run.config.minutes is None:
        return True
    clock = run.clock
    return time.monotonic() - clock.start + seconds + clock.step + clock.save <= 60 * run.config.minutes


def _save_time(run: _Run) -> bool:
    every = run.config.save_minutes
    return every is not None and time.monotonic() - run.clock.last_save > 60 * every


def _count(run: _Run, losses: Sequence[Losses], samples: int, seconds: float) -> None:
    for one in losses:
        for name, value in one.items():
            total, count = run.window.get(name, (0.0, 0))
            run.window[name] = (total + value.detach().float(), count + 1)
    run.state.step += 1
    run.state.samples += samples * run.accelerator.num_processes
    run.state.seconds += seconds
    run.clock.step = max(seconds, run.clock.step / 2)  # the first steps are slow, and soon forgotten


def _seed(run: _Run, purpose: str, index: int) -> int:
    """Return the seed of one use of randomness, or dropout would follow the noise."""
    digest = hashlib.blake2b(f"{run.config.seed} {purpose} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


# ---------------------------------------------------------------------------------------------------------- reports


def _report(run: _Run) -> None:
    """Log the means since the last report over all processes, and at the end of what is left."""
    step, config = run.state.step, run.config
    if step % config.log_every and step != config.steps:
        return
    means = _means(_windows(run))
    run.window = {}
    run.state.losses = means
    run.state.best = min(means["loss"], math.inf if run.state.best is None else run.state.best)
    if run.metric_logger:
        run.metric_logger.log(step, {**means, **_progress(run)})
    run.clock.reported = (run.state.samples, run.state.seconds)


def _progress(run: _Run) -> dict[str, float]:
    samples, seconds = run.clock.reported
    speed = (run.state.samples - samples) / max(run.state.seconds - seconds, 1e-9)
    per_step = run.state.samples / run.state.step
    return {
        "lr": learning_rate(run.state.step - 1, run.config.optim, run.config.steps),
        "samples": run.state.samples,
        "seconds": run.state.seconds,
        "samples_per_second": speed,
        "eta": (run.config.steps - run.state.step) * per_step / speed,
    }


def _windows(run: _Run) -> list[Window]:
    """Return what is not yet reported, by process."""
    own = {name: (float(total), count) for name, (total, count) in run.window.items()}
    return cast(list[Window], gather_object([own]))


def _means(windows: Sequence[Window]) -> dict[str, float]:
    names = list(dict.fromkeys(name for window in windows for name in window))
    parts = {name: [window[name] for window in windows if name in window] for name in names}
    return {name: sum(total for total, _ in part) / sum(count for _, count in part) for name, part in parts.items()}


# ---------------------------------------------------------------------------------------------------------- saving


def _resume(run: _Run, resume: bool | str | Path) -> None:
    """Restore a checkpoint; refuse to start over an existing run."""
    there = checkpointing.complete(run.checkpoints)
    if there and not resume:
        last = there[-1].name
        raise CheckpointError(f"{run.folder} already holds a run, up to {last}; resume it or name another folder.")
    named = None if isinstance(resume, bool) or resume == "latest" else Path(resume)
    if path := named or checkpointing.latest(run.checkpoints):
        _restore(run, checkpointing.load(path))
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        if resume:
            checkpointing.supersede(run.checkpoints, run.state.step)
        run.metric_logger = MetricLogger(
            run.folder, start=run.state.step, steps=run.config.steps, tensorboard=run.config.tensorboard
        )


def _restore(run: _Run, checkpoint: Checkpoint) -> None:
    checkpointing.copy_into(_weights(run), checkpoint.model, checkpoint.path / checkpointing.MODEL)
    if run.ema.decay:  # without one, the average that was saved would take the place of the weights themselves
        checkpointing.copy_into(run.ema.state_dict(), checkpoint.ema, checkpoint.path / checkpointing.EMA)
    load_optimizer_state(run.optimizer, run.trainable, checkpoint.optimizer["moments"])
    if run.accelerator.scaler is not None and checkpoint.optimizer["scaler"]:
        run.accelerator.scaler.load_state_dict(checkpoint.optimizer["scaler"])
    run.state, run.saved = checkpoint.state, checkpoint.state.step
    run.window = _own_window(run, checkpoint.state.windows)
    run.clock.reported = (run.state.samples, run.state.seconds)


def _own_window(run: _Run, windows: Sequence[Window]) -> dict[str, tuple[Tensor, int]]:
    """Return this process's part of what was not reported; the first takes the rest of more processes."""
    rank, processes = run.accelerator.process_index, run.accelerator.num_processes
    own: dict[str, tuple[Tensor, int]] = {}
    for number, window in enumerate(windows):
        if number % processes == rank:
            for name, (total, count) in window.items():
                before, times = own.get(name, (torch.zeros((), device=run.accelerator.device), 0))
                own[name] = (before + total, times + count)
    return own


def _weights(run: _Run) -> dict[str, Tensor]:
    """Return what a checkpoint must hold: trainable parameters and persistent buffers."""
    kept = run.objective.state_dict().keys()
    buffers = {name: buffer for name, buffer in run.objective.named_buffers() if name in kept}
    return {**run.trainable, **buffers}


def _save_if_due(run: _Run) -> None:
    step = run.state.step
    if run.save_due or run.stopped or step % run.config.save_every == 0 or step == run.config.steps:
        _save(run)


def _save(run: _Run) -> None:
    """Write a checkpoint on the main process, unless its weights are not finite."""
    began = time.monotonic()
    run.state.windows = _windows(run)
    if not torch.stack(torch._foreach_norm(list(run.trainable.values()))).isfinite().all():
        sentence = f"Step {run.state.step} led to weights that are not finite, which were not saved."
        raise DivergedError(sentence, _result(run, "diverged"))
    if run.accelerator.is_main_process:
        scaler = run.accelerator.scaler.state_dict() if run.accelerator.scaler is not None else {}
        optimizer = {"moments": optimizer_state_by_name(run.optimizer, run.trainable), "scaler": scaler}
        path = run.checkpoints / checkpointing.name(run.state.step)
        checkpointing.save(
            Checkpoint(path, run.state, _weights(run), run.ema.state_dict(), optimizer, run.config_text),
            keep=run.config.keep_last,
        )
    run.accelerator.wait_for_everyone()
    run.saved = run.state.step
    run.clock.last_save = time.monotonic()
    run.clock.save = run.clock.last_save - began


# ---------------------------------------------------------------------------------------------------------- ends


def _run_hooks(run: _Run, hooks: Sequence[Hook]) -> None:
    """Lets the hooks look at the averaged weights, if there is time for it, and end the run."""
    if run.stopped or not hooks or not run.config.sample_every or run.state.step % run.config.sample_every:
        return
    enough = False
    if run.metric_logger and _in_time(run, run.clock.hooks):
        began = time.monotonic()
        context = HookContext(run.state.step, run.objective, run.metric_logger, run.ema, run.state.seconds)
        with _evaluation_mode(run):
            for hook in hooks:
                enough = bool(hook(context)) or enough
        run.clock.hooks = time.monotonic() - began
    wish = torch.tensor(float(enough), device=run.accelerator.device)
    if run.accelerator.reduce(wish, "sum") > 0:  # all wait for the one that looks
        run.stopped = "hook"


def _finish(run: _Run) -> Result:
    """Export the averaged weights, except after a signal."""
    if run.stopped != "signal" and run.accelerator.is_main_process:
        with _evaluation_mode(run):
            run.objective.export(run.folder / EXPORT)
    run.accelerator.wait_for_everyone()
    return _result(run, run.stopped or "done")


def _result(run: _Run, stopped: Literal["done", "minutes", "signal", "hook", "diverged"]) -> Result:
    losses = run.state.losses or _means(_windows(run))
    return Result(run.state.step, run.state.samples, run.state.seconds, losses, stopped)


@contextmanager
def _evaluation_mode(run: _Run) -> Iterator[None]:
    """Switch the objective to averaged weights, eval mode and no gradient."""
    modes = [(module, module.training) for module in run.objective.modules()]
    run.objective.eval()
    try:
        with run.ema.swapped(), torch.no_grad(), run.accelerator.autocast():
            yield
    finally:
        for module, training in modes:
            module.training = training
