"""A report: what judges say of the rows of a bench, as a file holds it and as people read it."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.evaluation.cases import Bench
from blip_diffusion.evaluation.metrics import Estimate

GENERATED, SHUFFLED_REFERENCES, SHUFFLED_PROMPTS = "generated", "references shuffled", "prompts shuffled"
TRUTH, TRUTH_DECODED = "ground truth (ceiling)", "ground truth, decoded"
OTHER, OTHER_DECODED = "another instance (floor)", "another instance, decoded"
COPIED = "reference copied"


@dataclass(frozen=True)
class Scores:
    """What one judge says of one row of pictures. Means over subjects, each with a 95 % interval over them."""

    subject: Estimate  # centred cosine to the reference
    named: Estimate  # share of pictures nearer to their own reference than to any other subject's
    scene: Estimate  # share of pictures in which the probe sees the scene that was asked for


@dataclass(frozen=True)
class Verdict:
    """One judge: its rows, and what they say of the generator."""

    backbone: str
    preprocessing: str
    rows: dict[str, Scores]
    fidelity: Estimate  # (generated - another instance) / (ground truth - another instance)
    fidelity_decoded: Estimate  # the same with floor and ceiling through the autoencoder
    fidelity_reachable: Estimate  # what the autoencoder leaves of the ground truth's own 1
    scene_accuracy: Estimate  # generated / ground truth through the autoencoder
    probe_held_out_scenes: float | None  # the probe's accuracy on photographs that neither it nor a generator knows


@dataclass(frozen=True)
class Report:
    """All of it, with what was asked."""

    bench: Bench
    pooling: str
    verdicts: dict[str, Verdict]

    def json(self) -> str:
        """As a file holds it."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> "Report":
        """The report of a file."""
        raw = json.loads(text)
        bench = Bench(**{**raw["bench"], **{k: tuple(raw["bench"][k]) for k in ("subjects", "prompts", "scenes")}})
        return Report(bench, raw["pooling"], {name: _verdict(value) for name, value in raw["verdicts"].items()})


def markdown(report: Report) -> str:
    """A table for each judge, and under it what it says of the generator."""
    bench = report.bench
    lines = [
        f"{len(bench.subjects)} held-out subjects x {len(bench.prompts)} scenes x {bench.seeds} seeds; "
        f"a probe of {len(bench.scenes)} scenes (chance {1 / len(bench.scenes):.3f}; of naming "
        f"{1 / len(bench.subjects):.3f}). {report.pooling}. Mean over subjects (95 % bootstrap interval over them).",
    ]
    for name, verdict in report.verdicts.items():
        lines += ["", f"### {name}", "", f"{verdict.backbone}; {verdict.preprocessing}.", ""]
        lines += ["| pictures | like the reference | names the subject | names the scene |", "|---|---|---|---|"]
        lines += [f"| {row} | {s.subject} | {s.named} | {s.scene} |" for row, s in verdict.rows.items()]
        lines += [
            "",
            f"* Subject fidelity, (generated - floor) / (ceiling - floor): **{verdict.fidelity}**; "
            f"between decoded floor and ceiling {verdict.fidelity_decoded}. "
            f"The ground truth itself, decoded, has {verdict.fidelity_reachable}: no generator before this decoder can "
            "be expected to have more.",
            f"* Scene accuracy relative to the ground truth's own: **{verdict.scene_accuracy}**; "
            f"the probe on photographs of unknown places: {_said(verdict.probe_held_out_scenes)}.",
        ]
    return "\n".join(lines) + "\n"


def sheet(bench: Bench, pictures: dict[str, Tensor], row: str) -> Image.Image:
    """One row's pictures of the first seed: a subject a line, its reference at the left."""
    shape = (len(bench.subjects), len(bench.prompts), bench.seeds)
    drawn, shown = (pictures[name].view(*shape, *pictures[name].shape[1:])[:, :, 0] for name in (row, COPIED))
    cells = [images.to_pictures(torch.cat([shown[i, :1], drawn[i]])) for i in range(len(bench.subjects))]
    return images.grid([cell for line in cells for cell in line], len(bench.prompts) + 1)


def write(report: Report, pictures: dict[str, Tensor], out: Path) -> None:
    """`report.json`, `report.md`, and a sheet of each row that was drawn."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(report.json())
    (out / "report.md").write_text(markdown(report))
    for row in (GENERATED, SHUFFLED_REFERENCES, TRUTH_DECODED):
        sheet(report.bench, pictures, row).save(out / f"{row.replace(', ', ' ').replace(' ', '-')}.png")


def _said(share: float | None) -> str:
    return "there are none" if share is None else f"{share:.3f}"


def _verdict(raw: dict[str, Any]) -> Verdict:
    def number(value: dict[str, float]) -> Estimate:
        return Estimate(**value)

    rows = {name: Scores(**{k: number(v) for k, v in row.items()}) for name, row in raw["rows"].items()}
    estimates = {k: number(raw[k]) for k in ("fidelity", "fidelity_decoded", "fidelity_reachable", "scene_accuracy")}
    return Verdict(**{**raw, "rows": rows, **estimates})
