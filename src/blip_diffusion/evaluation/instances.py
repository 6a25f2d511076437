"""What a bench asks, picture by picture: a case is one picture to be made, and has its own noise and its own file."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blip_diffusion.data.benchmarks.dreambench import Bench, BenchPrompt, BenchSubject
from blip_diffusion.errors import InputError


@dataclass(frozen=True)
class Case:
    """One picture to be made. What it asks depends on nothing but the subject, the prompt and the copy."""

    subject: BenchSubject
    number: int  # of the prompt, in the bench's list
    prompt: BenchPrompt
    copy: int  # 0, 1 ...: which of the seeds

    @property
    def sentence(self) -> str:
        """ "a red teapot on the beach", without subject tokens."""
        return self.prompt.sentence(self.subject.category)

    @property
    def seed(self) -> int:
        """Of the noise; no two cases of a bench share it."""
        digest = hashlib.sha256(f"{self.subject.name} {self.number} {self.copy}".encode()).digest()
        return int.from_bytes(digest[:6])

    @property
    def file(self) -> Path:
        """Its picture, in the folder of a method."""
        words = re.sub(r"[^a-z0-9]+", "-", f"{self.prompt.before} {self.prompt.after}".lower()).strip("-")[:40]
        return Path(self.subject.name) / f"{self.number:02d}-{words}-{self.copy}.png"


def cases_of(bench: Bench, seeds: int) -> list[Case]:
    """Subject after subject, prompt after prompt, copy after copy."""
    if not 1 <= seeds <= 100:
        raise InputError(f"--seeds is {seeds}: use a number from 1 to 100.")
    return [
        Case(subject, number, bench.prompt(subject, number), copy)
        for subject in bench.subjects
        for number in bench.asked
        for copy in range(seeds)
    ]


def first_copies(cases: Sequence[Case]) -> list[Case]:
    """One case a prompt: enough for floors and ceilings."""
    return [case for case in cases if case.copy == 0]


def other_prompts(cases: Sequence[Case], bench: Bench) -> list[Case]:
    """Each case with the next prompt of its subject: what its picture was not asked for."""
    following = dict(zip(bench.asked, [*bench.asked[1:], bench.asked[0]], strict=True))
    moved = ((case, following[case.number]) for case in cases)
    return [Case(case.subject, number, bench.prompt(case.subject, number), case.copy) for case, number in moved]


def other_subjects(cases: Sequence[Case], bench: Bench) -> list[Case]:
    """Each case with a subject far away in the list: whom its picture does not show."""
    subjects = bench.subjects
    step = max(1, len(subjects) // 2)
    partner = {subject.name: subjects[(i + step) % len(subjects)] for i, subject in enumerate(subjects)}
    moved = ((case, partner[case.subject.name]) for case in cases)
    return [Case(subject, case.number, bench.prompt(subject, case.number), case.copy) for case, subject in moved]
