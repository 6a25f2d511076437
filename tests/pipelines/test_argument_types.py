"""Arguments of wrong types: one sentence with the argument's name, before anything is computed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip_diffusion.checkpoint.subject_file import Subject, write_subject
from blip_diffusion.errors import CheckpointError, InputError, quoted
from blip_diffusion.evaluation.evaluate import EvalConfig, evaluate
from blip_diffusion.pipelines.attention_alignment import AttentionControl
from blip_diffusion.pipelines.captioner import Captioner
from blip_diffusion.pipelines.composition import SubjectRegion
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import Preset
from blip_diffusion.training.pretrain import run as train

WRONG = [
    5, 2.5, "other", b"other", {"a": 1}, [None], (), object(), torch.rand(2, 3), np.zeros((4, 4)), torch.float16,
    Path("x"), lambda: None, 1j,
]  # fmt: skip
"""Values of which an argument accepts at most a few."""
NUMBERS = (int, float)
ACCEPTED: dict[str, Any] = {
    "prompt_weighting": (),
    "guess_mode": (),
    "return_dict": (),
    "clip_skip": (),
    "output_type": (),
    "resize_mode": (),
    "region_mode": (),
    "control_resample": (),
    "subjects": (),
    "latents": (),
    "prompt_embeds": (),
    "negative_prompt_embeds": (),
    "subject_embeds": (),
    "generator": (),
    "box": (),
    "callback_on_step_end": (),
    "callback_on_step_end_tensor_inputs": (tuple,),
    "controlnet_conditioning_scale": (*NUMBERS, tuple),
    "control_guidance_start": (*NUMBERS, tuple),
    "control_guidance_end": (*NUMBERS, tuple),
    "height": (int,),
    "num_inference_steps": (int,),
    "num_images_per_prompt": (int,),
    "prompt_reps": (int,),
    "guidance_scale": NUMBERS,
    "guidance_rescale": (),
    "noise_scale": NUMBERS,
    "prompt_strength": NUMBERS,
    "eta": (),
    "timesteps": (),
    "sigmas": (),
    "cross_attention_kwargs": (),
    "prompt": (str,),
    "negative_prompt": (str,),
    "target_subject_category": (str,),
    "source_subject_category": (str,),
}
"""Arguments, and the types of the values above that each accepts."""


def named(name: str) -> str:
    """Return how messages name an argument."""
    return {"box": "box", "subject_embeds": "subject"}.get(name, name)


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_call_refuses_wrong_types(pipe: BlipDiffusionPipeline, dog: Image.Image, name: str) -> None:
    arguments = {"prompt": "on the beach", "reference_image": dog, "source_subject_category": "dog"}
    for value in WRONG:
        if isinstance(value, ACCEPTED[name]):
            continue
        with pytest.raises(InputError) as caught:
            pipe(**{**arguments, name: value})
        message = str(caught.value)
        assert named(name) in message and "\n" not in message and len(message) < 300


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("image", ()), ("source_category", (str,)), ("target_category", (str,)), ("mask", ()), ("inversion", ()),
        ("attention", ()), ("strength", ()), ("feather", (int,)), ("mask_threshold", ()), ("describe_source", ()),
    ],
)  # fmt: skip
def test_an_edit_refuses_wrong_types(
    pipe: BlipDiffusionPipeline, dog: Image.Image, name: str, kinds: tuple[type, ...]
) -> None:
    for value in WRONG:
        if not isinstance(value, kinds):
            with pytest.raises(InputError, match=name):
                pipe.edit(**{"image": dog, "source_category": "dog", "reference_image": dog, name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "dog"}, "attention.weights is 'dog': use a dict"),
        ({"shape": ["keep"]}, r"no attention.shape \['keep'\]: use free or keep"),
        ({"cross_attention": "0.4"}, "cross_attention is '0.4': use a number from 0 to 1"),
    ],
)
def test_attention_control_refuses_wrong_types(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AttentionControl(**options)


def test_text_is_no_number_of_a_box(placed: BlipDiffusionPipeline, dog: Image.Image) -> None:
    with pytest.raises(InputError, match="The box is"):
        placed("on the beach", dog, "dog", box=["0.1", "0.1", "0.5", "0.5"])


def test_the_callback_of_other_arguments_is_refused(pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    def callback(step: int, timestep: int, latents: torch.Tensor) -> None:  # of older versions of diffusers
        pass

    with pytest.raises(InputError, match="use a function of pipeline, index, timestep and tensors"):
        pipe("on the beach", dog, "dog", callback_on_step_end=callback)


def test_quotations_are_short_lines() -> None:
    assert quoted(torch.zeros(2, 1)) == "tensor([[0.], [0.]])"
    assert len(quoted("a" * 1000)) == 100


@pytest.mark.parametrize("device", ["cuda:99", "meta", "nonsense", "", 99, 2.5, ["cpu"], torch.device("meta")])
def test_absent_devices_are_refused(tiny_folder: Path, pipe: BlipDiffusionPipeline, device: Any) -> None:
    for move in (
        lambda: pipe.to(device),
        lambda: pipe.to(device, torch.float16),
        lambda: pipe.to(device=device),
        lambda: BlipDiffusionPipeline.from_pretrained(tiny_folder, device_map=device),
    ):
        with pytest.raises(InputError, match=r"There is no device|The device is a"):
            move()
    assert pipe.device == torch.device("cpu") and pipe.dtype == torch.float32


PATHS = [5, b"model", ["model"], None, object(), torch.zeros(1), np.zeros(2)]


@pytest.mark.parametrize("given", PATHS)
def test_paths_are_text_or_paths(tiny_folder: Path, pipe: BlipDiffusionPipeline, given: Any) -> None:
    kind = type(given).__name__
    calls = {
        "name_or_path": [BlipDiffusionPipeline.from_pretrained, Captioner.from_pretrained],
        "subject": [pipe.load_subject],
        "save_directory": [pipe.save_pretrained],
    }
    for name, methods in calls.items():
        for method in methods:
            with pytest.raises(InputError, match=f"{name} is a {kind}: use a path"):
                method(given)


def test_an_empty_path_to_write_to_is_refused(
    pipe: BlipDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be the current folder."""
    monkeypatch.chdir(tmp_path)
    subject = Subject("rex", "dog", torch.zeros(1, 4, 8), "base")
    for write in (
        pipe.save_pretrained,
        lambda path: pipe.save_lora_weights(path, unet_lora_layers={"x": torch.zeros(1)}),
        lambda path: write_subject(subject, path),
        lambda path: train("x.toml", path),
        lambda path: evaluate(EvalConfig(), path),
    ):
        for empty in ("", " "):
            with pytest.raises(InputError, match="is empty: use a path"):
                write(empty)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"torch_dtype": "float16"}, "torch_dtype is 'float16': use a float type"),
        ({"torch_dtype": 0}, "torch_dtype is 0: use a float type"),
        ({"torch_dtype": torch.zeros(2)}, r"torch_dtype is tensor\(\[0., 0.\]\): use a float type"),
        ({"variant": 16}, "variant is 16: use a word"),
        ({"use_safetensors": 1}, "True or False, not 1"),
        ({"unet": 5}, "unet is a int: use a network"),
        ({"unet": []}, "unet is a list: use a network"),
        ({"vae": object()}, "vae is a object: use a network"),
        ({"controlnet": 5}, "controlnet is a int"),
        ({"controlnet": []}, "controlnet is an empty list"),
        ({"qformer_tokenizer": 5}, "qformer_tokenizer is a int: use a path"),
    ],
)
def test_loading_refuses_wrong_types(tiny_folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BlipDiffusionPipeline.from_pretrained(tiny_folder, **options)


def test_a_vocabulary_that_is_missing_is_refused(tiny_folder: Path) -> None:
    for given in ("nowhere", "nowhere/vocab.txt", Path("nowhere")):
        with pytest.raises(CheckpointError, match="no WordPiece vocabulary at nowhere"):
            BlipDiffusionPipeline.from_pretrained(tiny_folder, qformer_tokenizer=given)


def test_pipelines_are_made_of_models_and_pipelines(pipe: BlipDiffusionPipeline) -> None:
    with pytest.raises(InputError, match="model is a str: use a BlipDiffusion"):
        BlipDiffusionPipeline.from_model("mini")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pipeline is a BlipDiffusion: use a BlipDiffusionPipeline"):
        BlipDiffusionPipeline.from_pipe(pipe.model)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("set_subjects", (5,), "names is 5: use a list of names"),
        ("set_subjects", ([["rex"]],), r"no subject \['rex'\]"),
        ("set_subjects", ([], 0.5), "weights is 0.5: use a list of numbers"),
        ("set_subjects", ([], ["x"]), "weights is 'x': use a number"),
        ("unload_subject", ([],), r"no subject \[\]"),
        ("blend", (torch.zeros(1, 4, 32),), "subjects is tensor"),
        ("blend", ([torch.zeros(1, 4, 32)], 1.0), "weights is 1.0: use a list of numbers"),
        ("blend", ([5],), "subjects is a int: use a tensor of floats"),
        ("set_preset", (["fast"],), r"no preset \['fast'\]"),
        ("fuse_qkv_projections", ("yes",), "unet is 'yes': use True or False"),
        ("load_textual_inversion", ([],), "pretrained_model_name_or_path is an empty list"),
        ("encode_subject", (Image.new("RGB", (9, 9)), ["dog"]), r"category is \['dog'\]: use text"),
        ("preview_reference", (5,), "A reference is a PIL image"),
    ],
)
def test_methods_refuse_wrong_types(
    pipe: BlipDiffusionPipeline, method: str, arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        getattr(pipe, method)(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 2.5}, "steps must be a whole number, not 2.5"),
        ({"steps": "none"}, "steps must be None, not 'none'"),
        ({"dtype": torch.float16}, 'dtype must be "default" or "auto" .* not torch.float16'),
        ({"engine": "onnx"}, 'engine must be "torch" or "compiled" or "openvino", not .onnx.'),
        ({"channels_last": 1}, "channels_last must be true or false, not 1"),
        ({"guidance_interval": 0.5}, "guidance_interval must be a list, not 0.5"),
    ],
)
def test_presets_refuse_wrong_types(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preset(**options)


@pytest.mark.parametrize(
    "field", ["name", "category", "embedding", "base", "lora", "alpha", "weights", "thumbnail", "metadata", "version"]
)
def test_a_subject_refuses_wrong_types(field: str) -> None:
    fields = {"name": "rex", "category": "dog", "embedding": torch.zeros(1, 4, 8), "base": "x"}
    kinds = {"alpha": NUMBERS, "metadata": dict, "thumbnail": bytes}.get(field, str)
    accepted = kinds if field not in ("lora", "weights", "embedding") else ()
    for value in WRONG:
        if not isinstance(value, accepted):
            with pytest.raises((InputError, CheckpointError), match=field):
                Subject(**{**fields, field: value})


def test_numbers_without_an_effect_have_ranges_too(pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    for options in ({"control_guidance_end": 2}, {"control_guidance_start": -1}, {"num_images_per_prompt": 10**20}):
        with pytest.raises(InputError, match=next(iter(options))):
            pipe("on the beach", dog, "dog", **options)
    for box in (torch.zeros(2, 2), np.zeros((2, 2)), 0):
        with pytest.raises(InputError, match="box"):
            pipe("on the beach", subjects=[SubjectRegion(dog, "dog", box=box)] * 2)
