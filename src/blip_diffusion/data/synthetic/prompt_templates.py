"""Properties of a target image, and the closed set of sentences that describe them.

The full prompt is `a [subject tokens] {category} {prompt}`: the category follows the tokens, and the scene is near the
end. The set is closed, so that a text encoder can be trained on every word of it from scratch.
"""

import random
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass

from blip_diffusion.framing import COUNTS as COUNTS
from blip_diffusion.framing import POSITIONS as POSITIONS
from blip_diffusion.framing import SIZES as SIZES
from blip_diffusion.framing import WORN
from blip_diffusion.prompts import subject_prompt

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")
PAINTS = COLOURS[:8]  # colours in which shading stays visible

PAINTED = ("in {}", "painted {}", "all {}")
STYLES = {
    "pixel art": ("as pixel art", "in pixel art style"),
    "sketch": ("as a pencil sketch", "drawn with a pencil"),
    "black and white": ("in black and white", "as a black and white picture"),
    "blurry": ("out of focus", "as a blurry picture"),
    "mosaic": ("as a mosaic", "made of mosaic tiles"),
    "silhouette": ("as a black silhouette", "as a dark shadow"),
}
ACCESSORIES = {
    **WORN,
    "balloon": ("with a balloon", "holding a balloon"),
    "ball": ("with a ball", "next to a ball"),
    "tree": ("next to a tree", "beside a tree"),
    "apple": ("next to an apple", "beside an apple"),
    "flower": ("next to a flower", "beside a flower"),
    "box": ("next to a box", "beside a box"),
    "cup": ("next to a cup", "beside a cup"),
    "candle": ("next to a candle", "beside a candle"),
    "umbrella": ("with an umbrella", "next to an umbrella"),
}


@dataclass(frozen=True)
class PromptSpec:
    """Properties of an image of a subject. Every field except the scene is a key of the table in its comment.

    A sketch is drawn on bare paper, so its scene is empty. Without a scene the background is plain.
    """

    scene: str = ""  # the phrase itself: "on the beach"; empty for a plain background or a sketch
    accessory: str = ""  # ACCESSORIES
    colour: str = ""  # PAINTS: what the subject is painted
    count: int = 1  # COUNTS
    size: str = ""  # SIZES
    position: str = ""  # POSITIONS
    style: str = ""  # STYLES


def unknown(request: PromptSpec) -> str:
    """Describe the first field whose value is not in its table, such as "position 'above'"; empty if none.

    A scene may be any phrase.
    """
    tables: dict[str, Container[object]] = {
        "accessory": ACCESSORIES, "colour": PAINTS, "count": COUNTS, "size": SIZES, "position": POSITIONS,
        "style": STYLES,
    }  # fmt: skip
    for field, known in tables.items():
        value = getattr(request, field)
        if value != getattr(PromptSpec(), field) and value not in known:
            return f"{field} {value!r}"
    return ""


def prompt(request: PromptSpec, rng: random.Random | None = None) -> str:
    """Return the sentence after `a {category}`. Without `rng`, the first paraphrase of every slot."""

    def choose(phrases: tuple[str, ...]) -> str:
        return rng.choice(phrases) if rng else phrases[0]

    parts = []
    if request.accessory:
        parts.append(choose(ACCESSORIES[request.accessory]))
    if request.colour:
        parts.append(choose(PAINTED).format(request.colour))
    if request.count > 1:
        parts.append(choose(COUNTS[request.count]))
    if request.size:
        parts.append(choose(SIZES[request.size]))
    if request.position:
        parts.append(choose(POSITIONS[request.position]))
    if request.scene:
        parts.append(request.scene)
    if request.style:
        parts.append(choose(STYLES[request.style]))
    return (", " if _is_apposed(request) else "") + " , ".join(parts)


def caption(category: str, words: str) -> str:
    """Return the full sentence of a category and a prompt: "a teapot on the beach"."""
    return subject_prompt(words, category)


def sentences(scenes: Iterable[str], categories: Iterable[str]) -> Iterator[str]:
    """Yield sentences that contain every phrase at least once."""
    scenes, categories = sorted(set(scenes)), sorted(set(categories))
    for category in categories:
        yield caption(category, "")
    for scene in scenes:
        yield caption("subject", scene)
    for phrase in _modifiers():
        yield caption("subject", phrase)
    yield caption("subject", ", small")  # the comma itself


def vocabulary(scenes: Iterable[str], categories: Iterable[str]) -> tuple[str, ...]:
    """Return all words of captions, sorted."""
    return tuple(sorted({word for sentence in sentences(scenes, categories) for word in sentence.split()}))


def _modifiers() -> Iterator[str]:
    for table in (ACCESSORIES, COUNTS, SIZES, POSITIONS, STYLES):
        for phrases in table.values():
            yield from phrases
    for template in PAINTED:
        yield from (template.format(colour) for colour in PAINTS)


def _is_apposed(request: PromptSpec) -> bool:
    """Return whether the prompt starts with words that need a comma after the noun: "a dog , two of them"."""
    return not request.accessory and not request.colour and (request.count > 1 or bool(request.size))
