"""Instances of a benchmark do not depend on the other instances of a run."""

import pytest

from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.instances import build_instances, first_samples, with_next_prompt, with_other_subject


def test_instances_are_ordered_by_subject(bench: Bench) -> None:
    instances = build_instances(bench, 2)
    assert len(instances) == 3 * len(bench.prompt_ids) * 2
    assert [instance.sample_index for instance in instances[:4]] == [0, 1, 0, 1]
    assert (
        len({instance.seed for instance in instances})
        == len({instance.file for instance in instances})
        == len(instances)
    )
    assert [instance.subject.name for instance in instances[:: len(bench.prompt_ids) * 2]] == [
        s.name for s in bench.subjects
    ]
    assert len(first_samples(instances)) == len(instances) // 2


def test_instance_is_the_same_in_a_smaller_benchmark(bench: Bench) -> None:
    whole = {instance.file: instance.seed for instance in build_instances(bench, 4)}
    part = {instance.file: instance.seed for instance in build_instances(bench.part(2, 3), 1)}
    assert part.items() <= whole.items()


def test_file_names_identify_the_instance(bench: Bench) -> None:
    instance = build_instances(bench, 1)[0]
    assert instance.prompt_text == "a dog on the beach"
    assert str(instance.file) == f"{bench.subjects[0].name}/00-on-the-beach-0.png"


def test_mismatched_instances_belong_to_the_same_benchmark(bench: Bench) -> None:
    instances = build_instances(bench.part(3, 4), 1)
    part = bench.part(3, 4)
    for wrong in (with_next_prompt(instances, part), with_other_subject(instances, part)):
        assert all(a != b for a, b in zip(instances, wrong, strict=True))
        assert sorted(instance.file for instance in wrong) == sorted(instance.file for instance in instances)
    assert all(a.subject == b.subject for a, b in zip(instances, with_next_prompt(instances, part), strict=True))
    moved = with_other_subject(instances, part)
    assert all(a.prompt_index == b.prompt_index for a, b in zip(instances, moved, strict=True))


def test_zero_seeds_give_no_instances(bench: Bench) -> None:
    with pytest.raises(InputError, match="--seeds is 0"):
        build_instances(bench, 0)
