"""The schema of `report.json`: the settings of a run, the scores of every condition, and the images they belong to."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip_diffusion.errors import DataError
from blip_diffusion.evaluation.generators.conditions import ConditionResult
from blip_diffusion.evaluation.metrics.aggregate import MetricResult, is_reference_copy
from blip_diffusion.evaluation.metrics.memorization import NearestTrainingImage
from blip_diffusion.evaluation.metrics.similarity import MetricInfo
from blip_diffusion.evaluation.metrics.statistics import Estimate
from blip_diffusion.strict_json import parse_json

PROTOCOL = "blip-diffusion 3"
"""Changes whenever a score or the schema does. Reports of two protocols are never compared."""
REPORT = "report.json"


@dataclass(frozen=True)
class ReportImage:
    """One image of the evaluated condition."""

    file: str  # below the report's folder
    subject: str
    prompt: str
    kind: str  # of the prompt: scene, accessory, property
    sample_index: int


@dataclass(frozen=True)
class Report:
    """All results of an evaluation."""

    protocol: str
    settings: dict[str, Any]
    generator_family: str  # of the generator's image encoder: a metric of the same family is not independent
    references: dict[str, str]  # by subject: its reference below the report's folder
    categories: dict[str, str]
    images: list[ReportImage]
    results: list[MetricResult]
    diversity: Estimate | None  # between the samples of a prompt, if there are several
    nearest_training_images: list[NearestTrainingImage]

    @property
    def condition(self) -> str:
        """The name of the evaluated condition."""
        return str(self.settings["condition"])

    def headline(self, kind: str) -> MetricResult | None:
        """Return the first metric of a kind that is independent of the generator's image encoder; else the first."""
        known = [result for result in self.results if result.info.kind == kind]
        independent = [result for result in known if result.info.family != self.generator_family]
        return next(iter(independent or known), None)

    @property
    def copies_reference(self) -> bool | None:
        """Whether the condition only copies its reference; `None` without the metrics for it."""
        subject, text = self.headline("subject"), self.headline("text")
        return None if subject is None or text is None else is_reference_copy(subject, text)


def read(path: Path) -> Report:
    """Read a report.

    Raises:
        DataError: If the file is not a report, is damaged, or follows another protocol.
    """
    try:
        raw = parse_json(path.read_text(encoding="utf-8"))
        protocol = raw["protocol"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a readable report: name the report.json of an evaluation.") from error
    if protocol != PROTOCOL:
        raise DataError(f"{path} follows the protocol {protocol!r} and not {PROTOCOL!r}: evaluate that model again.")
    try:
        return Report(
            protocol, raw["settings"], raw["generator_family"], raw["references"], raw["categories"],
            [ReportImage(**one) for one in raw["images"]],
            [_result(one) for one in raw["results"]],
            raw["diversity"] and Estimate(**raw["diversity"]),
            [NearestTrainingImage(**one) for one in raw["nearest_training_images"]],
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}): run the evaluation again.") from error


def _result(raw: dict[str, Any]) -> MetricResult:
    return MetricResult(
        MetricInfo(**raw["info"]),
        {name: _estimates(scores) for name, scores in raw["conditions"].items()},
        raw["subjects"],
        raw["images"],
        _estimates(raw["normalized"]),
    )


def _estimates(raw: dict[str, Any]) -> dict[str, Estimate]:
    return {name: Estimate(**values) for name, values in raw.items()}


def report_images(result: ConditionResult, out: Path) -> list[ReportImage]:
    """Return the images of a condition in the report's format."""
    return [
        ReportImage(path_in(out, path), one.subject.name, one.prompt_text, one.prompt.kind, one.sample_index)
        for path, one in zip(result.images, result.instances, strict=True)
    ]


def path_in(out: Path, path: Path) -> str:
    """Return a path relative to the report's folder."""
    return Path(os.path.relpath(path, out)).as_posix()
