"""Compare a model that upscales with bicubic enlargement and with the autoencoder's reconstruction.

    python -m studies.super_resolution.compare --model runs/mini/latent-upscale/export --dataset FILE --out DIR

Composites of held-out subjects are scaled down, enlarged again by each way, and compared with the originals: PSNR,
which favours blur, and a perceptual distance, which favours sharp edges. The model also reads prompt and reference.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from blip_diffusion.checkpoint.locate import find_model
from blip_diffusion.checkpoint.model_folder import assemble, read_parts
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.diffusion.resizing import enlarged, shrunk
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.metrics.statistics import Estimate, bootstrap_ci
from blip_diffusion.fileio import atomic_file, write_text
from blip_diffusion.images import column_page
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.sampling import sample_upscaled
from blip_diffusion.training.initialization import perceptual_distance
from studies import print_result
from studies.latent_and_pixel_space.compare import HeldOut, fidelity

CHUNK, SHEET_ROWS = 16, 8
NOISE_LEVELS = (0.0, 0.1)


@dataclass(frozen=True)
class Result:
    """Similarity to the original."""

    psnr: Estimate  # decibels
    subject_psnr: Estimate  # decibels, inside the subject
    distance: Estimate  # perceptual; 0 is equal


def enlargements(model: BlipDiffusion, held: HeldOut, scale: int) -> dict[str, Tensor]:
    """Return the enlarged images (B, 3, S, S) by way, and the autoencoder's reconstructions as upper bound."""
    target, side = held.batch["target"], model.image_size
    bicubic = enlarged(shrunk(target, side // scale), (side, side))
    ways = {"bicubic": bicubic}
    for level in NOISE_LEVELS:
        ways[f"model, noise level {level:g}"] = _sampled(model, held.states, bicubic, level)
    ways["model, wrong prompt and reference"] = _sampled(model, held.states.roll(1, 0), bicubic, NOISE_LEVELS[-1])
    ways["bicubic through the autoencoder"] = _reconstructed(model, bicubic)
    ways["upper bound: the original through the autoencoder"] = _reconstructed(model, target)
    return ways


def _sampled(model: BlipDiffusion, states: Tensor, images: Tensor, level: float) -> Tensor:
    parts = []
    for start in range(0, len(images), CHUNK):
        text, small = (one[start : start + CHUNK] for one in (states, images))
        parts.append(sample_upscaled(model, text, small, _generators(start, len(small)), noise_level=level))
    return torch.cat(parts)


def _generators(start: int, count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(start, start + count)]


def _reconstructed(model: BlipDiffusion, images: Tensor) -> Tensor:
    return model.latents.decode(model.latents.encode(images)).float()


def measure(images: Tensor, batch: SubjectBatch, distance: nn.Module) -> Result:
    """Compare images with the originals, with 95 % bootstrap intervals over images."""
    distances = [float(distance(one[None], true[None])) for one, true in zip(images, batch["target"], strict=True)]
    return Result(**fidelity(images, batch), distance=bootstrap_ci(torch.tensor([distances])))


@torch.no_grad()
def compare(model: BlipDiffusion, world: AssetLibrary, out: Path, *, count: int, scale: int) -> str:
    """Enlarge and measure, write the table and a sheet, and return the table."""
    held = HeldOut.of(model, world, count, model.image_size)
    ways, distance = enlargements(model, held, scale), perceptual_distance()
    results = {name: measure(images, held.batch, distance) for name, images in ways.items()}
    table = markdown(results, count, model.image_size, scale)
    write_text(out / "report.md", table + "\n")
    columns = [held.batch["reference"], *ways.values(), held.batch["target"]]
    with atomic_file(out / "sheet.png") as partial:
        column_page([column[:SHEET_ROWS] for column in columns]).save(partial, "PNG")
    return table


def markdown(results: Mapping[str, Result], count: int, size: int, scale: int) -> str:
    """Write the table."""
    title = f"{count} composites of held-out subjects, {size // scale} to {size} pixels"
    lines = [
        f"{title}; 95 % bootstrap intervals over images.",
        "",
        "| enlarged by | PSNR, dB | PSNR of the subject, dB | perceptual distance |",
        "|---|---|---|---|",
    ]
    for name, row in results.items():
        decibels = [f"{one.value:.1f} ({one.low:.1f} to {one.high:.1f})" for one in (row.psnr, row.subject_psnr)]
        distance = f"{row.distance.value:.3f} ({row.distance.low:.3f} to {row.distance.high:.3f})"
        lines.append(f"| {name} | {' | '.join([*decibels, distance])} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="Compare a model that upscales with bicubic enlargement.")
    parser.add_argument("--model", required=True, help="a model that was trained with the objective upscale")
    parser.add_argument("--dataset", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--scale", type=int, default=2, help="sides of the image over the small one's (default: 2)")
    parser.add_argument("--images", type=int, default=64, help="held-out images (default: 64)")
    flags = parser.parse_args(arguments)
    return print_result(lambda: _compare(flags))


def _compare(flags: argparse.Namespace) -> str:
    if flags.scale < 2 or flags.images < 2:
        raise InputError("--scale and --images must be at least 2.")
    folder = find_model(flags.model)
    model = assemble(read_parts(folder, dtype=torch.float32), folder).eval()
    if not model.upscales:
        raise InputError(f"{flags.model} does not upscale: use a model of the objective upscale.")
    return compare(model, AssetLibrary.load(flags.dataset), flags.out, count=flags.images, scale=flags.scale)


if __name__ == "__main__":
    sys.exit(main())
