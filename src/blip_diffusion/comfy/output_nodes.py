"""ComfyUI nodes that generate and save images or return conditioning, and the list of all nodes. For ComfyUI only."""

import json
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.v0_0_2 import ComfyExtension, io
from PIL import Image

from blip_diffusion.comfy.conditioning import text_states
from blip_diffusion.comfy.generation import NO_PRESET, generate, node_rules, request_of
from blip_diffusion.comfy.input_nodes import (
    CATEGORY,
    CONTROLS,
    LORAS,
    MODEL,
    SUBJECT,
    AddControl,
    AddLora,
    LoadModel,
    LoadTunedSubject,
    MixSubjects,
    SubjectFromImages,
    add_model_folders,
)
from blip_diffusion.comfy.loaded_model import LoadedModel
from blip_diffusion.comfy.subjects import GeneratedImages, SubjectInput
from blip_diffusion.comfy.tensors import from_pil, to_pil
from blip_diffusion.errors import InputError
from blip_diffusion.fileio import atomic_file
from blip_diffusion.generation.limits import MAX_STEPS
from blip_diffusion.generation.output import png_with_metadata
from blip_diffusion.generation.png_metadata import encode
from blip_diffusion.pipelines.inputs import MAX_SIDE
from blip_diffusion.pipelines.presets import PRESETS

SETTINGS = io.Custom("BLIP_SETTINGS")
MAX_IMAGES = 64
MAX_PREVIEWS = 50
PREVIEW_SIDE = 512
"""Largest side of a preview in pixels."""
NO_PROMPT = "The prompt is empty: describe the scene, for example on the beach."
TARGET_HELP = "What to generate the subject as; empty: its own category."


def _prompt_inputs() -> list[Any]:
    return [
        io.String.Input("prompt", multiline=True, default="on the beach", dynamic_prompts=True,
                        tooltip="The scene, without the subject."),
        io.String.Input("target_category", default="", optional=True, tooltip=TARGET_HELP),
        io.String.Input("negative_prompt", default="", optional=True, tooltip="What should not appear."),
    ]  # fmt: skip


class Generate(io.ComfyNode):
    """Generate images of a subject, with progress, previews, and interruption at the next step."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="BlipDiffusionGenerate",
            display_name="Generate (BLIP-Diffusion)",
            category=CATEGORY,
            description="Images of a subject in a scene, as blip-diffusion generate makes them from the same values.",
            inputs=[
                MODEL.Input("model"),
                SUBJECT.Input("subject", optional=True,
                              tooltip="Not needed with a LoRA whose word is in target_category."),
                *_prompt_inputs(),
                io.Int.Input("seed", default=0, min=0, max=2**63 - MAX_IMAGES, control_after_generate=True,
                             tooltip="Of the first image; incremented for each next one."),
                io.Int.Input("num_images", default=1, min=1, max=MAX_IMAGES),
                io.Int.Input("steps", default=0, min=0, max=MAX_STEPS, tooltip="0: the model's."),
                io.Float.Input("guidance_scale", default=0.0, min=0.0, max=100.0, step=0.1,
                               tooltip="0: the model's; 1: no guidance."),
                io.Int.Input("width", default=0, min=0, max=MAX_SIDE, step=8, tooltip="0: the model's."),
                io.Int.Input("height", default=0, min=0, max=MAX_SIDE, step=8, tooltip="0: the model's."),
                io.Combo.Input("preset", options=[NO_PRESET, *PRESETS], default=NO_PRESET,
                               tooltip="exact: same images, faster arithmetic; fast: 10 steps; turbo: fewest steps."),
                io.Int.Input("previews", default=3, min=0, max=MAX_PREVIEWS, optional=True,
                             tooltip="Number of previews, evenly spaced; each decodes the latents once."),
                LORAS.Input("loras", optional=True),
                CONTROLS.Input("controls", optional=True),
            ],
            outputs=[io.Image.Output(display_name="images"), SETTINGS.Output(display_name="settings")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, prompt: str = "any") -> bool | str:
        return bool(prompt.strip()) or NO_PROMPT

    @classmethod
    def execute(
        cls,
        model: LoadedModel,
        prompt: str,
        subject: SubjectInput | None = None,
        previews: int = 0,
        **values: Any,
    ) -> Any:
        with node_rules():
            request = request_of(model, subject, prompt, **values)
            images, settings = generate(model, request, _Progress(), previews=previews)
            return io.NodeOutput(from_pil(images), settings)


class _Progress:
    """Show steps and previews on the running node; raises ComfyUI's exception if the user has interrupted it."""

    def __init__(self) -> None:
        self.bar = comfy.utils.ProgressBar(1)

    def __call__(self, step: int, steps: int, preview: Image.Image | None) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        image = None if preview is None else ("JPEG", preview, PREVIEW_SIDE)
        self.bar.update_absolute(step, steps, image)


class SaveWithSettings(io.ComfyNode):
    """Save images as PNG files with their settings and the workflow inside."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="BlipDiffusionSave",
            display_name="Save with Settings",
            category=CATEGORY,
            description="PNG files that blip-diffusion generate --reproduce reads, and that open as a workflow here.",
            inputs=[
                io.Image.Input("images"),
                SETTINGS.Input("settings", tooltip="The output settings of Generate."),
                io.String.Input("filename_prefix", default="blip-diffusion"),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images: Any, settings: GeneratedImages, filename_prefix: str) -> Any:
        with node_rules():
            rgb = to_pil(images)
            if len(rgb) != len(settings.images):
                raise InputError(
                    f"There are {len(rgb)} images and settings of {len(settings.images)}: connect both outputs of "
                    "one Generate."
                )
            files = [_save(cls, *pair, settings, filename_prefix) for pair in zip(rgb, settings.images, strict=True)]
        return io.NodeOutput(ui={"images": files})


def _save(
    node: Any, image: Image.Image, prompt_and_seed: tuple[str, int], settings: GeneratedImages, prefix: str
) -> dict[str, str]:
    """Write one image to ComfyUI's output folder, and return its entry for ComfyUI's page."""
    prompt, seed = prompt_and_seed
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), *image.size
    )
    file = f"{name}_{counter:05}_.png"
    graph = {"prompt": node.hidden.prompt, **(node.hidden.extra_pnginfo or {})}
    chunks = {key: json.dumps(value) for key, value in graph.items() if value is not None}
    metadata = encode(settings.request, prompt=prompt, seed=seed, num_images=1)
    with atomic_file(Path(folder) / file) as partial:
        partial.write_bytes(png_with_metadata(image, metadata, chunks))
    return {"filename": file, "subfolder": subfolder, "type": "output"}


class ToConditioning(io.ComfyNode):
    """A prompt with a subject in it as conditioning for KSampler."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="BlipDiffusionToConditioning",
            display_name="Subject to Conditioning",
            category=CATEGORY,
            description="For KSampler with the U-Net of a published BLIP-Diffusion model, or another of SD 1.5.",
            inputs=[MODEL.Input("model"), SUBJECT.Input("subject"), *_prompt_inputs()],
            outputs=[
                io.Conditioning.Output(id="positive", display_name="positive"),
                io.Conditioning.Output(id="negative", display_name="negative"),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompt: str = "any") -> bool | str:
        return bool(prompt.strip()) or NO_PROMPT

    @classmethod
    def execute(cls, model: LoadedModel, subject: SubjectInput, prompt: str, **words: str) -> Any:
        with node_rules():
            states = text_states(model, subject, prompt, **words)
        return io.NodeOutput(*([[one, {}]] for one in states))


class BlipDiffusionExtension(ComfyExtension):
    """The nodes of this package."""

    async def get_node_list(self) -> list[type[Any]]:
        add_model_folders()
        return [
            LoadModel,
            SubjectFromImages,
            LoadTunedSubject,
            MixSubjects,
            AddLora,
            AddControl,
            Generate,
            SaveWithSettings,
            ToConditioning,
        ]


async def comfy_entrypoint() -> ComfyExtension:
    """Return the extension; ComfyUI calls this."""
    return BlipDiffusionExtension()
