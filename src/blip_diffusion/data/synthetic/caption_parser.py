"""Parse captions into facts, which is exact because captions follow a closed set of templates."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from blip_diffusion.data.synthetic import backgrounds
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.prompt_templates import (
    ACCESSORIES,
    COUNTS,
    PAINTED,
    PAINTS,
    POSITIONS,
    SIZES,
    STYLES,
)


@dataclass(frozen=True)
class CaptionFacts:
    """Facts of a caption, with one value for all paraphrases; fields that it doesn't mention are empty."""

    category: str = ""
    scene: str = ""  # the class of the place: "beach"
    accessory: str = ""
    colour: str = ""
    count: str = ""
    size: str = ""
    position: str = ""
    style: str = ""


class CaptionParser:
    """Sentences to facts.

    Args:
        scenes: The class of each phrase of a place, see `scene_words`.

    Example:
        >>> CaptionParser({"on the beach": "beach"})("a frog , two of them , on the beach")
        CaptionFacts(category='frog', scene='beach', count='2', ...)
    """

    def __init__(self, scenes: Mapping[str, str]) -> None:
        self.phrases = dict(_phrases())
        self.phrases |= {phrase: ("scene", word) for phrase, word in scenes.items()}

    def __call__(self, caption: str) -> CaptionFacts:
        """Return the facts of one caption; phrases outside the templates are ignored."""
        first, *others = re.split(r"\s*,\s*", " ".join(caption.lower().split()))
        words = first.split()[1:]  # without the article
        at = next((at for at in range(1, len(words)) if " ".join(words[at:]) in self.phrases), len(words))
        chunks = [" ".join(words[at:]), *others]
        found = dict(self.phrases[chunk] for chunk in chunks if chunk in self.phrases)
        return CaptionFacts(category=" ".join(words[:at]), **found)


def _phrases() -> Iterator[tuple[str, tuple[str, str]]]:
    counts = {str(count): phrases for count, phrases in COUNTS.items()}
    tables: Mapping[str, Mapping[str, tuple[str, ...]]]
    tables = {"accessory": ACCESSORIES, "count": counts, "size": SIZES, "position": POSITIONS, "style": STYLES}
    for field, table in tables.items():
        for key, phrases in table.items():
            yield from ((phrase, (field, key)) for phrase in phrases)
    for template in PAINTED:
        yield from ((template.format(colour), ("colour", colour)) for colour in PAINTS)


def scene_words(world: AssetLibrary) -> dict[str, str]:
    """Return the class of every scene phrase in captions of an asset library."""
    procedural = {phrase: backgrounds.word_of(phrase) for phrase in backgrounds.phrases()}
    return procedural | {phrase: scene.word for scene in world.scenes for phrase in scene.phrases}
