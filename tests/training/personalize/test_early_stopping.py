"""Early stopping: the encoder metric, kept weights, and the end of a run."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.data.photos import squares
from blip_diffusion.errors import CheckpointError, ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.prompts import subject_prompt
from blip_diffusion.sampling import prompt_seeds, sample_images
from blip_diffusion.training.personalize.early_stopping import CURVE, STRIP, Score, Validation, ValidationConfig
from blip_diffusion.training.personalize.encoder_metric import EncoderMetric
from tests.training.photos import photographs

CONFIG = ValidationConfig(sampling_steps=2)


@dataclass
class Drawer:
    """An objective that samples one image per scene and counts its exports."""

    model: BlipDiffusion
    exported: list[int] = field(default_factory=list)
    now: int = 0

    def states(self, scenes: list[str]) -> Tensor:
        return self.model.text_states([subject_prompt(scene, "dog") for scene in scenes])

    def export(self, folder: Path) -> None:
        self.exported.append(self.now)
        folder.mkdir(parents=True)
        (folder / "step.txt").write_text(str(self.now))


def follow(scores: list[tuple[float, float]], model: BlipDiffusion, folder: Path, **config: Any) -> Any:
    """Run early stopping on given scores, step by step, until it stops."""
    coming = iter(scores)
    settings = ValidationConfig(sampling_steps=1, **config)
    validation = Validation(lambda samples: next(coming), settings, folder)
    objective = Drawer(model)
    metric_logger = SimpleNamespace(log=lambda step, values: None)
    validation.begin(objective)  # type: ignore[arg-type]
    for objective.now in range(10, 10 * len(scores), 10):
        if validation(SimpleNamespace(objective=objective, step=objective.now, metric_logger=metric_logger)):  # type: ignore[arg-type]
            break
    return validation, objective


def test_best_trade_off_is_kept_and_tuning_stops(model: BlipDiffusion, tmp_path: Path) -> None:
    scores = [(0.4, 1.0), (0.6, 0.9), (0.8, 0.8), (0.9, 0.5), (0.95, 0.4), (0.97, 0.3), (1.0, 0.2)]
    validation, objective = follow(scores, model, tmp_path)
    assert [score.step for score in validation.scores] == [0, 10, 20, 30, 40, 50]  # three after the best
    assert validation.best.step == 20 and objective.exported == [0, 10, 20]
    assert [validation.overfits(score) for score in validation.scores] == [False] * 3 + [True] * 3
    validation.report("rex")
    with Image.open(tmp_path / CURVE) as curve:
        assert curve.width > 400
    strip = Image.open(tmp_path / STRIP)
    assert strip.height == 6 * 34 and strip.width > 3 * 32
    red = images.to_tensor([strip.convert("RGB")])[0]
    loud = (red[0] > 0.7) & (red[1] < 0.2) & (red[2] < 0.2)
    assert loud[34 * 3 :, :110].any() and not loud[: 34 * 3, :110].any()  # overfitting is shown as such


def test_kept_weights_survive_a_lost_better_step(model: BlipDiffusion, tmp_path: Path) -> None:
    """From a checkpoint at step 10 a run goes on to 30, is lost, goes on from there again, and is worse."""
    kept, _ = follow([(0.4, 1.0), (0.8, 0.8)], model, tmp_path)
    (tmp_path / "checkpoints" / "step-00000010").mkdir(parents=True)
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["000010"]
    for score, expected in ((0.9, 30), (0.1, 10)):
        validation, objective = (
            Validation(lambda samples, value=score: (value, value), kept.config, tmp_path),
            Drawer(model),
        )  # type: ignore[misc]
        validation.begin(objective, after=10)  # type: ignore[arg-type]
        objective.now = 30
        validation(SimpleNamespace(objective=objective, step=30, metric_logger=SimpleNamespace(log=lambda *_: None)))  # type: ignore[arg-type]
        assert validation.best.step == expected and (validation.kept / "step.txt").read_text() == str(expected)
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["000010"]


def test_a_lost_export_of_the_best_result_is_refused(model: BlipDiffusion, tmp_path: Path) -> None:
    kept, objective = follow([(0.4, 1.0), (0.8, 0.8)], model, tmp_path)
    shutil.rmtree(tmp_path / "best")
    with pytest.raises(CheckpointError, match=r"000010, the best result so far, is missing: leave out --resume"):
        Validation(kept.evaluator, kept.config, tmp_path).begin(objective, after=10)


def test_small_improvements_do_not_reset_the_patience(model: BlipDiffusion, tmp_path: Path) -> None:
    validation, objective = follow([(0.50, 0.5), (0.505, 0.5), (0.51, 0.5), (0.505, 0.5)], model, tmp_path)
    assert validation.best.step == 0 and validation.should_stop and objective.exported == [0]


def test_both_scores_must_be_good() -> None:
    assert Score(0, 1.0, 0.0).balance == 0 and Score(0, -1.0, 1.0).balance == 0
    assert Score(0, 4.0, 0.25).balance == Score(0, 1.0, 0.25).balance == pytest.approx(0.5)


# ------------------------------------------------------------------------------------------------- the model's encoders


@pytest.fixture
def metric(model: BlipDiffusion, dog: Image.Image) -> EncoderMetric:
    pixels, masks = squares(photographs(dog), 32)
    return EncoderMetric(model, pixels, masks, "dog", CONFIG)


def plain(model: BlipDiffusion) -> Tensor:
    states = model.text_states([f"a dog {scene}" for scene in CONFIG.prompts])
    return sample_images(model, states, prompt_seeds(CONFIG.prompts, CONFIG.seeds), steps=CONFIG.sampling_steps)


@torch.no_grad()
def test_untuned_model_has_text_score_1_and_subject_score_0(model: BlipDiffusion, metric: EncoderMetric) -> None:
    subject, text = metric(plain(model))
    assert subject == pytest.approx(0, abs=1e-4) and text == pytest.approx(1, abs=1e-4)


@torch.no_grad()
def test_photos_have_subject_score_1_and_text_score_0(
    model: BlipDiffusion, metric: EncoderMetric, dog: Image.Image
) -> None:
    """Copies of a photo, whatever the prompt: that is overfitting at its purest."""
    photo = squares(photographs(dog), 32)[0][:1]
    subject, text = metric(photo.expand(3, -1, -1, -1))
    assert subject > 0.8 and text == pytest.approx(0, abs=1e-4)
    half, _ = metric(torch.cat([photo, plain(model)[1:]]))
    assert 0.1 < half < subject


@torch.no_grad()
def test_only_masked_regions_are_scored(model: BlipDiffusion, dog: Image.Image) -> None:
    pixels, _ = squares(photographs(dog), 32)
    left = torch.zeros(3, 1, 32, 32)
    left[..., :16] = 1
    right_gone = pixels.clone()
    right_gone[..., 16:] = 0
    scores = [EncoderMetric(model, pixels, masks, "dog", CONFIG)(right_gone)[0] for masks in (left, 1 - left)]
    assert scores[0] > scores[1]


@pytest.mark.parametrize("line", ["{", "[1]", "{}", '{"step": 1, "subject": "x", "text": 1}',
                                  '{"step": 1, "subject": NaN, "text": 1}', "[" * 100_000, "\0"])  # fmt: skip
def test_damaged_scores_are_refused(line: str, model: BlipDiffusion, tmp_path: Path) -> None:
    (tmp_path / "scores.jsonl").write_text(line)
    with pytest.raises(CheckpointError, match=r"scores.jsonl is damaged"):
        Validation(lambda samples: (0.5, 0.5), CONFIG, tmp_path).begin(Drawer(model), after=1)  # type: ignore[arg-type]


def test_errors() -> None:
    for scenes in ((), ("one",), ("a",) * 5, ("a", " ")):
        with pytest.raises(ConfigError, match="two to four prompts"):
            ValidationConfig(prompts=scenes)
    with pytest.raises(ConfigError, match="patience is 0: use 1 to"):
        ValidationConfig(patience=0)
