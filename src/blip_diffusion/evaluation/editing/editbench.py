"""EditBench: edits with a known target image, because the same scene is composited with either subject.

A photo shows one subject of MiniBench in a scene; the target shows another one in the same scene and light, at the same
position. The background of an edit is compared with the photo, and its subject with the target. Photos are synthetic.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.data.benchmarks.minibench import bench_sampler, first_rows, pair_spec_of
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.editing.tasks import EditTask
from blip_diffusion.evaluation.instances import Instance

SHADOW, BRUSH = 6, 4
"""Widths in pixels: the margin around subjects that isn't scored as background, and that of the given mask."""
EDITS = 60
"""Number of edits by default."""
DEFAULT = (
    "copy", "generate", "truth", "none/none", "direct/none", "ddpm/none", "ddim/none", "direct/none/attention",
    "none/difference", "direct/difference", "ddpm/difference", "direct/difference/attention", "direct/subject",
    "none/given", "direct/given", "ddpm/given", "direct/given/attention", "inpaint-2",
)  # fmt: skip
"""Conditions by default."""


def build_tasks(bench: Bench, world: AssetLibrary, count: int, *, size: int) -> list[EditTask]:
    """Composite the edits of a benchmark, spread over its subjects and scenes; deterministic.

    Raises:
        InputError: If the benchmark has fewer edits.
    """
    scenes = [number for number in bench.prompt_ids if bench.objects[number].kind == "scene"]
    subjects = bench.subjects
    if not scenes or count > len(subjects) * len(scenes):
        raise InputError(f"--edits is {count}: this benchmark has {len(subjects) * len(scenes)}.")
    sampler, rows = bench_sampler(world, size), first_rows(world)
    return [_task(bench, sampler, rows, scenes, i) for i in range(count)]


def _task(bench: Bench, sampler: PairSampler, rows: Mapping[str, int], scenes: Sequence[int], number: int) -> EditTask:
    subjects, turn = bench.subjects, number // len(bench.subjects)
    target = subjects[number % len(subjects)]
    others = [one for one in subjects if one.category != target.category] or [one for one in subjects if one != target]
    source = others[(7 * number + 11 * turn) % len(others)]
    scene = scenes[(number + 5 * turn) % len(scenes)]
    instance = Instance(target, scene, bench.prompt(target, scene), 0)
    seed = f"edit {number}"
    assert instance.prompt.request is not None
    spec = pair_spec_of(sampler, rows[target.identity], instance.prompt.request, random.Random(seed))
    old = replace(spec, reference=rows[source.identity], target=rows[source.identity])
    edited, photo = (sampler.render([one], random.Random(seed)) for one in (spec, old))
    either = torch.maximum(edited["target_alpha"], photo["target_alpha"])
    return EditTask(
        instance,
        source.category,
        photo["target"][0],
        background=1 - _dilated(either, 0.05, SHADOW)[0],
        given=_dilated(either, 0.1, BRUSH)[0],
        text=instance.prompt_text,
        truth=edited["target"][0],
        subject=(edited["target_alpha"][0] > 0.5).float(),
    )


def _dilated(alpha: Tensor, threshold: float, reach: int) -> Tensor:
    """Return where alpha (..., S, S) exceeds a threshold, dilated by `reach` pixels."""
    return F.max_pool2d((alpha > threshold).float(), 2 * reach + 1, stride=1, padding=reach)
