"""MiniBench: DreamBench's kinds of prompts for the held-out subjects of a dataset, made only from that dataset.

Thirty subjects, five images each, 25 prompts of DreamBench's three kinds: new scenes, accessories, changed
properties. Each prompt is kept as a `PromptSpec`, so that a sampler can render a correct image.
"""

import dataclasses
import hashlib
import itertools
import json
import random
import re
import shutil
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.data.benchmarks.dreambench import ASSETS, PROMPTS, RECIPE, Bench, read_bench
from blip_diffusion.data.synthetic import backgrounds, placement, prompt_templates
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.data.synthetic.pair_spec import PairSpec, SyntheticConfig
from blip_diffusion.data.synthetic.prompt_templates import PromptSpec
from blip_diffusion.errors import DataError
from blip_diffusion.fileio import atomic_dir

SCENES = (
    "on the beach", "in a forest", "in the desert", "on the moon", "underwater", "in the snow", "on grass",
    "in a flower garden", "by a lake", "in front of a castle", "in front of a brick wall", "in a kitchen",
    "in a bedroom", "in a city at night", "on a basketball court", "on train tracks", "on a wooden floor",
    "in space", "in a canyon", "in the mountains", "at sunset", "on a road", "in a library", "on a stage",
    "by a pool", "in front of a graffiti wall", "in the sea", "under a starry sky", "on a checkered floor",
)  # fmt: skip
"""Scenes that the text metric can distinguish; the prompts use the first ones."""
NUM_SCENES, NUM_IMAGES = 14, 5
SUBJECTS: tuple[str, ...] = tuple(
    tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["subjects"]
)
"""Identities that are not in the training data; other subjects of their categories are."""
PROPERTIES = (
    PromptSpec(colour="red"), PromptSpec(colour="blue"), PromptSpec(count=2), PromptSpec(position="left"),
    PromptSpec(style="pixel art"), PromptSpec(style="black and white"),
)  # fmt: skip
BESIDE, WORN = ("tree", "apple", "flower", "box", "balloon"), ("hat", "crown", "balloon", "tree", "ball")
"""Accessories in MiniBench's prompts, for objects and for live subjects."""


def build_bench(world: AssetLibrary, out: Path, *, subjects: int = len(SUBJECTS)) -> Bench:
    """Build MiniBench in a folder, as a pure function of a dataset.

    Raises `DataError` for a dataset with too few held-out subjects, and for a folder that isn't a benchmark.
    """
    check_place(out)
    rows = heldout_subjects(world)[:subjects]
    if len(rows) < 2:
        raise DataError("The dataset has fewer than two held-out subjects: build it again with more sources.")
    sampler = bench_sampler(world)
    chosen = dict(zip(_names([world.cutouts[row].identity for row in rows]), rows, strict=True))
    prompts = [bench_requests(sampler, accessories) for accessories in (BESIDE, WORN)]
    count = min(map(len, prompts))  # fewer for a dataset without hats
    objects, creatures = (requests[:count] for requests in prompts)
    contents = BenchContents("mini", world, chosen, objects, creatures)
    return write_bench(contents, lambda row: subject_images(sampler, row), out)


@dataclass(frozen=True)
class BenchContents:
    """Contents of a benchmark: rows of its subjects by name, and the prompts of objects and of live subjects."""

    name: str
    world: AssetLibrary
    rows: Mapping[str, int]
    objects: Sequence[PromptSpec]
    creatures: Sequence[PromptSpec]

    def recipe(self) -> dict[str, Any]:
        """Return the contents of `bench.json`."""
        cutouts = {name: self.world.cutouts[row] for name, row in self.rows.items()}
        return {
            "name": self.name,
            "world": fingerprint(self.world),
            "identities": {name: cutout.identity for name, cutout in cutouts.items()},
            "live": [name for name, cutout in cutouts.items() if cutout.animate],
            "objects": [dataclasses.asdict(request) for request in self.objects],
            "creatures": [dataclasses.asdict(request) for request in self.creatures],
        }


def write_bench(
    contents: BenchContents, images_of: Callable[[int], Tensor], out: Path, assets: Path | None = None
) -> Bench:
    """Write a benchmark. `images_of` returns a row's images, the reference first; `assets` is a library to include."""
    table = [(name, contents.world.cutouts[row].category) for name, row in contents.rows.items()]
    with atomic_dir(out) as partial:
        for name, row in contents.rows.items():
            _write_images(images_of(row), partial / "dataset" / name)
        prompts = _file(table, contents.objects, contents.creatures)
        (partial / "dataset" / PROMPTS).write_text(prompts, encoding="utf-8")
        (partial / RECIPE).write_text(json.dumps(contents.recipe(), indent=1), encoding="utf-8")
        if assets is not None:
            shutil.copyfile(assets, partial / ASSETS)
    return read_bench(out)


def check_place(out: Path) -> None:
    """Raise `DataError` for an existing folder that isn't a benchmark."""
    if out.exists() and not (out / RECIPE).is_file():
        raise DataError(f"{out} exists already and isn't a benchmark of this project: choose another --out.")


def first_rows(world: AssetLibrary, *, split: str | None = None) -> dict[str, int]:
    """Return the first image of each subject of a split (default: any), except line drawings."""
    rows: dict[str, int] = {}
    for i, cutout in enumerate(world.cutouts):
        if cutout.kind != "outline" and split in (None, cutout.split):
            rows.setdefault(cutout.identity, i)
    return rows


def heldout_subjects(world: AssetLibrary) -> list[int]:
    """Return rows of held-out subjects with a trained category: those of `SUBJECTS`, new categories, then the rest."""
    trained = {row.category for row in world.cutouts if row.split == "train" and row.kind != "outline"}
    held_out = first_rows(world, split="heldout")
    first = {name: i for name, i in held_out.items() if world.cutouts[i].category in trained}
    ranked = [name for name in SUBJECTS if name in first]
    taken = {world.cutouts[first[name]].category for name in ranked}
    for name, i in first.items():
        if world.cutouts[i].category not in taken:
            ranked.append(name)
            taken.add(world.cutouts[i].category)
    return [first[name] for name in dict.fromkeys([*ranked, *first])]


def bench_sampler(world: AssetLibrary, size: int = 128) -> PairSampler:
    """Return the sampler of a benchmark: upright subjects, training scenes and accessories."""
    split = "train" if any(cutout.split == "train" for cutout in world.cutouts) else "heldout"
    return PairSampler(world, SyntheticConfig(size=size, rotation=0.0, split=split), batch_size=1, seed=0)


def known_scenes(world: AssetLibrary) -> tuple[str, ...]:
    """Return the scenes that have a training photograph or can be rendered."""
    photographed = {phrase for scene in world.scenes if scene.split == "train" for phrase in scene.phrases}
    return tuple(p for p in SCENES if p in photographed or backgrounds.named(p, random.Random(0)) is not None)


def unknown_to(world: AssetLibrary, bench: Bench) -> str:
    """Describe the first subject or scene of a benchmark that the library lacks; empty if there is none."""
    identities = first_rows(world)
    if missing := next((subject for subject in bench.subjects if subject.identity not in identities), None):
        return f"the subject {missing.identity!r}"
    photographed = {words for scene in world.scenes if scene.split == "train" for words in (scene.word, *scene.phrases)}
    requests = (prompt.request or PromptSpec() for prompt in (*bench.objects, *bench.creatures))
    scenes = (request.scene for request in requests if request.scene not in photographed)
    missing_scene = next((scene for scene in scenes if backgrounds.named(scene, random.Random(0)) is None), None)
    return "" if missing_scene is None else f"the scene {missing_scene!r}"


def bench_requests(sampler: PairSampler, accessories: Sequence[str]) -> list[PromptSpec]:
    """Return the three kinds of prompt: new scenes, accessories, changed properties."""
    scenes = known_scenes(sampler.world)[:NUM_SCENES]
    available = [word for word in accessories if sampler.has(word)]
    changed = [*(PromptSpec(accessory=word) for word in available), *PROPERTIES]
    plain = [PromptSpec(scene=scene) for scene in scenes]
    return plain + [replace(request, scene=scenes[i % len(scenes)]) for i, request in enumerate(changed)]


def pair_spec_of(sampler: PairSampler, row: int, request: PromptSpec, rng: random.Random) -> PairSpec:
    """Return a pair of one cut-out for a request, on a photograph of the scene or a procedural background.

    The reference shows the same cut-out on a plain colour that differs from its own.
    """
    procedural, photograph = backgrounds.named(request.scene, rng), sampler.scene(request.scene, rng)
    background = procedural if procedural is not None and rng.random() < 0.5 else photograph
    return PairSpec(row, row, request, background, _plain(sampler, row, rng))


def _plain(sampler: PairSampler, row: int, rng: random.Random) -> backgrounds.Background:
    return backgrounds.plain_reference(rng, placement.measure(sampler.world.pixels[[row]])[0].colour)


def subject_images(sampler: PairSampler, row: int) -> Tensor:
    """Return images (5, 3, S, S): the reference on a plain colour, then views of the subject in training scenes."""
    world, identity = sampler.world, sampler.world.cutouts[row].identity
    rng = random.Random(f"bench pictures {identity}")
    views = [i for i, other in enumerate(world.cutouts) if other.identity == identity and other.kind != "outline"]
    specs = []
    for number in range(NUM_IMAGES):
        view, background = views[number % len(views)], sampler.background(rng)
        plain = _plain(sampler, view, rng)
        specs.append(PairSpec(view, view, PromptSpec(scene=background.phrase), background, plain))
    batch = sampler.render(specs, rng)
    return torch.cat([batch["reference"][:1], batch["target"][1:]])


def fingerprint(world: AssetLibrary) -> str:
    """Return a digest of a library's rows and scenes."""
    digest = hashlib.sha256(repr((world.cutouts, world.scenes)).encode())
    digest.update(world.scene_pixels.numpy().tobytes())
    return digest.hexdigest()[:16]


def same_category(world: AssetLibrary, row: int) -> list[int]:
    """Return the images of other subjects of the category."""
    subject = world.cutouts[row]
    rows = [
        i
        for i, other in enumerate(world.cutouts)
        if other.category == subject.category and other.identity != subject.identity and other.kind != "outline"
    ]
    if not rows:
        raise DataError(
            f"The dataset has no other {subject.category}: the lower bound of {subject.identity!r} needs one."
        )
    return rows


def _write_images(pixels: Tensor, folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, image in enumerate(images.to_pil(pixels)):
        image.save(folder / f"{number:02d}.jpg", quality=95, subsampling=0)


def _file(table: Sequence[tuple[str, str]], objects: Sequence[PromptSpec], creatures: Sequence[PromptSpec]) -> str:
    """Return `prompts_and_classes.txt` in DreamBench's format."""
    lines = ["Classes", "", "subject_name,class", *(f"{name},{category}" for name, category in table), "", "Prompts"]
    for title, requests in (("Object Prompts", objects), ("Live Subject Prompts", creatures)):
        templates = [
            f"'a {{0}} {{1}} {prompt_templates.prompt(r).strip()}'.format(unique_token, class_token)" for r in requests
        ]
        lines += ["", title, "", "prompt_list = [", ",\n".join(templates), "]"]
    return "\n".join(lines) + "\n"


def _names(identities: Sequence[str]) -> list[str]:
    """Return a folder name for each identity: its last word, numbered if several are equal."""
    names: list[str] = []
    for identity in identities:
        stem = re.sub(r"[^a-z0-9]+", "_", re.split(r"[:/]", identity)[-1].lower()).strip("_") or "subject"
        same = sum(re.fullmatch(rf"{stem}(_\d+)?", name) is not None for name in names)
        numbered = (f"{stem}_{number}" for number in itertools.count(same + 1))
        names.append(next(name for name in numbered if name not in names) if same else stem)
    return names
