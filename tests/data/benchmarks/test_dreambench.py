"""Benchmarks in DreamBench's layout: reading, building from the training set, and errors."""

import itertools
import json
import os
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from blip_diffusion.data.benchmarks.dreambench import PROMPTS, parse, read_bench, read_dreambench
from blip_diffusion.data.benchmarks.minibench import (
    _names,
    build_bench,
    fingerprint,
    heldout_subjects,
    same_category,
    unknown_to,
)
from blip_diffusion.data.synthetic.prompt_templates import PromptSpec
from blip_diffusion.errors import BlipDiffusionError
from tests.data.synthetic.synthetic_world import make_world

WORLD = make_world()
PUBLISHED = """Classes

subject_name,class
backpack,backpack
dog2,dog

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token),
"a {0} {1} on top of a mirror".format(unique_token, class_token),
'a cube shaped {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token),
'a {0} {1} wearing a red hat'.format(unique_token, class_token),
'a {0} {1} in a chef outfit'.format(unique_token, class_token)
]
"""


def photo(colour: str) -> Image.Image:
    """A square on white: photos of one colour are refused."""
    image = Image.new("RGB", (40, 30), "white")
    image.paste(colour, (12, 8, 28, 22))
    return image


def published(folder: Path, text: str = PUBLISHED) -> Path:
    """A bench as google/dreambooth writes it."""
    for subject, colour in (("backpack", "red"), ("dog2", "brown")):
        (folder / "dataset" / subject).mkdir(parents=True)
        for number in range(2):
            photo(colour).save(folder / "dataset" / subject / f"{number:02d}.jpg")
    (folder / "dataset" / PROMPTS).write_text(text)
    return folder


def test_published_layout_is_read(tmp_path: Path) -> None:
    bench = read_bench(published(tmp_path / "dream"))
    assert [(s.name, s.category, s.live, len(s.images)) for s in bench.subjects] == [
        ("backpack", "backpack", False, 2),
        ("dog2", "dog", True, 2),
    ]
    backpack, dog = bench.subjects
    assert [bench.prompt(backpack, i).sentence("backpack") for i in range(4)] == [
        "a backpack in the jungle",
        "a red backpack",
        "a backpack on top of a mirror",
        "a cube shaped backpack",
    ]
    assert [bench.prompt(dog, i).kind for i in range(4)] == ["scene", "property", "accessory", "accessory"]
    assert bench.name == "dream" and bench.world == ""


def test_names_of_images_may_be_any_bytes(tmp_path: Path) -> None:
    folder = published(tmp_path)
    before = read_bench(folder).digest
    photo("brown").save(folder / "dataset" / "dog2" / os.fsdecode(b"\xff.png"))
    assert read_bench(folder).digest != before


def test_changed_image_changes_the_fingerprint(tmp_path: Path) -> None:
    folder = published(tmp_path)
    before = read_bench(folder).digest
    Image.new("RGB", (40, 30), "green").save(folder / "dataset" / "dog2" / "01.jpg")
    assert read_bench(folder).digest != before


def without_prompts(text: str) -> str:
    return text.replace("'a", "'the").replace('"a', '"the')


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (PROMPTS, None, "is missing"),
        (PROMPTS, b"subject_name,class\n\nObject Prompts", "names no subject"),
        (PROMPTS, without_prompts(PUBLISHED).encode(), "no prompt for backpack"),
        (PROMPTS, PUBLISHED.replace("dog2,dog", "../dog2,dog").encode(), "has a subject"),
        (PROMPTS, b"\xff\xfe\x00", "can't be read"),
        (
            PROMPTS,
            PUBLISHED.replace("in the jungle", "in the \x1b[2Jjungle").encode(),
            "control characters in the prompt",
        ),
        (PROMPTS, PUBLISHED.encode("utf-16"), "can't be read"),
        (PROMPTS, PUBLISHED.replace("dog2,dog", "dog2,dog\ndog2,cat").encode(), "names the subject 'dog2' twice"),
        (PROMPTS, PUBLISHED.replace("dog2,dog", "dog2,").encode(), "has the line 'dog2,'"),
        (PROMPTS, PUBLISHED.replace("dog2,dog", "dog2,dog\n,cup").encode(), "has the line ',cup'"),
        (PROMPTS, PUBLISHED.replace("dog2,dog", "dog2,dog,cat").encode(), "has the line 'dog2,dog,cat'"),
        (PROMPTS, PUBLISHED.replace("dog2,dog", "dog2,dog\0").encode(), "has the line"),
        (PROMPTS, PUBLISHED.replace("dog2,dog", "dog2," + "dog " * 100).encode(), "has the line"),
        ("dog2/01.jpg", b"\xff\xd8\xff", "01.jpg is not an image"),
        ("../bench.json", b"{}", "does not belong"),
        ("../bench.json", b"[1", "does not belong"),
        ("../bench.json", b"[" * 100_000, "does not belong"),
    ],
)
def test_invalid_benchmarks_are_refused(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    path = published(tmp_path) / "dataset" / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(BlipDiffusionError, match=message):
        read_bench(tmp_path)


def test_table_rows_end_with_their_line() -> None:
    classes, _, _ = parse(PUBLISHED.replace("dog2,dog\n", " dog2 ,\tsmall dog \nno row\n\n"), Path("x.txt"))
    assert classes == {"backpack": "backpack", "dog2": "small dog"}


@pytest.mark.parametrize(
    ("before", "after"),
    [("Classes", "\n" * 40_000 + "x"), ("'a {0} {1} in the", "'a {0} {1}" * 800 + "\n'a {0} {1} in the")],
)
def test_malicious_table_is_parsed_quickly(before: str, after: str) -> None:
    began = time.process_time()
    assert parse(PUBLISHED.replace(before, after), Path("x.txt"))[1]
    assert time.process_time() - began < 0.5


def test_subject_without_images_is_named(tmp_path: Path) -> None:
    for path in (published(tmp_path) / "dataset" / "dog2").iterdir():
        path.unlink()
    with pytest.raises(BlipDiffusionError, match="dog2 holds no image"):
        read_bench(tmp_path)


def test_single_image_subjects_are_refused(tmp_path: Path) -> None:
    one_subject = PUBLISHED.replace("dog2,dog\n", "")
    with pytest.raises(BlipDiffusionError, match=r"two subjects and two prompts .* has 1 and 4"):
        read_bench(published(tmp_path / "subject", one_subject))
    one_prompt = PUBLISHED[: PUBLISHED.rindex("'a red")]
    with pytest.raises(BlipDiffusionError, match=r"two prompts in each list.* has 2 and 1"):
        read_bench(published(tmp_path / "prompt", one_prompt))


def test_dreambench_is_complete(tmp_path: Path) -> None:
    with pytest.raises(BlipDiffusionError, match="2 subjects and 4 images"):
        read_dreambench(published(tmp_path))
    with pytest.raises(BlipDiffusionError, match="git clone"):
        read_dreambench(tmp_path / "nowhere")


def test_part_is_spread_over_the_benchmark(tmp_path: Path) -> None:
    bench = build_bench(WORLD, tmp_path / "bench")
    part = bench.part(2, 5)
    assert len(part.subjects) == 2 and len(part.prompt_ids) == 5
    kinds = {bench.prompt(part.subjects[0], number).kind for number in part.prompt_ids}
    assert kinds == {"scene", "property"}  # this world has two accessories for 25 prompts
    assert bench.part(None, None) == bench
    with pytest.raises(BlipDiffusionError, match="--prompts is 99"):
        bench.part(2, 99)


def test_minibench_is_reproducible(tmp_path: Path) -> None:
    first, second = (build_bench(WORLD, tmp_path / name) for name in ("a", "b"))
    assert first.digest == second.digest and first.world == fingerprint(WORLD)
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*")) if path.is_file()]
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    assert build_bench(WORLD, tmp_path / "a").digest == first.digest  # over itself


def test_subject_names_are_unique() -> None:
    assert _names(["x:car", "y/Car", "z:car", "x:!"]) == ["car", "car_2", "car_3", "subject"]
    assert _names(["x:car_2", "x:car", "y:car"]) == ["car_2", "car_3", "car_4"]
    for identities in itertools.permutations(["x:car", "y:car", "x:car_2", "x:car_3", "x:car_2_2"]):
        assert len(set(_names(identities))) == len(identities)


def test_minibench_uses_heldout_assets(tmp_path: Path) -> None:
    bench = build_bench(WORLD, tmp_path / "bench", subjects=3)
    assert [subject.identity for subject in bench.subjects] == ["held0", "held1", "held2"]
    for number in bench.prompt_ids:
        prompt = bench.prompt(bench.subjects[0], number)
        assert prompt.request is not None and prompt.request.scene in prompt.after
    kinds = [bench.prompt(bench.subjects[0], number).kind for number in bench.prompt_ids]
    assert kinds.count("property") == 6 and kinds.count("scene") > kinds.count("accessory") > 0


def test_prompts_equal_those_of_the_specification(tmp_path: Path) -> None:
    build_bench(WORLD, tmp_path / "bench", subjects=2)
    recipe = json.loads((tmp_path / "bench" / "bench.json").read_text())
    recipe["objects"].pop()
    (tmp_path / "bench" / "bench.json").write_text(json.dumps(recipe))
    with pytest.raises(BlipDiffusionError, match="its number of prompts differs"):
        read_bench(tmp_path / "bench")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"objects": [{"count": "2"}]}, "objects.count must be a whole number, not '2'"),
        ({"creatures": [{"hue": "red"}]}, "creatures.hue is not a configuration key"),
        ({"identities": {"held0": "held0"}}, "no identity of held1"),
        ({"creatures": [{"scene": "on grass"}] * 2}, "its number of prompts differs"),
        ({"objects": [{"accessory": "sword"}]}, "objects has the accessory 'sword'"),
        ({"creatures": [{"count": 7}]}, "creatures has the count 7"),
    ],
)
def test_invalid_specification_is_refused(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    build_bench(WORLD, tmp_path / "bench", subjects=2)
    path = tmp_path / "bench" / "bench.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(BlipDiffusionError, match=f"does not belong to this benchmark .*{message}"):
        read_bench(tmp_path / "bench")


def test_lists_of_different_lengths_are_counted_separately(tmp_path: Path) -> None:
    build_bench(WORLD, tmp_path / "bench", subjects=2)
    words, recipe = tmp_path / "bench" / "dataset" / PROMPTS, tmp_path / "bench" / "bench.json"
    lines = words.read_text().splitlines()
    del lines[lines.index("Live Subject Prompts") + 3]
    words.write_text("\n".join(lines))
    with pytest.raises(BlipDiffusionError, match="its number of prompts differs"):
        read_bench(tmp_path / "bench")
    raw = json.loads(recipe.read_text())
    recipe.write_text(json.dumps({**raw, "creatures": raw["creatures"][1:]}))
    bench = read_bench(tmp_path / "bench")
    assert len(bench.prompt_ids) == len(bench.creatures) == len(bench.objects) - 1


def test_missing_assets_are_named(tmp_path: Path) -> None:
    bench = build_bench(WORLD, tmp_path / "bench", subjects=2)
    assert unknown_to(WORLD, bench) == ""
    stranger = replace(bench.subjects[1], identity="nobody")
    assert unknown_to(WORLD, replace(bench, subjects=(bench.subjects[0], stranger))) == "the subject 'nobody'"
    for scene in ("in Atlantis", ""):
        elsewhere = replace(bench.creatures[0], request=PromptSpec(scene=scene))
        assert unknown_to(WORLD, replace(bench, creatures=(elsewhere,))) == f"the scene {scene!r}"


def test_unrelated_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "thesis.txt").write_text("years of work")
    with pytest.raises(BlipDiffusionError, match="isn't a benchmark of this project"):
        build_bench(WORLD, tmp_path / "bench")
    assert (tmp_path / "bench" / "thesis.txt").exists()


def test_other_instances_are_different_subjects() -> None:
    row = heldout_subjects(WORLD)[0]
    rows = same_category(WORLD, row)
    assert random.Random(0).choice(rows) != row
    assert {WORLD.cutouts[i].category for i in rows} == {"dog"}
    assert WORLD.cutouts[row].identity not in {WORLD.cutouts[i].identity for i in rows}
    hat = next(i for i, cutout in enumerate(WORLD.cutouts) if cutout.category == "hat")
    with pytest.raises(BlipDiffusionError, match="no other hat"):
        same_category(WORLD, hat)
