"""Metrics of captions on held-out composites: losses, similarity to references, parsed facts, and a contact sheet.

Each metric is also computed without the image, and with an image of another subject, as lower bounds.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from blip_diffusion.blip2 import Blip2
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.caption_parser import CaptionFacts, CaptionParser, scene_words
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.data.synthetic.pair_spec import SyntheticConfig
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.metrics.caption_similarity import bleu, bleu_counts, cider_d
from blip_diffusion.evaluation.metrics.statistics import Estimate, Statistic, bootstrap_ci
from blip_diffusion.images import to_pil
from blip_diffusion.modules.language import IGNORED
from blip_diffusion.pipelines.captioner import Captioner
from blip_diffusion.prompts import caption_words

BATCH = 32
CAPTION_LINE = 34
"""Characters in a line of a caption on a contact sheet."""
MAX_COMPOSITES = 20_000
"""Images of a report: all are in memory."""
CONDITIONS = ("right image", "wrong image", "no image")
SYNTHETIC = SyntheticConfig(
    split="heldout", colours=0.10, counts=0.12, sizes=0.06, positions=0.14, accessories=0.10, styles=0.06
)
"""Held-out subjects in held-out scenes, with as many properties as in training."""


@dataclass(frozen=True)
class HeldOut:
    """N held-out images with their captions."""

    pixels: Tensor  # (N, 3, S, S) in [0, 1]
    captions: list[str]
    subjects: Tensor  # (N,) subject ids

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def mismatched(self) -> list[int]:
        """For each image, the index of the next one with another subject."""
        n, ids = len(self), self.subjects.tolist()
        return [next((j % n for j in range(i + 1, i + n) if ids[j % n] != ids[i]), i) for i in range(n)]


def held_out(world: AssetLibrary, count: int, *, seed: int = 0) -> HeldOut:
    """Composite `count` images. Raises `InputError` for less than two, or more than memory holds."""
    if not 2 <= count <= MAX_COMPOSITES:
        raise InputError(
            f"The number of images is {count}: use 2 to {MAX_COMPOSITES}; wrong images are needed beside each."
        )
    sampler = PairSampler(world, SYNTHETIC, batch_size=min(BATCH, count), seed=seed)
    batches = [sampler(index) for index in range(-(-count // sampler.batch_size))]
    captions = [caption for batch in batches for caption in batch["caption"]]
    pixels, subjects = (torch.cat([batch[name] for batch in batches]) for name in ("target", "identity"))
    return HeldOut(pixels[:count], captions[:count], subjects[:count])


def slices(count: int) -> list[slice]:
    """Return slices of `BATCH` rows that cover `count` rows."""
    return [slice(first, first + BATCH) for first in range(0, count, BATCH)]


@torch.no_grad()
def query_states(model: Blip2, pixels: Tensor) -> Tensor:
    """Return query states (N, Q, D) of images (N, 3, S, S) in [0, 1]."""
    return torch.cat([model.queries(model.features(pixels[rows].to(model.device))) for rows in slices(len(pixels))])


@torch.no_grad()
def caption_losses(model: Blip2, queries: Tensor | None, captions: Sequence[str]) -> Tensor:
    """Return each caption's mean cross-entropy per token (N,), in nats, with queries (N, Q, D) or without."""
    if model.language_prefix.is_encoder_decoder:
        raise InputError("Captions are scored with a decoder-only language model, and this one has an encoder.")
    losses = []
    for rows in slices(len(captions)):
        words, labels = caption_words(model.tokenizer, captions[rows], model.special, limit=64)
        words, labels = words.to(model.device), labels.to(model.device)
        prefix = None if queries is None else queries[rows]
        logits = model.language_prefix(prefix, words.input_ids, words.attention_mask).logits[:, -labels.shape[1] : -1]
        labels = labels[:, 1:]  # the first token can only be predicted with a prefix
        cross_entropy = F.cross_entropy(logits.transpose(1, 2).float(), labels, ignore_index=IGNORED, reduction="none")
        losses.append(cross_entropy.sum(dim=1) / (labels != IGNORED).sum(dim=1))
    return torch.cat(losses).cpu()


@dataclass(frozen=True)
class CaptionScores:
    """Scores by condition, each with its 95 % interval."""

    losses: dict[str, Estimate]  # nats per token
    advantage: dict[str, Estimate]  # loss minus the loss with the right image
    similarity: dict[str, dict[str, Estimate]]  # CIDEr-D and BLEU-4, with all paraphrases as references
    accuracy: dict[str, dict[str, Estimate]]  # by field of `CaptionFacts`, among captions that mention it
    counts: dict[str, int]  # number of captions that mention each field
    captions: list[str]  # generated from the right images


def score_captions(captioner: Captioner, world: AssetLibrary, held: HeldOut, *, num_beams: int = 5) -> CaptionScores:
    """Score captions of held-out images.

    Args:
        captioner: A captioner with a decoder-only language model.
        world: The asset library, whose prompt templates the captions follow.
        held: Images and captions.
        num_beams: Width of the beam search.

    Returns:
        Losses, similarities and accuracies with 95 % bootstrap intervals over subjects.
    """
    model = captioner.model
    queries = query_states(model, held.pixels)
    columns = {
        "right image": caption_losses(model, queries, held.captions),
        "wrong image": caption_losses(model, queries[held.mismatched], held.captions),
        "no image": caption_losses(model, None, held.captions),
    }
    generated = captioner(to_pil(held.pixels), num_beams=num_beams)
    captions_of = {"right image": generated, "wrong image": [generated[i] for i in held.mismatched],
            "no image": captioner(None, num_beams=num_beams) * len(held)}  # fmt: skip
    parse = CaptionParser(scene_words(world))
    references = [parse.paraphrases(caption) for caption in held.captions]
    truth = [parse(caption) for caption in held.captions]
    facts = {name: [parse(caption) for caption in captions] for name, captions in captions_of.items()}
    names = [field.name for field in fields(CaptionFacts)]
    return CaptionScores(
        losses={name: over_subjects(column, held.subjects) for name, column in columns.items()},
        advantage={name: over_subjects(columns[name] - columns["right image"], held.subjects)
                   for name in CONDITIONS[1:]},
        similarity=_similarity(captions_of, references, held.subjects),
        accuracy={name: {key: _accuracy(name, truth, facts[key], held.subjects) for key in CONDITIONS}
                  for name in names},
        counts={name: sum(bool(getattr(fact, name)) for fact in truth) for name in names},
        captions=generated,
    )  # fmt: skip


def _accuracy(
    field: str, truth: Sequence[CaptionFacts], predicted: Sequence[CaptionFacts], subjects: Tensor
) -> Estimate:
    """Return the accuracy of a field among the images whose caption mentions it."""
    values = ([getattr(facts, field) for facts in captions] for captions in (truth, predicted))
    return over_subjects(caption_correct(*values), subjects)


def caption_correct(truth: Sequence[str], predicted: Sequence[str]) -> Tensor:
    """Return 1 where a predicted value is the true one, else 0 (N,); NaN where the true caption has none."""
    pairs = zip(truth, predicted, strict=True)
    return torch.tensor([float(true == value) if true else torch.nan for true, value in pairs])


def _similarity(
    captions_of: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]], subjects: Tensor
) -> dict[str, dict[str, Estimate]]:
    """Return CIDEr-D and corpus BLEU-4 of each condition's captions."""
    bleu_estimates = {
        key: _of_sums(bleu_counts(captions, references), subjects, bleu) for key, captions in captions_of.items()
    }
    cider = {key: over_subjects(cider_d(captions, references), subjects) for key, captions in captions_of.items()}
    return {"CIDEr-D": cider, "BLEU-4": bleu_estimates}


def over_subjects(values: Tensor, subjects: Tensor) -> Estimate:
    """Return the mean over images with its bootstrap interval over subjects; NaN excludes an image."""
    valid = ~values.isnan()
    columns = torch.stack([values[valid], torch.ones_like(values[valid])])
    return _of_sums(columns, subjects[valid], lambda means: means[0] / means[1])


def _of_sums(columns: Tensor, subjects: Tensor, statistic: Statistic) -> Estimate:
    """Return a statistic of the sums of columns (K, N) over images, with its bootstrap interval over subjects."""
    names = subjects.tolist()
    number = {name: row for row, name in enumerate(dict.fromkeys(names))}
    rows = torch.tensor([number[name] for name in names], dtype=torch.long)
    sums = torch.zeros(len(columns), len(number), dtype=columns.dtype).index_add(1, rows, columns)
    return bootstrap_ci(sums, statistic)


def caption_sheet(pixels: Tensor, captions: Sequence[str], truth: Sequence[str], *, columns: int = 4) -> Image.Image:
    """Return a contact sheet of images, each with its generated caption, and below it the true one in grey."""
    side, gap, line = 192, 8, 13
    texts = [
        [textwrap.wrap(text.replace(" ,", ","), CAPTION_LINE) or [""] for text in pair]
        for pair in zip(captions, truth, strict=True)
    ]
    bar = line * max(sum(len(lines) for lines in pair) for pair in texts) + 4
    page = Image.new("RGB", (columns * (side + gap), -(-len(captions) // columns) * (side + bar + gap)), "white")
    draw = ImageDraw.Draw(page)
    for i, (image, (caption, true_caption)) in enumerate(zip(to_pil(pixels), texts, strict=True)):
        left, top = i % columns * (side + gap), i // columns * (side + bar + gap)
        page.paste(image.resize((side, side), Image.Resampling.BICUBIC), (left, top))
        colours = ["black"] * len(caption) + ["grey"] * len(true_caption)
        for row, (text, colour) in enumerate(zip([*caption, *true_caption], colours, strict=True)):
            draw.text((left + 1, top + side + 1 + line * row), text, fill=colour)
    return page
