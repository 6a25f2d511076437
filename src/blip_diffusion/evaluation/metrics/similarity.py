"""Judges of pictures that somebody else trained: each looks through one network and compares in one way.

A judge says of every picture how well it answers its case. Cases are given beside the pictures, so that the same
pictures can be judged by wrong questions too: that is how a floor is found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.data.benchmarks.dreambench import Bench, BenchSubject
from blip_diffusion.evaluation.features.networks import Clip, Network
from blip_diffusion.evaluation.instances import Case
from blip_diffusion.evaluation.metrics.statistics import centred_cosine

DREAMBOOTH = "mean cosine to every real picture of the subject, the reference among them (Ruiz et al. 2023)"


@dataclass(frozen=True)
class Card:
    """What a report says of a judge. The first metric is its score, the second how often it recognises."""

    name: str
    kind: Literal["subject", "text"]
    family: str
    backbone: str
    preprocessing: str
    protocol: str
    metrics: Mapping[str, str]  # by name, and in words


class Judge(Protocol):
    """Pictures and what was asked of them, to scores."""

    card: Card

    def __call__(self, pictures: Sequence[Path], cases: Sequence[Case]) -> dict[str, Tensor]:
        """Every metric of every picture (B,); NaN where a case does not ask for it."""
        ...


class Seen:
    """A network's features of picture files, each of which is opened once; and of pictures that are no files."""

    def __init__(self, network: Network, *, batch: int = 32) -> None:
        self.network, self.batch = network, batch
        self._known: dict[Path, Tensor] = {}

    def __call__(self, paths: Sequence[Path]) -> Tensor:
        """Files to (B, F)."""
        new = [path for path in dict.fromkeys(paths) if path not in self._known]
        for start in range(0, len(new), self.batch):
            some = new[start : start + self.batch]
            self._known |= dict(zip(some, self.of([images.open_picture(path) for path in some]), strict=True))
        return torch.stack([self._known[path] for path in paths])

    def of(self, pictures: Sequence[Image.Image]) -> Tensor:
        """RGB pictures to (B, F), a batch at a time."""
        starts = range(0, len(pictures), self.batch)
        parts = [self.network(pictures[start : start + self.batch]) for start in starts]
        return torch.cat(parts).float().cpu()


class SubjectJudge:
    """Is it the subject? Centred cosine to the reference, of features of the subject's place.

    Without the mean of their sort of picture any two look alike: what all share outweighs what tells them apart.
    """

    def __init__(self, name: str, seen: Seen, bench: Bench, *, width: int | None = None) -> None:
        self.bench, self._seen, self._width = bench, seen, width
        self._place = {subject.name: i for i, subject in enumerate(bench.subjects)}
        self.references = self.features([subject.pictures[0] for subject in bench.subjects])  # (N, F)
        views = [path for subject in bench.subjects for path in subject.pictures[1:] or subject.pictures]
        self.centre = self.features(views).mean(0)
        network = seen.network
        self.card = Card(
            name, "subject", network.family, network.backbone, network.preprocessing,
            f"centred cosine to the reference; one of {len(bench.subjects)} is named by chance in "
            f"{1 / len(bench.subjects):.3f} of the pictures",
            {"likeness": "like the reference", "named": "names the subject"},
        )  # fmt: skip

    def __call__(self, pictures: Sequence[Path], cases: Sequence[Case]) -> dict[str, Tensor]:
        own = torch.tensor([self._place[case.subject.name] for case in cases])
        seen = self.features(pictures)
        cosines = centred_cosine(seen, self.references, self.centre, self.references.mean(0))  # (B, N)
        return {
            "likeness": cosines[torch.arange(len(own)), own],
            "named": (cosines.argmax(1) == own).float(),
        }

    def features(self, pictures: Sequence[Path]) -> Tensor:
        """What it compares (B, F): the first `width` numbers of what the network sees."""
        return self._seen(pictures)[:, : self._width]


class DreamBoothJudge:
    """DINO or CLIP-I: the mean cosine between a picture and all real pictures of the subject (Ruiz et al. 2023).

    A real picture is compared with the other ones; the reference, handed back by a generator, with all of them.
    """

    def __init__(self, name: str, seen: Seen, bench: Bench) -> None:
        self._seen, self._subjects = seen, bench.subjects
        network = seen.network
        self.card = Card(
            name, "subject", network.family, network.backbone, network.preprocessing, DREAMBOOTH,
            {"likeness": name, "named": "names the subject"},
        )  # fmt: skip

    def __call__(self, pictures: Sequence[Path], cases: Sequence[Case]) -> dict[str, Tensor]:
        seen = F.normalize(self._seen(pictures), dim=1)
        means = torch.stack([self._to(subject, seen, pictures) for subject in self._subjects], dim=1)  # (B, N)
        place = {subject.name: i for i, subject in enumerate(self._subjects)}
        own = torch.tensor([place[case.subject.name] for case in cases])
        return {"likeness": means[torch.arange(len(own)), own], "named": (means.argmax(1) == own).float()}

    def _to(self, subject: BenchSubject, seen: Tensor, pictures: Sequence[Path]) -> Tensor:
        """Mean cosines (B,) to one subject's pictures."""
        cosines = seen @ F.normalize(self._seen(subject.pictures), dim=1).T  # (B, P)
        others = subject.pictures[1:] if len(subject.pictures) > 1 else ()
        counts = torch.tensor(
            [[not (path == real and path in others) for real in subject.pictures] for path in pictures]
        )
        return (cosines * counts).sum(1) / counts.sum(1)


class ClipTextJudge:
    """CLIP-T: the cosine between a picture and its sentence (Ruiz et al. 2023)."""

    def __init__(self, name: str, seen: Seen, clip: Clip, bench: Bench) -> None:
        self._seen, self._clip, self._bench = seen, clip, bench
        self.card = Card(
            name, "text", clip.family, clip.backbone, clip.preprocessing,
            f'cosine to the sentence without subject tokens, "a dog on the beach"; one of {len(bench.asked)} is named '
            f"by chance in {1 / len(bench.asked):.3f} of the pictures",
            {"match": name, "named": "names the prompt"},
        )  # fmt: skip

    def __call__(self, pictures: Sequence[Path], cases: Sequence[Case]) -> dict[str, Tensor]:
        seen = F.normalize(self._seen(pictures), dim=1)
        return prompts_named(seen, cases, self._bench, lambda s: F.normalize(self._clip.read(s), dim=1))


class Reader(Protocol):
    """Sentences to unit vectors (B, F)."""

    def __call__(self, sentences: list[str], /) -> Tensor: ...


def prompts_named(seen: Tensor, cases: Sequence[Case], bench: Bench, read: Reader) -> dict[str, Tensor]:
    """Cosines of unit vectors (B, F) to their sentences, and whether no other prompt of the bench is nearer."""
    match, named = torch.zeros(len(cases)), torch.zeros(len(cases))
    where = {number: i for i, number in enumerate(bench.asked)}
    for subject in {case.subject.name: case.subject for case in cases}.values():
        asked = [bench.prompt(subject, number).sentence(subject.category) for number in bench.asked]
        rows = [i for i, case in enumerate(cases) if case.subject == subject]
        own = torch.tensor([where[cases[i].number] for i in rows])
        cosines = seen[rows] @ read(asked).T  # (b, P)
        match[rows] = cosines[torch.arange(len(rows)), own]
        named[rows] = (cosines.argmax(1) == own).float()
    return {"match": match, "named": named}
