"""`evaluate` from the command line with tiny real networks: images are generated once, scored, and shown."""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from blip_diffusion.cli.main import main
from blip_diffusion.errors import DataError
from blip_diffusion.evaluation.reporting.html import page
from blip_diffusion.evaluation.reporting.markdown import describe_settings
from blip_diffusion.evaluation.reporting.schema import Report, read
from tests.checkpoint.loras import lora_of
from tests.evaluation.conftest import bench_folder, tiny_clip, tiny_dino  # noqa: F401

Run = Callable[..., int]


@pytest.fixture(scope="module")
def world_folder(bench_folder: Path) -> Path:  # noqa: F811
    """A world and, made by the command, its MiniBench."""
    assert main(["data", "build", "--benchmark", "--out", str(bench_folder)]) == 0
    return bench_folder


@pytest.fixture(scope="module")
def evaluate(world_folder: Path, tiny_folder: Path, tiny_dino: Path, tiny_clip: Path) -> Run:  # noqa: F811
    def run(*arguments: object) -> int:
        own: dict[str, list[object]] = {
            "--model": [tiny_folder], "--dataset": [world_folder / "world.zip"], "--steps": [1], "--subjects": [2],
            "--prompts": [3], "--seeds": [2], "--metrics": [f"dino={tiny_dino}", f"clip-b32={tiny_clip}"],
        }  # fmt: skip
        unsaid = [word for flag, values in own.items() if flag not in arguments for word in (flag, *values)]
        return main([str(argument) for argument in ("evaluate", *unsaid, *arguments)])

    return run


@pytest.fixture(scope="module")
def out(evaluate: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole report, drawn by two shards and scored afterwards."""
    folder = tmp_path_factory.mktemp("reports") / "report"
    for shard in ("1/2", "2/2"):
        assert evaluate("--out", folder, "--shard", shard) == 0
    assert not (folder / "report.json").exists()
    drawn = {path: path.stat().st_mtime_ns for path in (folder / "images").rglob("*.png")}
    assert len(drawn) == 2 * 3 * 2 + 2 * 3
    assert evaluate("--out", folder) == 0
    assert drawn.items() <= {path: path.stat().st_mtime_ns for path in drawn}.items()  # none was made twice
    return folder


def test_a_report_says_all_that_it_depends_on(out: Path) -> None:
    report = read(out / "report.json")
    assert len(report.images) == 12 and [result.info.name for result in report.results] == [
        "DINO", "CLIP-I b32", "CLIP-T b32",
    ]  # fmt: skip
    text = (out / "report.md").read_text()
    rows = ["no-subject", "reference-copy", "other-instance", "ground-truth", "vae-reconstruction"]
    rows += ["shuffled-subjects", "shuffled-prompts"]
    assert list(report.results[0].conditions) == ["zero-shot", *rows]
    said = [
        "DINO, ViT of width 24",
        "2 subjects x 3 prompts x 2 seeds = 12 images",
        "1 steps",
        "by DINO",
        *rows,
    ]
    assert not [words for words in said if words not in text]
    assert all((out / image.file).is_file() for image in report.images)
    assert report.diversity is not None and report.diversity.value > 0
    assert report.headline("subject") is report.results[0]
    with (out / "subjects.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 3 * len(report.results[0].conditions)
    assert all(
        float(line["cosine_similarity"]) == float(line["cosine_similarity"])
        for line in lines
        if line["metric"] == "DINO"
    )


def test_every_condition_and_precision_is_named(out: Path) -> None:
    report = read(out / "report.json")

    def said(condition: str, dtype: str = "float32") -> str:
        return describe_settings(replace(report, settings={**report.settings, "condition": condition, "dtype": dtype}))

    assert "Zero-shot from one reference: the subject's first image, cropped square. Means" in said("zero-shot")
    assert "no-subject is a lower bound: the model with the prompt alone. Means" in said("no-subject")
    assert "ground-truth is an upper bound. Means" in said("ground-truth")
    assert "guidance 3, in bfloat16; weights" in said("zero-shot", "bfloat16") and "float32" not in said("zero-shot")


def test_the_page_shows_every_image_and_can_be_moved(out: Path, tmp_path: Path) -> None:
    text = (out / "index.html").read_text()
    sources = re.findall(r'src="([^"]+)"', text)
    assert len(sources) >= 12 + 2 and all((out / source).is_file() for source in sources)
    assert not [source for source in sources if source.startswith(("/", ".."))]


def test_words_of_strangers_are_escaped(out: Path) -> None:
    raw = json.loads((out / "report.json").read_text())
    raw["settings"]["model"] = "<script>alert(1)</script>"
    raw["images"][0]["prompt"] = 'a "dog" <img src=x onerror=alert(1)>'
    (out / "strange.json").write_text(json.dumps(raw))
    text = page(read(out / "strange.json"))
    assert "<script" not in text and "<img src=x" not in text and "&lt;script&gt;" in text


def test_tuned_subjects_are_tuned_once(
    evaluate: Run, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two shards tune a subject each; what comes after tunes none; without a subject, nothing of the tuning shows."""
    folder = tmp_path / "tuned"

    def run(*arguments: object) -> str:
        assert evaluate("--out", folder, "--condition", "tuned", "--train-steps", 1, *arguments) == 0
        return capsys.readouterr().err

    for shard in ("1/2", "2/2"):
        assert run("--shard", shard).count("tuned to ") == 1
    subjects = {path: path.read_bytes() for path in (folder / "subjects").glob("*.safetensors")}
    assert len(subjects) == 2
    one_subject = next((folder / "images" / "tuned").iterdir())  # all of a batch: alone, the last bit may differ
    lost = {path: path.read_bytes() for path in one_subject.glob("*.png")}
    for path in lost:
        path.unlink()
    assert lost and "tuned to " not in run() and {path: path.read_bytes() for path in lost} == lost
    assert {path: path.read_bytes() for path in subjects} == subjects
    report = read(folder / "report.json")
    assert report.condition == "tuned" and len(report.images) == 12 and report.settings["tuning_trainable"] == "lora"
    said = "Few-shot tuning (lora, 1 steps) on all images of the subject"
    assert said in (folder / "report.md").read_text()
    for path in sorted((folder / "images" / "no-subject").rglob("*.png")):
        assert path.read_bytes() == (out / path.relative_to(folder)).read_bytes()
    assert evaluate("--out", folder, "--condition", "tuned", "--train-steps", 1, "--trainable", "embedding") == 2
    assert 'whose tuning_trainable was "lora" and not "embedding"' in capsys.readouterr().err


def test_loras_are_a_setting(
    evaluate: Run, out: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = lora_of(tiny_folder, tmp_path / "style.safetensors")
    flags = ("--seeds", 1, "--lora", f"{lora}:0.5")
    assert evaluate("--out", tmp_path / "styled", *flags, "--shard", "1/1") == 0
    settings = json.loads((tmp_path / "styled" / "settings.json").read_text())
    assert [settings["loras"][0][0], settings["loras"][0][2]] == ["style.safetensors", 0.5]
    drawn = next((tmp_path / "styled" / "images" / "zero-shot").rglob("*.png"))
    plain = out / drawn.relative_to(tmp_path / "styled")
    assert plain.is_file() and plain.read_bytes() != drawn.read_bytes()
    assert evaluate("--out", tmp_path / "styled", *flags[:-2]) == 2
    assert evaluate("--out", tmp_path / "new", "--lora", "gone.safetensors") == 2
    assert "There is no LoRA at gone.safetensors" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_other_settings_are_refused(evaluate: Run, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (out / "report.json").read_bytes()
    assert evaluate("--out", out, "--steps", 2) == 2
    assert "whose steps was 1 and not 2" in capsys.readouterr().err
    assert evaluate("--out", out, "--preset", "fast", "--dtype", "float32") == 2
    assert 'whose preset was "none" and not "fast"' in capsys.readouterr().err
    assert evaluate("--out", out, "--engine", "openvino") == 2
    assert 'whose engine was "torch" and not "openvino"' in capsys.readouterr().err
    assert evaluate("--out", out, "--condition", "no-subject") == 2
    assert "whose condition was" in capsys.readouterr().err
    assert (out / "report.json").read_bytes() == before


def test_a_broken_image_is_named(evaluate: Run, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    victim = next((out / "images" / "zero-shot").rglob("*.png"))
    whole = victim.read_bytes()
    victim.write_bytes(whole[:40])
    assert evaluate("--out", out) == 2
    assert str(victim) in capsys.readouterr().err
    victim.write_bytes(whole)


def test_another_protocol_is_refused(out: Path, tmp_path: Path) -> None:
    raw = json.loads((out / "report.json").read_text())
    for content, said in (({**raw, "protocol": "blip-diffusion 0"}, "'blip-diffusion 0'"), ({}, "no report")):
        (tmp_path / "old.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=said):
            read(tmp_path / "old.json")
    assert isinstance(read(out / "report.json"), Report)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--condition", "magic"), "--condition is magic"),
        (("--condition", "tuned", "--train-steps", "0"), "--train-steps is 0"),
        (("--metrics", "taste"), "no metric taste"),
        (("--metrics", "focus=nowhere"), "focus takes no model"),
        (("--metrics", "text=nowhere"), "text takes no model"),
        (("--metrics", "lite2="), "lite2 takes no model"),
        (("--metrics", "dino=nowhere"), "can't be loaded from nowhere"),
        (("--benchmark", "nowhere"), "no benchmark at nowhere: use mini"),
        (("--dataset", "nowhere/world.zip"), "no MiniBench at nowhere/bench: make it with"),
        (("--benchmark", "dreambench"), "git clone"),
        (("--prompts", "99"), "--prompts is 99"),
        (("--shard", "3/2"), "--shard is 3/2"),
        (("--steps", "0"), "--steps is 0"),
        (("--batch-size", "0"), "--batch-size is 0"),
        (("--guidance-scale", "-1"), "--guidance-scale is -1"),
        (("--device", "warp"), "no device warp"),
    ],
)
def test_what_cannot_be_used_is_said_and_nothing_written(
    evaluate: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert evaluate("--out", tmp_path / "report", *arguments) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_photos_are_a_benchmark_too(evaluate: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a world: the upper bound is another photo, the lower bound one of another dog, if any."""
    from tests.data.benchmarks.test_dreambench import photo, published

    folder = published(tmp_path / "photos")
    (folder / "dataset" / "dog3").mkdir()
    photo("grey").save(folder / "dataset" / "dog3" / "00.jpg")
    words = folder / "dataset" / "prompts_and_classes.txt"
    words.write_text(words.read_text().replace("dog2,dog", "dog2,dog\ndog3,dog"))
    assert evaluate("--benchmark", folder, "--out", tmp_path / "report", "--subjects", 3, "--seeds", 1) == 0
    report = read(tmp_path / "report" / "report.json")
    rows = report.results[0].subjects
    assert [value is None for value in rows["other-instance"]["cosine_similarity"]] == [True, False, False]
    assert "ground-truth" in rows and "vae-reconstruction" not in rows and not report.nearest_training_images
    between = "fidelity of the 2 of 3 subjects with a peer"  # and so never beside the similarity of all three
    assert list(report.results[0].normalized) == [between]
    table, page = ((tmp_path / "report" / name).read_text() for name in ("report.md", "index.html"))
    assert f"the ground truth (1): {between} " in table and "(1): **" not in table and "1 the ground truth" not in page
    assert evaluate("--benchmark", folder, "--out", tmp_path / "other", "--metrics", "text") == 2
