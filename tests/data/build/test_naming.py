"""Category names from the names of each source, and rejected names."""

import pytest

from blip_diffusion.data.benchmarks import minibench
from blip_diffusion.data.build import naming
from blip_diffusion.data.build.naming import Name


@pytest.mark.parametrize(
    ("slug", "expected"),
    [
        ("two-hump-camel", Name("camel", "camel")),
        ("pool-8-ball", Name("ball", "billiard ball")),
        ("hot-dog", Name("hot dog", "hot dog")),
        ("black-cat", Name("cat", "black cat")),
        ("jack-o-lantern", Name("jack o lantern", "jack o lantern")),
        ("teapot", Name("teapot", "teapot")),
    ],
)
def test_emoji(slug: str, expected: Name) -> None:
    assert naming.emoji(slug) == expected


@pytest.mark.parametrize(
    "slug", ["six-thirty", "one-oclock", "dollar-banknote", "flag-in-hole", "kaaba", "dagger", "stop-sign", "desert"]
)
def test_unwanted_emoji(slug: str) -> None:
    assert naming.emoji(slug) is None


@pytest.mark.parametrize(
    ("name", "file", "expected"),
    [
        ("Renault Scenic", "renault-scenic", Name("car", "car")),
        ("Oak table", "oakTable", Name("table", "oak table")),
        ("Captain's bed", "captains-bed", Name("bed", "wooden bed")),
        ("Socket", "chaussette", Name("sock", "sock")),
        ("Bulldog", "bulldog", Name("dog", "bulldog")),
        ("TV 16:9", "tv", Name("television", "television")),
    ],
)
def test_furniture(name: str, file: str, expected: Name) -> None:
    assert naming.furniture(name, file) == expected


@pytest.mark.parametrize("name", ["Wall type A plug", "Square switch", "Iron railing", "Bill 10€", "Female", "Ashtray"])
def test_unwanted_furniture(name: str) -> None:
    assert naming.furniture(name, "x") is None


@pytest.mark.parametrize(
    ("file", "caption", "expected"),
    [
        ("clothes/white_pants", "A pair of white pants.", Name("pants", "white pants")),
        ("household/electronics/laptop", "A laptop computer.  Tap. Tap. Tap.", Name("laptop", "laptop")),
        ("food/bread", "Eat your bread!", Name("bread", "bread")),
        ("space/planets/4_mars", "Mars—the red planet. It’s just beyond earth.", Name("planet", "mars")),
        ("vehicles/auto/beetle", "A VW Beetle.", Name("car", "car")),
    ],
)
def test_stamps(file: str, caption: str, expected: Name) -> None:
    assert naming.stamp(file, caption) == expected


@pytest.mark.parametrize("caption", ["Tux—the Linux mascot!", "A gravestone.", "A checkered flag.", "6x7=42"])
def test_unwanted_stamps(caption: str) -> None:
    assert naming.stamp("x", caption) is None


def test_costumes() -> None:
    assert naming.costume("dog2-a") == (Name("dog", "dog"), "dog2", "a")
    assert naming.costume("partyhat1") == (Name("hat", "party hat"), "partyhat1", "")
    assert naming.costume("boy4-walking-a") == (Name("child", "boy"), "boy4", "walking-a")
    assert naming.costume("car-blue") == (Name("car", "car"), "car-blue", "")


@pytest.mark.parametrize("stem", ["cat1-a", "gobo1", "dan3", "street-cleaner-mit", "button"])
def test_unwanted_costumes(stem: str) -> None:
    assert naming.costume(stem) is None


def test_category_has_at_most_three_plain_words() -> None:
    for words in (*naming.RENAMED.values(), *naming.KIND_OF, *naming.STAMPS.values()):
        result = naming.named(words)
        if result:
            assert len(result.category.split()) <= 3
            assert result.category.replace(" ", "").isalpha() and result.name.islower()


def test_benchmark_has_thirty_subjects() -> None:
    assert len(set(minibench.SUBJECTS)) == len(minibench.SUBJECTS) == 30
