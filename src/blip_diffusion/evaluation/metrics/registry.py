"""Who judges: the judges by their names on the command line, each with the network that it looks through."""

from collections.abc import Sequence
from dataclasses import dataclass

from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.features.networks import CLIP_IDS, DINO_ID, Clip, Dino, Focus, Lite2, MiniLM
from blip_diffusion.evaluation.generators.conditions import Studio
from blip_diffusion.evaluation.metrics.attributes import TextJudge
from blip_diffusion.evaluation.metrics.memorization import Look
from blip_diffusion.evaluation.metrics.probe_data import lessons
from blip_diffusion.evaluation.metrics.similarity import ClipTextJudge, DreamBoothJudge, Judge, Seen, SubjectJudge

OWN, PUBLISHED = ("focus", "lite2", "text"), ("dino", "clip-b32", "clip-l14")
"""Judges from packages, and judges by hub id or folder: `dino=FOLDER`."""


@dataclass(frozen=True)
class Panel:
    """The judges, the first one of a kind foremost; and features of whole pictures, to compare them with each other."""

    judges: list[Judge]
    look: Look


def check_names(names: Sequence[str]) -> None:
    """Raises `InputError` for a judge that nobody knows, and for a source that it doesn't take."""
    for name, equals, _ in (name.partition("=") for name in names):
        if name not in OWN + PUBLISHED:
            raise InputError(f"There is no judge {name}: use some of {', '.join(OWN + PUBLISHED)}.")
        if equals and name in OWN:
            raise InputError(f"The judge {name} brings its own network: say {name} alone, without what follows it.")


def panel_of(
    names: Sequence[str], bench: Bench, whole: Bench, studio: Studio, *, lessons_each: int, batch: int
) -> Panel:
    """The judges of these names, by default those that fit the bench, which is a part of the `whole`."""
    names = names or (OWN if studio.world is not None else PUBLISHED[:2])
    panel = Panel([], lambda paths: looks[0](paths))
    looks: list[Look] = []
    focus = Focus() if any(name in OWN for name in names) else None
    if focus is not None:
        seen = Seen(focus, batch=batch)
        looks.append(lambda paths: seen(paths)[:, : 2 * Focus.width])
    for name, _, source in (name.partition("=") for name in names):
        if name == "focus":
            panel.judges.append(SubjectJudge(name, seen, bench, width=Focus.width))
        elif name == "lite2":
            assert focus is not None
            panel.judges.append(SubjectJudge(name, Seen(Lite2(focus), batch=batch), bench))
        elif name == "text":
            panel.judges.append(_text_judge(bench, whole, studio, seen, lessons_each))
        else:
            judges, look = _published(name, source, bench, batch)
            panel.judges.extend(judges)
            looks.append(look)
    return panel


def _published(name: str, source: str, bench: Bench, batch: int) -> tuple[list[Judge], Look]:
    """DINO; or CLIP-I and CLIP-T."""
    if name == "dino":
        seen = Seen(Dino(source or DINO_ID), batch=batch)
        return [DreamBoothJudge("DINO", seen, bench)], seen
    kind = name.removeprefix("clip-")
    clip = Clip(source or CLIP_IDS[kind])
    seen = Seen(clip, batch=batch)
    return [DreamBoothJudge(f"CLIP-I {kind}", seen, bench), ClipTextJudge(f"CLIP-T {kind}", seen, clip, bench)], seen


def _text_judge(bench: Bench, whole: Bench, studio: Studio, seen: Seen, each: int) -> Judge:
    if studio.world is None:
        raise InputError("The judge text knows MiniBench's prompts alone: judge another bench by clip-b32.")
    reader = MiniLM()  # a package that is missing is said first
    known = {subject.identity for subject in whole.subjects}
    studied = lessons(studio.world, known, studio.round_trip, size=studio.size, each=each)
    return TextJudge(seen, reader, bench, studied)
