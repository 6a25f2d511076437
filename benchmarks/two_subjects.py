"""Two subjects in one image: how often both are right, swapped, missing or blended.

    python benchmarks/two_subjects.py --benchmark bench --out two-subjects

MiniBench's held-out subjects in pairs of different categories, one in a box at the left and one at the right. The crop
of each box is named by the subject metric's features, centred as in `SubjectSimilarity`:

    right     each crop is its own subject
    swapped   each crop is the other subject
    blended   both crops are the same one of the two
    missing   a crop is another subject of the benchmark

once among all subjects and once among the two, where nothing can be missing. "one sentence" names the second subject
by its word alone, since the tokens of two don't fit into `mini`'s text encoder. "pasted" puts other views of both
subjects into the boxes: what the metric itself gets wrong.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from blip_diffusion import BlipDiffusionPipeline
from blip_diffusion.data.benchmarks.dreambench import Bench, BenchSubject, read_bench
from blip_diffusion.data.benchmarks.minibench import SCENES
from blip_diffusion.evaluation.features.dinov2_saliency import DinoV2Saliency
from blip_diffusion.evaluation.metrics.statistics import bootstrap_ci, centred_cosine
from blip_diffusion.images import as_rgb, grid, open_image
from blip_diffusion.pipelines.composition import RegionMode, SubjectRegion

BOXES = ((0.05, 0.3, 0.49, 0.92), (0.51, 0.3, 0.95, 0.92))
OUTCOMES = ("right", "swapped", "blended", "missing")
BATCH, SHOWN = 20, 8


@dataclass(frozen=True)
class Pair:
    """Two subjects and the scene that they stand in."""

    left: BenchSubject
    right: BenchSubject
    scene: str
    seed: int

    @property
    def subjects(self) -> tuple[BenchSubject, BenchSubject]:
        return self.left, self.right


Generate = Callable[[BlipDiffusionPipeline, Pair], Image.Image]


def pairs_of(bench: Bench, count: int) -> list[Pair]:
    """Return pairs of subjects of different categories, in the benchmark's order and the scenes' order."""
    found: list[Pair] = []
    subjects = bench.subjects
    for step in range(1, len(subjects)):
        for index, left in enumerate(subjects):
            right = subjects[(index + 7 * step) % len(subjects)]
            if right.category != left.category and len(found) < count:
                found.append(Pair(left, right, SCENES[len(found) % len(SCENES)], len(found)))
    return found


def regions(mode: RegionMode) -> Generate:
    """Return the generator of both subjects in their boxes."""

    def generate(pipe: BlipDiffusionPipeline, pair: Pair) -> Image.Image:
        parts = [
            SubjectRegion(open_image(one.images[0]), one.category, box)
            for one, box in zip(pair.subjects, BOXES, strict=True)
        ]
        generator = torch.Generator().manual_seed(pair.seed)
        image: Image.Image = pipe(pair.scene, subjects=parts, region_mode=mode, generator=generator).images[0]
        return image

    return generate


def one_sentence(pipe: BlipDiffusionPipeline, pair: Pair) -> Image.Image:
    """Generate the first subject in its box and name the second one in words."""
    prompt, category = f"and a {pair.right.category} {pair.scene}", pair.left.category
    reference, generator = open_image(pair.left.images[0]), torch.Generator().manual_seed(pair.seed)
    image: Image.Image = pipe(prompt, reference, category, box=BOXES[0], generator=generator).images[0]
    return image


def pasted(pipe: BlipDiffusionPipeline, pair: Pair) -> Image.Image:
    """Paste another view of each subject into its box."""
    image = Image.new("RGB", (128, 128), "lightgray")
    for one, box in zip(pair.subjects, BOXES, strict=True):
        left, _, right, bottom = _pixels(box, image)
        square = pipe.preview_reference(open_image(one.images[-1])).resize((right - left, right - left))
        image.paste(square, (left, bottom - square.height))
    return image


CONDITIONS: dict[str, Generate] = {
    "one sentence": one_sentence,
    "multidiffusion": regions("multidiffusion"),
    "attention": regions("attention"),
    "pasted": pasted,
}


class Namer:
    """Names crops among a benchmark's subjects, by the features of the subject metric."""

    def __init__(self, bench: Bench) -> None:
        self._extractor = DinoV2Saliency()
        self._references = self._of([open_image(one.images[0]) for one in bench.subjects])
        views = [path for one in bench.subjects for path in one.images[1:]]
        self._centre = self._of([open_image(path) for path in views]).mean(0)

    def cosines(self, crops: list[Image.Image]) -> Tensor:
        """Return centred cosines of crops (B) to all references (N): (B, N)."""
        return centred_cosine(self._of(crops), self._references, self._centre, self._references.mean(0))

    def _of(self, pages: list[Image.Image]) -> Tensor:
        batches = [pages[start : start + BATCH] for start in range(0, len(pages), BATCH)]
        width = self._extractor.width
        return torch.cat([self._extractor([as_rgb(page) for page in batch])[:, :width] for batch in batches])


def outcomes(names: Tensor, truth: Tensor) -> Tensor:
    """Return which outcome each pair has, as a column each of OUTCOMES: (4, P), from names and truth (P, 2)."""
    right = (names == truth).all(dim=1)
    swapped = (names == truth.flip(1)).all(dim=1)
    blended = (names[:, 0] == names[:, 1]) & (names[:, :1] == truth).any(dim=1)
    return torch.stack([right, swapped, blended, ~(right | swapped | blended)]).float()


def scored(namer: Namer, pages: list[Image.Image], truth: Tensor) -> dict[str, Tensor]:
    """Return the outcomes of images among all subjects and among the two."""
    crops = [page.crop(_pixels(box, page)) for page in pages for box in BOXES]
    cosines = namer.cosines(crops).unflatten(0, (-1, 2))  # type: ignore[no-untyped-call]  # (P, 2, N)
    own = cosines.gather(2, truth[:, None].expand(-1, 2, -1))  # (P, 2, 2)
    among_two = truth.gather(1, own.argmax(dim=2))
    return {"among all": outcomes(cosines.argmax(dim=2), truth), "among the two": outcomes(among_two, truth)}


def _pixels(box: tuple[float, ...], image: Image.Image) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    width, height = image.size
    return round(left * width), round(top * height), round(right * width), round(bottom * height)


def main() -> None:
    """Generate, judge, print a table and write a sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", type=Path, required=True, help="a folder of MiniBench, as evaluate makes it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--pairs", type=int, default=40)
    flags = parser.parse_args()
    bench = read_bench(flags.benchmark)
    pairs, number = pairs_of(bench, flags.pairs), {one.name: index for index, one in enumerate(bench.subjects)}
    pipe = BlipDiffusionPipeline.from_pretrained(flags.model)
    pipe.set_progress_bar_config(disable=True)
    pipe.set_preset(flags.preset)
    truth = torch.tensor([[number[one.name] for one in pair.subjects] for pair in pairs])
    flags.out.mkdir(parents=True, exist_ok=True)
    images: dict[str, list[Image.Image]] = {}
    for name, generate in CONDITIONS.items():
        start = time.perf_counter()
        images[name] = [generate(pipe, pair) for pair in pairs]
        print(f"{name}: {(time.perf_counter() - start) / len(pairs):.2f} s an image", flush=True)
    _sheet(pipe, pairs, images).save(flags.out / "sheet.jpg", quality=88)
    namer = Namer(bench)
    print(f"\n| | naming | {' | '.join(OUTCOMES)} |\n|---|---|{'---|' * len(OUTCOMES)}")
    for name, pages in images.items():
        for among, columns in scored(namer, pages, truth).items():
            print(f"| {name} | {among} | {' | '.join(_share(column) for column in columns)} |")


def _share(column: Tensor) -> str:
    found = bootstrap_ci(column[None])
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def _sheet(pipe: BlipDiffusionPipeline, pairs: list[Pair], images: dict[str, list[Image.Image]]) -> Image.Image:
    """Return a page: both references and every condition, a column for each of the first pairs."""
    side = images["attention"][0].size
    rows = [[pipe.preview_reference(open_image(pair.subjects[n].images[0])).resize(side) for pair in pairs[:SHOWN]]
            for n in (0, 1)]  # fmt: skip
    rows += [pages[:SHOWN] for name, pages in images.items() if name != "pasted"]
    page = grid([cell for row in rows for cell in row], SHOWN)
    titled = Image.new("RGB", (page.width, page.height + 14), "white")
    titled.paste(page, (0, 14))
    ImageDraw.Draw(titled).text((2, 2), f"references (2 rows), then {', '.join(list(images)[:3])}", fill="black")
    return titled


if __name__ == "__main__":
    main()
