from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import T2IAdapter

from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.data.benchmarks.minibench import build_bench
from blip_diffusion.errors import DataError
from blip_diffusion.evaluation.features.extractor import CachedFeatures
from blip_diffusion.evaluation.metrics.attributes import AttributeMetric
from blip_diffusion.evaluation.metrics.probe_data import ProbeSource, build_probe_data
from blip_diffusion.evaluation.metrics.similarity import Metric, SubjectSimilarity
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from studies.structure_control import scores as study
from studies.structure_control.scores import Controlled, ScoresConfig
from tests.evaluation.fakes import SIZE, WORLD, Bag, Everything, Middle, Patches, identity


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return build_bench(WORLD, tmp_path / "bench", subjects=3)


@pytest.fixture
def pipe(placed: BlipDiffusionPipeline) -> BlipDiffusionPipeline:
    """A model with an adapter for each kind of control image that changes its images."""
    torch.manual_seed(0)
    whole = BlipDiffusionPipeline.from_model(placed.model)
    whole.register_to_config(num_inference_steps=2)
    shapes: dict[str, Any] = {"channels": list(whole.unet.config.block_out_channels), "num_res_blocks": 1}
    for hint in study.KINDS:
        whole.t2i_adapters[hint] = T2IAdapter(1, downscale_factor=whole.model.latents.factor, **shapes)
    return whole


def fake_metrics(full: Bench, *_: Any) -> tuple[Metric, Metric]:
    source = ProbeSource(WORLD, frozenset(subject.identity for subject in full.subjects), identity, SIZE)
    data = build_probe_data(source, each=2)
    text = AttributeMetric(CachedFeatures(Everything()), Patches(), Bag(), full, data)
    return SubjectSimilarity("middle", CachedFeatures(Middle()), full), text


def test_every_condition_has_its_row(
    pipe: BlipDiffusionPipeline, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "load_benchmark", lambda *_: (bench, WORLD))
    monkeypatch.setattr(study, "metrics_of", fake_metrics)
    config = ScoresConfig(prompts=2)
    table = study.compare(pipe, tmp_path, tmp_path / "out", config, model="tiny")
    assert (tmp_path / "out/report.md").read_text() == table + "\n"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[4:]]
    expected = ["no control", *(one.label for one in config.conditions)]
    assert [row[0] for row in rows] == [*expected, "upper bound: the ground truth after the autoencoder"]
    assert [bool(row[2] and row[4]) for row in rows] == [False, True, True, True, True, False]
    again = study.compare(pipe, tmp_path, tmp_path / "out", config, model="tiny")  # from the images on disk
    assert again == table
    torch.nn.init.zeros_(pipe.t2i_adapters["mask"].adapter.conv_in.weight)
    with pytest.raises(DataError, match="images of another run, whose adapters"):
        study.compare(pipe, tmp_path, tmp_path / "out", config, model="tiny")


def test_structure_changes_the_images(pipe: BlipDiffusionPipeline, bench: Bench) -> None:
    instances = study.build_instances(bench.part(2, 2), 1)[:2]
    conditions = [Controlled(hint, structure) for hint in study.KINDS for structure in study.STRUCTURES]
    generated = [study.controlled(pipe, WORLD, bench, one)(instances)[0].tobytes() for one in conditions]
    assert len(set(generated)) == len(conditions)


def test_errors(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--dataset", str(tmp_path / "world.zip"), "--out", str(tmp_path / "out"), "--model", str(tiny_folder)]
    assert study.main(flags) == 2 and "has no adapter for canny: name other" in capsys.readouterr().err
    assert study.main([*flags, "--probe-images", "0"]) == 2 and "at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
