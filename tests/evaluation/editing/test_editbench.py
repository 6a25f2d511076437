"""EditBench: photo and answer differ in the subject alone, scores know the extremes, and the command writes a table."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from blip_diffusion.cli.main import main
from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.editing import pie_bench
from blip_diffusion.evaluation.editing.distances import background_distance, structure_distance
from blip_diffusion.evaluation.editing.editbench import DEFAULT, build_tasks
from blip_diffusion.evaluation.editing.evaluate import EditEvaluationConfig
from blip_diffusion.evaluation.editing.scores import clip_scores
from blip_diffusion.evaluation.editing.tasks import CONDITIONS
from blip_diffusion.evaluation.features.clip import Clip
from blip_diffusion.evaluation.features.dino import DinoKeys
from blip_diffusion.evaluation.features.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from blip_diffusion.evaluation.metrics.edit_fidelity import masked_psnr, masked_ssim, unchanged_share
from blip_diffusion.images import normalise, open_image, to_pil
from blip_diffusion.modules.lpips import Lpips
from tests.evaluation.fakes import SIZE, WORLD


def test_photo_and_answer_share_their_background(bench: Bench) -> None:
    tasks = build_tasks(bench, WORLD, 4, size=SIZE)
    assert len({task.instance.file for task in tasks}) == 4
    for task in tasks:
        assert task.truth is not None and task.subject is not None and task.text.endswith(task.prompt)
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


def test_keys_of_dino_are_those_of_its_last_layer(tiny_dino: Path) -> None:
    keys, pixels = DinoKeys(str(tiny_dino)), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = keys(pixels)
    assert found.shape == (2, 24, 1, 17) and not keys.network.layers[-1].attention.k_proj._forward_hooks
    norm = keys.network.layers[-1].layernorm_before
    states = keys.network(
        pixel_values=normalise(pixels, IMAGENET_MEAN, IMAGENET_STD), output_hidden_states=True
    ).hidden_states[-2]
    expected = keys.network.layers[-1].attention.k_proj(norm(states))
    torch.testing.assert_close(found[:, :, 0], expected.transpose(1, 2))


def test_clip_scores_the_image_and_its_edited_region(bench: Bench, tiny_clip: Path, tmp_path: Path) -> None:
    tasks, clip = build_tasks(bench, WORLD, 2, size=SIZE), Clip(str(tiny_clip))
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for task, path in zip(tasks, paths, strict=True):
        to_pil(task.photo[None])[0].save(path)
    scores = clip_scores(clip, tasks, paths)
    cosine = torch.cosine_similarity(clip([open_image(paths[0])]), clip.encode_text([tasks[0].text]))
    torch.testing.assert_close(scores["clip"][:1], 100 * cosine.clamp(min=0))
    assert scores["clip_inside"].shape == (2,) and not torch.equal(scores["clip"], scores["clip_inside"])


def test_the_command_reads_pie_bench(
    tiny_folder: Path, tiny_dino: Path, tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three photos: a replaced subject twice, and a changed colour."""
    prompts = ("a [{}] on grass", "a [{}]", "a {} on grass")
    entries = {
        f"{number}": {
            "image_path": f"{number}.png",
            "original_prompt": prompt.format("cat"),
            "editing_prompt": prompt.format("cat" if number == 2 else "dog"),
            "blended_word": "cat cat" if number == 2 else "cat dog",
            "mask": [value for row in range(8, 24) for value in (48 * row + 16, 16)],
        }
        for number, prompt in enumerate(prompts)
    }
    folder, run = tmp_path / "pie", tmp_path / "run"
    (folder / "annotation_images").mkdir(parents=True)
    for number in entries:
        Image.effect_noise((48, 32), 80).convert("RGB").save(folder / "annotation_images" / f"{number}.png")
    (folder / "mapping_file.json").write_text(json.dumps(entries))
    metrics = (f"dino={tiny_dino}", f"clip-l14={tiny_clip}")
    command = [
        "evaluate-edits",
        "--model",
        tiny_folder,
        "--benchmark",
        f"pie-bench={folder}",
        "--out",
        run,
        "--steps",
        2,
    ]
    conditions = ("copy", "generate", "direct/given", "inpaint-1")
    assert main([str(word) for word in (*command, "--metrics", *metrics, "--conditions", *conditions)]) == 0
    assert "2 edits of PIE-Bench (2 edits replace a subject, 1 others are skipped)" in capsys.readouterr().out
    table = json.loads((run / "edits.json").read_text())
    assert table["copy"]["background_psnr"][0] == table["copy"]["published_psnr"][0] > 50
    assert table["direct/given"]["unchanged"][0] == 1 and table["copy"]["dino"][0] < 1e-3
    assert table["generate"]["published_psnr"][0] > table["generate"]["background_psnr"][0]
    assert {"clip", "clip_inside"} <= {*table["copy"]} and "subject_psnr" not in table["copy"]
    assert main([str(word) for word in (*command[:3], "--benchmark", "pie-bench", "--out", tmp_path / "none")]) == 2
    assert "pie-bench=DIR" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_the_command_writes_table_and_sheet(bench_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    assert main(["data", "build", "--benchmark", "--out", str(bench_folder)]) == 0
    names = ("copy", "truth", "direct/given/attention", "inpaint-1")
    run = ["evaluate-edits", "--model", tiny_folder, "--dataset", bench_folder / "world.zip", "--edits", "2"]
    assert main([str(word) for word in (*run, "--out", tmp_path, "--metrics", "--conditions", *names)]) == 0
    table = json.loads((tmp_path / "edits.json").read_text())
    assert set(table) == set(names) and table["copy"]["background_psnr"][0] > 50
    assert table["direct/given/attention"]["unchanged"][0] == 1
    assert "| direct/given/attention |" in (tmp_path / "edits.md").read_text() and (tmp_path / "sheet.jpg").exists()


def test_conditions_have_names(tmp_path: Path) -> None:
    assert {*DEFAULT, *pie_bench.DEFAULT} <= {*CONDITIONS}
    for change, named in (
        ({"conditions": ("null-text",)}, "null-text"),
        ({"edits": 1}, "--edits"),
        ({"metrics": ("lpips",)}, "--lpips"),
        ({"metrics": ("focus=x",)}, "takes no model"),
        ({"metrics": ("text",), "pie_bench": tmp_path}, "supports only MiniBench"),
        ({"conditions": ("truth",), "pie_bench": tmp_path}, "no target images"),
    ):
        with pytest.raises(InputError, match=named):
            EditEvaluationConfig(**change)  # type: ignore[arg-type]
