"""Train networks for structure control of a trained model within a time limit.

runs/control/
├── config.toml          the resolved configuration
└── canny/               for each kind of hint: checkpoints/, log.jsonl and
    └── export/          the adapter, as `T2IAdapter.from_pretrained` reads it, and metrics.json
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast, get_args

import torch

from blip_diffusion import config as configuration
from blip_diffusion.checkpoint.locate import find_model
from blip_diffusion.checkpoint.model_folder import assemble, read_parts
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.data.synthetic.pair_spec import SyntheticConfig
from blip_diffusion.errors import InputError
from blip_diffusion.fileio import write_text
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.training import initialization
from blip_diffusion.training.objectives.control import GEOMETRIC, ControlConfig, Hint
from blip_diffusion.training.optim import OptimConfig
from blip_diffusion.training.recipe import control, held_out
from blip_diffusion.training.recipe.config import PAIRS, PhaseConfig, SizesConfig, read_over
from blip_diffusion.training.recipe.control import HintPacker, PackedControl
from blip_diffusion.training.recipe.control_metrics import control_metrics
from blip_diffusion.training.recipe.packing import Rows, packer_of
from blip_diffusion.training.recipe.phases import Source
from blip_diffusion.training.recipe.pool import Feeder, Pool
from blip_diffusion.training.recipe.run import Plan, metrics_of, train_phase, warn_if_finished
from blip_diffusion.training.recipe.timed_loop import Settings, check_minutes, claimed

CAPTION_TOKENS = 24  # not used by any step
CUDA = SizesConfig(pool=100_000, fill=2048, worker_batch=32, slots=96, pairs=64)
CPU = SizesConfig(pool=4096, fill=256, worker_batch=16, slots=8, pairs=4)

CONTROL_PAIRS = replace(
    PAIRS,
    anywhere=1.0,
    same_view=0.5,
    warp=0.12,
    no_scene=0.0,
    counts=0.0,
    sizes=0.0,
    positions=0.0,
    accessories=0.0,
    styles=0.03,
)
"""Subjects vary in size, position, view and shape, which only the hint shows."""


def _loop() -> PhaseConfig:
    optim = OptimConfig(
        lr=2e-3,
        betas=(0.9, 0.99),
        weight_decay=0.01,
        warmup=50,
        schedule="cosine",
        stable_fraction=0.4,
        min_lr_ratio=0.02,
    )
    return PhaseConfig(optim, ema_decay=0.998)


@dataclass(frozen=True)
class ControlRecipeConfig:
    """Configuration of training for structure control; the kind of hint is an argument of the call.

    `control.default_frames` applies to edges only: in masks, depth and normals, `generate` finds the subject's frame.
    """

    model: str = "mini"  # or a folder
    data: Path = Path("world/world.zip")
    seed: int = 0
    held_out: int = 128  # pairs for the metrics at the end
    samples: int = 32  # number of these for which images are sampled
    log_every: int = 100  # steps between reports
    save_minutes: float = 5.0  # between checkpoints
    cuda_graphs: bool = True
    synthetic: SyntheticConfig = CONTROL_PAIRS  # its image size is the model's
    control: ControlConfig = field(
        default_factory=lambda: ControlConfig(
            default_frames=0.7, prompt_drop=0.3, noise_samples_per_pair=3, min_snr=5.0, timestep_shift=2.0
        )
    )
    phase: PhaseConfig = field(default_factory=_loop)
    cuda: SizesConfig = CUDA
    cpu: SizesConfig = CPU


def read_control_recipe(path: Path | None, overrides: Sequence[str] = ()) -> ControlRecipeConfig:
    """Return the configuration of a TOML file, which overrides the defaults, with further overrides."""
    return read_over(ControlRecipeConfig(), path, overrides)


@dataclass(frozen=True)
class _Context:
    """Model, data and settings, shared by all kinds of hint."""

    config: ControlRecipeConfig
    model: BlipDiffusion
    source: Source
    held: Rows
    settings: Settings


def run_control(
    config: ControlRecipeConfig,
    hints: Sequence[str],
    folder: Path,
    *,
    minutes: float,
    device: torch.device,
    workers: int,
    resume: bool = False,
) -> dict[str, dict[str, float]]:
    """Train one network for each kind of hint and export it to `folder/HINT/export`.

    Args:
        config: Model, data, batch sizes and optimizer.
        hints: Kinds, which share the training pairs and the time equally; with "depth" or "normal", all pairs are of 3D
            models.
        folder: Where checkpoints, logs and exports are written.
        minutes: Total training time of all networks over all calls, without the time for data and metrics.
        device: Device to train on.
        workers: Processes that composite pairs; 0 composites in this process.
        resume: Whether to continue the run in `folder`, or to start with a warning if it has no checkpoint.

    Returns:
        The held-out metrics of each network.

    Raises:
        CheckpointError: If `folder` holds a run and `resume` is false, or the model is incomplete.
        InputError: If a hint is unknown, or another process trains in `folder`.
    """
    check_minutes(minutes)
    known = get_args(Hint)
    if not hints or not {*hints} <= {*known} or len({*hints}) < len(hints):
        raise InputError(f"The hints are {', '.join(hints)}: use {', '.join(known[:-1])} or {known[-1]}, each once.")
    kinds = cast(Sequence[Hint], hints)
    with claimed(folder, resume=resume):
        warn_if_finished(folder, kinds)
        with _context(config, kinds, device, workers) as context:
            write_text(folder / "config.toml", configuration.to_toml(config))
            return {kind: _train(context, kind, folder / kind, 60 * minutes / len(kinds)) for kind in kinds}


@contextmanager
def _context(
    config: ControlRecipeConfig, hints: Sequence[Hint], device: torch.device, workers: int
) -> Iterator[_Context]:
    """Load asset library and model, start the workers, and only then use the device: CUDA must follow the fork."""
    source_folder = find_model(config.model)
    model = assemble(read_parts(source_folder, dtype=torch.float32), source_folder)
    size = model.image_size
    geometry = bool({*hints} & {*GEOMETRIC})
    world = AssetLibrary.load(config.data, geometry=geometry)
    synthetic = replace(config.synthetic, size=size, geometry=geometry)
    sizes = config.cuda if device.type == "cuda" else config.cpu
    packer = HintPacker.over(packer_of(model, size, CAPTION_TOKENS), hints)
    sampler = PairSampler(world, synthetic, batch_size=sizes.worker_batch, seed=config.seed)
    feeder = Feeder(sampler, packer, workers=workers, slots=sizes.slots)
    try:
        held = held_out_rows(world, synthetic, packer, count=config.held_out, seed=config.seed + 1)
        if device.type == "cuda":
            feeder.pin()
        source = Source(feeder, Pool(sizes.pool, device), sizes)
        model.to(device).requires_grad_(False)
        source.pool.derive(lambda rows: control.latent_column(model, rows))
        feeder.fill(source.pool, sizes.fill)
        held = {name: value.to(device) for name, value in held.items()}
        yield _Context(config, model, source, held, _settings(config, sizes, device))
    finally:
        feeder.close()


def held_out_rows(
    world: AssetLibrary, synthetic: SyntheticConfig, packer: HintPacker, *, count: int, seed: int
) -> Rows:
    """Return pairs of held-out subjects of any size and place, with their hints."""
    plain = replace(held_out.held_out_config(synthetic, world), anywhere=synthetic.anywhere)
    return packer(PairSampler(world, plain, batch_size=count, seed=seed)(0))


def _settings(config: ControlRecipeConfig, sizes: SizesConfig, device: torch.device) -> Settings:
    return Settings(
        device,
        seed=config.seed,
        lr_scale=sizes.lr_scale,
        log_every=config.log_every,
        save_minutes=config.save_minutes,
        cuda_graphs=config.cuda_graphs,
    )


def _train(context: _Context, hint: Hint, folder: Path, seconds: float) -> dict[str, float]:
    """Train the network of one hint, unless its export exists."""
    if (metrics := metrics_of(folder)) is not None:
        return metrics
    torch.manual_seed(context.config.seed)
    config = replace(context.config.control, hint=hint)
    if hint != "canny":
        config = replace(config, default_frames=0.0)
    objective = PackedControl(context.model, initialization.noising_from(context.model.scheduler), config)
    objective = objective.to(context.settings.device)
    plan = Plan(
        objective,
        control.control_rows(context.source, objective),
        lambda: control_metrics(objective, context.held, context.config.samples),
        graph=True,
    )
    return train_phase(plan, context.config.phase, context.settings, folder, seconds)
