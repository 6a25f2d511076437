"""The report of captions and retrieval: `report.json`, `report.md` and `sheet.png`."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blip_diffusion.argument_checks import flag, whole_number
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.devices import present_device
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.blip2.caption_probe import probe_accuracy
from blip_diffusion.evaluation.blip2.captions import (
    CONDITIONS,
    MAX_COMPOSITES,
    CaptionScores,
    HeldOut,
    caption_sheet,
    held_out,
    score_captions,
)
from blip_diffusion.evaluation.blip2.questions import score_answers
from blip_diffusion.evaluation.blip2.retrieval import (
    KS,
    RetrievalScores,
    image_features,
    score_retrieval,
    zero_shot_accuracy,
)
from blip_diffusion.evaluation.metrics.statistics import Estimate
from blip_diffusion.fileio import as_path, atomic_file, check_writable, write_text
from blip_diffusion.pipelines.captioner import Captioner
from blip_diffusion.pipelines.image_search import ImageSearch

SHEET = 24
LIMITS = {
    "num_images": (2, MAX_COMPOSITES),
    "num_beams": (1, 64),
    "probe_images": (0, MAX_COMPOSITES),
    "rerank": (0, MAX_COMPOSITES),
    "seed": (0, 2**63 - 1),
}
"""The lowest and the highest value of numbers."""


def evaluate_captions(
    dataset: Path,
    out: Path,
    *,
    model: str | None = None,
    search_model: str | None = None,
    num_images: int = 1000,
    num_beams: int = 5,
    vqa: bool = False,
    probe_images: int = 0,
    rerank: int = 32,
    device: str = "cpu",
    seed: int = 0,
) -> str:
    """Score captions and retrieval on held-out composites and write a report.

    Args:
        dataset: The asset library, `world.zip`.
        out: Folder of `report.json`, `report.md` and `sheet.png`.
        model: A model with a language model; `None`: captions are not scored.
        search_model: A model with the head of ITC, and for `rerank` that of ITM; `None`: retrieval is not scored.
        num_images: Number of composites, at least 2.
        num_beams: Width of the beam search.
        vqa: Ask for each fact of the captions too, and score exactly right answers.
        probe_images: Number of composites to which linear probes of category and scene are fitted, to compare captions
            with; 0: no probe.
        rerank: Number of candidates of each query that matching ranks again; 0 for none.
        device: Device of the models.
        seed: Seed of the composites.

    Returns:
        The report in Markdown.

    Raises:
        InputError: If neither model is given, or `out` can't be written.

    Example:
        >>> evaluate_captions(Path("world/world.zip"), Path("out"), model="runs/mini/language/export")
    """
    if model is None and search_model is None:
        raise InputError("There is nothing to score: give a model for captions, one for retrieval, or both.")
    if model is None and (vqa or probe_images):
        raise InputError("vqa and probe_images (--vqa, --probe-images) score a model for captions: give one (--model).")
    dataset, out, device = as_path("dataset", dataset), as_path("out", out), str(present_device(device))
    flag("vqa", vqa)
    _check_counts(num_images=num_images, num_beams=num_beams, probe_images=probe_images, rerank=rerank, seed=seed)
    check_writable(out)
    captioner = None if model is None else Captioner.from_pretrained(model).to(device)
    search = None if search_model is None else ImageSearch.from_pretrained(search_model).to(device)
    if search is not None and rerank:
        _ = search.model.itm_head  # which raises if there is none, before anything is computed
    world = AssetLibrary.load(dataset)
    held = held_out(world, num_images, seed=seed)
    table: dict[str, Any] = {"images": len(held), "subjects": len(set(held.subjects.tolist())), "seed": seed}
    sections = [f"{len(held)} composites of {table['subjects']} held-out subjects in held-out scenes."]
    if captioner is not None:
        scores = score_captions(captioner, world, held, num_beams=num_beams)
        table["captions"] = asdict(scores)
        sections += _caption_tables(scores)
        _write_sheet(scores, held, out / "sheet.png")
    if captioner is not None and vqa:
        answers = score_answers(captioner, world, held, num_beams=num_beams)
        table["answers"] = {field: {key: asdict(one) for key, one in row.items()} for field, row in answers.items()}
        sections.append(_condition_table("exactly right answers", answers))
    if captioner is not None and probe_images:
        probe = probe_accuracy(captioner.model, world, held, images=probe_images, seed=seed)
        table["probe"] = {"images": probe_images} | {field: asdict(one) for field, one in probe.items()}
        named = ", ".join(f"{field} {one}" for field, one in probe.items())
        sections.append(f"By a linear probe of the image encoder, fitted to {probe_images} images: {named}.")
    if search is not None:
        features = image_features(search.model, held)
        retrieval = score_retrieval(search.model, held, features, rerank=rerank)
        table["retrieval"] = asdict(retrieval)
        sections.append(_retrieval_table(retrieval))
        zero_shot = zero_shot_accuracy(search.model, world, held, features)
        table["zero_shot_category"] = {k: asdict(one) for k, one in zero_shot.items()}
        sections.append(
            "Category by ITC, zero-shot: " + ", ".join(f"top {k} {one}" for k, one in zero_shot.items()) + "."
        )
    text = "\n\n".join(sections) + "\n"
    write_text(out / "report.json", json.dumps(table, indent=2) + "\n")
    write_text(out / "report.md", text)
    return text


def _check_counts(**counts: Any) -> None:
    for name, value in counts.items():
        whole_number(name, value, *LIMITS[name])


def _write_sheet(scores: CaptionScores, held: HeldOut, path: Path) -> None:
    page = caption_sheet(held.pixels[:SHEET], scores.captions[:SHEET], held.captions[:SHEET])
    with atomic_file(path) as partial:
        page.save(partial)


def _caption_tables(scores: CaptionScores) -> list[str]:
    losses = [f"| {name} | {scores.losses[name]} | {scores.advantage.get(name, '')} |" for name in CONDITIONS]
    facts = [
        f"| {name} | {scores.counts[name]} | {_cells(row)} |"
        for name, row in scores.accuracy.items()
        if scores.counts[name]
    ]
    return [
        "\n".join(["| loss, nats a token | mean | above the right image's |", "|---|---|---|", *losses]),
        _condition_table("similarity", scores.similarity),
        "\n".join([f"| correct | images | {' | '.join(CONDITIONS)} |", "|---|---|---|---|---|", *facts]),
    ]


def _condition_table(title: str, rows: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Return a table with a column for each condition."""
    lines = [f"| {name} | {_cells(row)} |" for name, row in rows.items()]
    return "\n".join([f"| {title} | {' | '.join(CONDITIONS)} |", "|---|---|---|---|", *lines])


def _cells(row: Mapping[str, Estimate]) -> str:
    return " | ".join(str(row[key]) for key in CONDITIONS)


def _retrieval_table(scores: RetrievalScores) -> str:
    head = f"| {scores.images} images, {scores.sentences} sentences | {' | '.join(f'R@{k}' for k in KS)} |"
    rows = [
        f"| {direction}, {_ranking(name, scores.reranked)} | {' | '.join(str(recalls[direction][k]) for k in KS)} |"
        for direction in ("image to text", "text to image")
        for name, recalls in scores.recalls.items()
    ]
    rows += [
        f"| {direction}, {name} above ITC | {' | '.join(str(gain[direction][k]) for k in KS)} |"
        for direction in ("image to text", "text to image")
        for name, gain in scores.gain.items()
    ]
    return "\n".join([head, "|---|---|---|---|", *rows])


def _ranking(name: str, reranked: int) -> str:
    return name if name == "ITC" else f"ITC, then ITM of the best {reranked}, score {name}"
