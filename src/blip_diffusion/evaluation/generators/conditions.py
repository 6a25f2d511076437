"""The conditions of a report: the one that is evaluated, and the baselines that its scores are compared with.

Baselines have one image per prompt, whatever the number of seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.generators import baselines
from blip_diffusion.evaluation.generators.cache import IMAGES, LogFn, generate_missing, silent
from blip_diffusion.evaluation.generators.model import ImageGenerator, ReconstructFn, reconstructed
from blip_diffusion.evaluation.instances import Instance, first_samples, with_next_prompt, with_other_subject

CONDITIONS = ("zero-shot", "tuned", "no-subject", "reference-copy", "other-instance", "ground-truth")
MODEL_CONDITIONS = ("zero-shot", "tuned", "no-subject")
"""Conditions whose images the model generates."""
VAE_RECONSTRUCTION = "vae-reconstruction"
OTHER_SUBJECT = "other-subject"
SHUFFLED_SUBJECTS, SHUFFLED_PROMPTS = "shuffled-subjects", "shuffled-prompts"
BASELINES = ("no-subject", "reference-copy", "other-instance", "ground-truth", VAE_RECONSTRUCTION)
DESCRIPTIONS = {
    "no-subject": "lower bound: the model with the prompt alone",
    "reference-copy": "lower bound: the reference image itself",
    "other-instance": "lower bound: another instance of the category",
    OTHER_SUBJECT: "lower bound: the ground truth of another subject of the benchmark",
    "ground-truth": "upper bound",
    VAE_RECONSTRUCTION: "upper bound of any generator with this autoencoder: the ground truth, encoded and decoded",
    SHUFFLED_SUBJECTS: "lower bound: the same images, compared with another subject",
    SHUFFLED_PROMPTS: "lower bound: the same images, compared with the next prompt",
}


@dataclass(frozen=True)
class ConditionResult:
    """The images of a condition, and the instance that each is scored against."""

    images: list[Path]
    instances: list[Instance]


@dataclass(frozen=True)
class GeneratorSet:
    """A model's generators by condition, its autoencoder, and the assets that MiniBench was made of."""

    by_condition: Mapping[str, ImageGenerator]
    reconstruct: ReconstructFn
    size: int
    world: AssetLibrary | None = None


@dataclass(frozen=True)
class ConditionRunner:
    """Generates the images of conditions, from a benchmark and generators, in an output folder."""

    bench: Bench
    generators: GeneratorSet
    out: Path
    batch_size: int = 16
    log: LogFn = silent

    def run(
        self, condition: str, instances: Sequence[Instance], *, baselines: Sequence[str] = BASELINES
    ) -> dict[str, ConditionResult]:
        """Return all conditions of a report by name, the evaluated one first. Missing images are generated.

        Raises:
            InputError: For other-instance, if no two subjects share a category.
        """
        results: dict[str, ConditionResult] = {}
        for name in dict.fromkeys([condition, *baselines]):
            selected = self._instances_of(name, instances if name == condition else first_samples(instances))
            if selected:
                results[name] = ConditionResult(self._images(name, selected), selected)
        if condition not in results:
            raise InputError("No two subjects of this benchmark share a category: choose another --condition.")
        first = results[condition]
        results[SHUFFLED_SUBJECTS] = ConditionResult(first.images, with_other_subject(first.instances, self.bench))
        results[SHUFFLED_PROMPTS] = ConditionResult(first.images, with_next_prompt(first.instances, self.bench))
        return results

    def _instances_of(self, name: str, instances: Sequence[Instance]) -> list[Instance]:
        """Return the instances of a condition. Photos have no reconstruction, and some subjects no other instance."""
        world = self.generators.world
        if name == "other-instance":
            return [one for one in instances if baselines.has_peer(world or self.bench, one.subject)]
        return [] if world is None and name in (VAE_RECONSTRUCTION, OTHER_SUBJECT) else list(instances)

    def _images(self, name: str, instances: Sequence[Instance]) -> list[Path]:
        if name == "reference-copy":
            return [baselines.reference_copy(instance) for instance in instances]
        if name == OTHER_SUBJECT:
            return self._images("ground-truth", with_other_subject(instances, self.bench, by_prompt=True))
        generator = self.generators.by_condition.get(name) or composite_generator(name, self.generators)
        if generator is None:
            return [_photo_finder(name, self.bench)(instance) for instance in instances]
        folder = self.out / IMAGES / name
        return generate_missing(generator, instances, folder, batch_size=self.batch_size, log=self.log)


def _photo_finder(name: str, bench: Bench) -> Callable[[Instance], Path]:
    return baselines.other_photo if name == "ground-truth" else baselines.photo_of_other_subject(bench)


def composite_generator(name: str, generators: GeneratorSet) -> ImageGenerator | None:
    """Return the generator of a composed baseline; `None` for a benchmark of photos."""
    if generators.world is None:
        return None
    truth = baselines.composite(generators.world, size=generators.size, other=name == "other-instance")
    return reconstructed(truth, generators.reconstruct) if name == VAE_RECONSTRUCTION else truth
