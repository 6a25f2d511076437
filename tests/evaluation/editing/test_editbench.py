"""EditBench: photo and answer differ in the subject alone, scores know the extremes, and the command writes a table."""

import json
from pathlib import Path

import pytest
import torch

from blip_diffusion.cli.main import main
from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.editing.distances import background_distance, structure_distance
from blip_diffusion.evaluation.editing.editbench import CONDITIONS, DEFAULT, EditBenchConfig, build_tasks
from blip_diffusion.evaluation.metrics.edit_fidelity import masked_psnr, masked_ssim, unchanged_share
from blip_diffusion.modules.lpips import Lpips
from tests.evaluation.fakes import SIZE, WORLD


def test_photo_and_answer_share_their_background(bench: Bench) -> None:
    tasks = build_tasks(bench, WORLD, 4, size=SIZE)
    assert len({task.instance.file for task in tasks}) == 4
    for task in tasks:
        assert 0 < float(task.background.mean()) < 1 and float((task.subject * task.given).sum()) > 0
        psnr = masked_psnr(task.photo[None], task.truth[None], task.background[None])
        inside = masked_psnr(task.photo[None], task.truth[None], task.subject[None])
        assert float(psnr) > 30 > float(inside)


def test_there_are_only_so_many_edits(bench: Bench) -> None:
    with pytest.raises(InputError, match="--edits is 999"):
        build_tasks(bench, WORLD, 999, size=SIZE)


def test_scores_know_the_same_and_another_image() -> None:
    a, mask = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 1, 32, 32)
    mask[..., :16] = 1
    b = a.clone()
    b[..., 16:] = 0
    assert masked_psnr(a, b, mask).tolist() == [60.0, 60.0] and unchanged_share(a, b, mask).tolist() == [1.0, 1.0]
    assert (masked_ssim(a, a, mask) > 0.999).all()
    assert (masked_psnr(a, b, 1 - mask) < 8).all() and (masked_ssim(a, b, 1 - mask) < 0.2).all()
    assert torch.allclose(masked_psnr(a, a + 0.1, mask), torch.tensor(20.0), atol=1e-3)


def test_structure_distance_ignores_scale_and_sees_positions() -> None:
    maps = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    assert structure_distance(maps, 3 * maps).abs().max() < 1e-10
    assert (structure_distance(maps, maps.flip(3)) > 0.01).all()


def test_distance_of_the_background_ignores_the_subject() -> None:
    photo, background = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.ones(2, 1, 32, 32)
    background[..., 8:24, 8:24] = 0
    inside = photo * background
    distance = background_distance(Lpips())
    assert distance(inside, photo, background).tolist() == [0, 0]
    assert (distance(photo.flip(3), photo, background) > 0).all()


def test_the_command_writes_table_and_sheet(bench_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    assert main(["data", "build", "--benchmark", "--out", str(bench_folder)]) == 0
    names = ("copy", "truth", "direct/given/attention", "inpaint-1")
    run = ["evaluate-edits", "--model", tiny_folder, "--dataset", bench_folder / "world.zip", "--edits", "2"]
    assert main([str(word) for word in (*run, "--out", tmp_path, "--metrics", "--conditions", *names)]) == 0
    table = json.loads((tmp_path / "edits.json").read_text())
    assert set(table) == set(names) and table["copy"]["background_psnr"][0] > 50
    assert table["direct/given/attention"]["unchanged"][0] == 1
    assert "| direct/given/attention |" in (tmp_path / "edits.md").read_text() and (tmp_path / "sheet.jpg").exists()


def test_conditions_have_names() -> None:
    assert {*DEFAULT} <= {*CONDITIONS}
    for change, named in (
        ({"conditions": ("null-text",)}, "null-text"),
        ({"edits": 1}, "--edits"),
        ({"metrics": ("lpips",)}, "--lpips"),
    ):
        with pytest.raises(InputError, match=named):
            EditBenchConfig(**change)  # type: ignore[arg-type]
