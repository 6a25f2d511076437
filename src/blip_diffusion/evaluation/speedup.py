"""How much sooner does few-shot tuning know a subject than DreamBooth and Textual Inversion do?

    python -m blip_diffusion.evaluation.speedup --world FILE --out DIR

The paper's headline (Li et al. 2023): up to 20 times, at equal fidelity. Measured on held-out subjects of a world, on
one machine in one run. Some of a subject's views are its photos, the others tell how alike a picture is; a judge that
nobody here has trained scores both. Every method has its own best learning rate, which is searched on other subjects.
"""

import argparse
import dataclasses
import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.charts import Line, line_chart
from blip_diffusion.checkpoint.folder import find_model, read_parts, whole
from blip_diffusion.data.compose import Composer, ComposerConfig
from blip_diffusion.data.photos import Photo
from blip_diffusion.data.world import World
from blip_diffusion.errors import BlipDiffusionError, DataError, InputError
from blip_diffusion.evaluation.judges import DinoJudge, Judge, Lite2Judge, pooled
from blip_diffusion.evaluation.metrics import Estimate, centred_cosine, estimate
from blip_diffusion.evaluation.scenes import PHRASES, SceneProbe, fit_probe, order_in, training_pictures
from blip_diffusion.evaluation.scoring import see, subject_region
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.training.loop import HookContext
from blip_diffusion.training.method import Method
from blip_diffusion.training.photo_loss import Personal, draw
from blip_diffusion.training.tune import Lesson, TuneConfig, prepare, run
from blip_diffusion.training.validation import ValidationConfig

PHOTOS, VIEWS = 4, 4
"""Views of a subject that are its photos, and views that judge."""
DREAMBOOTH = "dreambooth"


@dataclass(frozen=True)
class Contestant:
    """A way to tune, and the learning rates among which its best is searched."""

    name: str
    config: TuneConfig
    rates: tuple[float, ...]


CONTESTANTS = (
    Contestant("few-shot", TuneConfig(train="unet"), (3e-5, 1e-4, 3e-4)),
    Contestant("few-shot-lora", TuneConfig(train="lora"), (1e-3, 3e-3, 1e-2)),
    Contestant(DREAMBOOTH, TuneConfig(method="dreambooth", prior_images=8), (3e-5, 1e-4, 3e-4)),
    Contestant("textual-inversion", TuneConfig(method="textual-inversion"), (3e-3, 1e-2, 3e-2)),
)

NAMES = [contestant.name for contestant in CONTESTANTS]


@dataclass(frozen=True)
class SpeedupConfig:
    """How much is measured."""

    subjects: int = 8  # that are reported
    search_subjects: int = 2  # that learning rates are searched on
    steps: int = 160
    every: int = 20  # steps between scores; the first ones come sooner, see `moments`
    prompts: tuple[str, ...] = ("on the beach", "in a forest", "in a city at night", "in the snow")
    seeds: int = 1
    sampling_steps: int = 12
    batch_size: int = 3
    probe_pictures: int = 12  # of each scene, for the judge to learn scenes from
    search_steps: int | None = None  # those of the run itself where it is None

    def __post_init__(self) -> None:
        if self.subjects < 2 or self.search_subjects < 1:
            raise InputError("The comparison needs two subjects, and one to search on.")
        if self.steps % self.every or (self.search_steps or self.every) % self.every:
            raise InputError(f"The steps must be a multiple of {self.every}, after which they are scored.")


@dataclass(frozen=True, eq=False)
class Sitter:
    """A held-out subject with several views."""

    identity: str
    category: str
    photos: list[Photo]
    views: Tensor  # (V, 3, S, S) others of it, in scenes


@dataclass(frozen=True)
class Point:
    """What a method is worth after so many steps."""

    step: int
    seconds: float
    subject: float
    text: float


Curve = list[Point]


@dataclass(frozen=True)
class Outcome:
    """All that was measured."""

    config: SpeedupConfig
    judge: str
    rates: dict[str, float]
    curves: dict[str, list[Curve]]  # by contestant, a curve for each subject
    searches: dict[str, dict[str, float]] = field(default_factory=dict)


def sitters(world: World, count: int, prompts: Sequence[str] = (), *, size: int = 128) -> list[Sitter]:
    """So many held-out subjects with enough views, by chance. Their photos stand in other scenes than `prompts`."""
    views: dict[str, list[int]] = {}
    for number, row in enumerate(world.cutouts):
        if row.split == "heldout" and row.kind != "outline":
            views.setdefault(row.identity, []).append(number)
    many = sorted(identity for identity, rows in views.items() if len(rows) >= PHOTOS + VIEWS)
    if len(many) < count:
        raise DataError(f"The world holds out {len(many)} subjects of eight views: ask for at most so many.")
    chosen = random.Random("sitters").sample(many, count)
    composer = Composer(world, ComposerConfig(size=size, rotation=0.0), batch_size=1, seed=0)
    places = _places(world, prompts)
    return [_sitter(composer, identity, views[identity], places) for identity in chosen]


def _places(world: World, prompts: Sequence[str]) -> list[str]:
    """Phrases of which the world has photographs to train on, other than the prompts."""
    photographed = {phrase for scene in world.scenes if scene.split == "train" for phrase in scene.phrases}
    found = [phrase for phrase in PHRASES if phrase in photographed and phrase not in prompts]
    if not found:
        raise DataError("The world has no scenes but those of the prompts: choose fewer prompts.")
    return found


def _sitter(composer: Composer, identity: str, rows: Sequence[int], places: Sequence[str]) -> Sitter:
    rng = random.Random(f"sitter {identity}")
    near, far = rows[::2][:PHOTOS], rows[1::2][:VIEWS]  # every other view, so that both see all sides
    shown, kept = (
        composer.compose([order_in(composer, row, rng.choice(places), rng) for row in some], rng)
        for some in (near, far)
    )
    pictures, masks = (
        images.to_pictures(shown["target"]),
        images.to_pictures(shown["target_alpha"].expand(-1, 3, -1, -1)),
    )
    photos = [
        Photo(f"{number}.png", picture, mask.convert("L"))
        for number, (picture, mask) in enumerate(zip(pictures, masks, strict=True))
    ]
    return Sitter(identity, composer.world.cutouts[rows[0]].category, photos, kept["target"])


class Jury:
    """A judge with what it must know: how subjects look on average, and what the scenes look like once decoded."""

    def __init__(
        self, judge: Judge, world: World, model: BlipDiffusion, shown: Sequence[Sitter], config: SpeedupConfig
    ) -> None:
        self.judge, self.config = judge, config
        composer = Composer(world, ComposerConfig(), batch_size=1, seed=0)
        studied = training_pictures(composer, config.prompts, config.probe_pictures)
        decoded = torch.cat([_round_trip(model, some) for some in torch.split(studied.pictures, 16)])
        self.probe: SceneProbe = fit_probe(see(judge, decoded).scene, studied.labels, len(config.prompts))
        views = [see(judge, _round_trip(model, sitter.views)).subject for sitter in shown]
        self.centre = torch.cat(views).mean(dim=0)
        self.views = {sitter.identity: features for sitter, features in zip(shown, views, strict=True)}
        self.ceiling = self._ceiling()

    def __call__(self, sitter: Sitter, pictures: Tensor) -> tuple[float, float]:
        """Pictures (B, 3, S, S) of a subject in the prompts, seed after seed, to two scores.

        Subject: how much more alike it is than other subjects are, of 1 as its own views are among themselves. Text:
        how many show the scene that was asked for.
        """
        disc = subject_region(pictures.shape[-1])
        maps = self.judge.maps(pictures)
        features, scene = pooled(maps, disc), pooled(maps, 1 - disc)
        own = float(self._cosines(features, sitter.identity).mean())
        asked = torch.arange(len(self.config.prompts)).repeat(self.config.seeds)
        text = float((self.probe(scene) == asked).float().mean())
        return (own - self._others(features, sitter.identity)) / self.ceiling, text

    def _cosines(self, features: Tensor, identity: str) -> Tensor:
        return centred_cosine(features, self.views[identity], self.centre, self.centre)

    def _others(self, features: Tensor, identity: str) -> float:
        """The mean cosine with every other subject."""
        means = [float(self._cosines(features, name).mean()) for name in self.views if name != identity]
        return sum(means) / len(means)

    def _ceiling(self) -> float:
        """The same difference, of views of a subject among themselves: a mean over subjects."""
        gaps = []
        for name, features in self.views.items():
            cosines, count = self._cosines(features, name), len(features)
            own = float((cosines.sum() - cosines.trace()) / (count * (count - 1)))
            gaps.append(own - self._others(features, name))
        return max(sum(gaps) / len(gaps), 0.05)


@torch.no_grad()
def _round_trip(model: BlipDiffusion, pixels: Tensor) -> Tensor:
    return model.latents.decode(model.latents.encode(pixels)).float()


def moments(config: SpeedupConfig, steps: int) -> list[int]:
    """When a method is scored: at 0, after 5 and 10 steps, and then every so often."""
    return sorted(
        {0, *(step for step in (5, 10) if step < config.every), *range(config.every, steps + 1, config.every)}
    )


def follow(
    load: Callable[[], BlipDiffusion], sitter: Sitter, contestant: TuneConfig, jury: Jury, work: Path, steps: int
) -> Curve:
    """Tunes a fresh model on a subject's photos, and scores it as it goes. The seconds are training's alone."""
    config = jury.config
    model = load()
    settings = dataclasses.replace(
        contestant,
        steps=steps,
        batch_size=config.batch_size,
        validation=ValidationConfig(every=1),
    )
    began = time.perf_counter()
    lesson = prepare(model, sitter.photos, sitter.category, "subject", settings)
    ready = time.perf_counter() - began  # encoding photos, drawing class images: it belongs to the method
    curve: Curve = []

    def look(method: Method, step: int, seconds: float) -> None:
        personal = cast(Personal, method)
        scenes = list(config.prompts) * config.seeds
        seeds = [seed for seed in range(config.seeds) for _ in config.prompts]
        with torch.no_grad():
            pictures = draw(personal.model, personal.states(scenes), seeds, steps=config.sampling_steps)
        subject, text = jury(sitter, pictures)
        curve.append(Point(step, ready + seconds, subject, text))
        work.mkdir(parents=True, exist_ok=True)
        images.grid(images.to_pictures(pictures), len(pictures)).save(work / f"{step:05d}.png")

    def hook(context: HookContext) -> None:
        if context.step in due:
            look(context.method, context.step, context.seconds)

    due = moments(config, steps)
    look(lesson.method, 0, 0.0)
    _quiet_run(lesson, work / "run", hook)
    return curve


def _quiet_run(lesson: Lesson, folder: Path, hook: Callable[[HookContext], None]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    run(lesson, folder, hook)
    shutil.rmtree(folder)


def search(
    load: Callable[[], BlipDiffusion], shown: Sequence[Sitter], contestant: Contestant, jury: Jury, work: Path
) -> dict[str, float]:
    """Of every rate of a contestant, the best mean of both scores that tuning reaches, on average over subjects."""
    steps = jury.config.search_steps or jury.config.steps
    found = {}
    for rate in contestant.rates:
        config = dataclasses.replace(contestant.config, learning_rate=rate)
        curves = [follow(load, one, config, jury, work / f"{rate:g}" / one.category, steps) for one in shown]
        best = [max((point.subject + point.text) / 2 for point in curve[1:]) for curve in curves]
        found[f"{rate:g}"] = sum(best) / len(best)
    return found


def compare(
    load: Callable[[], BlipDiffusion],
    world: World,
    judge: Judge,
    config: SpeedupConfig,
    work: Path,
    *,
    contestants: Sequence[Contestant] = CONTESTANTS,
    tell: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Searches rates on some subjects, and measures every contestant on others."""
    people = sitters(world, config.search_subjects + config.subjects, config.prompts)
    searched, measured = people[: config.search_subjects], people[config.search_subjects :]
    jury = Jury(judge, world, load(), people, config)
    rates: dict[str, float] = {}
    searches: dict[str, dict[str, float]] = {}
    curves: dict[str, list[Curve]] = {}
    for contestant in contestants:
        searches[contestant.name] = search(load, searched, contestant, jury, work / "search" / contestant.name)
        best = max(searches[contestant.name], key=searches[contestant.name].__getitem__)
        rates[contestant.name] = float(best)
        tell(f"{contestant.name}: {best} of {searches[contestant.name]}")
    for contestant in contestants:
        chosen = dataclasses.replace(contestant.config, learning_rate=rates[contestant.name])
        curves[contestant.name] = []
        for one in measured:
            curve = follow(load, one, chosen, jury, work / contestant.name / one.category, config.steps)
            curves[contestant.name].append(curve)
            last = curve[-1]
            tell(f"{contestant.name}, {one.category}: subject {last.subject:.2f}, text {last.text:.2f}")
    return Outcome(config, judge.backbone, rates, curves, searches)


# ----------------------------------------------------------------------------------------------------------- the answer


def columns(curves: Sequence[Curve], name: str) -> Tensor:
    """One quantity of all curves: (moments, subjects)."""
    return torch.tensor([[float(getattr(point, name)) for point in curve] for curve in curves]).T


def reached(curves: Sequence[Curve], goal: float, quantity: str) -> float:
    """Steps or seconds after which the mean subject score first is `goal`, between moments by a straight line.

    Infinity where it never is.
    """
    scores = columns(curves, "subject").mean(dim=1).tolist()
    spent = columns(curves, quantity).mean(dim=1).tolist()
    if scores[0] >= goal:
        return spent[0]
    for before, after in pairwise(range(len(scores))):
        if scores[after] >= goal:
            share = (goal - scores[before]) / (scores[after] - scores[before])
            return spent[before] + share * (spent[after] - spent[before])
    return float("inf")


def speedup(outcome: Outcome, name: str, quantity: str, *, resamples: int = 500) -> Estimate:
    """How many times sooner than DreamBooth a contestant reaches the fidelity that DreamBooth ends with.

    0 where it never does. DreamBooth's own time is when it first gets there, which may be before its end. The interval
    is a bootstrap over subjects, drawn for both at once. A contestant that is there before its first step counts as
    having taken one.
    """
    count = len(outcome.curves[name])
    everyone = torch.arange(count)
    draws = torch.randint(count, (resamples, count), generator=torch.Generator().manual_seed(0))
    ratios = torch.tensor([_ratio(outcome, name, quantity, rows.tolist()) for rows in (everyone, *draws)])
    low, high = ratios[1:].quantile(torch.tensor([0.025, 0.975])).tolist()
    return Estimate(float(ratios[0]), low, high)


def _ratio(outcome: Outcome, name: str, quantity: str, rows: Sequence[int]) -> float:
    rival = [outcome.curves[DREAMBOOTH][row] for row in rows]
    own = [outcome.curves[name][row] for row in rows]
    goal = float(columns(rival, "subject")[-1].mean())
    slow, quick = reached(rival, goal, quantity), reached(own, goal, quantity)
    first = own[0][1]
    least = 1.0 if quantity == "step" else first.seconds / max(first.step, 1)
    return slow / max(quick, least) if quick < float("inf") else 0.0


def markdown(outcome: Outcome) -> str:
    """The table, and what it needs to be read."""
    goal = float(columns(outcome.curves[DREAMBOOTH], "subject")[-1].mean())
    lines = [
        f"Fidelity that DreamBooth ends with: {goal:.3f} after {outcome.config.steps} steps; "
        f"{outcome.config.subjects} held-out subjects, {PHOTOS} photos each; judge: {outcome.judge}.",
        "",
        "| method | learning rate | subject at 0 | subject, best | subject at the end | text at the end "
        "| steps to it | seconds to it | times sooner, steps | times sooner, seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, curves in outcome.curves.items():
        subject, text = columns(curves, "subject"), columns(curves, "text")
        best = subject[int(subject.mean(dim=1).argmax())]
        cells = [
            name,
            f"{outcome.rates[name]:g}",
            *(str(estimate(row[None])) for row in (subject[0], best, subject[-1])),
        ]
        cells.append(str(estimate(text[-1][None])))
        cells += [_time(reached(curves, goal, "step")), _time(reached(curves, goal, "seconds"))]
        cells += [_times(speedup(outcome, name, quantity)) for quantity in ("step", "seconds")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _time(value: float) -> str:
    return f"{value:.1f}" if value < float("inf") else "never"


def _times(value: Estimate) -> str:
    return f"{value.value:.1f} ({value.low:.1f} to {value.high:.1f})" if value.value else "never gets there"


def charts(outcome: Outcome, folder: Path) -> None:
    """Subject and text against steps and seconds, with intervals over subjects."""
    for score in ("subject", "text"):
        for quantity, label in (("step", "steps"), ("seconds", "seconds of training")):
            lines = {name: _line(curves, score, quantity) for name, curves in outcome.curves.items()}
            title = f"{score} score, {outcome.config.subjects} held-out subjects"
            line_chart(lines, title=title, x_label=label).save(folder / f"{score}-{label.split()[0]}.png")


def _line(curves: Sequence[Curve], score: str, quantity: str) -> Line:
    rows = columns(curves, score)
    estimates = [estimate(row[None]) for row in rows]
    spent = columns(curves, quantity).mean(dim=1).tolist()
    points = [(x, one.value) for x, one in zip(spent, estimates, strict=True)]
    return Line(points, [one.low for one in estimates], [one.high for one in estimates])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes the table, the charts and all numbers, and prints the table."""
    plain = SpeedupConfig()
    parser = argparse.ArgumentParser(description="How much sooner than DreamBooth few-shot tuning knows a subject.")
    parser.add_argument("--world", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--model", default="mini", help="a name or a folder")
    parser.add_argument("--judge", choices=("lite2", "dino"), default="lite2")
    for name in ("subjects", "search-subjects", "steps", "every", "seeds", "sampling-steps"):
        parser.add_argument(f"--{name}", type=int, default=getattr(plain, name.replace("-", "_")))
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=NAMES, help="(default: all)")
    parser.add_argument("--search-steps", type=int, help="(default: as many as --steps)")
    flags = parser.parse_args(arguments)
    try:
        names = {f.name for f in dataclasses.fields(SpeedupConfig)}
        config = SpeedupConfig(**{key: value for key, value in vars(flags).items() if key in names})
        folder = find_model(flags.model)
        judge: Judge = DinoJudge() if flags.judge == "dino" else Lite2Judge()
        world = World.load(flags.world)
        chosen = [contestant for contestant in CONTESTANTS if contestant.name in {*flags.methods, DREAMBOOTH}]
        tell = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
        outcome = compare(
            lambda: whole(read_parts(folder), folder),
            world,
            judge,
            config,
            flags.out / "runs",
            contestants=chosen,
            tell=tell,
        )
    except BlipDiffusionError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    (flags.out / "speedup.json").write_text(json.dumps(dataclasses.asdict(outcome), indent=1), encoding="utf-8")
    charts(outcome, flags.out)
    (flags.out / "speedup.md").write_text(markdown(outcome) + "\n", encoding="utf-8")
    print(markdown(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(main())
