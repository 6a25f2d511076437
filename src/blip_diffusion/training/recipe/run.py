"""The recipe from its configuration: asset library, pool, the five phases in sequence, and the exported model.

runs/mini/
├── config.toml          the resolved configuration
├── start/               the untrained model, whose tokenizers and shapes all phases share
├── autoencoder/         of each phase: checkpoints/, log.jsonl and export/
├── decoder/
├── representation/
├── subject/
├── consistency/
└── export/              the trained model, with the LoRA of `consistency`
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from blip_diffusion import config as configuration
from blip_diffusion.checkpoint.model_folder import assemble, read_parts, save_model
from blip_diffusion.checkpoint.weights import read_json
from blip_diffusion.control_characters import print_text
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.data.synthetic.tokenizers import tokenizer_corpus
from blip_diffusion.errors import CheckpointError
from blip_diffusion.escaping import warn
from blip_diffusion.fileio import atomic_dir, write_text
from blip_diffusion.training import checkpointing
from blip_diffusion.training.initialization import InitConfig, load_parts
from blip_diffusion.training.objective import Objective
from blip_diffusion.training.recipe import held_out, phases
from blip_diffusion.training.recipe.config import PhaseConfig, RecipeConfig
from blip_diffusion.training.recipe.packing import Rows, packer_of
from blip_diffusion.training.recipe.phases import Source
from blip_diffusion.training.recipe.pool import Feeder, Pool
from blip_diffusion.training.recipe.timed_loop import NextRows, PhaseLoop, Settings, check_minutes, claimed

START, EXPORT, METRICS = "start", "export", "metrics.json"
PHASES = ("autoencoder", "decoder", "representation", "subject", "consistency")
CALIBRATION = 64  # references


@dataclass(frozen=True)
class Recipe:
    """A run's parts."""

    config: RecipeConfig
    folder: Path
    device: torch.device
    source: Source
    held: Rows

    def folders(self, before: str | None = None) -> list[Path]:
        """Return the exports of the phases before one, or of all, the newest first; then the initial model."""
        names = PHASES[: PHASES.index(before)] if before else PHASES
        exports = [path for name in names if (path := self.folder / name / EXPORT).is_dir()]
        return [*reversed(exports), self.folder / START]


@dataclass(frozen=True)
class Plan:
    """One phase: its objective, the rows of its steps, and its metrics."""

    objective: Objective
    next_rows: NextRows
    metrics: Callable[[], dict[str, float]]
    graph: bool = False


def run(
    config: RecipeConfig, folder: Path, *, minutes: float, device: torch.device, workers: int, resume: bool = False
) -> dict[str, dict[str, float]]:
    """Train all phases within a time limit and export the model to `folder/export`.

    Args:
        config: Shares of the phases, batch sizes, optimizers and data.
        folder: Where checkpoints, logs and the export are written.
        minutes: The training time of all phases together, over all calls. Filling the pool, metrics and saving
            take additional time: about two minutes on a GPU.
        device: Device to train on.
        workers: Processes that composite pairs; 0 composites in this process.
        resume: Whether to continue the run in `folder`, or to start with a warning if it has no checkpoint.

    Returns:
        The held-out numbers of each phase that has a share of the time.

    Raises:
        CheckpointError: If `folder` holds a run and `resume` is false.
        InputError: If another process trains in `folder`.
    """
    check_minutes(minutes)
    with claimed(folder, resume=resume):
        warn_if_finished(folder, [name for name in PHASES if getattr(config.shares, name)])
        with _started(config, folder, device, workers) as recipe:
            write_text(folder / "config.toml", configuration.to_toml(config))
            shares = {name: share for name in PHASES if (share := getattr(config.shares, name))}
            results = {name: _phase(recipe, name, 60 * minutes * share) for name, share in shares.items()}
        _export(recipe)
        return results


@contextmanager
def _started(config: RecipeConfig, folder: Path, device: torch.device, workers: int) -> Iterator[Recipe]:
    """Load the asset library, start the workers, then use the device: CUDA can't be used before a fork."""
    world = AssetLibrary.load(config.data, geometry=config.synthetic.geometry)
    sizes = config.cuda if device.type == "cuda" else config.cpu
    sampler = PairSampler(world, config.synthetic, batch_size=sizes.worker_batch, seed=config.seed)
    _keep_start(config, world, sampler, folder / START)
    model = assemble(read_parts(folder / START), folder / START)
    packer = packer_of(model, config.synthetic.size, config.representation.max_caption_tokens)
    plain = held_out.held_out_config(config.synthetic, world)
    held = packer(PairSampler(world, plain, batch_size=config.held_out, seed=config.seed + 1)(0))
    feeder = Feeder(sampler, packer, workers=workers, slots=sizes.slots, first=_steps_taken(folder))
    try:
        if device.type == "cuda":
            feeder.pin()
        pool = Pool(sizes.pool, device)
        rows = {name: value.to(device) for name, value in held.items()}
        yield Recipe(config, folder, device, Source(feeder, pool, sizes), rows)
    finally:
        feeder.close()


def _keep_start(config: RecipeConfig, world: AssetLibrary, sampler: PairSampler, folder: Path) -> None:
    if folder.is_dir():
        return
    references = [sampler(index)["reference"] for index in range(-(-CALIBRATION // sampler.batch_size))]
    model = phases.new_model(config, tokenizer_corpus(world), torch.cat(references)[:CALIBRATION])
    with atomic_dir(folder) as partial:
        save_model(model, partial)


def _steps_taken(folder: Path) -> int:
    """Return a number that grows during a run, so that a resumed one composites new pairs."""
    return sum(checkpointing.step_of(path) for name in PHASES
               for path in checkpointing.complete(folder / name / "checkpoints"))  # fmt: skip


def _phase(recipe: Recipe, name: str, seconds: float) -> dict[str, float]:
    """Train a phase, export it and return its metrics, unless it has been exported already."""
    folder = recipe.folder / name
    if (metrics := metrics_of(folder)) is not None:
        return metrics
    recipe.source.feeder.fill(recipe.source.pool, recipe.source.sizes.fill)
    plan = PLANS[name](recipe)
    metrics = train_phase(plan, _loop_config(recipe, name), _settings(recipe, name, plan), folder, seconds)
    recipe.source.pool.derive(None)
    return metrics


def metrics_of(folder: Path) -> dict[str, float] | None:
    """Return the held-out numbers of an exported phase, or `None`. Raises `CheckpointError` for a damaged file."""
    path = folder / EXPORT / METRICS
    if not path.is_file():
        return None
    try:
        return {name: float(value) for name, value in read_json(path).items()}
    except (CheckpointError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: remove {path.parent}, which is then written again.") from error


def warn_if_finished(folder: Path, names: Sequence[str]) -> None:
    """Warn if each of these phases has been exported, so that nothing is left to train."""
    if all(metrics_of(folder / name) is not None for name in names):
        warn(f"{folder} is trained already ({', '.join(names)}): there is nothing to resume.", stacklevel=3)


def train_phase(plan: Plan, config: PhaseConfig, settings: Settings, folder: Path, seconds: float) -> dict[str, float]:
    """Train a phase for some seconds, export averaged weights to `folder/export` and return held-out numbers."""
    loop = PhaseLoop(plan.objective, plan.next_rows, config, settings, folder)
    loop.resume()
    print_text(f"{folder.name}: {seconds / 60:.1f} minutes")
    loop.run(seconds)
    with loop.ema.swapped(), atomic_dir(folder / EXPORT) as partial:
        plan.objective.eval()
        plan.objective.export(partial)
        metrics = plan.metrics()
        write_text(partial / METRICS, json.dumps(metrics, indent=1))
    print_text(f"{folder.name}: " + ", ".join(f"{key} {value:.4g}" for key, value in metrics.items()))
    return metrics


def _loop_config(recipe: Recipe, name: str) -> PhaseConfig:
    phase: PhaseConfig = getattr(recipe.config.phases, name)
    return phase


def _settings(recipe: Recipe, name: str, plan: Plan) -> Settings:
    config = recipe.config
    return Settings(
        recipe.device,
        seed=config.seed,
        lr_scale=recipe.source.sizes.lr_scale,
        log_every=config.log_every,
        save_minutes=config.save_minutes,
        cuda_graphs=plan.graph and config.cuda_graphs,
        compile=name in config.compile,
    )


def _autoencoder(recipe: Recipe) -> Plan:
    return _autoencoder_plan(recipe, "autoencoder")


def _decoder(recipe: Recipe) -> Plan:
    return _autoencoder_plan(recipe, "decoder")


def _autoencoder_plan(recipe: Recipe, name: str) -> Plan:
    objective = phases.autoencoder(recipe.folders(name), getattr(recipe.config, name))
    return Plan(
        objective,
        phases.autoencoder_rows(recipe.source, objective),
        lambda: held_out.autoencoder_metrics(objective.vae, recipe.held),
        graph=True,
    )


def _representation(recipe: Recipe) -> Plan:
    objective = phases.representation(recipe.folders("representation"), recipe.config)
    return Plan(
        objective,
        phases.representation_rows(recipe.source),
        lambda: held_out.representation_metrics(objective, recipe.held),
    )


def _subject(recipe: Recipe) -> Plan:
    objective = phases.subject(recipe.folders("subject"), recipe.config).to(recipe.device)
    recipe.source.pool.derive(lambda rows: phases.latent_columns(objective, rows))
    return Plan(
        objective,
        phases.subject_rows(recipe.source, objective, recipe.config),
        lambda: held_out.subject_metrics(objective, recipe.held),
        graph=True,
    )


def _consistency(recipe: Recipe) -> Plan:
    objective = phases.consistency(recipe.folders("consistency"), recipe.config, recipe.device)
    return Plan(
        objective,
        phases.consistency_rows(recipe.source, objective),
        lambda: held_out.consistency_metrics(objective, recipe.held),
        graph=True,
    )


PLANS: Mapping[str, Callable[[Recipe], Plan]] = {
    "autoencoder": _autoencoder,
    "decoder": _decoder,
    "representation": _representation,
    "subject": _subject,
    "consistency": _consistency,
}


def _export(recipe: Recipe) -> None:
    """Write the trained model with its LoRA in half precision."""
    folders = recipe.folders()
    parts = load_parts(InitConfig(init_from=tuple(folders)))
    with atomic_dir(recipe.folder / EXPORT) as partial:
        save_model(assemble(parts, folders[0]), partial, consistency_lora=parts.consistency_lora, dtype=torch.float16)
