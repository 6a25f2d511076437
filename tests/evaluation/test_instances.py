"""What is asked is the same for everyone, and nothing of it depends on what else is asked."""

import pytest

from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.instances import cases_of, first_copies, other_prompts, other_subjects


def test_cases_are_subject_after_subject(bench: Bench) -> None:
    cases = cases_of(bench, 2)
    assert len(cases) == 3 * len(bench.asked) * 2
    assert [case.copy for case in cases[:4]] == [0, 1, 0, 1]
    assert len({case.seed for case in cases}) == len({case.file for case in cases}) == len(cases)
    assert [case.subject.name for case in cases[:: len(bench.asked) * 2]] == [s.name for s in bench.subjects]
    assert len(first_copies(cases)) == len(cases) // 2


def test_a_case_is_the_same_in_a_smaller_bench(bench: Bench) -> None:
    whole = {case.file: case.seed for case in cases_of(bench, 4)}
    part = {case.file: case.seed for case in cases_of(bench.part(2, 3), 1)}
    assert part.items() <= whole.items()


def test_files_say_what_they_show(bench: Bench) -> None:
    case = cases_of(bench, 1)[0]
    assert case.sentence == "a dog on the beach"
    assert str(case.file) == f"{bench.subjects[0].name}/00-on-the-beach-0.png"


def test_wrong_questions_are_about_the_same_bench(bench: Bench) -> None:
    cases = cases_of(bench.part(3, 4), 1)
    part = bench.part(3, 4)
    for wrong in (other_prompts(cases, part), other_subjects(cases, part)):
        assert all(a != b for a, b in zip(cases, wrong, strict=True))
        assert sorted(case.file for case in wrong) == sorted(case.file for case in cases)
    assert all(a.subject == b.subject for a, b in zip(cases, other_prompts(cases, part), strict=True))
    assert all(a.number == b.number for a, b in zip(cases, other_subjects(cases, part), strict=True))


def test_no_seed_is_no_question(bench: Bench) -> None:
    with pytest.raises(InputError, match="--seeds is 0"):
        cases_of(bench, 0)
