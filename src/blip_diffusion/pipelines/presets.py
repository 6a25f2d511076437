"""Presets: the trade between speed and quality, option by option, and three named sets of options.

    exact   same sampling; faster arithmetic only, within the rounding error of bfloat16
    fast    a second-order solver in ten steps; deep U-Net features computed at one step in three
    turbo   two steps with the model's bundled consistency LoRA (as `mini` has); else four steps, half of them guided

docs/results/speed.md lists the speed and the quality of each. With a ControlNet the whole U-Net runs in torch, in one
batch per step: `engine="openvino"`, `split_cfg_batch` and `deepcache_interval` have no effect then.

Torch is imported where it is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

from blip_diffusion.config import check_types
from blip_diffusion.errors import InputError, quoted
from blip_diffusion.protocols import Scheduler

if TYPE_CHECKING:
    import torch

Dtype = Literal["float32", "bfloat16", "float16"]
Precision = Literal["default", "auto", "float32", "bfloat16", "float16"]
Engine = Literal["torch", "compiled", "openvino"]
Solver = Literal["default", "ddim", "dpm++", "unipc", "lcm"]


@dataclass(frozen=True)
class Preset:
    """Options of speed and quality for `BlipDiffusionPipeline.set_preset`. The defaults change nothing.

    Args:
        dtype: Precision of all weights. "auto": bfloat16 on processors that compute in it, float16 on GPUs that don't,
            else float32. "default": unchanged.
        channels_last: Memory format of the VAE and the image encoder, which are convolutions.
        engine: Backend. "compiled" is for GPUs: the U-Net, unless deep features are cached. "openvino" is for CPUs: the
            U-Net and the decoder.
        split_cfg_batch: Run the two halves of classifier-free guidance one after the other, in half the memory.
        solver: Sampler over the noise levels of the model's scheduler. "default": the model's scheduler.
        steps: Default of a call's sampling steps, at most the model's. `None`: the model's.
        guidance_interval: Start and end of guidance as fractions of the steps, in [0, 1]; a step outside costs half
            (Kynkäänniemi et al. 2024).
        deepcache_interval: Compute deep U-Net features at one step in this many, and reuse them (Ma et al. 2023).
        deepcache_layers: Outermost U-Net layers that are computed at every step.
        lcm_lora: A latent consistency LoRA (Luo et al. 2023), guidance included: a file, a folder or a hub id.
            Requires `solver` "lcm", which adds new noise at each step, or "ddim", which is deterministic.
        bundled_lora_steps: If the model's folder has a consistency LoRA, sample in this many steps with it (see
            `lcm_preset`); the options above for solver, steps, guidance and features then apply to other models only.
        tiny_vae: A folder or hub id of an `AutoencoderTiny` that replaces the decoder, such as `madebyollin/taesd`.

    Raises:
        InputError: If a number is out of range, or `lcm_lora` and `solver` do not fit together.

    Example:
        >>> pipe.set_preset(Preset(dtype="auto", solver="dpm++", steps=12))
    """

    dtype: Precision = "default"
    channels_last: bool = False
    engine: Engine = "torch"
    split_cfg_batch: bool = False
    solver: Solver = "default"
    steps: int | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    deepcache_interval: int = 1
    deepcache_layers: int = 1
    lcm_lora: str | None = None
    bundled_lora_steps: int | None = None
    tiny_vae: str | None = None

    def __post_init__(self) -> None:
        check_types(self, InputError)
        start, end = self.guidance_interval
        if not 0 <= start <= end <= 1:
            raise InputError(f"guidance_interval is {self.guidance_interval}: use two fractions from 0 to 1, in order.")
        for name in ("steps", "bundled_lora_steps", "deepcache_interval", "deepcache_layers"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} is {value}: use 1 or more.")
        if self.solver == "lcm" and self.lcm_lora is None:
            raise InputError('solver is "lcm" without lcm_lora: give a consistency LoRA.')
        if self.lcm_lora is not None and self.solver not in ("lcm", "ddim"):
            raise InputError(f'solver is {self.solver!r} with lcm_lora: use "lcm" or "ddim".')

    @property
    def uses_cfg(self) -> bool:
        """Whether classifier-free guidance runs; a consistency LoRA has guidance distilled into it."""
        return self.lcm_lora is None

    def steps_of(self, default: int) -> int:
        """Return the sampling steps for a model whose default is `default`."""
        return default if self.steps is None else min(self.steps, default)


EXACT = Preset(dtype="auto", channels_last=True)
FAST = replace(EXACT, solver="dpm++", steps=10, deepcache_interval=3, split_cfg_batch=True)
TURBO = replace(FAST, steps=4, guidance_interval=(0.0, 0.5), bundled_lora_steps=2)
PRESETS = {"exact": EXACT, "fast": FAST, "turbo": TURBO}


def get_preset(choice: str | Preset) -> Preset:
    """Return a preset by its name, or the preset itself. Raises `InputError` for an unknown name."""
    if isinstance(choice, Preset):
        return choice
    if not isinstance(choice, str) or choice not in PRESETS:
        raise InputError(f"There is no preset {quoted(choice)}: use exact, fast or turbo.")
    return PRESETS[choice]


def preset_on_engine(choice: str, engine: Engine) -> Preset:
    """Return a preset by its name (empty: none) on an engine, with `dtype` "default"."""
    return replace(get_preset(choice) if choice else Preset(), dtype="default", engine=engine)


def lcm_preset(lora: str, base: Preset = TURBO, *, solver: Solver = "lcm", steps: int = 4) -> Preset:
    """Return `base` with a consistency LoRA (Luo et al. 2023): few steps, no guidance, no feature caching."""
    plain = replace(
        base, bundled_lora_steps=None, guidance_interval=(0.0, 1.0), deepcache_interval=1, split_cfg_batch=False
    )
    return replace(plain, lcm_lora=lora, solver=solver, steps=steps)


def default_dtype(preset: str | None, device: str = "auto") -> Dtype:
    """Return the data type of a preset on a device; float32 without a preset."""
    if not preset:
        return "float32"
    from blip_diffusion.devices import device_of

    dtype = resolve_dtype(get_preset(preset).dtype, device_of(device))
    return cast(Dtype, str(dtype).removeprefix("torch.")) if dtype is not None else "float32"


def resolve_dtype(choice: Precision, device: torch.device) -> torch.dtype | None:
    """Return the dtype of a precision on a device; `None` leaves weights as they are."""
    if choice == "default":
        return None
    import torch

    from blip_diffusion.devices import fastest_dtype

    if choice != "auto":
        dtype: torch.dtype = getattr(torch, choice)
        return dtype
    return fastest_dtype(device)


def build_scheduler(solver: Solver, scheduler: Scheduler) -> Scheduler:
    """Return another solver over the noise levels of `scheduler`."""
    import diffusers

    from blip_diffusion.diffusion.sampler import ddim_like

    match solver:
        case "ddim":
            return ddim_like(scheduler)
        case "dpm++":  # Lu et al. 2022: second order, multistep
            kind, options = diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}
        case "unipc":  # Zhao et al. 2023
            kind, options = diffusers.UniPCMultistepScheduler, {"solver_order": 2}
        case "lcm":
            return diffusers.LCMScheduler.from_config(scheduler.config)
        case _:
            return scheduler
    return kind.from_config(scheduler.config, **options, timestep_spacing="trailing", final_sigmas_type="zero")
