"""Loading and saving as diffusers' pipelines do: variants, formats, precisions, options."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.pipelines.loading import LOG
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

from .sampling import Sample

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def pickled(pipe: BlipDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as pickles of the variant "fp16", which it is only by name."""
    folder = tmp_path_factory.mktemp("pickled")
    pipe.save_pretrained(folder, safe_serialization=False, variant="fp16")
    return folder


def parts_of(pipe: BlipDiffusionPipeline) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def test_variant_round_trips_as_pickles(pickled: Path, pipe: BlipDiffusionPipeline) -> None:
    loaded = BlipDiffusionPipeline.from_pretrained(pickled, variant="fp16", use_safetensors=False)
    for name, part in parts_of(pipe).items():
        names = [path.name for path in (pickled / name).iterdir() if path.suffix != ".json"]
        assert (
            len(names) == 1
            and names[0].endswith(".fp16.bin")
            and name in json.loads((pickled / "model_index.json").read_text())
        )
        state = getattr(loaded, name).state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in part.state_dict().items())


def test_missing_variant_raises_the_error_of_diffusers(tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match="You are trying to load the model files of the `variant=fp16`"):
        BlipDiffusionPipeline.from_pretrained(tiny_folder, variant="fp16")
    with pytest.raises(InputError, match=r"variant is '\.\./x'"):
        BlipDiffusionPipeline.from_pretrained(tiny_folder, variant="../x")


def test_only_the_requested_format_is_read(pickled: Path, tiny_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must hold model\.safetensors"):
        BlipDiffusionPipeline.from_pretrained(pickled, use_safetensors=True)
    with pytest.raises(CheckpointError, match=r"must hold pytorch_model\.bin"):
        BlipDiffusionPipeline.from_pretrained(tiny_folder, use_safetensors=False)


def test_saving_removes_weights_of_another_format(fresh_pipe: BlipDiffusionPipeline, tmp_path: Path) -> None:
    fresh_pipe.save_pretrained(tmp_path)
    with torch.no_grad():
        fresh_pipe.unet.conv_in.weight += 1
    fresh_pipe.save_pretrained(tmp_path, safe_serialization=False)
    loaded = BlipDiffusionPipeline.from_pretrained(tmp_path)
    assert torch.equal(loaded.unet.conv_in.weight, fresh_pipe.unet.conv_in.weight)


def test_torch_dtype_may_be_a_table_of_components(tiny_folder: Path, sample: Sample) -> None:
    table = {"vae": torch.bfloat16, "default": torch.float16}
    pipe = BlipDiffusionPipeline.from_pretrained(tiny_folder, torch_dtype=table)
    pipe.set_progress_bar_config(disable=True)
    assert {name: next(part.parameters()).dtype for name, part in parts_of(pipe).items()} == {
        **dict.fromkeys(parts_of(pipe), torch.float16), "vae": torch.bfloat16
    }  # fmt: skip
    assert sample(pipe).isfinite().all()
    for wrong, word in (({"vea": torch.float16}, "vea"), ("float16", "float16"), (torch.int8, "int8")):
        with pytest.raises(InputError, match=word):
            BlipDiffusionPipeline.from_pretrained(tiny_folder, torch_dtype=wrong)


def test_device_map_accepts_one_device_only(tiny_folder: Path) -> None:
    assert BlipDiffusionPipeline.from_pretrained(tiny_folder, device_map="cpu").device.type == "cpu"
    for spread in ("balanced", {"unet": "cpu"}):
        with pytest.raises(InputError, match="device_map is"):
            BlipDiffusionPipeline.from_pretrained(tiny_folder, device_map=spread)


def test_loaded_components_are_logged(tiny_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    LOG.addHandler(caplog.handler)
    level = LOG.level
    LOG.setLevel(logging.INFO)
    try:
        pipe = BlipDiffusionPipeline.from_pretrained(tiny_folder)
    finally:
        LOG.removeHandler(caplog.handler)
        LOG.setLevel(level)
    assert all(name in caplog.text for name, part in pipe.components.items() if part is not None)


def test_options_without_effect_are_accepted(tiny_folder: Path) -> None:
    harmless = {"safety_checker": None, "requires_safety_checker": False, "low_cpu_mem_usage": True}
    assert BlipDiffusionPipeline.from_pretrained(tiny_folder, **harmless, feature_extractor=None)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("safety_checker", object()),
        ("requires_safety_checker", True),
        ("low_cpu_mem_usage", "yes"),
        ("trust_remote_code", True),
        ("quantization_config", object()),
    ],
)
def test_unsupported_loading_options_are_refused(tiny_folder: Path, option: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{option} isn't supported"):
        BlipDiffusionPipeline.from_pretrained(tiny_folder, **{option: value})


@pytest.mark.parametrize("option", [{"push_to_hub": True}, {"max_shard_size": "1GB"}, {"repo_id": "me/x"}])
def test_unsupported_saving_options_are_refused(
    pipe: BlipDiffusionPipeline, tmp_path: Path, option: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=next(iter(option))):
        pipe.save_pretrained(tmp_path / "new", **option)
    assert not (tmp_path / "new").exists()
