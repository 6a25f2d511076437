"""Metrics by their names on the command line, with the networks that they use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.features.clip import CLIP_IDS, Clip
from blip_diffusion.evaluation.features.dino import DINO_ID, Dino
from blip_diffusion.evaluation.features.dinov2_saliency import DinoV2Saliency
from blip_diffusion.evaluation.features.efficientnet import EfficientNetLite2
from blip_diffusion.evaluation.features.extractor import CachedFeatures
from blip_diffusion.evaluation.features.minilm import MiniLM
from blip_diffusion.evaluation.generators.conditions import BASELINES, GeneratorSet
from blip_diffusion.evaluation.metrics.attributes import AttributeMetric
from blip_diffusion.evaluation.metrics.memorization import FeatureFn
from blip_diffusion.evaluation.metrics.pixel_fidelity import detail_metric, has_plain_backgrounds, shape_metric
from blip_diffusion.evaluation.metrics.probe_data import ProbeSource, build_probe_data
from blip_diffusion.evaluation.metrics.similarity import (
    ClipTextSimilarity,
    DreamBoothSimilarity,
    Metric,
    SubjectSimilarity,
)

BUNDLED, PUBLISHED = ("focus", "lite2", "text"), ("dino", "clip-b32", "clip-l14")
"""Metrics with weights in Python packages, and metrics with weights of a hub id or folder: `dino=FOLDER`."""
PIXELS = ("shape", "detail")
"""Metrics without a network, for benchmarks with plain backgrounds."""
KNOWN = BUNDLED + PIXELS + PUBLISHED


@dataclass(frozen=True)
class MetricSuite:
    """Metrics, the main one of each kind first, and features of whole images for diversity and memorisation."""

    metrics: list[Metric]
    features: FeatureFn | None  # none of `shape` and `detail`

    @property
    def baselines(self) -> tuple[str, ...]:
        """The baselines of these metrics."""
        bounds = (name for metric in self.metrics if metric.info.kind == "subject" for name in metric.info.bounds)
        return tuple(dict.fromkeys([*BASELINES, *bounds]))


@dataclass
class MetricBuilder:
    """Builds metrics for a benchmark, the full benchmark that it is a part of, and the generators."""

    bench: Bench
    full_bench: Bench
    generators: GeneratorSet
    probe_images: int = 24
    batch_size: int = 16

    @cached_property
    def saliency(self) -> CachedFeatures:
        """Features of `focus`, which three metrics share."""
        return CachedFeatures(DinoV2Saliency(), batch_size=self.batch_size)

    def focus(self) -> Metric:
        """Build subject similarity by DINOv2."""
        return SubjectSimilarity("focus", self.saliency, self.bench, width=DinoV2Saliency.width)

    def lite2(self) -> Metric:
        """Build subject similarity by EfficientNet-Lite2."""
        saliency = self.saliency.extractor
        assert isinstance(saliency, DinoV2Saliency)
        features = CachedFeatures(EfficientNetLite2(saliency), batch_size=self.batch_size)
        return SubjectSimilarity("lite2", features, self.bench)

    def text(self) -> Metric:
        """Build prompt fidelity by probes. Raises `InputError` for a benchmark other than MiniBench."""
        generators = self.generators
        if generators.world is None:
            raise InputError("The metric text supports only MiniBench's prompts: use clip-b32 for another benchmark.")
        encoder = MiniLM()  # reports a missing package before the probe data are composed
        excluded = frozenset(subject.identity for subject in self.full_bench.subjects)
        source = ProbeSource(generators.world, excluded, generators.reconstruct, generators.size)
        data = build_probe_data(source, each=self.probe_images)
        saliency = self.saliency.extractor
        assert isinstance(saliency, DinoV2Saliency)
        return AttributeMetric(self.saliency, saliency, encoder, self.bench, data)

    def shape(self) -> Metric:
        """Build subject fidelity by masks. Raises `InputError` for backgrounds that aren't plain."""
        return shape_metric(self.bench, self._plain_assets("shape"))

    def detail(self) -> Metric:
        """Build subject fidelity by pixels. Raises `InputError` for backgrounds that aren't plain."""
        return detail_metric(self.bench, self._plain_assets("detail"))

    def _plain_assets(self, name: str) -> AssetLibrary:
        if self.generators.world is None or not has_plain_backgrounds(self.bench):
            raise InputError(f"The metric {name} needs plain backgrounds: use --benchmark drawings.")
        return self.generators.world

    def dino(self, source: str) -> tuple[list[Metric], FeatureFn]:
        """Build the DINO score."""
        features = CachedFeatures(Dino(source or DINO_ID), batch_size=self.batch_size)
        return [DreamBoothSimilarity("DINO", features, self.bench)], features

    def clip(self, kind: str, source: str) -> tuple[list[Metric], FeatureFn]:
        """Build CLIP-I and CLIP-T."""
        clip = Clip(source or CLIP_IDS[kind])
        features = CachedFeatures(clip, batch_size=self.batch_size)
        image = DreamBoothSimilarity(f"CLIP-I {kind}", features, self.bench)
        return [image, ClipTextSimilarity(f"CLIP-T {kind}", features, clip, self.bench)], features

    def whole_image_features(self) -> FeatureFn:
        """Return the features of `focus` that describe the subject and the rest of the image."""
        return lambda paths: self.saliency(paths)[:, : 2 * DinoV2Saliency.width]


def check_metric_names(names: Sequence[str]) -> None:
    """Raise `InputError` for an unknown metric, or for a source given to a metric that takes none."""
    for name, equals, _ in (name.partition("=") for name in names):
        if name not in KNOWN:
            raise InputError(f"There is no metric {name}: use some of {', '.join(KNOWN)}.")
        if equals and name not in PUBLISHED:
            raise InputError(f"The metric {name} takes no model: remove the part from = on.")


def build_metrics(names: Sequence[str], builder: MetricBuilder) -> MetricSuite:
    """Build metrics by their names, by default those that fit the benchmark."""
    names = names or default_metrics(builder.bench)
    bundled: dict[str, Callable[[], Metric]] = {
        "focus": builder.focus, "lite2": builder.lite2, "text": builder.text,
        "shape": builder.shape, "detail": builder.detail,
    }  # fmt: skip
    metrics: list[Metric] = []
    features = [builder.whole_image_features()] if any(name in BUNDLED for name in names) else []
    for name, _, source in (name.partition("=") for name in names):
        if name in bundled:
            metrics.append(bundled[name]())
            continue
        built, compared = builder.dino(source) if name == "dino" else builder.clip(name.removeprefix("clip-"), source)
        metrics.extend(built)
        features.append(compared)
    return MetricSuite(metrics, features[0] if features else None)


def default_metrics(bench: Bench) -> tuple[str, ...]:
    """Return the metrics that fit a benchmark."""
    if not bench.world:
        return PUBLISHED[:2]
    return PIXELS if has_plain_backgrounds(bench) else BUNDLED
