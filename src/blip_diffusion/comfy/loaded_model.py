"""The model that nodes share: find model folders, and load in the precision of a request."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from blip_diffusion.generation.run import load_pipeline
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import Dtype, Engine, default_dtype
from blip_diffusion.strict_json import parse_json

AUTO = "auto"


@dataclass
class LoadedModel:
    """A model on a device. It is loaded again when a preset needs another precision.

    Args:
        name: "mini", a folder, or a hub id.
        device: See `devices.device_of`.
        precision: "float32", "bfloat16" or "float16". "auto": that of the preset on this device.
        engine: Backend that runs the networks.

    Example:
        >>> model = LoadedModel("mini")
        >>> model.pipe(model.dtype_of("fast"))
    """

    name: str
    device: str = AUTO
    precision: str = AUTO
    engine: Engine = "torch"
    _loaded: dict[Dtype, BlipDiffusionPipeline] = field(default_factory=dict, repr=False)

    def dtype_of(self, preset: str) -> Dtype:
        """Return the precision of all weights under a preset, or under none."""
        return default_dtype(preset, self.device) if self.precision == AUTO else self.precision  # type: ignore[return-value]

    def pipe(self, dtype: Dtype) -> BlipDiffusionPipeline:
        """Return the pipeline in a precision. Raises `CheckpointError` if the model is missing or damaged."""
        if dtype not in self._loaded:
            self._loaded.clear()  # keep only one in memory
            self._loaded[dtype] = load_pipeline(self.name, dtype, self.device)
        return self._loaded[dtype]

    def any_pipe(self) -> BlipDiffusionPipeline:
        """Return the loaded pipeline in its current precision, or load it."""
        return next(iter(self._loaded.values()), None) or self.pipe(self.dtype_of(""))


def find_models(folders: Iterable[Path]) -> dict[str, Path]:
    """Return the model folders inside `folders`, by name; the first of equal names is used."""
    models: dict[str, Path] = {}
    for folder in folders:
        for index in sorted(folder.glob("*/model_index.json")):
            if _is_blip_diffusion(index):
                models.setdefault(index.parent.name, index.parent)
    return models


def _is_blip_diffusion(index: Path) -> bool:
    try:
        table = parse_json(index.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(table, dict) and table.get("_class_name") == BlipDiffusionPipeline.__name__
