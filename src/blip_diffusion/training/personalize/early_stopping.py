"""Early stopping for personalization: balance subject fidelity against prompt fidelity.

Every few steps the subject is sampled for a few prompts and both are scored. The best trade-off is kept, and the run
stops when the scores have been worse for `patience` validations. Samples and scores are kept for inspection.
"""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.argument_checks import number, one_text
from blip_diffusion.config import check_types
from blip_diffusion.errors import CheckpointError, ConfigError, InputError, quoted, reason
from blip_diffusion.fileio import save_image, write_text
from blip_diffusion.plots import Line, line_chart
from blip_diffusion.sampling import PersonalizedObjective, sample_prompts
from blip_diffusion.strict_json import parse_json
from blip_diffusion.training import checkpointing
from blip_diffusion.training.objective import Objective
from blip_diffusion.training.run import CHECKPOINTS
from blip_diffusion.training.trainer import HookContext

SCORES, STRIP, CURVE, BEST = "scores.jsonl", "strip.png", "curve.png", "best"
MAX_LETTERS = 2000
RANGES = {
    "seeds": (1, 100),
    "every": (1, 1_000_000),
    "sampling_steps": (1, 1000),
    "patience": (1, 1_000_000),
    "margin": (0, 1),
    "overfitted": (0, 1),
}
"""The lowest and the highest value of the settings of early stopping."""
PROMPTS = ("on the beach", "in a forest", "in a city at night")

Evaluator = Callable[[Tensor], tuple[float, float]]
"""Images (B, 3, H, W) in [0, 1] of all validation prompts, seed after seed, to a subject score and a text score.

A subject score of 1 means as similar as the photos are to each other; a text score of 1 means that images follow the
prompt as closely as the untuned model's without a subject."""


@dataclass(frozen=True)
class ValidationConfig:
    """Settings of early stopping: prompts, interval, and when a run ends."""

    prompts: tuple[str, ...] = PROMPTS
    seeds: int = 1  # images per prompt
    every: int = 10  # steps
    sampling_steps: int | None = 12  # sampling steps; None: the model's
    patience: int = 3  # validations without improvement after which a run ends
    margin: float = 0.01  # smallest improvement of the balance that counts
    overfitted: float = 0.6  # a text score below this share of the first one counts as overfitting

    def __post_init__(self) -> None:
        check_types(self)
        if not 2 <= len(self.prompts) <= 4 or any(not prompt.strip() for prompt in self.prompts):
            raise ConfigError("Validation needs two to four prompts, for example on the beach.")
        for prompt in self.prompts:
            one_text("validation prompt", prompt)
            if len(prompt) > MAX_LETTERS:
                raise ConfigError(f"A validation prompt has {len(prompt)} characters: use at most {MAX_LETTERS}.")
        for name, (lowest, highest) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value <= highest:
                raise ConfigError(f"validation.{name} is {value}: use {lowest} to {highest}.")


@dataclass(frozen=True)
class Score:
    """Scores of a step."""

    step: int
    subject: float
    text: float

    @property
    def balance(self) -> float:
        """The geometric mean of both scores, each clamped to [0, 1]."""
        return math.sqrt(min(max(self.subject, 0.0), 1.0) * min(max(self.text, 0.0), 1.0))


@dataclass
class Validation:
    """A hook that exports the best result and ends the run when scores no longer improve.

    After `begin`, `scores` starts with the untuned model's.
    """

    evaluator: Evaluator
    config: ValidationConfig
    folder: Path
    scores: list[Score] = field(default_factory=list)

    def begin(self, objective: Objective, *, after: int = 0) -> None:
        """Score step 0; in a resumed run, read the scores up to the step `after` that it continues from."""
        earlier = _read_scores(self.folder / SCORES) if after else []
        self.scores = [score for score in earlier if score.step <= after]
        if self.scores and not self.kept.is_dir():
            raise CheckpointError(f"{self.kept}, the best result so far, is missing: leave out --resume.")
        self._drop_superseded()  # exports of steps after that one
        if not self.scores:
            self._score(objective, 0)
        self._record()

    def __call__(self, context: HookContext) -> bool:
        """Score the step and return whether the run should end."""
        if any(score.step == context.step for score in self.scores):
            return self.should_stop
        objective = context.objective
        score = self._score(objective, context.step)
        self._record()
        values = {"validation/subject": score.subject, "validation/text": score.text}
        context.metric_logger.log(context.step, values)
        return self.should_stop

    @property
    def best(self) -> Score:
        """The best trade-off so far, the earliest of those that differ by less than the margin."""
        return self._best_of(self.scores)

    @property
    def kept(self) -> Path:
        """The folder of the best result's export."""
        return self._export(self.best)

    @property
    def should_stop(self) -> bool:
        """Whether `patience` scores have followed the best without improvement."""
        return len([score for score in self.scores if score.step > self.best.step]) >= self.config.patience

    def overfits(self, score: Score) -> bool:
        """Return whether prompts are ignored: the text score is below a fraction of the first one."""
        return score.text < self.config.overfitted * self.scores[0].text

    def _score(self, objective: Objective, step: int) -> Score:
        config = self.config
        with torch.no_grad():
            samples = sample_prompts(
                cast(PersonalizedObjective, objective), config.prompts, seeds=config.seeds, steps=config.sampling_steps
            )
            score = _checked(step, self.evaluator(samples))
        self.scores.append(score)
        _save(images.grid(images.to_pil(samples), len(samples)), self._row(step))
        if score is self.best:
            objective.export(self._export(score))
        return score

    def _best_of(self, scores: Sequence[Score]) -> Score:
        best = scores[0]
        for score in scores[1:]:
            best = score if score.balance > best.balance + self.config.margin else best
        return best

    def _export(self, score: Score) -> Path:
        return self.folder / BEST / f"{score.step:06d}"

    def _record(self) -> None:
        """Write the scores, then remove the exports that they supersede."""
        _write_scores(self.folder / SCORES, self.scores)
        self._drop_superseded()

    def _drop_superseded(self) -> None:
        """Remove all exports except the best, and the best up to the checkpoint that a resumed run starts from."""
        saved = checkpointing.complete(self.folder / CHECKPOINTS)
        resumed = checkpointing.step_of(saved[-1]) if saved else -1
        before = [score for score in self.scores if score.step <= resumed]
        needed = {self._export(self._best_of(scores)) for scores in (self.scores, before) if scores}
        for folder in (self.folder / BEST).glob("*"):
            if folder not in needed:
                shutil.rmtree(folder)

    def _row(self, step: int) -> Path:
        return self.folder / "samples" / f"validation-{step:06d}.png"

    def report(self, title: str) -> None:
        """Write the strip of samples, one row per score, and the curve."""
        rows = [(score, images.open_lazily(self._row(score.step)), self._label(score)) for score in self.scores]
        _save(_strip([(row, label, self.overfits(score)) for score, row, label in rows]), self.folder / STRIP)
        points = {
            "subject": [(s.step, s.subject) for s in self.scores],
            "text": [(s.step, s.text) for s in self.scores],
            "balance": [(s.step, s.balance) for s in self.scores],
        }
        mark = (float(self.best.step), "kept")
        lines = {name: Line(values) for name, values in points.items()}
        _save(line_chart(lines, title=title, x_label="steps", mark=mark), self.folder / CURVE)

    def _label(self, score: Score) -> list[str]:
        lines = [f"step {score.step}", f"subject {score.subject:.2f}", f"text {score.text:.2f}"]
        lines += ["kept"] if score is self.best else []
        return lines + (["overfits"] if self.overfits(score) else [])


def _checked(step: int, result: Any) -> Score:
    """Return the score of an evaluator's result. Raises `InputError` for anything but two finite numbers."""
    if not isinstance(result, list | tuple) or len(result) != 2:
        raise InputError(f"The evaluator returned {quoted(result)}: return two numbers, of the subject and the text.")
    subject, text = (number("a score of the evaluator", value) for value in result)
    return Score(step, subject, text)


def _strip(rows: Sequence[tuple[Image.Image, list[str], bool]]) -> Image.Image:
    """Return rows of images with their labels at the left, in red for overfitted ones."""
    width = 110
    height = max(row.height for row, _, _ in rows)
    page = Image.new("RGB", (width + rows[0][0].width, len(rows) * (height + 2)), "white")
    pen = ImageDraw.Draw(page)
    font = ImageFont.load_default(13)
    for top, (row, label, overfitted) in zip(range(0, page.height, height + 2), rows, strict=True):
        pen.text((6, top + 4), "\n".join(label), fill="#c00000" if overfitted else "black", font=font)
        page.paste(row, (width, top))
    return page


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(image, path)


def _write_scores(path: Path, scores: Sequence[Score]) -> None:
    write_text(path, "".join(f"{json.dumps(asdict(score))}\n" for score in scores))


def _read_scores(path: Path) -> list[Score]:
    if not path.is_file():
        return []
    try:
        scores = [Score(**parse_json(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        if not all(type(one.step) is int and math.isfinite(one.subject + one.text) for one in scores):
            raise ValueError("a score is not a finite number")
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({reason(error)[:100]}): leave out --resume, or choose another --name."
        ) from error
    return scores
