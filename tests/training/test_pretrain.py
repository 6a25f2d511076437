"""The stages of `configs/debug` in order, and images of the last one."""

import json
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from blip_diffusion import config as configuration
from blip_diffusion.errors import CheckpointError, ConfigError, DataError, InputError
from blip_diffusion.generation.png_metadata import read_request
from blip_diffusion.generation.request import GenerationRequest
from blip_diffusion.generation.run import run as generate
from blip_diffusion.generation.subject_inputs import SubjectInput
from blip_diffusion.images import png_bytes
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.training.builders import OBJECTIVES
from blip_diffusion.training.pretrain import run
from blip_diffusion.training.run_config import RunConfig

CONFIGS = Path(__file__).parents[2] / "configs"
WORLD = Path(__file__).parents[1] / "fixtures" / "world.zip"
GOLDEN = Path(__file__).parents[1] / "parity" / "golden"
STAGE_CONFIGS = sorted(path for path in CONFIGS.rglob("*.toml") if path.stem != "recipe")  # which has a test of its own
STAGES = (
    "autoencoder", "text_to_image", "representation", "subject", "decoder", "consistency", "control", "inpaint",
    "prior", "sentences", "language", "pixels", "upscale",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `runs/debug` after all stages."""
    root = tmp_path_factory.mktemp("runs")
    for stage in STAGES:
        result = run(CONFIGS / "debug" / f"{stage}.toml", root / stage, overrides=overrides(stage, root))
        assert (result.step, result.stopped) == (4, "done")
        assert all(torch.tensor(value).isfinite() for value in result.losses.values())
    return root


def overrides(stage: str, root: Path) -> list[str]:
    """The configuration's paths, which are relative to the repository, moved to this run's folders."""
    table = tomllib.loads((CONFIGS / "debug" / f"{stage}.toml").read_text())
    start = [str(root / Path(path).relative_to("runs/debug")) for path in table["model"].get("init_from", [])]
    return [f"data.path={WORLD}", f"model.init_from={json.dumps(start)}", "train.device=cpu"]


def weights(folder: Path) -> dict[str, Tensor]:
    return {
        f"{path.parent.name}/{name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def parts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_each_stage_starts_from_the_export_of_the_previous_one(runs: Path) -> None:
    reading = ["image_processor", "qformer", "qformer_tokenizer"]
    whole = sorted([*reading, "model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae"])
    assert parts(runs / "autoencoder/export") == ["vae"]
    assert parts(runs / "text_to_image/export") == whole
    assert parts(runs / "representation/export") == ["heads.safetensors", *reading]
    assert parts(runs / "subject/export") == ["heads.safetensors", *whole]
    assert parts(runs / "decoder/export") == ["vae"]
    assert parts(runs / "consistency/export") == whole
    assert parts(runs / "inpaint/export") == whole
    assert parts(runs / "upscale/export") == whole


@pytest.mark.parametrize(
    ("stage", "before", "still", "moved"),
    [
        ("text_to_image", "autoencoder/export", ("vae/",), ()),
        ("text_to_image", "text_to_image/start", ("vae/", "qformer/"), ("unet/", "text_encoder/")),
        ("representation", "representation/start", ("qformer/visual_encoder.tower.",), ("qformer/proj_layer.",)),
        ("subject", "text_to_image/export", ("vae/", "qformer/visual_encoder.tower."), ("unet/", "text_encoder/")),
        ("subject", "subject/start", ("vae/", "qformer/visual_encoder.tower."), ("qformer/proj_layer.",)),
        ("decoder", "subject/export", ("vae/encoder.", "vae/quant_conv."), ("vae/decoder.",)),
        ("consistency", "subject/export", ("vae/", "qformer/", "text_encoder/"), ("unet/",)),
        ("inpaint", "inpaint/start", ("vae/", "qformer/", "text_encoder/"), ("unet/",)),
        ("pixels", "pixels/start", ("qformer/", "text_encoder/"), ("unet/",)),
        ("upscale", "upscale/start", ("qformer/", "text_encoder/"), ("unet/",)),
    ],
)
def test_frozen_weights_do_not_change(
    runs: Path, stage: str, before: str, still: tuple[str, ...], moved: tuple[str, ...]
) -> None:
    """And what is not does."""
    old, new = weights(runs / before), weights(runs / stage / "export")
    for part in still:
        kept = [name for name in old if name.startswith(part)]
        assert kept and all(torch.equal(old[name], new[name]) for name in kept), part
    for part in moved:
        gone = [name for name in old if name.startswith(part)]
        assert gone and sum(not torch.equal(old[name], new[name]) for name in gone) > 0.9 * len(gone), part


@pytest.mark.parametrize("network", ["adapter", "controlnet"])
def test_normals_are_trained_without_further_settings(
    runs: Path, network: str, geometric_world: Path, tmp_path: Path
) -> None:
    changes = [*overrides("control", runs)[1:], 'control.hint="normal"', f'control.network="{network}"']
    config = CONFIGS / "debug" / "control.toml"
    assert run(config, tmp_path / "run", overrides=[*changes, f"data.path={geometric_world}"]).step == 4
    with pytest.raises(DataError, match="has no depth and normals of 3D models"):
        run(config, tmp_path / "flat", overrides=[*changes, f"data.path={WORLD}"])


def test_first_folder_with_a_component_is_used(runs: Path) -> None:
    """Stage 2 names the text-to-image folder first, which has a subject encoder too: an untrained one."""
    first, second = (weights(runs / stage / "export") for stage in ("text_to_image", "representation"))
    towers = [name for name in first if name.startswith("qformer/visual_encoder.tower") and name in second]
    assert towers and all(torch.equal(first[name], second[name]) for name in towers)


def test_pixel_cascade_generates_and_enlarges(runs: Path, dog: Image.Image, tmp_path: Path) -> None:
    """32 x 32 images in two stages of pixels, whose exports load as any model."""
    base, upscaler = (BlipDiffusionPipeline.from_pretrained(runs / name / "export") for name in ("pixels", "upscale"))
    subject = {"reference_image": dog, "source_subject_category": "dog", "target_subject_category": "dog"}
    for pipe in (base, upscaler):
        pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
    small = base("on the beach", **subject, **options).images[0]
    assert small.size == (8, 8) and base.model.latents.factor == 1
    large = upscaler.upscale([small, small], "on the beach", **subject, **options, output_type="pt").images
    assert large.shape == (2, 3, 32, 32) and 0 <= float(large.min()) <= float(large.max()) <= 1
    again = upscaler.upscale(small, "on the beach", num_inference_steps=2, guidance_scale=2.0, negative_prompt="snow")
    assert again.images[0].size == (32, 32)
    request = GenerationRequest(("on the beach",), png_bytes(dog), "dog", "dog", model=str(runs / "pixels/export"),
                                steps=2, upscaler=str(runs / "upscale/export"))  # fmt: skip
    [path] = generate(request, tmp_path, progress=False)
    with Image.open(path) as image:
        assert image.size == (32, 32)
    assert read_request(path).upscaler == request.upscaler
    with pytest.raises(InputError, match="leave it out"):
        replace(request, more_subjects=(SubjectInput((b"png",), "cat", "cat"),))
    for call, message in (
        (lambda: upscaler("on the beach", **subject), "call upscale"),
        (lambda: base.upscale(small), "doesn't upscale"),
        (lambda: upscaler.upscale(dog.resize((64, 64))), "64 x 64"),
        (lambda: upscaler.upscale("small.png"), "PIL image"),
        (lambda: upscaler.upscale(small, noise_level=1.0), "noise_level"),
        (lambda: upscaler.upscale(small, output_type="latent"), "output_type"),
    ):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize("stage", ["subject", "consistency"])
def test_export_generates_images(runs: Path, dog: Image.Image, stage: str) -> None:
    pipe = BlipDiffusionPipeline.from_pretrained(runs / stage / "export")
    pipe.set_progress_bar_config(disable=True)
    out = pipe("on the beach", dog, "dog", num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    assert out.images[0].size == (32, 32)


def test_run_folder_contains_configuration_and_samples(runs: Path) -> None:
    saved = next((runs / "subject").rglob("*.toml"))
    config = configuration.build(RunConfig, configuration.read(saved))
    assert config.objective == "subject" and config.subject.noise_samples_per_pair == 2 and config.data.path == WORLD
    assert any((runs / "subject").rglob("page*.png"))


def test_published_layout_can_be_trained(tmp_path: Path) -> None:
    """The image encoder's input is smaller than the images of the U-Net."""
    start = shutil.copytree(GOLDEN / "pipe", tmp_path / "published")
    shutil.copytree(GOLDEN / "tok" / "bert", start / "qformer_tokenizer")
    options = [f"data.path={WORLD}", f'model.init_from=["{start}"]', "train.device=cpu"]
    options += ["train.steps=1", "train.optim.lr=1e-3"]
    path, small = CONFIGS / "published/subject.toml", "data.synthetic.size=32"
    result = run(path, tmp_path / "run", overrides=[*options, small])
    assert result.step == 1 and torch.tensor(result.losses["loss"]).isfinite()
    old, new = weights(start), weights(tmp_path / "run/export")
    assert any(not torch.equal(old[name], new[name]) for name in old if name.startswith("unet/"))
    index = json.loads((tmp_path / "run/export/model_index.json").read_text())
    assert (index["prompt_reps"], index["num_inference_steps"], index["guidance_scale"]) == (20, 50, 7.5)
    with pytest.raises(ConfigError, match=r"data\.synthetic\.size is 48, and this model generates 32 pixels"):
        run(path, tmp_path / "other", overrides=[*options, "data.synthetic.size=48"])
    assert not (tmp_path / "other").exists()


def test_a_model_without_a_reconstruction_head_continues_with_the_denoising_loss(runs: Path, tmp_path: Path) -> None:
    """As `mini` is: a new head's gradients would change its subject tokens."""
    start = shutil.copytree(runs / "subject/export", tmp_path / "model")
    (start / "heads.safetensors").unlink()
    options = [*overrides("subject", runs), f'model.init_from=["{start}"]']
    with pytest.warns(UserWarning, match="model has no reconstruction head"):
        result = run(CONFIGS / "debug/subject.toml", tmp_path / "run", overrides=options)
    assert result.step == 4 and "reconstruction" not in result.losses
    assert "heads.safetensors" not in parts(tmp_path / "run/export")


def test_untrained_teacher_is_refused(runs: Path, tmp_path: Path) -> None:
    options = [*overrides("consistency", runs), f'model.init_from=["{runs / "decoder/export"}"]']
    with pytest.raises(CheckpointError, match="needs a trained subject_encoder and text_encoder and unet"):
        run(CONFIGS / "debug/consistency.toml", tmp_path, overrides=options)
    options = [*overrides("decoder", runs), "model.init_from=[]"]
    with pytest.raises(CheckpointError, match="needs a trained vae"):
        run(CONFIGS / "debug/decoder.toml", tmp_path, overrides=options)


def test_equal_configurations_give_equal_runs(runs: Path, tmp_path: Path) -> None:
    run(CONFIGS / "debug/representation.toml", tmp_path, overrides=overrides("representation", runs))
    once, twice = weights(runs / "representation/export"), weights(tmp_path / "export")
    assert once.keys() == twice.keys() and all(torch.equal(once[name], twice[name]) for name in once)


def test_consistency_lora_is_exported_and_resumes(runs: Path, tmp_path: Path) -> None:
    options = [
        *overrides("consistency", runs),
        "consistency.lora=true",
        "consistency.rank=2",
        "consistency.num_levels=4",
    ]
    options += ["consistency.trajectory_distillation=true", "train.save_every=2"]
    run(CONFIGS / "debug/consistency.toml", tmp_path, overrides=options)
    before, whole = weights(runs / "subject/export"), weights(tmp_path / "export")
    of_lora = [name for name in whole if ".lora_" in name]
    assert of_lora and all(torch.equal(whole[name], before[name]) for name in whole.keys() - set(of_lora))
    last = max((tmp_path / "checkpoints").iterdir())
    shutil.rmtree(last)
    shutil.rmtree(tmp_path / "export")
    assert run(CONFIGS / "debug/consistency.toml", tmp_path, overrides=options, resume="latest").step == 4
    again = weights(tmp_path / "export")
    assert again.keys() == whole.keys() and all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_resumed_run_equals_an_uninterrupted_one(runs: Path, tmp_path: Path) -> None:
    options = overrides("text_to_image", runs)
    path = CONFIGS / "debug/text_to_image.toml"
    run(path, tmp_path, overrides=[*options, "train.save_every=2"])
    checkpoint = min((tmp_path / "checkpoints").iterdir())
    resumed = run(path, tmp_path / "resumed", overrides=options, resume=checkpoint)
    assert resumed.step == 4
    once, twice = weights(runs / "text_to_image/export"), weights(tmp_path / "resumed/export")
    assert all(torch.equal(once[name], twice[name]) for name in once)


@pytest.mark.parametrize("stage", STAGES)
def test_resuming_does_not_read_earlier_stages(runs: Path, tmp_path: Path, stage: str) -> None:
    """A run folder contains all inputs of the run: components, heads, and inference settings."""
    options = overrides(stage, tmp_path)
    for path in json.loads(options[1].removeprefix("model.init_from=")):
        shutil.copytree(runs / Path(path).relative_to(tmp_path), path)
    toml = CONFIGS / f"debug/{stage}.toml"
    assert run(toml, tmp_path / "run", overrides=[*options, "train.minutes=1e-6"]).step == 1
    for earlier in set(STAGES) & {path.name for path in tmp_path.iterdir()}:
        shutil.rmtree(tmp_path / earlier)
    assert run(toml, tmp_path / "run", overrides=options, resume="latest").step == 4
    once, twice = weights(runs / stage / "export"), weights(tmp_path / "run/export")
    assert once.keys() == twice.keys() and all(torch.equal(once[name], twice[name]) for name in once)
    for path in (runs / stage / "export").glob("model_index.json"):
        assert path.read_text() == (tmp_path / "run/export/model_index.json").read_text()
    assert f"model.init_from={json.dumps(saved_start(tmp_path / 'run'))}" == options[1]


def saved_start(folder: Path) -> list[str]:
    """Resuming uses the `init_from` of the configuration in the last checkpoint."""
    saved = max((folder / "checkpoints").iterdir()) / "config.toml"
    return [str(path) for path in tomllib.loads(saved.read_text())["model"]["init_from"]]


def test_failed_start_leaves_no_files(runs: Path, tmp_path: Path) -> None:
    """Its beginning would otherwise stand before what the corrected command names."""
    options = overrides("text_to_image", runs)
    run(CONFIGS / "debug/text_to_image.toml", tmp_path / "other", overrides=[*options, "model.seed=1", "train.steps=1"])
    (tmp_path / "run").mkdir()
    shutil.copytree(tmp_path / "other/start", tmp_path / "run/start")
    run(CONFIGS / "debug/text_to_image.toml", tmp_path / "run", overrides=options)
    once, twice = weights(runs / "text_to_image/export"), weights(tmp_path / "run/export")
    assert all(torch.equal(once[name], twice[name]) for name in once)


# ------------------------------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize("path", STAGE_CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_configuration_is_valid(path: Path) -> None:
    config = configuration.build(RunConfig, configuration.read(path))
    assert config.objective in OBJECTIVES
    assert configuration.build(RunConfig, tomllib.loads(configuration.to_toml(config))) == config
    header = path.read_text().splitlines()
    assert header[0].startswith("# ") and any(str(path.relative_to(CONFIGS.parent)) in line for line in header[:5])


@pytest.mark.parametrize(("folder", "more"), [("debug", []), ("mini", ["contrast", "latent-upscale", "retrieval"])])
def test_every_stage_has_a_configuration(folder: str, more: list[str]) -> None:
    """Contrast and retrieval are the representation of other images; latent-upscale upscales with an autoencoder."""
    assert sorted(path.stem for path in STAGE_CONFIGS if path.parent.name == folder) == sorted([*STAGES, *more])


@pytest.mark.parametrize(
    ("override", "error", "sentence"),
    [
        ("data.path=nowhere.zip", DataError, "no dataset at nowhere.zip"),
        ("model.init_from=[\"nowhere\"]", CheckpointError, "no model at nowhere"),
        ("objective=dreams", ConfigError, "objective must be"),
        ("text_to_image.unet_rate=1", ConfigError, "did you mean text_to_image.unet_lr"),
        ("data.batch_size=0", ConfigError, "batch_size is 0: use 1 or more"),
        ("data.synthetic.size=100", ConfigError, "synthetic.size is 100: use a multiple of 16"),
        ("data.synthetic.object_crop_size=30", ConfigError, "object_crop_size is 30: use a multiple of 4"),
        ("data.synthetic.object_crop_size=1000000000", ConfigError, "use a multiple of 4, at most 2048"),
        ("data.synthetic.kind_temperature=1e9", ConfigError, "kind_temperature is 1000000000.0: use 0 to 10"),
        ("data.batch_size=1000000000", ConfigError, "batch_size is 1000000000: use at most 65536"),
        ("data.workers=1000000000", ConfigError, "workers is 1000000000: use at most 1024"),
        ("model.queries=0", ConfigError, "use 1 to 4"),
        ("representation.multimodal_every=0", ConfigError, "every is 0: use 1 or more"),
        ("representation.multimodal_every=2", ConfigError, "every is 2, and without reconstruction_weight the"),
        ("data.pool=2", ConfigError, "pool is for the objectives language and representation: set it to 0"),
        ("subject.subject_weight=0", ConfigError, "subject_weight is 0.0: use a number above 0"),
        ("subject.subject_weight=-2", ConfigError, "subject_weight is -2.0: use a number above 0"),
        ("autoencoder.crop=0", ConfigError, "crop is 0: use a multiple of 16"),
        ("model.preset=mini", CheckpointError, "no trained autoencoder: name its folder in model.init_from"),
    ],
)  # fmt: skip
def test_invalid_configurations_are_refused(
    tmp_path: Path, override: str, error: type[Exception], sentence: str
) -> None:
    options = [f"data.path={WORLD}", "model.init_from=[]", "train.device=cpu", override]
    with pytest.raises(error, match=sentence):
        run(CONFIGS / "debug/text_to_image.toml", tmp_path / "run", overrides=options)
    assert not (tmp_path / "run/export").exists()


def test_a_pool_has_no_subjects_to_reconstruct() -> None:
    options = ["data.pool=2", "representation.reconstruction_weight=1"]
    with pytest.raises(ConfigError, match="no subjects to reconstruct: set it to 0"):
        configuration.build(RunConfig, configuration.read(CONFIGS / "debug/representation.toml", options))


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("something else")
    with pytest.raises(InputError, match="Nothing can be written to"):
        run(CONFIGS / "debug/text_to_image.toml", tmp_path / "run", overrides=[f"data.path={WORLD}"])


def test_permissive_licences_select_permissive_assets(tmp_path: Path) -> None:
    options = [*overrides("autoencoder", tmp_path), "data.licences=permissive", "train.steps=1"]
    run(CONFIGS / "debug/autoencoder.toml", tmp_path / "run", overrides=options)
    assert (tmp_path / "run/export/vae").is_dir()
