"""What a bench asks is data: the same for everyone, and nothing of it was trained on."""

import pytest
import torch

from blip_diffusion.errors import BlipDiffusionError, InputError
from blip_diffusion.evaluation.cases import Bench, first_row, mini_bench, prepare
from blip_diffusion.evaluation.scenes import PHRASES

from .toys import BENCH, SCENES, SIZE, WORLD


def test_cases_are_subject_after_subject() -> None:
    material = prepare(WORLD, BENCH, size=SIZE)
    assert len(material.cases) == BENCH.pictures == 4 * 2 * 2
    assert [case.identity for case in material.cases[:5]] == ["held0"] * 4 + ["held1"]
    assert [case.prompt for case in material.cases[:4]] == [SCENES[0]] * 2 + [SCENES[1]] * 2
    assert len({case.seed for case in material.cases}) == BENCH.pictures
    assert material.ground_truth.shape == material.other_instance.shape == material.references.shape


def test_the_same_bench_again() -> None:
    first, second = prepare(WORLD, BENCH, size=SIZE), prepare(WORLD, BENCH, size=SIZE)
    torch.testing.assert_close(first.ground_truth, second.ground_truth, atol=0, rtol=0)
    assert [case.seed for case in first.cases] == [case.seed for case in second.cases]


def test_a_subject_is_the_same_in_a_smaller_bench() -> None:
    few = Bench(BENCH.subjects[2:], BENCH.prompts, BENCH.seeds, BENCH.scenes)
    large, small = prepare(WORLD, BENCH, size=SIZE), prepare(WORLD, few, size=SIZE)
    torch.testing.assert_close(large.other_instance[8:], small.other_instance, atol=0, rtol=0)


def test_mini_bench_takes_what_is_held_out_and_can_be_drawn() -> None:
    bench = mini_bench(WORLD, subjects=3, prompts=2, seeds=2)
    assert len(set(bench.subjects)) == 3 and all(name.startswith("held") for name in bench.subjects)
    assert len(bench.prompts) == 2 and set(bench.prompts) <= set(bench.scenes) < set(PHRASES)
    assert "in a forest" in bench.scenes  # a photograph
    assert "on the beach" in bench.scenes  # drawn
    assert "on the moon" not in bench.scenes  # neither


@pytest.mark.parametrize(
    "make",
    [
        lambda: Bench(("held0",)),
        lambda: Bench(("held0", "held1"), ("in the attic", "in the cellar")),
        lambda: Bench(("held0", "held1"), seeds=0),
        lambda: mini_bench(WORLD, subjects=2, prompts=99),
        lambda: mini_bench(WORLD, subjects=9, prompts=2),
        lambda: first_row(WORLD, "nobody"),
        lambda: prepare(WORLD, Bench(("hat", "balloon")), size=SIZE),  # nothing else is a hat
    ],
)
def test_what_cannot_be_asked(make: object) -> None:
    assert callable(make)
    with pytest.raises(BlipDiffusionError):
        make()


def test_errors_name_their_cause() -> None:
    with pytest.raises(InputError, match="in the attic"):
        Bench(("held0", "held1"), ("in the attic", "on the beach"))
