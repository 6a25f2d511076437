"""Structure control within a time limit, on the shapes `tiny-placed`."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import T2IAdapter
from safetensors.torch import load_file

from blip_diffusion.checkpoint.model_folder import save_model
from blip_diffusion.cli.main import main
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.data.synthetic.tokenizers import tokenizer_corpus
from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.framing import FILL
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.training.initialization import noising_from
from blip_diffusion.training.objective import StepContext
from blip_diffusion.training.objectives.control import (
    ControlConfig,
    StructureControl,
    hint_of,
    new_network,
    with_default_frames,
    with_mask_frames,
)
from blip_diffusion.training.optim import set_trainable
from blip_diffusion.training.recipe.config import RecipeConfig
from blip_diffusion.training.recipe.control import FRAMES, HINT, HintPacker, PackedControl, latent_column
from blip_diffusion.training.recipe.control_metrics import METRICS, control_metrics, edge_f1, frames_of_hints
from blip_diffusion.training.recipe.control_run import read_control_recipe, run_control
from blip_diffusion.training.recipe.cuda_graph import eager_step
from blip_diffusion.training.recipe.packing import Rows, packer_of, to_bytes
from blip_diffusion.training.recipe.phases import FULL, new_model, random_rows
from blip_diffusion.training.recipe.run import metrics_of

WORLD = Path(__file__).parents[2] / "fixtures" / "world.zip"
CONFIG = RecipeConfig(
    preset="tiny-placed", synthetic=replace(RecipeConfig().synthetic, size=32, object_crop_size=16, colours=0.0)
)
SMALL = ["synthetic.object_crop_size=16", "held_out=4", "samples=2", "log_every=5", "cpu.pool=48", "cpu.fill=16",
         "cpu.worker_batch=8"]  # fmt: skip


@pytest.fixture(scope="module")
def placed(world: AssetLibrary) -> BlipDiffusion:
    sampler = PairSampler(world, CONFIG.synthetic, batch_size=6, seed=0)
    return new_model(CONFIG, tokenizer_corpus(world), sampler(0)["reference"]).eval()


@pytest.fixture(scope="module")
def objective(placed: BlipDiffusion) -> PackedControl:
    config = ControlConfig(noise_samples_per_pair=2, min_snr=5.0)
    return PackedControl(placed, noising_from(placed.scheduler), config)


@pytest.fixture(scope="module")
def rows(placed: BlipDiffusion, world: AssetLibrary, objective: PackedControl) -> Rows:
    batch = PairSampler(world, CONFIG.synthetic, batch_size=6, seed=0)(1)
    packed = HintPacker.over(packer_of(placed, 32, 24), ("canny", "mask"))(batch)
    assert torch.equal(packed["hint_canny"], 255 * hint_of("canny", batch).byte())
    assert torch.equal(packed["hint_mask"], to_bytes(batch["target_alpha"]))
    packed |= latent_column(placed, packed) | {HINT: packed["hint_canny"]}
    noised = random_rows(packed[FULL], objective.drops, objective.noising, torch.Generator().manual_seed(0))
    return packed | noised


@pytest.fixture(scope="module")
def folder(placed: BlipDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a second of training, of both kinds of hint."""
    root = tmp_path_factory.mktemp("control")
    save_model(placed, root / "model")
    flags = [word for value in SMALL for word in ("--set", value)]
    flags += ["--model", str(root / "model"), "--data", str(WORLD), "--hint", "canny", "mask", "--out", str(root)]
    assert main(["train-control", *flags, "--minutes", "0.03", "--device", "cpu", "--workers", "0"]) == 0
    return root


def test_loss_decreases(objective: PackedControl, rows: Rows) -> None:
    parameters = list(set_trainable(objective.train(), objective.parameter_groups()).values())
    context = StepContext(0, torch.Generator().manual_seed(0))
    step, optimizer = eager_step(lambda x: objective(x, context), parameters), torch.optim.Adam(parameters, 3e-3)
    for _ in range(20):
        step(rows | random_rows(rows[FULL], objective.drops, objective.noising, context.rng))
        optimizer.step()
    metrics = control_metrics(objective.eval(), rows, 0)
    assert list(metrics) == ["x0_error_right", "x0_error_wrong", "x0_error_empty", "x0_error_box"]
    assert metrics["x0_error_right"] < 0.9 * metrics["x0_error_box"]


@torch.no_grad()
def test_loss_equals_that_of_the_objective(
    placed: BlipDiffusion, world: AssetLibrary, objective: PackedControl
) -> None:
    """With the same noise, which the objective samples from its generator."""
    batch = PairSampler(world, CONFIG.synthetic, batch_size=6, seed=0)(1)
    packed = HintPacker.over(packer_of(placed, 32, 24), ("canny",))(batch)
    plain = StructureControl(placed, objective.noising, objective.config).eval()
    plain.network = objective.network
    expected = plain(batch, StepContext(0, torch.Generator().manual_seed(4)))["loss"]
    rng, none = torch.Generator().manual_seed(4), torch.zeros(6, dtype=torch.bool)
    latents = placed.latents.encode(batch["target"])
    noised = {"noise": torch.randn((12, *latents.shape[1:]), generator=rng), "bare": none, "empty": none}
    noised["timesteps"] = objective.noising.random_timesteps(12, rng)
    given = packed | noised | {FULL: latents, HINT: packed["hint_canny"]}
    result = objective.eval()(given, StepContext(0, rng))["loss"]
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4)


def test_each_adapter_is_loaded_by_diffusers(folder: Path) -> None:
    for kind in ("canny", "mask"):
        export = folder / kind / "export"
        adapter = T2IAdapter.from_pretrained(export)
        assert [x.shape for x in adapter(torch.zeros(1, 1, 32, 32))] == [(1, 32, 4, 4), (1, 64, 2, 2)]
        stored = load_file(export / "diffusion_pytorch_model.safetensors")
        assert {value.dtype for value in stored.values()} == {torch.float16}
        metrics = json.loads((export / "metrics.json").read_text())
        errors = {f"x0_error_{case}" for case in ("right", "wrong", "empty", "box")}
        cases = ("right", "wrong", "box", "none", "ceiling")
        scores = {f"{name}_{case}" for name in METRICS[kind] for case in cases}
        assert metrics.keys() == errors | scores
        assert all(0 <= metrics[name] <= 1 for name in scores)
        assert (folder / kind / "log.jsonl").is_file()


def test_training_continues_from_another_adapter(folder: Path, placed: BlipDiffusion, tmp_path: Path) -> None:
    start = folder / "canny" / "export"
    flags = [
        word for value in [*SMALL, f'control.init_from="{start}"', "phase.optim.lr=1e-9"] for word in ("--set", value)
    ]
    flags += ["--model", str(folder / "model"), "--data", str(WORLD), "--hint", "mask", "--out", str(tmp_path)]
    assert main(["train-control", *flags, "--minutes", "0.01", "--device", "cpu", "--workers", "0"]) == 0
    stored, first = (
        load_file(one / "diffusion_pytorch_model.safetensors") for one in (tmp_path / "mask/export", start)
    )
    torch.testing.assert_close(stored, first, atol=1e-4, rtol=0)
    larger = T2IAdapter(in_channels=1, channels=[32, 32], num_res_blocks=1, downscale_factor=8)
    larger.save_pretrained(tmp_path / "larger")
    with pytest.raises(CheckpointError, match="is for another U-Net: its channels are"):
        new_network(placed, ControlConfig(init_from=tmp_path / "larger"))


def test_adapters_of_depth_and_normals(folder: Path, geometric_world: Path, tmp_path: Path) -> None:
    flags = [word for value in SMALL for word in ("--set", value)]
    flags += ["--model", str(folder / "model"), "--data", str(geometric_world), "--hint", "depth", "normal"]
    flags += ["--out", str(tmp_path), "--minutes", "0.02", "--device", "cpu", "--workers", "0"]
    assert main(["train-control", *flags]) == 0
    for kind, channels in (("depth", 1), ("normal", 3)):
        adapter = T2IAdapter.from_pretrained(tmp_path / kind / "export")
        assert adapter.config.in_channels == channels
        metrics = json.loads((tmp_path / kind / "export" / "metrics.json").read_text())
        scores = {name for name in metrics if name.startswith(("mask_iou", "subject_edge_f1"))}
        assert len(scores) == 10 and metrics.keys() - scores == {
            f"x0_error_{case}" for case in ("right", "wrong", "empty", "box")
        }
        assert all(0 <= metrics[name] <= 1 for name in scores)


def test_frames_are_those_of_the_subject_found(objective: PackedControl, rows: Rows) -> None:
    masked = PackedControl(objective.model, objective.noising, ControlConfig(hint="mask"))
    assert torch.equal(frames_of_hints(masked, rows), rows[FRAMES])
    plain = torch.full_like(rows["target"], 255)
    plain[:, :, 8:24, 4:12] = 0  # on a plain border, without the finder
    frames, side = frames_of_hints(objective, rows | {"target": plain}), 0.5 / FILL
    expected = torch.tensor([0.25 - side / 2, 0.5 - side / 2, side, side]).expand(6, -1)
    torch.testing.assert_close(frames[:, 0], expected, atol=0.08, rtol=0)
    assert frames.shape == rows["frames"].shape and frames[:, 1:].eq(0).all()


def test_masks_give_the_frames_of_single_subjects() -> None:
    frames = torch.rand(3, 2, 4)
    frames[:2, 1] = 0  # the third image has two copies, and the second an empty mask
    masks = torch.zeros(3, 1, 32, 32)
    masks[[0, 2], :, 8:24, 4:12] = 1
    changed, side = with_mask_frames(frames, masks), 0.5 / FILL
    torch.testing.assert_close(changed[0, 0], torch.tensor([0.25 - side / 2, 0.5 - side / 2, side, side]))
    assert torch.equal(changed[1:], frames[1:]) and changed[0, 1].eq(0).all()


def test_resumed_run_keeps_finished_phases(folder: Path, tmp_path: Path) -> None:
    run_folder = shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(run_folder / "mask" / "export")
    before = (run_folder / "canny/export/diffusion_pytorch_model.safetensors").read_bytes()
    config = read_control_recipe(None, [*SMALL, f'model="{folder / "model"}"', f'data="{WORLD}"'])
    options = {"minutes": 0.03, "device": torch.device("cpu"), "workers": 0}
    with pytest.raises(CheckpointError, match="--resume"):
        run_control(config, ["canny", "mask"], run_folder, **options)  # type: ignore[arg-type]
    assert set(run_control(config, ["canny", "mask"], run_folder, resume=True, **options)) == {"canny", "mask"}  # type: ignore[arg-type]
    assert (run_folder / "mask/export/config.json").is_file()
    assert (run_folder / "canny/export/diffusion_pytorch_model.safetensors").read_bytes() == before
    with pytest.warns(UserWarning, match=r"is trained already \(canny, mask\): there is nothing to resume"):
        run_control(config, ["canny", "mask"], run_folder, resume=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": "x"}', '{"a": null}', "[" * 100_000])
def test_damaged_metrics_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "metrics.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"metrics.json is damaged: remove .*export, which is then written again"):
        metrics_of(tmp_path)


def test_edges_match_within_a_pixel() -> None:
    reference = torch.zeros(3, 1, 16, 16)
    reference[:, :, 8, 2:12] = 1
    moved = torch.stack([reference[0].roll(1, 1), reference[0].roll(2, 1), torch.zeros(1, 16, 16)])
    assert edge_f1(reference, reference).tolist() == [1, 1, 1]
    assert edge_f1(moved, reference).tolist() == [1, 0, 0]
    half = reference[:1].clone()
    half[:, :, :, 7:] = 0  # five of ten, and one more is near
    assert edge_f1(half, reference[:1]).item() == pytest.approx(2 * 0.6 / 1.6)


def test_default_frames_take_the_place_of_single_ones() -> None:
    frames = torch.zeros(2, 3, 4)
    frames[:, 0] = torch.tensor([0.1, 0.1, 0.3, 0.3])
    frames[1, 1] = torch.tensor([0.5, 0.1, 0.3, 0.3])
    rng = torch.Generator().manual_seed(0)
    changed = with_default_frames(frames, 1.0, rng)
    assert torch.equal(changed[1], frames[1]) and changed[0, 0, 2] > 0.6 and changed[0, 1:].eq(0).all()
    assert torch.equal(with_default_frames(frames, 0.0, rng), frames)


@pytest.mark.parametrize("hints", [[], ["edges"], ["mask", "mask"]])
def test_unknown_control_kinds_are_refused(hints: list[str], tmp_path: Path) -> None:
    options = {"minutes": 1.0, "device": torch.device("cpu"), "workers": 0}
    with pytest.raises(InputError, match="use canny, mask, depth or normal, each once"):
        run_control(read_control_recipe(None), hints, tmp_path / "run", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
    assert main(["train-control", "--workers", "-1"]) == 2
