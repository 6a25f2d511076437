"""Rows with scores that are known beforehand: perfect, copied, shuffled, another's."""

from pathlib import Path

import pytest
import torch

from blip_diffusion.evaluation.report import (
    COPIED,
    GENERATED,
    OTHER,
    SHUFFLED_PROMPTS,
    SHUFFLED_REFERENCES,
    TRUTH,
    TRUTH_DECODED,
    Report,
    Verdict,
    markdown,
    write,
)
from blip_diffusion.evaluation.scoring import Draw, evaluate, see, subject_region

from .toys import BENCH, SIZE, WORLD, ColourJudge, copying, other_instance, perfect, same


def judged(draw: Draw) -> Verdict:
    report, _ = evaluate(draw, WORLD, BENCH, round_trip=same, judges=[ColourJudge()], size=SIZE)
    return report.verdicts["colours"]


@pytest.fixture(scope="module")
def of_perfect() -> Verdict:
    return judged(perfect())


def test_the_ground_truth_reaches_the_ceiling(of_perfect: Verdict) -> None:
    rows = of_perfect.rows
    assert of_perfect.fidelity.value > 0.9
    assert rows[GENERATED].named.value == 1.0
    assert rows[GENERATED].scene.value > 0.9
    assert rows[TRUTH] == rows[TRUTH_DECODED]  # the toy autoencoder loses nothing
    assert rows[TRUTH].subject.value > rows[OTHER].subject.value


def test_shuffled_references_lose_the_subject_and_keep_the_scene(of_perfect: Verdict) -> None:
    rows = of_perfect.rows
    assert rows[SHUFFLED_REFERENCES].named.value == 0.0
    assert rows[SHUFFLED_REFERENCES].subject.value < rows[GENERATED].subject.value - 0.3
    assert rows[SHUFFLED_REFERENCES].scene.value > 0.9


def test_shuffled_prompts_lose_the_scene_and_keep_the_subject(of_perfect: Verdict) -> None:
    rows = of_perfect.rows
    assert rows[SHUFFLED_PROMPTS].scene.value < 0.1
    assert rows[SHUFFLED_PROMPTS].named.value == rows[GENERATED].named.value


def test_a_copy_is_the_subject_without_the_scene() -> None:
    verdict = judged(copying)
    assert verdict.rows[GENERATED] == verdict.rows[COPIED]
    assert verdict.rows[COPIED].subject.value >= verdict.rows[TRUTH].subject.value - 0.05
    assert verdict.rows[COPIED].named.value == 1.0
    assert verdict.rows[COPIED].scene.value < 0.6


def test_another_instance_is_the_floor() -> None:
    verdict = judged(other_instance())
    assert verdict.fidelity.value == pytest.approx(0.0, abs=1e-6)
    assert verdict.rows[GENERATED] == verdict.rows[OTHER]


def test_the_same_generator_gets_the_same_report(of_perfect: Verdict) -> None:
    assert judged(perfect()) == of_perfect


def test_a_report_is_written_and_read(tmp_path: Path) -> None:
    report, pictures = evaluate(perfect(), WORLD, BENCH, round_trip=same, judges=[ColourJudge()], size=SIZE)
    write(report, pictures, tmp_path)
    assert Report.from_json((tmp_path / "report.json").read_text()) == report
    assert (tmp_path / "report.md").read_text() == markdown(report)
    assert "| generated |" in markdown(report)
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_a_generator_is_asked_in_batches() -> None:
    sizes: list[int] = []
    draw = perfect()

    def counting(cases):  # type: ignore[no-untyped-def]
        sizes.append(len(cases))
        return draw(cases)

    evaluate(counting, WORLD, BENCH, round_trip=same, judges=[ColourJudge()], size=SIZE, batch=6)
    assert sizes == [6, 6, 4] * 2


def test_features_of_subject_and_scene_come_from_their_places() -> None:
    region = subject_region(SIZE)
    assert 0.18 < region.mean() < 0.21  # a disc half as wide as the picture
    picture = region.expand(1, 3, SIZE, SIZE)
    seen = see(ColourJudge(), picture)
    assert seen.subject[0, 0] > 0.8 and seen.scene[0, 0] < 0.1
    torch.testing.assert_close(
        see(ColourJudge(), picture.repeat(5, 1, 1, 1), batch=2).subject, seen.subject.expand(5, -1)
    )
