"""Consistency distillation of the subject model (Luo et al. 2023): images in two to four steps, unguided.

The student's prediction for a noised image is trained to equal its prediction for the same image one level cleaner. The
teacher, the frozen model with guidance, takes the step between the levels, so guidance becomes part of the student. The
student is the whole U-Net, or a LoRA on it (arXiv:2311.05556), which is saved in the model's folder. With few updates,
`trajectory_distillation` trains every level on the end of the teacher's path, which costs more per step.
"""

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import LCMScheduler
from torch import Tensor

from blip_diffusion.checkpoint.diffusers_export import save_lora
from blip_diffusion.checkpoint.lora import ALL_UNET_LAYERS
from blip_diffusion.checkpoint.model_folder import CONSISTENCY_LORA, save_model
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.diffusion.forward_process import Noising
from blip_diffusion.diffusion.guidance import Denoiser, guided, unet_denoiser
from blip_diffusion.diffusion.sampler import ddim_like
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.protocols import Scheduler
from blip_diffusion.sampling import sample_images
from blip_diffusion.training.lora import add_lora, load_lora, lora_state
from blip_diffusion.training.objective import Losses, Objective, ParameterGroup, StepContext

SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0
"""Constants of the boundary condition, as in `LCMScheduler`, which samples from the student."""


@dataclass(frozen=True)
class ConsistencyConfig:
    """The teacher's guidance and solver, the student's size, and the loss."""

    guidance_scale: float = 3.0  # of the teacher
    guidance_rescale: float = 0.6  # of the teacher, in [0, 1]
    num_levels: int = 50  # noise levels from pure noise to the clean image
    solver_steps: int = 1  # DDIM steps of the teacher between adjacent levels
    trajectory_distillation: bool = False  # train on the end of the teacher's path instead of the next level
    steps: int = 4  # sampling steps during training and by default of an exported whole model
    lora: bool = False  # train a LoRA instead of the whole U-Net
    rank: int = 64
    init_from: Path | None = None  # LoRA file to continue from, of the same rank and layers; None: a new LoRA
    layers: tuple[str, ...] = ALL_UNET_LAYERS  # layers with a LoRA, by the ends of their names
    huber_c: float = 1e-3  # c / √dim of the pseudo-Huber loss

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= self.num_levels:
            raise ConfigError(f"steps is {self.steps}: use 1 to {self.num_levels}, which is num_levels.")
        if self.solver_steps < 1:
            raise ConfigError(f"solver_steps is {self.solver_steps}: use 1 or more.")
        if self.rank < 1:
            raise ConfigError(f"rank is {self.rank}: use 1 or more, 64 is usual.")
        if self.init_from is not None and not self.lora:
            raise ConfigError("consistency.init_from is a LoRA file: set consistency.lora to true, or remove it.")
        if not self.huber_c > 0:
            raise ConfigError(f"huber_c is {self.huber_c}: use a positive number.")


class Consistency(Objective):
    """Distil the U-Net, or a LoRA on it, into a consistency model; a frozen copy is the teacher.

    The student is trained so that f(x_t, t) = f(x_s, s) for adjacent noise levels t > s on the teacher's guided DDIM
    path (Luo et al. 2023, algorithm 1), or with `trajectory_distillation` so that f(x_t, t) is the end of that path.
    The loss is pseudo-Huber, √(|Δ|² + c²) - c with c = huber_c · √dim (Song & Dhariwal 2023, section 3.3).

    Args:
        model: The whole trained model.
        noising: The forward process; `num_levels` divides its number of timesteps.
        config: Guidance, solver, size and loss.

    Raises:
        ConfigError: If `num_levels` or `solver_steps` do not fit the timesteps.
        CheckpointError: If the LoRA of `init_from` can't be read, or has another rank or other layers.
    """

    def __init__(self, model: BlipDiffusion, noising: Noising, config: ConsistencyConfig) -> None:
        super().__init__()
        if noising.timesteps % config.num_levels:
            raise ConfigError(
                f"num_levels is {config.num_levels}: use a number that divides the {noising.timesteps} timesteps."
            )
        if config.solver_steps > noising.timesteps // config.num_levels:
            raise ConfigError(
                f"solver_steps is {config.solver_steps}: between two levels of the grid lie "
                f"{noising.timesteps // config.num_levels} timesteps."
            )
        self.teacher = copy.deepcopy(model.unet).requires_grad_(False).eval()
        self._trainable = (
            add_lora(model.unet, config.rank, config.layers) if config.lora else [*model.unet.parameters()]
        )
        if config.init_from is not None:
            load_lora(model.unet, config.init_from)
        self.model = model
        self.noising = noising
        self.config = config
        self._teacher_settings = model.scheduler, model.inference
        model.scheduler = ddim_like(model.scheduler) if config.lora else self._lcm_scheduler(model.scheduler)
        model.inference = replace(
            model.inference, num_inference_steps=config.steps, guidance_scale=1.0, guidance_rescale=0.0
        )

    def _lcm_scheduler(self, scheduler: Scheduler) -> LCMScheduler:
        """Return the scheduler of the whole student, which adds new noise in each step."""
        return LCMScheduler.from_config(
            scheduler.config, original_inference_steps=self.config.num_levels, timestep_scaling=TIMESTEP_SCALING
        )

    def train(self, mode: bool = True) -> "Consistency":
        """Put only the U-Net into training mode; its conditions are computed as in sampling, without dropout."""
        super().train(mode)
        self.model.eval()
        self.model.unet.train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: SubjectBatch, context: StepContext) -> Losses:
        """Return the loss of the student's predictions."""
        with torch.no_grad():
            tokens = self.model.subject_tokens(batch["reference"], batch["category"])
            states = self.model.text_states(batch["caption"], tokens, batch["frames"])
            empty = self.model.text_states([""])
        if self.config.trajectory_distillation:
            noise = torch.randn(self.latent_shape(len(states)), generator=context.rng, device=context.rng.device)
            return self.trajectory_losses(states, empty, noise)
        return self._losses(*self._one_level(batch["target"], states, empty, context.rng))

    def trajectory_losses(self, states: Tensor, empty: Tensor, noise: Tensor) -> Losses:
        """Return the losses at each level of the teacher's paths.

        Args:
            states: (B, L, D) text states.
            empty: (1, L, D) text states of the empty prompt.
            noise: (B, C, h, w) normal noise.
        """
        with torch.no_grad():
            *path, end = self._path(self.noise_scale * noise, self._teach(states, empty))
        times = self._levels(noise.device)[:-1].repeat_interleave(len(states))
        prediction = self._consistency_function(torch.cat(path), times, states.repeat(len(path), 1, 1))
        return self._losses(prediction, end.repeat(len(path), 1, 1, 1))

    @torch.no_grad()
    def first_answer(self, states: Tensor, empty: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the student's prediction from pure noise, and the end of the teacher's path from there."""
        start, *_, end = self._path(self.noise_scale * noise, self._teach(states, empty))
        return self._consistency_function(start, self._levels(noise.device)[:1].expand(len(noise)), states), end

    def _losses(self, prediction: Tensor, target: Tensor) -> Losses:
        """Return the pseudo-Huber loss (Song & Dhariwal 2023, equation 8)."""
        error = (prediction - target).flatten(1).square().sum(dim=1)
        scale = self.config.huber_c * prediction[0].numel() ** 0.5
        loss = ((error + scale**2).sqrt() - scale).mean()
        return {"consistency": loss, "loss": loss}

    @property
    def noise_scale(self) -> float:
        """Scale of the initial noise; an LCM scheduler adds noise of full strength in each step, so there it is 1."""
        return self.model.inference.noise_scale if self.config.lora else 1.0

    def latent_shape(self, size: int) -> torch.Size:
        """Return the shape of `size` latents."""
        unet = self.model.unet.config
        return torch.Size((size, unet.out_channels, unet.sample_size, unet.sample_size))

    def _one_level(self, pixels: Tensor, states: Tensor, empty: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return f(x_t, t) of the student, and f(x_s, s) for the teacher's x_s one level cleaner."""
        with torch.no_grad():
            latents = self.model.latents.encode(pixels).float()
            later, earlier = self._timesteps(len(latents), rng)
            noise = self.noise_scale * torch.randn(latents.shape, generator=rng, device=rng.device)
            noised = self.noising.noised(latents, noise, later)
        # first the pass with gradients: autocast of torch < 2.10 reuses casts made without
        prediction = self._consistency_function(noised, later, states)
        with torch.no_grad():
            solved = self._solved(noised, later, earlier, self._teach(states, empty))
            return prediction, self._consistency_function(solved, earlier, states)

    def _levels(self, device: torch.device) -> Tensor:
        """Return timesteps (num_levels + 1,) from pure noise down to the clean image, those of `LCMScheduler`."""
        stride = self.noising.timesteps // self.config.num_levels
        return (torch.arange(self.config.num_levels, -1, -1, device=device) * stride - 1).clamp(min=0)

    def _path(self, noise: Tensor, teach: Denoiser) -> list[Tensor]:
        """Return the teacher's latents at each level, from noise on."""
        path, levels = [noise], self._levels(noise.device)
        for later, earlier in itertools.pairwise(levels):
            path.append(self._solved(path[-1], later.expand(len(noise)), earlier.expand(len(noise)), teach))
        return path

    def _timesteps(self, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sample a level other than the clean one for each image; return it and the next cleaner one."""
        levels = self._levels(rng.device)
        index = torch.randint(0, self.config.num_levels, (size,), generator=rng, device=rng.device)
        return levels[index], levels[index + 1]

    def _teach(self, states: Tensor, empty: Tensor) -> Denoiser:
        """Return the guided teacher for one timestep per sample."""
        both = unet_denoiser(self.teacher, torch.cat([empty.expand(len(states), -1, -1), states]))
        return guided(
            lambda x, t: both(x, t.repeat(2)), self.config.guidance_scale, rescale=self.config.guidance_rescale
        )

    def _solved(self, noised: Tensor, later: Tensor, earlier: Tensor, teach: Denoiser) -> Tensor:
        """Solve from `later` to `earlier` by DDIM (Song et al. 2021, equation 12) with the teacher."""
        for step in range(self.config.solver_steps):
            now, then = (later + (earlier - later) * done // self.config.solver_steps for done in (step, step + 1))
            clean = self.noising.predict_x0(noised, teach(noised, now).float(), now)
            noised = self.noising.noised(clean, self.noising.noise(noised, clean, now), then)
        return noised

    def _consistency_function(self, noised: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """Return f(x, t) = c_skip(t) x + c_out(t) x̂_0(x, t) (Song et al. 2023, equation 5); f(x, 0) = x."""
        output = self.model.denoiser(states)(noised, timesteps).float()
        scaled = timesteps.view(-1, 1, 1, 1) * TIMESTEP_SCALING
        skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        out = scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5
        return skip * noised + out * self.noising.predict_x0(noised, output, timesteps)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the trainable parameters of the U-Net."""
        return [ParameterGroup("unet", self._trainable, 1.0)]

    def sample_images(self, batch: SubjectBatch) -> list[Tensor]:
        """Return references, targets and the student's samples in a few steps, all from the same noise."""
        tokens = self.model.subject_tokens(batch["reference"], batch["category"])
        states = self.model.text_states(batch["caption"], tokens, batch["frames"])
        return [batch["reference"], batch["target"], sample_images(self.model, states, [0] * len(states))]

    def export(self, folder: Path) -> None:
        """Write the model with few-step defaults, or the unchanged model and the LoRA."""
        if not self.config.lora:
            save_model(self.model, folder)
            return
        with self._with_teacher_settings():
            save_model(self.model, folder)
        save_lora(folder / CONSISTENCY_LORA, lora_state(self.model.unet), {}, rank=self.config.rank)

    @contextmanager
    def _with_teacher_settings(self) -> Iterator[None]:
        student = self.model.scheduler, self.model.inference
        self.model.scheduler, self.model.inference = self._teacher_settings
        try:
            yield
        finally:
            self.model.scheduler, self.model.inference = student
