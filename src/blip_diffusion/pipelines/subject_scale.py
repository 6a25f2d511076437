"""The weight of the subject in each block of the U-Net."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from blip_diffusion.argument_checks import number
from blip_diffusion.diffusion.cross_attention import adjusted_attention
from blip_diffusion.errors import InputError
from blip_diffusion.modules.placed_unet import cross_attentions
from blip_diffusion.pipelines.host import PipelineHost
from blip_diffusion.pipelines.locking import exclusive
from blip_diffusion.protocols import UNet

if TYPE_CHECKING:
    from blip_diffusion.pipelines.inputs import PipelineInputs

MAX_SCALE = 2.0
PARTS = ("down", "mid", "up")
Scale: TypeAlias = float | Mapping[str, float | Sequence[float]]
"""One scale for all blocks, or scales of "down", "mid" and "up"; a list has one scale for each block."""


@dataclass(frozen=True)
class SubjectScale:
    """Scales of the subject in the U-Net's blocks, each in [0, 2]; 1 is the usual weight.

    Args:
        down: A scale for each block of the encoder, outermost first.
        mid: The scale of the middle block.
        up: A scale for each block of the decoder, outermost last.
    """

    down: tuple[float, ...]
    mid: float
    up: tuple[float, ...]

    @classmethod
    def of(cls, scale: Scale, unet: UNet) -> "SubjectScale":
        """Return the scales of a U-Net's blocks. Raises `InputError` for unknown names, lengths and numbers."""
        table = scale if isinstance(scale, Mapping) else dict.fromkeys(PARTS, scale)
        if unknown := [name for name in table if name not in PARTS]:
            raise InputError(f"subject_scale has the key {unknown[0]!r}: use down, mid and up.")
        down, up = (
            _block_scales(name, table.get(name, 1.0), len(blocks))
            for name, blocks in (("down", unet.down_blocks), ("up", unet.up_blocks))
        )
        (mid,) = _block_scales("mid", table.get("mid", 1.0), 1)
        return cls(down, mid, up)

    @property
    def changes(self) -> bool:
        """Whether any block differs from 1."""
        return any(value != 1 for value in (*self.down, self.mid, *self.up))

    def layers(self, unet: UNet) -> list[tuple[Any, float]]:
        """Return the cross-attention layers of a U-Net with their scales."""
        blocks = [*zip(unet.down_blocks, self.down, strict=True), (unet.mid_block, self.mid)]
        blocks += zip(unet.up_blocks, self.up, strict=True)
        return [(layer, scale) for block, scale in blocks for layer in cross_attentions(block)]


def _block_scales(name: str, value: Any, blocks: int) -> tuple[float, ...]:
    listed = list(value) if isinstance(value, list | tuple) else [value] * blocks
    if len(listed) != blocks:
        raise InputError(f"subject_scale has {len(listed)} numbers for {name}: give one, or {blocks}.")
    return tuple(number("subject_scale", scale, 0, MAX_SCALE) for scale in listed)


class SubjectScaleMixin(PipelineHost):
    """`set_subject_scale`, and attention with a call's subject scale and regions."""

    _subject_scale: Scale = 1.0

    @exclusive
    def set_subject_scale(self, scale: Scale) -> None:
        """Set the default of `subject_scale`, the weight of the subject, for later calls.

        The output of each cross-attention layer becomes (1 - s) A(without) + s A(with), where A attends to the prompt
        without and with subject tokens: 0 is exactly the prompt without the subject, and 1 the usual image.

        Args:
            scale: In [0, 2] for all blocks, or a dict of "down", "mid" and "up", each one scale or a list with one for
                each block; missing ones are 1.

        Raises:
            InputError: For another key, number of blocks, or scale.

        Example:
            >>> pipe.set_subject_scale(0.6)
            >>> pipe.set_subject_scale({"down": 0.2, "mid": 0.2, "up": [1.0, 0.5, 0.5]})
        """
        SubjectScale.of(scale, self.unet)
        self._subject_scale = scale

    @contextmanager
    def _adjusted_attention(self, inputs: "PipelineInputs") -> Iterator[None]:
        """Context manager: cross-attention with the call's subject scale and regions, restored on exit."""
        composition = inputs.composition
        visibility = composition.visibility if composition and composition.mode == "attention" else None
        if visibility is None and not inputs.subject_scale.changes:
            yield
            return
        layers = inputs.subject_scale.layers(self.unet)
        nets = {id(control.net): control.net for control in inputs.controls}.values()
        layers += [(layer, 1.0) for net in nets for layer in cross_attentions(net)]
        with adjusted_attention(layers, visibility=visibility, has_without=inputs.subject_scale.changes):
            yield
