"""ComfyUI nodes that prepare a generation: model, subjects, LoRAs and control maps. Imported by ComfyUI only."""

from pathlib import Path
from typing import Any, get_args

import folder_paths
from comfy_api.v0_0_2 import io, ui

from blip_diffusion.annotators import KINDS
from blip_diffusion.checkpoint.adapter_refs import lora_ref
from blip_diffusion.comfy.generation import node_rules
from blip_diffusion.comfy.loaded_model import AUTO, LoadedModel, find_models
from blip_diffusion.comfy.subjects import (
    MODEL_DEFAULT,
    check_category,
    control_from_image,
    mix,
    subject_from_file,
    subject_from_images,
)
from blip_diffusion.comfy.tensors import from_pil, reference_files
from blip_diffusion.errors import InputError
from blip_diffusion.fileio import sha256_of
from blip_diffusion.generation.request import control_map
from blip_diffusion.images import ResizeMode, read_image
from blip_diffusion.pipelines.presets import Dtype, Engine

CATEGORY = "blip-diffusion"
MODEL = io.Custom("BLIP_DIFFUSION")
SUBJECT = io.Custom("BLIP_SUBJECT")
LORAS = io.Custom("BLIP_LORAS")
CONTROLS = io.Custom("BLIP_CONTROLS")
SUBJECT_FOLDER = "blip_subjects"
"""Folder of tuned subjects, within ComfyUI's models."""
MODEL_FOLDERS = ("blip_diffusion", "diffusers")
"""Folders of models, within ComfyUI's."""


def add_model_folders() -> None:
    """Register the folders of models and of tuned subjects with ComfyUI."""
    for name in (SUBJECT_FOLDER, MODEL_FOLDERS[0]):
        folder_paths.add_model_folder_path(name, str(Path(folder_paths.models_dir) / name))


def _models() -> dict[str, Path]:
    return find_models(Path(folder) for name in MODEL_FOLDERS for folder in folder_paths.get_folder_paths(name))


def _file(folder: str, name: str) -> Path:
    """Return the path of a file in one of ComfyUI's folders. Raises `InputError` if there is none."""
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        raise InputError(f"There is no file {name!r} in models/{folder}: put it there, and press R.")
    return Path(path)


class LoadModel(io.ComfyNode):
    """Load a model."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="BlipDiffusionLoad",
            display_name="Load BLIP-Diffusion",
            category=CATEGORY,
            description="Loads a model: mini, which comes with the package, a folder, or a hub id.",
            inputs=[
                io.Combo.Input("model", options=["mini", *_models()], default="mini",
                               tooltip="mini, or a folder in models/blip_diffusion or models/diffusers."),
                io.String.Input("path", default="", optional=True,
                                tooltip="A folder elsewhere or a hub id, in place of the choice above."),
                io.Combo.Input("device", options=[AUTO, "cpu"], default=AUTO, optional=True),
                io.Combo.Input("precision", options=[AUTO, *get_args(Dtype)], default=AUTO, optional=True,
                               tooltip="auto: float32, or under a preset the fastest of this device."),
                io.Combo.Input("engine", options=list(get_args(Engine)), default="torch", optional=True,
                               tooltip="Backend of the networks: compiled is for GPUs, openvino for CPUs."),
            ],
            outputs=[MODEL.Output(display_name="model")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: str, path: str = "", device: str = AUTO, precision: str = AUTO, engine: Engine = "torch"
    ) -> Any:
        with node_rules():
            name = path.strip() or str(_models().get(model, model))
            loaded = LoadedModel(name, device, precision, engine)
            loaded.any_pipe()
        return io.NodeOutput(loaded)


class SubjectFromImages(io.ComfyNode):
    """A subject from images, with a preview of the image encoder's input."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="BlipDiffusionSubject",
            display_name="Subject from Images",
            category=CATEGORY,
            description="A subject from one image or a batch of images of it. Shows the image encoder's input.",
            inputs=[
                MODEL.Input("model"),
                io.Image.Input("image", tooltip="One image of the subject, or a batch: the mean is used."),
                io.String.Input("category", default="dog", tooltip="What the subject is, in a word or two."),
                io.Combo.Input("resize_mode", options=[MODEL_DEFAULT, *get_args(ResizeMode)], default=MODEL_DEFAULT,
                               optional=True, tooltip="How the image becomes square."),
                io.Mask.Input("background", optional=True,
                              tooltip="A mask of the background, such as LoadImage's; it becomes white."),
            ],
            outputs=[SUBJECT.Output(display_name="subject"), io.Image.Output(display_name="crop")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, category: str = "dog") -> bool | str:
        return bool(category.strip()) or "The category is empty: name what the subject is, for example dog."

    @classmethod
    def execute(
        cls, model: LoadedModel, image: Any, category: str, resize_mode: str = MODEL_DEFAULT, background: Any = None
    ) -> Any:
        with node_rules():
            check_category(category)
            subject = subject_from_images(image, category, resize_mode, background)
            references = [read_image(file, lambda opened: opened.copy()) for file in reference_files(image, background)]
            pipe = model.any_pipe()
            crops = from_pil([pipe.preview_reference(image, resize_mode=subject.resize_mode) for image in references])
        return io.NodeOutput(subject, crops, ui=ui.PreviewImage(crops, cls=cls))


class LoadTunedSubject(io.ComfyNode):
    """A tuned subject from its file."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="BlipDiffusionLoadSubject",
            display_name="Load Tuned Subject",
            category=CATEGORY,
            description="A subject file of blip-diffusion tune, from models/blip_subjects.",
            inputs=[io.Combo.Input("file", options=folder_paths.get_filename_list(SUBJECT_FOLDER))],
            outputs=[SUBJECT.Output(display_name="subject")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        return sha256_of(_file(SUBJECT_FOLDER, file))

    @classmethod
    def execute(cls, file: str) -> Any:
        with node_rules():
            return io.NodeOutput(subject_from_file(_file(SUBJECT_FOLDER, file)))


class MixSubjects(io.ComfyNode):
    """A mixture of tuned subjects."""

    @classmethod
    def define_schema(cls) -> Any:
        weights = [
            io.Float.Input(f"weight_{number}", default=1.0, min=-10.0, max=10.0, step=0.05, optional=number > 2)
            for number in range(1, 6)
        ]
        subjects = [SUBJECT.Input(f"subject_{number}", optional=number > 2) for number in range(1, 6)]
        return io.Schema(
            node_id="BlipDiffusionMixSubjects",
            display_name="Mix Subjects",
            category=CATEGORY,
            description="A mixture of tuned subjects. Weights are normalised to the sum 1.",
            inputs=[*subjects, *weights],
            outputs=[SUBJECT.Output(display_name="subject")],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> Any:
        connected = [number for number in range(1, 6) if inputs.get(f"subject_{number}") is not None]
        with node_rules():
            subjects = [inputs[f"subject_{number}"] for number in connected]
            return io.NodeOutput(mix(subjects, [inputs.get(f"weight_{number}", 1.0) for number in connected]))


class AddLora(io.ComfyNode):
    """A LoRA, added to others."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="BlipDiffusionLora",
            display_name="LoRA for BLIP-Diffusion",
            category=CATEGORY,
            description="A LoRA from models/loras; chain several of these nodes for several LoRAs.",
            inputs=[
                io.Combo.Input("file", options=folder_paths.get_filename_list("loras")),
                io.Float.Input("weight", default=1.0, min=-10.0, max=10.0, step=0.05),
                LORAS.Input("loras", optional=True, tooltip="LoRAs that this one is added to."),
            ],
            outputs=[LORAS.Output(display_name="loras")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, weight: float = 1.0, loras: Any = None) -> str:
        return sha256_of(_file("loras", file))

    @classmethod
    def execute(cls, file: str, weight: float, loras: Any = ()) -> Any:
        with node_rules():
            return io.NodeOutput((*loras, lora_ref(_file("loras", file), weight)))


class AddControl(io.ComfyNode):
    """A control map, added to others."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="BlipDiffusionControl",
            display_name="Control for BLIP-Diffusion",
            category=CATEGORY,
            description="Keeps the structure of an image, by a ControlNet or a T2I-Adapter. Shows the control map.",
            inputs=[
                io.Image.Input("image"),
                io.Combo.Input("kind", options=list(KINDS), default="canny",
                               tooltip="map: the image is a control map already."),
                io.Float.Input("scale", default=1.0, min=0.0, max=10.0, step=0.05),
                io.String.Input("controlnet", default="", optional=True,
                                tooltip="A folder or a hub id; empty: the model's own for this kind."),
                CONTROLS.Input("controls", optional=True, tooltip="Controls that this one is added to."),
                io.Float.Input("end", default=1.0, min=0.01, max=1.0, step=0.01, optional=True,
                               tooltip="Share of the steps after which it no longer acts: 0.7 keeps more of the "
                               "subject."),
            ],
            outputs=[CONTROLS.Output(display_name="controls"), io.Image.Output(display_name="map")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, image: Any, kind: str, scale: float, controlnet: str = "", controls: Any = (), end: float = 1.0
    ) -> Any:
        with node_rules():
            control = control_from_image(image, kind, scale, controlnet, end)
            shown = from_pil([control_map(control)])
        return io.NodeOutput((*controls, control), shown, ui=ui.PreviewImage(shown, cls=cls))
