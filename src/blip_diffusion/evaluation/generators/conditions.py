"""The rows of a report: the pictures of a method, and of all that its scores are to be read beside.

Floors and ceilings are made of one copy a prompt, whatever the number of seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.data.synthetic.assets import World
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.generators import baselines as methods
from blip_diffusion.evaluation.generators.baselines import Draw, RoundTrip
from blip_diffusion.evaluation.generators.cache import PICTURES, draw_missing
from blip_diffusion.evaluation.instances import Case, first_copies, other_prompts, other_subjects

METHODS = ("zero-shot", "tuned", "no-subject", "reference-copy", "other-instance", "ground-truth")
DECODED = "ground-truth, decoded"
WRONG_SUBJECT, WRONG_PROMPT = "references shuffled", "prompts shuffled"
DRAWN = ("zero-shot", "tuned", "no-subject")
"""Methods that a model draws."""
BESIDE = ("no-subject", "reference-copy", "other-instance", "ground-truth", DECODED)
"""What scores are to be read beside."""
ABOUT = {
    "no-subject": "floor: the model, told the words alone",
    "reference-copy": "floor: the reference, handed back",
    "other-instance": "floor: another instance of the category",
    "ground-truth": "ceiling",
    DECODED: "ceiling of any generator before this autoencoder",
    WRONG_SUBJECT: "floor: the method's pictures, judged by another subject",
    WRONG_PROMPT: "floor: the method's pictures, judged by the next prompt",
}


@dataclass(frozen=True)
class Row:
    """Pictures, and the cases by which each is judged."""

    pictures: list[Path]
    cases: list[Case]


@dataclass(frozen=True)
class Studio:
    """Whoever draws: the methods of a model by name, its autoencoder, and the world that MiniBench was made of."""

    drawn: dict[str, Draw]
    round_trip: RoundTrip
    size: int
    world: World | None = None


def rows_of(
    method: str,
    bench: Bench,
    cases: Sequence[Case],
    studio: Studio,
    out: Path,
    *,
    beside: Sequence[str] = BESIDE,
    batch: int = 16,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Row]:
    """Every row of a report by name, the method's first. What is not on disk yet is drawn."""
    once = first_copies(cases)
    rows: dict[str, Row] = {}
    for name in dict.fromkeys([method, *beside]):
        asked = list(cases) if name == method else once
        if name == "other-instance" and studio.world is None:
            asked = [case for case in asked if methods.peers(bench, case.subject)]
        if asked and (name != DECODED or studio.world is not None):
            rows[name] = Row(_pictures(name, bench, asked, studio, out, batch, tell), asked)
    if method not in rows:
        raise InputError("No two subjects of this bench share a category: there is no other instance to show.")
    first = rows[method]
    rows[WRONG_SUBJECT] = Row(first.pictures, other_subjects(first.cases, bench))
    rows[WRONG_PROMPT] = Row(first.pictures, other_prompts(first.cases, bench))
    return rows


def _pictures(
    name: str,
    bench: Bench,
    cases: Sequence[Case],
    studio: Studio,
    out: Path,
    batch: int,
    tell: Callable[[str], None],
) -> list[Path]:
    if name == "reference-copy":
        return [methods.reference(case) for case in cases]
    draw = studio.drawn.get(name) or composed(name, studio)
    if draw is None:
        find = methods.photograph if name == "ground-truth" else methods.photograph_of_another(bench)
        return [find(case) for case in cases]
    folder = out / PICTURES / name.replace(", ", "-")
    return draw_missing(draw, cases, folder, batch=batch, tell=tell)


def composed(name: str, studio: Studio) -> Draw | None:
    """A composite of MiniBench's world; `None` where a bench has photographs alone."""
    if studio.world is None:
        return None
    draw = methods.composite(studio.world, size=studio.size, other=name == "other-instance")
    return methods.decoded(draw, studio.round_trip) if name == DECODED else draw
