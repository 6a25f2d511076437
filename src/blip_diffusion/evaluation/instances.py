"""The instances of a benchmark. An instance is one image to generate, with its own noise seed and its own file."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blip_diffusion.data.benchmarks.dreambench import Bench, BenchPrompt, BenchSubject
from blip_diffusion.errors import InputError


@dataclass(frozen=True)
class Instance:
    """One image to generate: a subject in a prompt, with one noise seed."""

    subject: BenchSubject
    prompt_index: int  # in the benchmark's list of prompts
    prompt: BenchPrompt
    sample_index: int  # index of the seed: 0, 1 ...

    @property
    def prompt_text(self) -> str:
        """The whole prompt without subject tokens, such as "a red teapot on the beach"."""
        return self.prompt.sentence(self.subject.category)

    @property
    def seed(self) -> int:
        """The seed of its noise, unique to the instance and independent of the run's other settings."""
        digest = hashlib.sha256(f"{self.subject.name} {self.prompt_index} {self.sample_index}".encode()).digest()
        return int.from_bytes(digest[:6])

    @property
    def file(self) -> Path:
        """The path of its image below the folder of a condition."""
        words = re.sub(r"[^a-z0-9]+", "-", f"{self.prompt.before} {self.prompt.after}".lower()).strip("-")[:40]
        return Path(self.subject.name) / f"{self.prompt_index:02d}-{words}-{self.sample_index}.png"


def build_instances(bench: Bench, seeds: int) -> list[Instance]:
    """List the instances of a benchmark: subject by subject, prompt by prompt, seed by seed.

    Raises:
        InputError: If `seeds` is not from 1 to 100.
    """
    if not 1 <= seeds <= 100:
        raise InputError(f"--seeds is {seeds}: use a number from 1 to 100.")
    return [
        Instance(subject, prompt_index, bench.prompt(subject, prompt_index), sample_index)
        for subject in bench.subjects
        for prompt_index in bench.prompt_ids
        for sample_index in range(seeds)
    ]


def first_samples(instances: Sequence[Instance]) -> list[Instance]:
    """Keep one instance per prompt, which is enough for baselines."""
    return [instance for instance in instances if instance.sample_index == 0]


def with_next_prompt(instances: Sequence[Instance], bench: Bench) -> list[Instance]:
    """Give each instance the next prompt of its subject, which its image was not generated for."""
    following = dict(zip(bench.prompt_ids, [*bench.prompt_ids[1:], bench.prompt_ids[0]], strict=True))
    moved = ((instance, following[instance.prompt_index]) for instance in instances)
    return [_moved(bench, instance, instance.subject, prompt_index) for instance, prompt_index in moved]


def with_other_subject(instances: Sequence[Instance], bench: Bench, *, by_prompt: bool = False) -> list[Instance]:
    """Give each instance a subject far away in the list, which its image does not show.

    With `by_prompt`, each prompt has its own pairs of subjects.
    """
    subjects = bench.subjects
    index = {subject.name: i for i, subject in enumerate(subjects)}
    moved = []
    for instance in instances:
        step = max(1, len(subjects) // 2) + instance.prompt_index * by_prompt
        other = (index[instance.subject.name] + (step % (len(subjects) - 1) or 1)) % len(subjects)
        moved.append(_moved(bench, instance, subjects[other], instance.prompt_index))
    return moved


def _moved(bench: Bench, instance: Instance, subject: BenchSubject, prompt_index: int) -> Instance:
    return Instance(subject, prompt_index, bench.prompt(subject, prompt_index), instance.sample_index)
