"""A report: what was asked, what judges say of every row, and how far each is to be trusted.

`report.json` holds all of it; `subjects.csv`, `report.md` and the page are views of that file.
"""

import csv
import dataclasses
import io
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip_diffusion.data.benchmarks.dreambench import BenchSubject
from blip_diffusion.errors import DataError
from blip_diffusion.evaluation.generators.conditions import ABOUT, DECODED, WRONG_PROMPT, Row
from blip_diffusion.evaluation.metrics.aggregate import Verdict, copies
from blip_diffusion.evaluation.metrics.memorization import Neighbour
from blip_diffusion.evaluation.metrics.similarity import Card
from blip_diffusion.evaluation.metrics.statistics import Estimate
from blip_diffusion.fileio import write_text

PROTOCOL = "blip-diffusion 1"
"""Changes whenever a score would: reports of two protocols are never compared."""
REPORT = "report.json"
BETWEEN = {
    "subject": "Between another instance (0) and the ground truth (1)",
    "text": "Share of what the judge recognises in the ground truth, decoded",
}


@dataclass(frozen=True)
class Picture:
    """One picture of the method."""

    file: str  # below the report's folder
    subject: str
    sentence: str
    kind: str  # of the prompt: scene, accessory, property
    copy: int


@dataclass(frozen=True)
class Report:
    """All of it."""

    protocol: str
    settings: dict[str, Any]
    generator: str  # the family of its image encoder: a judge of that family is its sibling
    references: dict[str, str]  # by subject: its reference below the report's folder
    categories: dict[str, str]
    pictures: list[Picture]
    verdicts: list[Verdict]
    diversity: Estimate | None  # distance among the seeds of a prompt, where there are several
    neighbours: list[Neighbour]

    @property
    def method(self) -> str:
        """The row that is judged."""
        return str(self.settings["method"])

    def headline(self, kind: str) -> Verdict | None:
        """The first judge of a kind that is no sibling of the generator's own eyes; else the first."""
        known = [verdict for verdict in self.verdicts if verdict.card.kind == kind]
        strangers = [verdict for verdict in known if verdict.card.family != self.generator]
        return next(iter(strangers or known), None)

    @property
    def copied(self) -> bool | None:
        """Whether the method hands its reference back; `None` where no judges can tell."""
        subject, text = self.headline("subject"), self.headline("text")
        return None if subject is None or text is None else copies(subject, text)


def write(report: Report, out: Path) -> None:
    """`report.json`, `subjects.csv`, `report.md`."""
    text = json.dumps(dataclasses.asdict(report), indent=1, allow_nan=False)
    for name, content in ((REPORT, text), ("subjects.csv", table(report)), ("report.md", markdown(report))):
        write_text(out / name, content)


def read(path: Path) -> Report:
    """The report of a file. Raises `DataError` for what is none, or follows another protocol."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        protocol = raw["protocol"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no report that can be read: name the report.json of an evaluation.") from error
    if protocol != PROTOCOL:
        raise DataError(f"{path} follows the protocol {protocol!r} and not {PROTOCOL!r}: evaluate that model again.")
    try:
        return Report(
            protocol, raw["settings"], raw["generator"], raw["references"], raw["categories"],
            [Picture(**one) for one in raw["pictures"]],
            [_verdict(one) for one in raw["verdicts"]],
            raw["diversity"] and Estimate(**raw["diversity"]),
            [Neighbour(**one) for one in raw["neighbours"]],
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}): run the evaluation again.") from error


def _verdict(raw: dict[str, Any]) -> Verdict:
    rows = {row: {m: Estimate(**e) for m, e in scores.items()} for row, scores in raw["rows"].items()}
    between = {name: Estimate(**e) for name, e in raw["between"].items()}
    return Verdict(**{**raw, "card": Card(**raw["card"]), "rows": rows, "between": between})


def pictures_of(row: Row, out: Path) -> list[Picture]:
    """A row as a report lists it."""
    return [
        Picture(relative(path, out), case.subject.name, case.sentence, case.prompt.kind, case.copy)
        for path, case in zip(row.pictures, row.cases, strict=True)
    ]


def relative(path: Path, out: Path) -> str:
    """A path as a page in `out` writes it."""
    return Path(os.path.relpath(path, out)).as_posix()


def keep_references(subjects: Sequence[BenchSubject], out: Path) -> dict[str, str]:
    """By subject, a copy of its reference below the report's folder: the page can then go anywhere."""
    kept = {}
    for subject in subjects:
        copy = out / "references" / f"{subject.name}{subject.pictures[0].suffix}"
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(subject.pictures[0], copy)
        kept[subject.name] = relative(copy, out)
    return kept


# ------------------------------------------------------------------------------------------------------------- views


def table(report: Report) -> str:
    """CSV: a line for each subject, judge and row; a metric a column."""
    metrics = list(dict.fromkeys(metric for verdict in report.verdicts for metric in verdict.card.metrics))
    names: list[str] = report.settings["subjects"]
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["subject", "category", "judge", "row", *metrics])
    for i, name in enumerate(names):
        for verdict in report.verdicts:
            for row, scores in verdict.subjects.items():
                numbers = [scores[m][i] if m in scores else None for m in metrics]
                shown = ["" if number is None else number for number in numbers]
                writer.writerow([name, report.categories[name], verdict.card.name, row, *shown])
    return buffer.getvalue()


def markdown(report: Report) -> str:
    """What was asked, the headline, and a table for each judge: scores of two judges never share one."""
    lines = [f"# {report.settings['model']} on {report.settings['bench']}, {report.method}", "", asked(report), ""]
    lines += [f"* {line}" for line in summary(report)]
    for verdict in report.verdicts:
        lines += ["", f"## Judge: {verdict.card.name}", "", *about(report, verdict), "", *_rows(report, verdict)]
    if report.diversity:
        lines += ["", "## Diversity", "", f"Distance (1 - cosine) among the seeds of a prompt: {report.diversity}."]
    if report.neighbours:
        mean = sum(one.cosine for one in report.neighbours) / len(report.neighbours)
        lines += ["", "## Nearest training pictures", ""]
        lines += [f"Mean centred cosine of {len(report.neighbours)} results to the nearest: {mean:.3f}; the page shows "
                  "each pair."]  # fmt: skip
    return "\n".join(lines) + "\n"


def asked(report: Report) -> str:
    """Everything that a score depends on, in a sentence."""
    s = report.settings
    seeds = f"{s['seeds']} {'seed' if s['seeds'] == 1 else 'seeds'}"
    noise = "" if s["noise_scale"] == 1 else f", noise times {s['noise_scale']:g}"
    speed = "" if s["preset"] == "none" else f", preset {s['preset']}"
    speed += "" if s["engine"] == "torch" else f", run by {s['engine']}"
    speed += "" if s["dtype"] == "float32" else f", in {s['dtype']}"
    return (
        f"{len(s['subjects'])} subjects x {len(s['prompts'])} prompts x {seeds} = {len(report.pictures)} "
        f"pictures of {s['size']} pixels; {s['scheduler']}, {s['steps']} steps, guidance {s['guidance']:g}"
        f"{noise}{speed}; weights {s['weights']}, bench {s['bench_digest']}, protocol {report.protocol}. "
        f"{_shown(report)}. Means over subjects, with 95 % bootstrap intervals over them."
    )


def _shown(report: Report) -> str:
    """What the method is shown of a subject."""
    s = report.settings
    if report.method in ABOUT:
        return f"{report.method} is a {ABOUT[report.method]}"
    if report.method == "tuned":
        steps = f"{s['tuning_steps']} steps" if s["tuning_steps"] else "as many steps as scored best"
        return f"Few-shot tuning ({s['tuning_train']}, {steps}) on {s['reference']}"
    return f"Zero-shot from one reference: {s['reference']}"


def summary(report: Report) -> list[str]:
    """The headline, in sentences."""
    lines = []
    subject, text = report.headline("subject"), report.headline("text")
    if subject is not None:
        sibling = " (a sibling of the generator's own image encoder)" if subject.card.family == report.generator else ""
        lines.append(f"Subject, by {subject.card.name}{sibling}: {_subject_sentence(report, subject)}")
    if text is not None:
        lines.append(f"Prompt, by {text.card.name}: {_text_sentence(report, text)}")
    lines.append({
        None: "Copying: not checked, for want of a judge of subjects and one of prompts.",
        False: "Copying: no sign that the reference is handed back.",
        True: "COPYING: subjects are more like the reference than the ground truth is, and prompts no better followed "
              "than by chance. This method hands its reference back.",
    }[report.copied])  # fmt: skip
    return lines


def _subject_sentence(report: Report, verdict: Verdict) -> str:
    own = verdict.rows[report.method]["likeness"]
    said = f"likeness **{own}**"
    if fidelity := verdict.between.get("fidelity"):
        said += f"; between another instance (0) and the ground truth (1): **{fidelity}**"
    if "ground-truth" in verdict.rows:
        said += f". The judge itself names {verdict.rows['ground-truth']['named'].value:.2f} of the ground truth"
    return f"{said}."


def _text_sentence(report: Report, verdict: Verdict) -> str:
    own = verdict.rows[report.method]["named"]
    said = f"names **{own}**"
    if share := verdict.between.get("named"):
        said += f", that is **{share}** of what it names of the ground truth"
    if DECODED in verdict.rows:
        said += f" ({verdict.rows[DECODED]['named'].value:.2f})"
    return f"{said}; of the next prompt's, {verdict.rows[WRONG_PROMPT]['named'].value:.2f}."


def about(report: Report, verdict: Verdict) -> list[str]:
    """What a judge is."""
    card = verdict.card
    sibling = " **Of the family of the generator's own image encoder.**" if card.family == report.generator else ""
    return [f"{card.backbone}; {card.preprocessing}.{sibling} Score: {card.protocol}."]


def _rows(report: Report, verdict: Verdict) -> list[str]:
    metrics = [m for m in verdict.card.metrics if any(m in scores for scores in verdict.rows.values())]
    heads = [verdict.card.metrics[metric] for metric in metrics]
    lines = [f"| pictures | {' | '.join(heads)} |", "|---|" + "---|" * len(metrics)]
    for row, scores in verdict.rows.items():
        name = f"**{row}**" if row == report.method else f"{row}: {ABOUT[row]}" if row in ABOUT else row
        cells = [str(scores[m]) if m in scores else "" for m in metrics]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if verdict.between:
        known = [f"{name} {value}" for name, value in verdict.between.items()]
        lines += ["", f"{BETWEEN[verdict.card.kind]}: {'; '.join(known)}."]
    return lines
