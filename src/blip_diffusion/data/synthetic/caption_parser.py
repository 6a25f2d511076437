"""Parse captions into facts, which is exact because captions follow a closed set of templates."""

import itertools
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
        _, category, chunks = self._split(caption)
        found = dict(self.phrases[chunk] for chunk in chunks if chunk in self.phrases)
        return CaptionFacts(category=category, **found)

    def paraphrases(self, caption: str) -> list[str]:
        """Return all captions with the same facts in the same order, this one included."""
        article, category, chunks = self._split(caption)
        choices = [self._synonyms(chunk) for chunk in chunks]
        joined = (f"{article} {category} {' , '.join(chosen)}" for chosen in itertools.product(*choices))
        return [" ".join(caption.split()) for caption in joined]

    def _synonyms(self, chunk: str) -> list[str]:
        """Return the phrases of the same fact; a chunk without a fact has no other."""
        fact = self.phrases.get(chunk)
        return [phrase for phrase, other in self.phrases.items() if other == fact] if fact else [chunk]

    def _split(self, caption: str) -> tuple[str, str, list[str]]:
        """Return article, category, and the phrases between commas."""
        first, *others = re.split(r"\s*,\s*", " ".join(caption.lower().split()))
        article, *words = first.split() or [""]
        at = next((at for at in range(1, len(words)) if " ".join(words[at:]) in self.phrases), len(words))
        return article, " ".join(words[:at]), [" ".join(words[at:]), *others]


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
