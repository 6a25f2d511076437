"""Names of subjects: categories for prompts, and subjects to leave out.

Sources name subjects in different ways ("pool-8-ball", "A pair of white pants.", "dog2-a", "Apple iMac 1998"). `named`
returns a category (the noun of a prompt) and a longer name, or `None` for subjects to leave out: letters, money, flags,
signs, weapons, religion and people's cultures, trademarks, and images of a scene.
"""

import re
import tomllib
from pathlib import Path
from typing import NamedTuple

TABLES = tomllib.loads((Path(__file__).parent / "tables" / "names.toml").read_text(encoding="utf-8"))
RENAMED: dict[str, str] = TABLES["renamed"]
KIND_OF: dict[str, str] = TABLES["category"]
BY_FILE: dict[str, str] = TABLES["by_file"]
STAMPS: dict[str, str] = TABLES["stamps"]
COSTUMES: dict[str, str] = TABLES["costumes"]
HEADS, WHOLE, DROPPED, PLANTS, COSTUME_PHOTOS = (
    frozenset[str](TABLES[name]) for name in ("heads", "whole", "dropped", "plants", "costume_photos")
)


class Name(NamedTuple):
    """Category and name of a subject."""

    category: str  # at most three words, lower case: "teapot"
    name: str  # the same or longer: "silver teapot"


_DROPPED_PATTERN = re.compile(
    r"\bo clock|oclock|thirty|\bflag\b|sign\b|\bletter\b|\bbanknote|\bplug\b|\bswitch\b|\bwall socket|double socket|"
    r"railing|window|\bgun\b|sword|tomb|grave|headstone|monument stone|parking|tux\b|linux|arrow|bill \d|gobo",
)


def named(words: str) -> Name | None:
    """Return category and name of a free-form name; `None` for a subject to leave out."""
    words = re.sub(r"\s+", " ", words.lower().replace("’", "'").strip(" .!?"))
    words = RENAMED.get(words, words)
    if words in DROPPED or _DROPPED_PATTERN.search(words) or not re.fullmatch(r"[a-z' -]+", words):
        return None
    words = words.replace("'s ", " ").replace("'", "").replace("-", " ")
    last = words.split()[-1]
    category = KIND_OF.get(words) or (last if last in HEADS and words not in WHOLE else words)
    return Name(category, words) if len(category.split()) <= 3 else None


def emoji(slug: str) -> Name | None:
    """Return the name of an iconify slug: "two-hump-camel"."""
    return named(slug.replace("-", " "))


def furniture(name: str, file: str) -> Name | None:
    """Return the name of a catalogue entry, given by its name and its OBJ file's stem."""
    return named(BY_FILE.get(file, name))


_END = re.compile(r"[.!?:;–—(]| is | are | from | lets | for taking |, (?:sliced|from|called|also)")
_ARTICLES = re.compile(
    r"^(an?|the|some|our|one|eat your|it's|remember to flush the)\s+|"
    r"^(pair|bunch|piece|cluster|cup|set) of (?!coffee|espresso|bananas)"
)


def stamp(file: str, caption: str) -> Name | None:
    """Return the name of a stamp, given by its path and first sentence: "A pair of white pants."."""
    if file in STAMPS:
        return named(STAMPS[file])
    words = _END.split(caption.strip(), maxsplit=1)[0].lower().replace("“", "").replace("”", "").strip()
    while (shorter := _ARTICLES.sub("", words)) != words:
        words = shorter
    return named(words) if words else None


# Trademarks, real people, dress of cultures, and images that show no object.
_NO_COSTUME = re.compile(
    r"^(cat1|gobo|amon|anjuli|anna|calvrett|cassy|chamak|dan\d|ed$|jay|jodi|lee-fan|mako|marissa|nathan|nina|paul|sam$|"
    r"breakdancer\d|football|referee|thai|ribbon-dancer|square|button|street-cleaner|scoreboard|car-cow|skull|baby|"
    r"hair|train$|manhole|marble)"
)

# Named like a pose, but of another figure.
_OTHERS = frozenset({"giraffe1-b", "monster1-b"})


def costume(stem: str) -> tuple[Name, str, str] | None:
    """Return name, subject and pose of a Scratch costume's file name: "dog2-a" is a dog, "dog2" and "a"."""
    if _NO_COSTUME.match(stem):
        return None
    subject, pose = stem, ""
    if re.search(r"\d-|^(ballerina|breakdancer)-", stem) and stem not in _OTHERS:
        subject, _, pose = stem.partition("-")
    base = re.sub(r"\d*(-b)?$", "", subject)
    name = named(COSTUMES.get(base, base.replace("_", " ").replace("-", " ")))
    return (name, subject, pose) if name else None
