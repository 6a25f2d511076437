"""Structure control: train a network that reads a control image ("hint") for a frozen model.

The network is a ControlNet (Zhang, Rao & Agrawala 2023), a copy of the U-Net's encoder that runs in each step, or a
T2I-Adapter (Mou et al. 2023), a small convolutional network that runs once per image. Half of the prompts are empty, so
that the network is also trained on the hint alone (Zhang et al. 2023, section 3.3).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import ControlNetModel, T2IAdapter
from torch import Tensor, nn

from blip_diffusion.checkpoint.components import load_diffusers
from blip_diffusion.checkpoint.control_fit import check_control_fit
from blip_diffusion.checkpoint.model_folder import save_model
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.diffusion.controlnet import Control, controlled_denoiser, is_adapter
from blip_diffusion.diffusion.forward_process import Noising, denoising_loss
from blip_diffusion.diffusion.guidance import Denoiser
from blip_diffusion.edges import canny_edges
from blip_diffusion.errors import CheckpointError, ConfigError, InputError, reason
from blip_diffusion.framing import box_of_mask, default_boxes, frames_of
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.training.objective import Losses, Objective, ParameterGroup, StepContext
from blip_diffusion.training.text_dropout import check_dropout, dropped_text_states

Hint = Literal["canny", "mask", "depth", "normal"]
GEOMETRIC: tuple[Hint, ...] = ("depth", "normal")
"""Hints of 3D subjects, for which `SyntheticConfig.geometry` adds depth and normals to the batches."""
HINT_CHANNELS: Mapping[Hint, int] = {"canny": 1, "mask": 1, "depth": 1, "normal": 3}
CONDITIONING_CHANNELS = (16, 32, 96, 256)
"""Channels of the layers that reduce a ControlNet's hint to the latents' size; each but the first halves it."""


@dataclass(frozen=True)
class ControlConfig:
    """The hint, the network that reads it, and dropout of conditions."""

    hint: Hint = "canny"  # Canny edges of the image; or the subject's mask, depth, or normals (of 3D models)
    network: Literal["adapter", "controlnet"] = "adapter"
    init_from: Path | None = None  # folder of a trained network to continue from, which may be of another hint
    res_blocks: int = 1  # per level of a new adapter
    prompt_drop: float = 0.5  # share of prompts that lose all their words, and their subject
    subject_drop: float = 0.15  # share of prompts without subject tokens
    default_frames: float = 0.0  # share of subjects with the default frame; others have that of their mask's box
    noise_samples_per_pair: int = 1  # noised copies of each pair
    min_snr: float | None = None  # γ of the loss weights; none: the simple loss
    timestep_shift: float = 1.0  # above 1, more copies have high noise, which decides the layout

    def __post_init__(self) -> None:
        check_dropout(self.prompt_drop, self.subject_drop)
        if not 0 <= self.default_frames <= 1:
            raise ConfigError(f"default_frames is {self.default_frames}: use 0 to 1.")
        for name in ("res_blocks", "noise_samples_per_pair"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: use 1 or more.")
        if self.timestep_shift <= 0:
            raise ConfigError(f"timestep_shift is {self.timestep_shift}: use a number above 0; 1 is uniform.")


class StructureControl(Objective):
    """Train the network that reads the hint; the model is frozen, and gradients pass through its U-Net."""

    def __init__(
        self,
        model: BlipDiffusion,
        noising: Noising,
        config: ControlConfig,
        *,
        t2i_adapters: Mapping[str, Any] | None = None,
        consistency_lora: Path | None = None,
    ) -> None:
        """Build the network; `t2i_adapters` for other hints and `consistency_lora` are copied on export."""
        super().__init__()
        self.model, self.noising, self.config = model, noising, config
        self.network = new_network(model, config)
        self.others, self.consistency_lora = dict(t2i_adapters or {}), consistency_lora

    def train(self, mode: bool = True) -> "StructureControl":
        """Put only the new network into training mode."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, batch: SubjectBatch, context: StepContext) -> Losses:
        """Return the denoising loss of the targets, given references, prompts and hints."""
        loss = self._losses(batch, context, {"right": self._hint(batch)})["right"]
        return {"denoising": loss, "loss": loss}

    def comparison_losses(self, batch: SubjectBatch, context: StepContext) -> Losses:
        """Return the losses with another image's hint, with an empty one, and without the network.

        Their difference from the loss with the right hint shows how much the network uses it.
        """
        hint = self._hint(batch)
        empty = empty_hint(self.config.hint, hint)
        hints = {"wrong hint": hint.roll(1, dims=0), "empty hint": empty, "no control": None}
        return {f"denoising {name}": loss for name, loss in self._losses(batch, context, hints).items()}

    def _losses(self, batch: SubjectBatch, context: StepContext, hints: Mapping[str, Tensor | None]) -> Losses:
        """Return the denoising loss by hint, all with the same noise; `None`: without the network."""
        with torch.no_grad():
            latents = self.model.latents.encode(batch["target"]).float()
            states = self._text_states(batch, context.rng)
        copies, random_state = self.config.noise_samples_per_pair, context.rng.get_state()
        states, latents = states.repeat(copies, 1, 1), latents.repeat(copies, 1, 1, 1)
        losses = {}
        for name, hint in hints.items():
            context.rng.set_state(random_state)
            losses[name] = denoising_loss(
                self._denoiser(states, hint),
                latents,
                self.noising,
                context.rng,
                gamma=self.config.min_snr,
                timestep_shift=self.config.timestep_shift,
            )
        return losses

    def _denoiser(self, states: Tensor, hint: Tensor | None) -> Denoiser:
        if hint is None:
            return self.model.denoiser(states)
        return control_denoiser(self.model, self.network, states, hint)

    def _hint(self, batch: SubjectBatch) -> Tensor:
        return hint_of(self.config.hint, batch)

    def _text_states(self, batch: SubjectBatch, rng: torch.Generator) -> Tensor:
        """Encode prompts; in training mode, some without their subject and some empty."""
        if not self.training:
            return dropped_text_states(self.model, batch, rng, prompt_drop=0.0, subject_drop=0.0)
        frames = with_mask_frames(batch["frames"], batch["target_alpha"])
        frames = with_default_frames(frames, self.config.default_frames, rng)
        placed: SubjectBatch = {**batch, "frames": frames}
        drops = {"prompt_drop": self.config.prompt_drop, "subject_drop": self.config.subject_drop}
        return dropped_text_states(self.model, placed, rng, **drops)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the parameters of the new network."""
        return [ParameterGroup("control", list(self.network.parameters()), 1.0)]

    def export(self, folder: Path) -> None:
        """Write the model, which is unchanged, with the new network."""
        adapter = is_adapter(self.network)
        save_model(
            self.model,
            folder,
            controlnet=None if adapter else self.network,
            consistency_lora=self.consistency_lora,
            t2i_adapters={**self.others, self.config.hint: self.network} if adapter else self.others,
        )


def with_default_frames(frames: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """Replace a share of frames (B, K, 4) by generation's default frame, which it uses without position words or box.

    Images with several copies of the subject keep their frames.
    """
    if not share:
        return frames
    default = torch.zeros_like(frames[:1])
    default[:, :1] = frames_of([default_boxes("")]).to(frames)
    single = (frames[:, 1:, 2] == 0).all(dim=1)
    chosen = single & (torch.rand(len(frames), generator=rng, device=rng.device) < share)
    return torch.where(chosen[:, None, None], default, frames)


def with_mask_frames(frames: Tensor, masks: Tensor) -> Tensor:
    """Replace frames (B, K, 4) of single subjects by those of the boxes of their masks (B, 1, H, W).

    Generation finds such a box in a control image. It shows neither the reference's margins nor whether the subject is
    mirrored. Images with several copies of the subject, or with an empty mask, keep their frames.
    """
    result = frames.clone()
    for row, mask in zip(result, masks, strict=True):
        if (row[1:, 2] == 0).all() and (box := box_of_mask(mask[0])) is not None:
            row[0] = frames_of([[box]])[0, 0].to(row)
    return result


def hint_of(kind: Hint, batch: SubjectBatch) -> Tensor:
    """Return the hints of a batch's targets, in the colours that the published ControlNets read.

    Depth is bright at the nearest point and black behind the subject. Normals are (n + 1) / 2 with red to the left,
    green up and blue to the viewer, as of `control_v11p_sd15_normalbae`; the background faces the viewer.

    Args:
        kind: The kind of hint.
        batch: Pairs, with depth and normals if the hint is one of them.

    Returns:
        (B, 1, H, W), or (B, 3, H, W) of normals, in [0, 1].

    Raises:
        ConfigError: If the batch has no depth and normals.
    """
    if kind in GEOMETRIC and "target_depth" not in batch:
        raise ConfigError(f"The hint {kind} needs pairs of 3D models: set data.synthetic.geometry to true.")
    if kind == "depth":
        return batch["target_depth"]
    if kind == "normal":
        return (batch["target_normals"] * batch["target"].new_tensor([-1.0, 1.0, 1.0]).view(3, 1, 1) + 1) / 2
    return canny_edges(batch["target"]) if kind == "canny" else batch["target_alpha"]


def empty_hint(kind: Hint, hint: Tensor) -> Tensor:
    """Return hints of images without a subject, of the shape of a hint: black, or normals that all face the viewer."""
    if kind != "normal":
        return torch.zeros_like(hint)
    return hint.new_tensor([0.5, 0.5, 1.0]).view(3, 1, 1).expand_as(hint)


def new_network(model: BlipDiffusion, config: ControlConfig) -> Any:
    """Return the network of `config.init_from`, or an untrained one whose residuals are zero, for a model's U-Net."""
    factor = model.latents.factor
    if config.network == "controlnet" and model.place_width:
        raise ConfigError('A ControlNet can\'t read the tokens that this model places: set network = "adapter".')
    if config.init_from is not None:
        return _trained_network(model, config)
    if config.network == "controlnet":
        layers = CONDITIONING_CHANNELS[: factor.bit_length()]
        return ControlNetModel.from_unet(model.unet, conditioning_embedding_out_channels=layers)
    adapter = T2IAdapter(
        in_channels=HINT_CHANNELS[config.hint],
        channels=list(model.unet.config.block_out_channels),
        num_res_blocks=config.res_blocks,
        downscale_factor=factor,
    )
    init_zero(adapter)
    return adapter


def _trained_network(model: BlipDiffusion, config: ControlConfig) -> Any:
    """Load `config.init_from` in single precision. Raises `CheckpointError` unless it fits the model and the hint."""
    kind, folder = config.network, config.init_from
    assert folder is not None
    network = load_diffusers("t2i_adapter" if kind == "adapter" else kind, folder, dtype=torch.float32)
    try:
        check_control_fit(network, model.unet, model.latents.factor)
    except InputError as error:
        raise CheckpointError(f"{folder} doesn't fit the model ({reason(error)}).") from error
    channels = HINT_CHANNELS[config.hint]
    if kind == "adapter" and network.config.in_channels not in (channels, 3):
        raise CheckpointError(f"{folder} reads hints of one channel, and {config.hint} has {channels}.")
    return network


@torch.no_grad()
def init_zero(adapter: Any) -> None:
    """Initialise an adapter so that its features are zero, as a ControlNet's are by its zero convolutions.

    The input convolution and the output of each residual block are zero. The input convolution still has a gradient
    through the residual connections.
    """
    body = adapter.adapter.body
    zeroed = [adapter.adapter.conv_in]
    zeroed += [block.block2 for level in body for block in level.resnets]
    for layer in zeroed:
        nn.init.zeros_(layer.weight)
    for layer in (*zeroed, *(level.in_conv for level in body if level.in_conv is not None)):
        nn.init.zeros_(layer.bias)


def control_denoiser(model: BlipDiffusion, network: Any, states: Tensor, hint: Tensor) -> Denoiser:
    """Return the denoiser for text states (B, L, D) and hints (B / copies, 1 or 3, H, W); it can be called once."""
    return controlled_denoiser(model.unet, states, [Control(network, hint)], steps=1)
