"""Rows with scores that are known beforehand: perfect, copied, shuffled, another's."""

from pathlib import Path

import pytest
import torch

from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.evaluation.generators.baselines import Draw, composite
from blip_diffusion.evaluation.generators.conditions import DECODED, WRONG_PROMPT, WRONG_SUBJECT, Row, rows_of
from blip_diffusion.evaluation.instances import cases_of
from blip_diffusion.evaluation.metrics.aggregate import Verdict, _between, by_subject, copies, judged
from blip_diffusion.evaluation.metrics.attributes import TextJudge
from blip_diffusion.evaluation.metrics.memorization import distances, neighbours, training_pictures
from blip_diffusion.evaluation.metrics.probe_data import lessons
from blip_diffusion.evaluation.metrics.similarity import Seen, SubjectJudge
from tests.evaluation.toys import SIZE, WORLD, Bag, Everything, Middle, copying, perfect, same, studio

SEEDS = 2


@pytest.fixture(scope="module")
def judges(bench: Bench) -> tuple[SubjectJudge, TextJudge]:
    studied = lessons(WORLD, {subject.identity for subject in bench.subjects}, same, size=SIZE, each=8)
    return SubjectJudge("middle", Seen(Middle()), bench), TextJudge(Seen(Everything()), Bag(), bench, studied)


def rows(draw: Draw, bench: Bench, folder: Path) -> dict[str, Row]:
    return rows_of("zero-shot", bench, cases_of(bench, SEEDS), studio(draw), folder)


def verdicts(judges: tuple[SubjectJudge, TextJudge], draw: Draw, bench: Bench, folder: Path) -> tuple[Verdict, Verdict]:
    found, names = rows(draw, bench, folder), [subject.name for subject in bench.subjects]
    subject, text = (judged(judge, found, names) for judge in judges)
    return subject, text


@pytest.fixture(scope="module")
def of_perfect(
    judges: tuple[SubjectJudge, TextJudge], bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Verdict, Verdict]:
    return verdicts(judges, perfect(), bench, tmp_path_factory.mktemp("perfect"))


@pytest.fixture(scope="module")
def of_copying(
    judges: tuple[SubjectJudge, TextJudge], bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Verdict, Verdict]:
    return verdicts(judges, copying, bench, tmp_path_factory.mktemp("copying"))


def test_the_ground_truth_reaches_the_ceiling(of_perfect: tuple[Verdict, Verdict]) -> None:
    subject, text = of_perfect
    assert subject.between["fidelity"].value == pytest.approx(1.0, abs=0.15)
    assert subject.rows["zero-shot"]["likeness"].value > subject.rows["other-instance"]["likeness"].value
    assert subject.rows["ground-truth"] == subject.rows[DECODED]  # the toy autoencoder loses nothing
    assert text.between["named"].value == pytest.approx(1.0, abs=0.1)
    assert text.rows["zero-shot"]["scene"].value > 0.7


def test_wrong_subjects_lose_the_subject_and_keep_the_prompt(of_perfect: tuple[Verdict, Verdict]) -> None:
    subject, text = of_perfect
    assert subject.rows[WRONG_SUBJECT]["likeness"].value < subject.rows["zero-shot"]["likeness"].value - 0.3
    assert text.rows[WRONG_SUBJECT]["named"].value == pytest.approx(text.rows["zero-shot"]["named"].value, abs=0.05)


def test_wrong_prompts_lose_the_prompt_and_keep_the_subject(of_perfect: tuple[Verdict, Verdict]) -> None:
    subject, text = of_perfect
    assert text.rows[WRONG_PROMPT]["named"].value < text.rows["zero-shot"]["named"].value - 0.3
    assert subject.rows[WRONG_PROMPT] == subject.rows["zero-shot"]


def test_a_copy_is_flagged_and_nothing_else_is(
    of_copying: tuple[Verdict, Verdict], of_perfect: tuple[Verdict, Verdict]
) -> None:
    subject, text = of_copying
    assert subject.rows["zero-shot"]["likeness"].value == pytest.approx(
        subject.rows["reference-copy"]["likeness"].value, abs=0.05
    )
    assert copies(subject, text)
    assert not copies(*of_perfect)
    assert not copies(of_copying[0], of_perfect[1])  # very like, but the prompts are followed


def test_aspects_are_judged_where_they_are_asked_for(of_perfect: tuple[Verdict, Verdict], bench: Bench) -> None:
    _, text = of_perfect
    asked = [case.prompt.request for case in cases_of(bench, SEEDS)]
    for aspect, none in (("colour", ""), ("count", 1), ("style", ""), ("accessory", "")):
        given = [request is not None and getattr(request, aspect) != none for request in asked]
        assert [value is not None for value in text.pictures[aspect]] == given


def test_what_the_judge_sees_in_no_ground_truth_has_no_share(of_perfect: tuple[Verdict, Verdict]) -> None:
    card, seen = of_perfect[1].card, torch.ones(2)
    columns = {name: dict.fromkeys(card.metrics, seen) for name in ("zero-shot", DECODED)}
    columns[DECODED] = {**columns[DECODED], "scene": torch.zeros(2)}
    assert "scene" not in (found := _between(card, "zero-shot", columns)) and found["named"].value == 1


def test_floors_take_one_copy(of_perfect: tuple[Verdict, Verdict], bench: Bench, tmp_path: Path) -> None:
    found = rows(perfect(), bench, tmp_path)
    assert len(found["zero-shot"].cases) == SEEDS * len(found["no-subject"].cases)
    assert set(found["reference-copy"].pictures) == {subject.pictures[0] for subject in bench.subjects}


def test_by_subject_is_a_mean_of_what_was_asked(bench: Bench) -> None:
    cases = cases_of(bench.part(2, 2), 1)
    values = torch.tensor([1.0, float("nan"), float("nan"), float("nan")])
    assert torch.equal(by_subject(values, cases, [s.name for s in bench.part(2, 2).subjects]).isnan(),
                       torch.tensor([False, True]))  # fmt: skip


def test_copies_of_one_picture_have_no_distance(bench: Bench, tmp_path: Path) -> None:
    part = bench.part(2, 2)
    cases = cases_of(part, 3)
    one = rows_of("zero-shot", part, cases, studio(copying), tmp_path / "one")["zero-shot"]
    many = rows_of("zero-shot", part, cases, studio(perfect()), tmp_path / "many")["zero-shot"]
    look = Seen(Everything())
    alike, apart = distances(look, one), distances(look, many)
    assert alike is not None and apart is not None
    assert alike.value == pytest.approx(0, abs=1e-5) and apart.value > 0.001
    assert distances(look, Row(one.pictures[::3], cases[::3])) is None


def test_a_memorised_picture_is_found(tmp_path: Path) -> None:
    bank = training_pictures(WORLD, tmp_path, size=SIZE)
    scenes = [path for path in bank if path.name.startswith("scene")]
    assert len(scenes) == 2 * sum(scene.split == "train" for scene in WORLD.scenes)
    stamp = bank[0].stat().st_mtime_ns
    assert training_pictures(WORLD, tmp_path, size=SIZE) == bank and bank[0].stat().st_mtime_ns == stamp
    for picture, near, cosine in neighbours(Seen(Everything()), bank[:3], bank):
        assert picture == near and cosine == pytest.approx(1.0, abs=1e-5)


def test_a_composite_does_not_depend_on_its_batch(bench: Bench) -> None:
    cases = cases_of(bench, 1)[:4]
    draw = composite(WORLD, size=SIZE)
    assert [a.tobytes() for a in draw(cases)] == [draw([case])[0].tobytes() for case in cases]


def test_lessons_hold_nothing_of_the_bench(bench: Bench) -> None:
    """Only one held-out subject is in no bench: the grey dog, of one colour, that no lesson may differ from."""
    with pytest.raises(Exception, match="no subject beside"):
        lessons(WORLD, {f"held{i}" for i in range(4)}, same, size=SIZE, each=1)
    studied = lessons(WORLD, {subject.identity for subject in bench.subjects}, same, size=SIZE, each=1)
    assert len(studied.pictures) == len(studied.requests) == len(studied.sentences)
    assert {sentence.split()[1] for sentence in studied.sentences} == {"dog"}
