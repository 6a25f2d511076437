"""How fast, at what price: the choices, one by one, and three named sets of them.

    exact   the same sampling; only the arithmetic is done faster, within the error of bfloat16
    fast    a better solver in ten steps, deep features of one step in three used again
    turbo   two steps with the model's own consistency LoRA, as `mini` has one; else previews: four, half of them guided

What each costs in quality and what it gains is measured in docs/log/performance.md. Under a ControlNet the U-Net is run
whole, by torch, in one pass a step: OpenVINO, `passes` and `reuse_every` don't touch it.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from blip_diffusion.devices import fastest_dtype
from blip_diffusion.diffusion.sampler import one_way
from blip_diffusion.errors import InputError

Precision = Literal["own", "auto", "float32", "bfloat16", "float16"]
Engine = Literal["torch", "compiled", "openvino"]
Solver = Literal["own", "ddim", "dpm++", "unipc", "lcm"]


@dataclass(frozen=True)
class Preset:
    """The defaults change nothing."""

    dtype: Precision = "own"
    """`auto` is bfloat16 on processors that compute in it, float16 on GPUs that don't, else float32."""
    channels_last: bool = False
    """For the VAE and the image encoder, which are convolutions; the U-Net gains nothing by it."""
    engine: Engine = "torch"
    """`compiled` is for GPUs: the U-Net, where no features of it are used again. `openvino` is for CPUs: the U-Net and
    the decoder."""
    passes: Literal[1, 2] = 1
    """Guidance's two answers in one batch, or one after the other in half the memory."""
    solver: Solver = "own"
    """`own` is the model's scheduler; the others take its noise levels over."""
    steps: int | None = None
    """Where the caller names no number: what the solver needs, at most the model's own number; `None` is its own."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """The shares of the steps between which there is guidance; outside, each step costs half."""
    reuse_every: int = 1
    """Deep features of the U-Net are computed in one step out of so many."""
    reuse_layers: int = 1
    """How many of its outermost layers are computed in every step."""
    lcm_lora: str | None = None
    """A latent consistency LoRA: a file, a folder, or a hub id. It brings its own guidance, and wants `solver` to be
    "lcm", which puts new noise back at each step, or "ddim", which keeps to one way from noise to picture."""
    own_lora_steps: int | None = None
    """Draw in so many with the consistency LoRA that the model's folder brings along, if it does: see `with_lora`. What
    is said here of solver, steps, guidance and features is for other models then."""
    tiny_vae: str | None = None
    """A folder or hub id of an `AutoencoderTiny` to decode with, such as `madebyollin/taesd`."""

    def __post_init__(self) -> None:
        start, end = self.guidance_interval
        if not 0 <= start <= end <= 1:
            raise InputError(f"guidance_interval is {self.guidance_interval}: use two shares from 0 to 1, in order.")
        for name in ("steps", "own_lora_steps"):
            if (steps := getattr(self, name)) is not None and steps < 1:
                raise InputError(f"{name} is {steps}: use 1 or more.")
        if self.reuse_every < 1 or self.reuse_layers < 1:
            raise InputError(f"reuse_every is {self.reuse_every}, reuse_layers {self.reuse_layers}: use 1 or more.")
        if self.solver == "lcm" and self.lcm_lora is None:
            raise InputError('solver is "lcm", and lcm_lora is not given: lcm wants a LoRA.')
        if self.lcm_lora is not None and self.solver not in ("lcm", "ddim"):
            raise InputError(f"solver is {self.solver!r}, and lcm_lora is given: a LoRA wants lcm or ddim.")

    @property
    def guides(self) -> bool:
        """Whether guidance is a second pass; what is distilled for few steps has it inside."""
        return self.lcm_lora is None

    def steps_of(self, own: int) -> int:
        """Of a model that takes `own` steps itself."""
        return own if self.steps is None else min(self.steps, own)


EXACT = Preset(dtype="auto", channels_last=True)
FAST = replace(EXACT, solver="dpm++", steps=10, reuse_every=3, passes=2)
TURBO = replace(FAST, steps=4, guidance_interval=(0.0, 0.5), own_lora_steps=2)
PRESETS = {"exact": EXACT, "fast": FAST, "turbo": TURBO}


def named(choice: str | Preset) -> Preset:
    """A preset by its name, or itself."""
    if isinstance(choice, Preset):
        return choice
    if choice not in PRESETS:
        raise InputError(f"There is no preset {choice!r}: use exact, fast or turbo.")
    return PRESETS[choice]


def ordered(choice: str, engine: Engine) -> Preset:
    """A preset by its name, or where that is empty none, on an engine; whoever orders it names the precision too."""
    return replace(named(choice) if choice else Preset(), dtype="own", engine=engine)


def with_lora(lora: str, base: Preset = TURBO, *, solver: Solver = "lcm", steps: int = 4) -> Preset:
    """Few steps by a consistency LoRA (Luo et al. 2023): guidance is in it, and steps have less in common."""
    plain = replace(base, own_lora_steps=None, guidance_interval=(0.0, 1.0), reuse_every=1, passes=1)
    return replace(plain, lcm_lora=lora, solver=solver, steps=steps)


def precision(choice: Precision, device: torch.device) -> torch.dtype | None:
    """The dtype to compute in; none to leave it as it is."""
    if choice == "own":
        return None
    if choice != "auto":
        dtype: torch.dtype = getattr(torch, choice)
        return dtype
    return fastest_dtype(device)


def solver(choice: Solver, scheduler: Any) -> Any:
    """Another solver over the noise levels of a model's own scheduler."""
    import diffusers

    match choice:
        case "ddim":
            return one_way(scheduler)
        case "dpm++":  # Lu et al. 2022: second order, multistep
            kind, more = diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}
        case "unipc":  # Zhao et al. 2023
            kind, more = diffusers.UniPCMultistepScheduler, {"solver_order": 2}
        case "lcm":
            return diffusers.LCMScheduler.from_config(scheduler.config)
        case _:
            return scheduler
    return kind.from_config(scheduler.config, **more, timestep_spacing="trailing", final_sigmas_type="zero")
