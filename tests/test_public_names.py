"""The public API: these names must not change without notice."""

import argparse
import importlib.metadata
import inspect

import pytest

import blip_diffusion
from blip_diffusion.cli.main import build_parser
from blip_diffusion.errors import BlipDiffusionError
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline


def test_the_package() -> None:
    assert blip_diffusion.__all__ == [
        "BlipDiffusionError", "BlipDiffusionPipeline", "Captioner", "CheckpointError", "ConfigError", "DataError",
        "ImageSearch", "InputError", "Preset", "Subject", "SubjectRegion", "__version__", "evaluate", "train", "tune",
    ]  # fmt: skip
    assert all(callable(getattr(blip_diffusion, name)) for name in blip_diffusion.__all__ if name != "__version__")
    errors = ("BlipDiffusionError", "CheckpointError", "ConfigError", "DataError", "InputError")
    codes = [getattr(blip_diffusion, name).code for name in errors]
    assert codes == ["error", "invalid_checkpoint", "invalid_config", "invalid_data", "invalid_input"]
    assert blip_diffusion.BlipDiffusionPipeline is BlipDiffusionPipeline
    assert blip_diffusion.BlipDiffusionError is BlipDiffusionError
    assert blip_diffusion.__version__ == importlib.metadata.version("blip-diffusion")
    with pytest.raises(AttributeError, match="no attribute 'BlipPipeline'"):
        blip_diffusion.BlipPipeline  # noqa: B018


def test_pipeline_is_a_diffusers_pipeline() -> None:
    from diffusers import DiffusionPipeline

    assert issubclass(BlipDiffusionPipeline, DiffusionPipeline)
    for name in ("from_pretrained", "save_pretrained", "encode_subject", "to", "load_lora_weights",
                 "load_textual_inversion", "enable_model_cpu_offload", "set_progress_bar_config"):  # fmt: skip
        assert callable(getattr(BlipDiffusionPipeline, name))


def test_the_call() -> None:
    parameters = inspect.signature(BlipDiffusionPipeline.__call__).parameters
    positional = [name for name, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    assert positional == ["self", "prompt", "reference_image", "source_subject_category", "target_subject_category"]
    named = {
        name: parameter.default for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert named == {
        "negative_prompt": None,
        "height": None,
        "width": None,
        "num_inference_steps": None,
        "timesteps": None,
        "sigmas": None,
        "guidance_scale": None,
        "guidance_rescale": None,
        "noise_scale": None,
        "num_images_per_prompt": 1,
        "eta": None,
        "generator": None,
        "latents": None,
        "prompt_strength": 1.0,
        "prompt_reps": None,
        "prompt_weighting": False,
        "resize_mode": None,
        "box": None,
        "subjects": None,
        "region_mode": "attention",
        "subject_scale": None,
        "subject_embeds": None,
        "prompt_embeds": None,
        "negative_prompt_embeds": None,
        "cross_attention_kwargs": None,
        "clip_skip": None,
        "output_type": "pil",
        "return_dict": True,
        "callback_on_step_end": None,
        "callback_on_step_end_tensor_inputs": ("latents",),
        "image": None,
        "controlnet": None,
        "controlnet_conditioning_scale": 1.0,
        "control_guidance_start": 0.0,
        "control_guidance_end": 1.0,
        "guess_mode": False,
        "control_resample": "lanczos",
        "neg_prompt": None,
        "condtioning_image": None,
    }


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (action,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(action.choices)


def flags(parser: argparse.ArgumentParser) -> set[str]:
    return {flag for action in parser._actions for flag in action.option_strings} - {"-h", "--help"}


def test_commands_and_their_flags() -> None:
    known = commands(build_parser())
    assert {"generate", "train", "convert", "data"} <= known.keys()
    assert flags(known["generate"]) >= {
        "--reference",
        "--category",
        "--target-category",
        "--reproduce",
        "--model",
        "--out",
        "--num-images",
        "--seed",
        "--steps",
        "--guidance-scale",
        "--negative-prompt",
        "--size",
        "--resize-mode",
        "--grid",
        "--device",
        "--dtype",
        "--preset",
        "--engine",
    }
    assert flags(known["train"]) >= {"--out", "--set", "--minutes", "--resume"}
    assert {"build", "sheet"} <= commands(known["data"]).keys()


def test_flags_are_whole_words() -> None:
    def check(parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for below in action.choices.values():
                    check(below)
            elif not isinstance(action, argparse._HelpAction | argparse._VersionAction):
                assert all(flag.startswith("--") and "_" not in flag for flag in action.option_strings), action

    check(build_parser())


def test_the_command_is_installed() -> None:
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="blip-diffusion")
    assert command.value == "blip_diffusion.cli.entry:run"
