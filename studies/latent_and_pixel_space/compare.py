"""Compare latent diffusion with a cascade of pixel diffusion models at equal training cost.

    python -m studies.latent_and_pixel_space.compare --dataset FILE --out DIR --train-tflop 40

BLIP-Diffusion denoises latents of an autoencoder (Rombach et al. 2022). Imagen and DALL-E 2 denoise pixels: a small
image first, which other models enlarge (Ho et al. 2022). Here both get the same data, text and subject encoders
(those of `mini`, frozen), loss, noise schedule and number of floating-point operations in training; the cascade's two
stages get half each. Images of held-out subjects are compared with the composite that prompt, reference and box
describe. The same command resumes a stopped run.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from blip_diffusion import config as configuration
from blip_diffusion.checkpoint.locate import find_model
from blip_diffusion.checkpoint.model_folder import assemble, read_parts
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.data.synthetic.pair_spec import SyntheticConfig
from blip_diffusion.diffusion.resizing import enlarged, shrunk
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.metrics.statistics import Estimate, bootstrap_ci
from blip_diffusion.fileio import atomic_file, write_text
from blip_diffusion.images import column_page
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.sampling import sample_images, sample_upscaled
from blip_diffusion.training.builders import OBJECTIVES, BuildContext
from blip_diffusion.training.objective import StepContext
from blip_diffusion.training.pretrain import run
from blip_diffusion.training.run import CHECKPOINTS
from blip_diffusion.training.run_config import RunConfig
from blip_diffusion.training.training_data import open_data
from studies import print_result

CONFIGS = Path(__file__).parents[2] / "configs" / "mini"
TFLOP = 1e12
HELD_OUT = SyntheticConfig(
    split="heldout",
    procedural=1.0,
    same_view=1.0,
    rotation=0.0,
    light=0.0,
    anywhere=1.0,
    colours=0.0,
    counts=0.0,
    sizes=0.0,
    positions=0.0,
    accessories=0.0,
    styles=0.0,
)
"""Held-out images show one unchanged subject, so that reference, prompt and box describe the whole image."""


@dataclass(frozen=True)
class Stage:
    """A model that is trained, and its share of its system's training."""

    name: str
    config: Path
    share: float
    overrides: tuple[str, ...] = ()


STAGES = (
    Stage(
        "latent",
        CONFIGS / "subject.toml",
        1.0,
        (
            'model.init_from=["mini"]',
            'model.new_parts=["unet"]',
            "subject.text_lr_scale=0",
            "subject.qformer_lr_scale=0",
            "subject.reconstruction_weight=0",
        ),
    ),
    Stage("pixels", CONFIGS / "pixels.toml", 0.5, ('model.init_from=["mini"]',)),
    Stage("upscale", CONFIGS / "upscale.toml", 0.5, ('model.init_from=["mini"]',)),
)


@dataclass(frozen=True)
class SystemResult:
    """What a system costs, and how near its images are to the true ones."""

    parameters: float  # of the U-Nets, in millions
    train_tflop: float
    image_gflop: float
    image_seconds: float
    psnr: Estimate  # decibels, of whole images
    subject_psnr: Estimate  # decibels, inside the subject


def train_stage(stage: Stage, dataset: Path, out: Path, tflop: float, further: Sequence[str] = ()) -> float:
    """Train a stage for a number of operations, or continue it. Returns the teraflops spent.

    Args:
        stage: The stage.
        dataset: The asset library.
        out: Folder of the run.
        tflop: Operations in 10^12 of all training steps: forward, backward, and the frozen encoders.
        further: Overrides of the configuration.
    """
    mini = find_model("mini")
    overrides = [one.replace('"mini"', json.dumps(str(mini))) for one in stage.overrides]
    overrides += [f'data.path="{dataset}"', "train.minutes=100000", *further]
    step = step_flops(stage.config, overrides) / TFLOP
    steps = max(1, round(stage.share * tflop / step))
    begun = any((out / CHECKPOINTS).glob("*"))
    run(stage.config, out, overrides=[*overrides, f"train.steps={steps}"], resume=begun)
    return steps * step


def step_flops(path: Path, overrides: Sequence[str]) -> float:
    """Count the floating-point operations of one training step of a configuration."""
    config = configuration.build(RunConfig, configuration.read(path, overrides))
    data = open_data(config.data, config.objective, seed=0, device=torch.device("cpu"))
    batch = data.batches(0)
    torch.manual_seed(config.model.seed)
    objective = OBJECTIVES[config.objective](BuildContext(config, data.corpus(), batch["reference"])).train()
    trained = {parameter for group in objective.parameter_groups() for parameter in group.parameters}
    for parameter in objective.parameters():
        parameter.requires_grad_(parameter in trained)
    with FlopCounterMode(display=False) as counter:
        objective(batch, StepContext(0, torch.Generator().manual_seed(0)))["loss"].backward()
    return float(counter.get_total_flops()) * config.train.gradient_accumulation_steps


System = Callable[[Tensor, list[int]], Tensor]
"""From text states (B, L, D) and seeds to images (B, 3, S, S) in [0, 1]."""


def latent_system(model: BlipDiffusion) -> System:
    """Return the latent diffusion model as a function."""
    return lambda states, seeds: sample_images(model, states, seeds)


def cascade_system(base: BlipDiffusion, upscaler: BlipDiffusion, *, noise_level: float = 0.1) -> System:
    """Return the pixel cascade as a function."""

    def generate(states: Tensor, seeds: list[int]) -> Tensor:
        small = sample_images(base, states, seeds)
        side = int(upscaler.unet.config.sample_size)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return sample_upscaled(upscaler, states, enlarged(small, (side, side)), generators, noise_level=noise_level)

    return generate


def psnr(images: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return decibels (B,) between images (B, 3, S, S), over the whole image or a mask (B, 1, S, S)."""
    errors = (images - targets).square().mean(dim=1, keepdim=True)
    weights = torch.ones_like(errors) if weights is None else weights
    mean = (errors * weights).sum(dim=(1, 2, 3)) / weights.sum(dim=(1, 2, 3)).clamp(min=1e-6)
    return -10 * mean.clamp(min=1e-10).log10()


@dataclass(frozen=True)
class HeldOut:
    """Held-out composites, with the text states of their prompts and references."""

    batch: SubjectBatch
    states: Tensor
    wrong_states: Tensor  # with references of other subjects

    @classmethod
    @torch.no_grad()
    def of(cls, model: BlipDiffusion, world: AssetLibrary, count: int, size: int) -> "HeldOut":
        """Composite images and encode their prompts; all systems have the same encoders."""
        config = replace(HELD_OUT, size=size)
        batch = PairSampler(world, config, batch_size=count, seed=1)(0)
        tokens = model.subject_tokens(batch["reference"], batch["category"])
        states = [model.text_states(batch["caption"], one, batch["frames"]) for one in (tokens, tokens.roll(1, 0))]
        return cls(batch, *states)


def measure(
    system: System, models: Sequence[BlipDiffusion], held: HeldOut, train_tflop: float
) -> tuple[SystemResult, SystemResult, Tensor]:
    """Return a system's row, that with wrong references, and its images."""
    seeds = list(range(len(held.states)))
    with FlopCounterMode(display=False) as counter:
        system(held.states[:1], seeds[:1])
    began = time.perf_counter()
    images = system(held.states, seeds)
    seconds = (time.perf_counter() - began) / len(images)
    cost: dict[str, Any] = {
        "parameters": sum(one.numel() for model in models for one in model.unet.parameters()) / 1e6,
        "train_tflop": train_tflop,
        "image_gflop": counter.get_total_flops() / 1e9,
        "image_seconds": seconds,
    }
    wrong = system(held.wrong_states, seeds)
    right_row, wrong_row = (SystemResult(**cost | fidelity(one, held.batch)) for one in (images, wrong))
    return right_row, wrong_row, images


def fidelity(images: Tensor, batch: SubjectBatch) -> dict[str, Estimate]:
    """Return PSNR of whole images and of subjects, with 95 % bootstrap intervals over images."""
    target, alpha = batch["target"], batch["target_alpha"]
    return {
        "psnr": bootstrap_ci(psnr(images, target)[None]),
        "subject_psnr": bootstrap_ci(psnr(images, target, alpha)[None]),
    }


def compare(
    dataset: Path,
    out: Path,
    tflop: float,
    *,
    count: int = 64,
    stages: Sequence[Stage] = STAGES,
    further: Sequence[str] = (),
) -> str:
    """Train both systems, measure them, write report and sheet, and return the table."""
    if tflop <= 0 or count < 2:
        raise InputError("--train-tflop must be above 0, and --images at least 2.")
    spent = {one.name: train_stage(one, dataset, out / one.name, tflop, further) for one in stages}
    models = {one.name: _load(out / one.name / "export") for one in stages}
    latent, base, upscaler = (models[name] for name in ("latent", "pixels", "upscale"))
    world, size = AssetLibrary.load(dataset), int(upscaler.unet.config.sample_size)
    held = HeldOut.of(latent, world, count, size)
    systems: dict[str, tuple[System, list[BlipDiffusion], float]] = {
        "latent": (latent_system(latent), [latent], spent["latent"]),
        "pixel cascade": (cascade_system(base, upscaler), [base, upscaler], spent["pixels"] + spent["upscale"]),
    }
    rows: dict[str, SystemResult] = {}
    columns = [held.batch["reference"]]
    for name, (system, parts, cost) in systems.items():
        rows[name], rows[f"{name}, wrong reference"], images = measure(system, parts, held, cost)
        columns.append(images[:8])
    bounds = upper_bounds(latent, base, held.batch, size)
    _write(out, rows, bounds, [*(column[:8] for column in columns), held.batch["target"][:8]])
    return markdown(rows, bounds, count)


@torch.no_grad()
def upper_bounds(
    latent: BlipDiffusion, base: BlipDiffusion, batch: SubjectBatch, size: int
) -> dict[str, dict[str, Estimate]]:
    """Return the fidelity of the true images after the autoencoder, and after the first stage's size."""
    target = batch["target"]
    small = enlarged(shrunk(target, int(base.unet.config.sample_size)), (size, size))
    return {
        "autoencoder's reconstruction": fidelity(latent.latents.decode(latent.latents.encode(target)), batch),
        f"{base.unet.config.sample_size} pixels, enlarged bicubically": fidelity(small, batch),
    }


def _load(folder: Path) -> BlipDiffusion:
    return assemble(read_parts(folder), folder).eval()


def markdown(rows: Mapping[str, SystemResult], bounds: Mapping[str, Mapping[str, Estimate]], count: int) -> str:
    """Write the table."""
    lines = [
        f"{count} composites of held-out subjects; 95 % bootstrap intervals over images.",
        "",
        "| system | U-Nets, M | training, TFLOP | an image, GFLOP | an image, s | PSNR, dB | PSNR of the subject, dB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cost = (f"{row.parameters:.1f}", f"{row.train_tflop:.0f}", f"{row.image_gflop:.0f}", f"{row.image_seconds:.2f}")
        lines.append(f"| {name} | {' | '.join(cost)} | {_decibels(row.psnr)} | {_decibels(row.subject_psnr)} |")
    for name, bound in bounds.items():
        cells = " | ".join(_decibels(bound[key]) for key in ("psnr", "subject_psnr"))
        lines.append(f"| upper bound: {name} | | | | | {cells} |")
    return "\n".join(lines)


def _decibels(estimate: Estimate) -> str:
    return f"{estimate.value:.1f} ({estimate.low:.1f} to {estimate.high:.1f})"


def _write(out: Path, rows: Mapping[str, SystemResult], bounds: Mapping[str, Any], columns: Sequence[Tensor]) -> None:
    table = {
        "systems": {name: asdict(row) for name, row in rows.items()},
        "upper_bounds": {name: {key: asdict(one) for key, one in bound.items()} for name, bound in bounds.items()},
    }
    write_text(out / "report.json", json.dumps(table, indent=1) + "\n")
    write_text(out / "report.md", markdown(rows, bounds, len(columns[0])) + "\n")
    with atomic_file(out / "sheet.png") as partial:
        column_page(columns).save(partial, "PNG")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure, and print the table."""
    parser = argparse.ArgumentParser(
        description="Compare latent diffusion with a pixel cascade at equal training cost."
    )
    parser.add_argument("--dataset", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--train-tflop", required=True, type=float, help="operations of each system, in 10^12")
    parser.add_argument("--images", type=int, default=64, help="held-out images (default: 64)")
    flags = parser.parse_args(arguments)
    return print_result(lambda: compare(flags.dataset, flags.out, flags.train_tflop, count=flags.images))


if __name__ == "__main__":
    sys.exit(main())
