"""The files of a report: `report.json` holds all of it; `subjects.csv`, `report.md` and `index.html` are views."""

import csv
import dataclasses
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from blip_diffusion.data.benchmarks.dreambench import BenchSubject
from blip_diffusion.evaluation.reporting.html import page
from blip_diffusion.evaluation.reporting.markdown import markdown
from blip_diffusion.evaluation.reporting.schema import REPORT, Report, path_in
from blip_diffusion.fileio import atomic_file, write_text

FORMULA_SIGNS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""First characters of formulas in spreadsheets."""


def write_report(report: Report, out: Path) -> None:
    """Write a report and its views."""
    text = json.dumps(dataclasses.asdict(report), indent=1, allow_nan=False)
    views = {REPORT: text, "subjects.csv": csv_table(report), "report.md": markdown(report), "index.html": page(report)}
    for name, content in views.items():
        write_text(out / name, content)


def csv_table(report: Report) -> str:
    """Write a line for each subject, metric and condition, with a column for each score."""
    names = list(dict.fromkeys(name for result in report.results for name in result.info.scores))
    subjects: list[str] = report.settings["subjects"]
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["subject", "category", "metric", "condition", *names])
    for i, subject in enumerate(subjects):
        for result in report.results:
            for condition, scores in result.subjects.items():
                numbers = [scores[name][i] if name in scores else None for name in names]
                cells = ["" if number is None else number for number in numbers]
                words = (subject, report.categories[subject], result.info.name, condition)
                writer.writerow([*map(plain_cell, words), *cells])
    return buffer.getvalue()


def plain_cell(text: str) -> str:
    """Return a foreign word that no spreadsheet computes: after a quote, where it begins as a formula.

    Example:
        >>> plain_cell("=1+1")
        "'=1+1"
    """
    return f"'{text}" if text.lstrip().startswith(FORMULA_SIGNS) else text


def copy_references(subjects: Sequence[BenchSubject], out: Path) -> dict[str, str]:
    """Copy each subject's reference below the report's folder, so that the page can be moved; return the paths."""
    copies = {}
    for subject in subjects:
        copy = out / "references" / f"{subject.name}{subject.images[0].suffix}"
        with atomic_file(copy) as partial:
            shutil.copyfile(subject.images[0], partial)
        copies[subject.name] = path_in(out, copy)
    return copies
