"""Compare the settings with which an adapter for structure control is used.

    python -m studies.structure_control.compare --dataset FILE --hint canny --out DIR

An adapter (Mou et al. 2023) adds features of a control image to the U-Net. Where the subject tokens have a frame, that
frame is a choice too: the default one, that of the box in the control image, or the true one. With guidance, the
adapter acts on both predictions or on the conditional one only (`guess_mode`). Every setting generates the same pairs
of held-out subjects from the same noise, and the result's edges or mask are compared with those of the true image. For
depth and normals, all pairs are of 3D models.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from blip_diffusion.checkpoint.components import load_diffusers
from blip_diffusion.checkpoint.locate import find_model
from blip_diffusion.checkpoint.model_folder import assemble, read_parts
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.metrics.statistics import Estimate, bootstrap_ci
from blip_diffusion.fileio import atomic_file, write_text
from blip_diffusion.images import column_page
from blip_diffusion.training import initialization
from blip_diffusion.training.objectives.control import GEOMETRIC, ControlConfig, Hint, with_default_frames
from blip_diffusion.training.recipe.control import HintPacker, PackedControl
from blip_diffusion.training.recipe.control_metrics import (
    METRICS,
    frames_of_hints,
    hint_images,
    sample_controlled,
    text_states,
)
from blip_diffusion.training.recipe.control_run import CAPTION_TOKENS, CONTROL_PAIRS, held_out_rows
from blip_diffusion.training.recipe.packing import Rows, packer_of, to_pixels
from studies import print_result

CHUNK, SHEET_ROWS = 16, 8
Frame = Literal["default", "found in the control image", "true"]


@dataclass(frozen=True)
class Setting:
    """How the adapter is used."""

    frame: Frame
    acts_on: Literal[
        "none: no adapter",
        "both predictions",
        "the conditional prediction",
        "the conditional prediction, with another pair's control image",
    ]
    scale: float = 1.0
    end: float = 1.0  # share of the steps after which the adapter is not used

    @property
    def name(self) -> str:
        """The row's first cell."""
        scale = "" if self.scale == 1 else f", scale {self.scale:g}"
        return self.frame + scale + ("" if self.end == 1 else f", in the first {self.end:.0%} of the steps")


SETTINGS = (
    Setting("default", "none: no adapter"),
    Setting("default", "both predictions"),
    Setting("default", "the conditional prediction"),
    Setting("found in the control image", "none: no adapter"),
    Setting("found in the control image", "the conditional prediction, with another pair's control image"),
    Setting("found in the control image", "both predictions"),
    Setting("found in the control image", "the conditional prediction"),
    Setting("found in the control image", "the conditional prediction", 1.4),
    Setting("found in the control image", "the conditional prediction", end=0.8),
    Setting("found in the control image", "the conditional prediction", end=0.7),
    Setting("found in the control image", "the conditional prediction", end=0.5),
    Setting("true", "the conditional prediction"),
)


@dataclass(frozen=True)
class Result:
    """Agreement with the true image by each metric, and the squared error of the pixels."""

    scores: Mapping[str, Estimate]
    error: Estimate


def load(model: str, hint: Hint, adapter: Path | None) -> PackedControl:
    """Load a model with its adapter for a kind of control image, or with another adapter."""
    folder = find_model(model)
    parts = read_parts(folder, dtype=torch.float32)
    network = load_diffusers("t2i_adapter", adapter) if adapter else (parts.t2i_adapters or {}).get(hint)
    if network is None:
        raise InputError(f"{model} has no adapter for {hint}: name one with --adapter.")
    objective = PackedControl(
        assemble(parts, folder), initialization.noising_from(parts.scheduler), ControlConfig(hint=hint)
    )
    objective.network = network.float()
    return objective.eval()


def states_by_frame(objective: PackedControl, rows: Rows) -> dict[Frame, Tensor]:
    """Return the text states (B, L, D) of the pairs with each kind of frame."""
    frames: dict[Frame, Tensor] = {
        "default": with_default_frames(rows["frames"], 1.0, torch.Generator()),
        "found in the control image": frames_of_hints(objective, rows),
        "true": rows["frames"],
    }
    return {name: text_states(objective, rows | {"frames": value}) for name, value in frames.items()}


def images_of(objective: PackedControl, states: Tensor, hints: Tensor, setting: Setting) -> Tensor:
    """Sample the images (B, 3, H, W) of a setting, in chunks; the seed of a pair is its index."""
    images = []
    if setting.acts_on.endswith("another pair's control image"):
        hints = hints.roll(1, 0)
    for start in range(0, len(hints), CHUNK):
        text, hint = (one[start : start + CHUNK] for one in (states, hints))
        used = None if setting.acts_on == "none: no adapter" else hint
        guess = setting.acts_on.startswith("the conditional prediction")
        seeds = range(start, start + len(hint))
        images.append(
            sample_controlled(objective, text, seeds, used, scale=setting.scale, end=setting.end, guess_mode=guess)
        )
    return torch.cat(images)


@torch.no_grad()
def compare(objective: PackedControl, rows: Rows, out: Path, settings: Sequence[Setting] = SETTINGS) -> str:
    """Measure every setting, write the table and a sheet, and return the table."""
    target, model = to_pixels(rows["target"]), objective.model
    hints, states = hint_images(objective, rows), states_by_frame(objective, rows)
    images = {setting: images_of(objective, states[setting.frame], hints, setting) for setting in settings}
    results = {setting: _result(objective, rows, one) for setting, one in images.items()}
    bound = _result(objective, rows, model.latents.decode(model.latents.encode(target)).float())
    table = markdown(objective.config.hint, results, bound, len(target))
    write_text(out / "report.md", table + "\n")
    columns = [to_pixels(rows["reference"]), hints.expand(-1, 3, -1, -1), *images.values(), target]
    with atomic_file(out / "sheet.png") as partial:
        column_page([column[:SHEET_ROWS] for column in columns]).save(partial, "PNG")
    return table


def _result(objective: PackedControl, rows: Rows, images: Tensor) -> Result:
    errors = (images - to_pixels(rows["target"])).square().mean(dim=(1, 2, 3))
    metrics = METRICS[objective.config.hint]
    scores = {name: bootstrap_ci(metric(objective.model, images, rows)[None]) for name, metric in metrics.items()}
    return Result(scores, bootstrap_ci(errors[None]))


def markdown(hint: Hint, results: Mapping[Setting, Result], bound: Result, pairs: int) -> str:
    """Write the table."""
    names = [name.replace("_", " ").replace("iou", "IoU").replace("f1", "F1") for name in METRICS[hint]]
    lines = [
        f"{pairs} pairs of held-out subjects; 95 % bootstrap intervals over pairs.",
        "",
        f"| frame | adapter acts on | {' | '.join(names)} | squared error of the pixels |",
        "|---|---|" + "---|" * len(names) + "---|",
    ]
    lines += [f"| {one.name} | {one.acts_on} | {_cells(result)} |" for one, result in results.items()]
    return "\n".join([*lines, f"| upper bound: the autoencoder's reconstruction | | {_cells(bound)} |"])


def _cells(result: Result) -> str:
    return " | ".join(
        f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})" for one in (*result.scores.values(), result.error)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="Compare the settings of an adapter for structure control.")
    parser.add_argument("--dataset", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--model", default="mini", help="a model folder (default: mini)")
    parser.add_argument("--hint", default="canny", choices=sorted(METRICS), help="control images (default: canny)")
    parser.add_argument("--adapter", type=Path, help="the adapter's folder (default: the model's)")
    parser.add_argument("--only-3d", action="store_true", help="pairs of 3D models, as for depth and normals")
    parser.add_argument("--pairs", type=int, default=32, help="held-out pairs (default: 32)")
    flags = parser.parse_args(arguments)
    return print_result(lambda: compare(*_inputs(flags), flags.out))


def _inputs(flags: Any) -> tuple[PackedControl, Rows]:
    if flags.pairs < 2:
        raise InputError("--pairs must be at least 2.")
    objective = load(flags.model, flags.hint, flags.adapter)
    size = objective.model.image_size
    packer = HintPacker.over(packer_of(objective.model, size, CAPTION_TOKENS), [flags.hint])
    geometry = flags.only_3d or flags.hint in GEOMETRIC
    synthetic = replace(CONTROL_PAIRS, size=size, geometry=geometry)
    world = AssetLibrary.load(flags.dataset, geometry=geometry)
    return objective, held_out_rows(world, synthetic, packer, count=flags.pairs, seed=1)


if __name__ == "__main__":
    sys.exit(main())
