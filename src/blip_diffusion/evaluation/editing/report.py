"""The report of edits: a table with a row per condition."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blip_diffusion.evaluation.metrics.statistics import Estimate
from blip_diffusion.fileio import write_text

COLUMNS = {
    "background_psnr": "background, dB", "published_psnr": "as published, dB", "background_ssim": "SSIM",
    "unchanged": "unchanged", "subject_psnr": "subject, dB", "whole_psnr": "whole, dB", "focus": "focus",
    "text": "text", "prompt": "prompt top-1", "scene": "scene", "structure": "structure x 1000",
    "dino": "DINO structure x 1000", "lpips": "LPIPS x 1000", "perceptual": "perceptual x 1000", "clip": "CLIP",
    "clip_inside": "CLIP inside",
}  # fmt: skip

THOUSANDTHS = ("structure", "dino", "lpips", "perceptual")
"""Distances that are shown multiplied by 1000, as PIE-Bench shows them."""
ONE_DIGIT = (*THOUSANDTHS, "clip", "clip_inside", *(name for name in COLUMNS if name.endswith("psnr")))


@dataclass(frozen=True)
class EditScores:
    """A condition's scores with 95 % intervals over edits, and seconds per edit (0 if no edit was generated)."""

    name: str
    scores: dict[str, Estimate]
    seconds: float


def row(result: EditScores) -> str:
    """Return a row of the table, with the columns that the condition has."""
    cells = [_cell(name, result.scores[name]) for name in COLUMNS if name in result.scores]
    return f"| {' | '.join([result.name, *cells, f'{result.seconds:.1f}' if result.seconds else ''])} |"


def _cell(name: str, value: Estimate) -> str:
    digits = 1 if name in ONE_DIGIT else 3
    factor = 1000 if name in THOUSANDTHS else 1
    return f"{factor * value.value:.{digits}f} ± {factor * (value.high - value.low) / 2:.{digits}f}"


def write_report(results: Sequence[EditScores], heading: str, out: Path) -> None:
    """Write the table to `edits.md` and `edits.json`; all conditions have the same scores."""
    columns = ["inversion/mask", *(title for name, title in COLUMNS.items() if name in results[0].scores), "seconds"]
    head = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    write_text(out / "edits.md", "\n".join([heading, "", *head, *map(row, results), ""]))
    table = {
        result.name: {key: [value.value, value.low, value.high] for key, value in result.scores.items()}
        for result in results
    }
    write_text(out / "edits.json", json.dumps(table, indent=1))
