"""An order of pictures, from whichever interface it comes: checked, drawn, and written with all that makes it again."""

import base64
import dataclasses
import hashlib
import io
import itertools
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from blip_diffusion import __version__, images
from blip_diffusion.annotators import annotate
from blip_diffusion.checkpoint.model_folder import load_controlnet
from blip_diffusion.devices import device_of
from blip_diffusion.errors import InputError
from blip_diffusion.fileio import check_writable, path_exists
from blip_diffusion.generation.subject_refs import SubjectOrder, load_subjects
from blip_diffusion.pipelines.presets import Engine, named, ordered, precision

METADATA = "blip-diffusion"
"""The PNG text chunk that holds an order as JSON."""
MAX_COUNT, MAX_STEPS = 1000, 1000
AT_ONCE = 8
"""Pictures in one batch: memory grows with it, and an interrupt loses what is in it."""
Dtype = Literal["float32", "bfloat16", "float16"]

NETS = {
    **{kind: f"lllyasviel/sd-controlnet-{kind}" for kind in ("canny", "depth", "hed", "openpose")},
    "normal": "lllyasviel/control_v11p_sd15_normalbae",  # sd-controlnet-normal knows MiDaS' normals, not NormalBae's
}
"""The ControlNets that go with Stable Diffusion 1.5, by what they look at: what `annotators` draws."""
OWN = ("canny", "map")
"""What a model's own ControlNet looks at: the published one's is for Canny edges."""


@dataclass(frozen=True)
class ControlOrder:
    """What a ControlNet shall look at, and which one."""

    kind: str  # see `annotators.KINDS`
    picture: bytes  # a PNG: the control map, drawn already
    scale: float = 1.0
    net: str = ""  # a folder, file or hub id; empty: the model's own for what is in `OWN`, else that in `NETS`

    def __post_init__(self) -> None:
        if not isfinite(self.scale):
            raise InputError(f"The scale of --control {self.kind} is {self.scale}: use a number, 1 is usual.")


@dataclass(frozen=True)
class Order:
    """What to draw. `None` leaves a thing to the model."""

    prompts: tuple[str, ...]
    reference: bytes  # a PNG; of tuned subjects, only for people to look at
    category: str
    target_category: str
    model: str = "mini"
    count: int = 1
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    negative: str = ""
    width: int | None = None
    height: int | None = None
    controls: tuple[ControlOrder, ...] = ()
    subjects: tuple[SubjectOrder, ...] = ()  # tuned ones, which then stand for the reference
    fit: images.Fit = "crop"
    dtype: Dtype = "float32"
    preset: str = ""
    engine: Engine = "torch"

    def __post_init__(self) -> None:
        if self.preset:
            named(self.preset)
        if not self.prompts or any(not prompt.strip() for prompt in self.prompts):
            raise InputError("The prompt is empty: say where the subject shall be, for example on the beach.")
        if not self.category.strip() or not self.target_category.strip():
            raise InputError("The category is empty: say what the subject is, for example dog.")
        for name, value, highest in (("count", self.count, MAX_COUNT), ("steps", self.steps, MAX_STEPS)):
            if value is not None and not 1 <= value <= highest:
                raise InputError(f"--{name} is {value}: use a number from 1 to {highest}.")
        if self.seed < 0 or self.seed + self.count > 2**63:
            raise InputError(f"--seed is {self.seed}: use a number from 0 to 2^63.")
        if self.guidance is not None and not 0 <= self.guidance <= 100:
            raise InputError(f"--guidance is {self.guidance}: use a number from 0 to 100.")


def reference_bytes(path: Path) -> bytes:
    """A reference as an order keeps it: upright RGB, its short side at most 512 pixels."""
    return images.png_bytes(_at_most(images.open_picture(path), 512))


def dtype_of(preset: str | None, device: str = "auto") -> Dtype:
    """The precision that an order with a preset, or with none, computes in on a device."""
    chosen = precision(named(preset).dtype, device_of(device)) if preset else None
    return cast(Dtype, str(chosen or torch.float32).removeprefix("torch."))


def control_order(kind: str, path: Path, scale: float = 1.0, net: str = "") -> ControlOrder:
    """A control of a picture file, whose map is drawn here and now: an order holds all that is needed."""
    return ControlOrder(kind, images.png_bytes(annotate(_at_most(images.open_picture(path), 1024), kind)), scale, net)


def _at_most(picture: Image.Image, side: int) -> Image.Image:
    """Its short side no longer than that."""
    scale = min(1.0, side / min(picture.size))
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)


def draw(order: Order, out: Path, *, device: str = "auto", sheet: Path | None = None) -> list[Path]:
    """Draws an order into a folder and answers the files. Nothing is written before all is known to be drawable.

    A file that is there already is written anew where the same order made it; any other is left alone.
    """
    check_writable(out)
    if sheet is not None:
        _check_sheet(sheet)
    pipe = _pipeline(order, device)
    control = _control_arguments(order.controls, [_net(control, pipe) for control in order.controls])
    reference = images.open_picture(io.BytesIO(order.reference))
    if order.subjects:
        subject = load_subjects(pipe, order.subjects)
    else:
        subject = pipe.encode_subject(reference, order.category, reference_fit=order.fit)
    wanted = [(prompt, order.seed + copy) for prompt in order.prompts for copy in range(order.count)]
    pictures: list[Image.Image] = []
    paths: list[Path] = []
    for start in range(0, len(wanted), AT_ONCE):
        some = wanted[start : start + AT_ONCE]
        what = f"{start + 1} to {start + len(some)} of {len(wanted)}" if len(wanted) > AT_ONCE else None
        pipe.set_progress_bar_config(disable=None, desc=what)  # a bar is for a terminal
        drawn = _drawn(pipe, order, some, subject, control)
        paths += _write(order, drawn, some, out, taken=set(paths))
        pictures += drawn if sheet is not None else []
    if sheet is not None:
        metadata = _metadata(order)
        path = _free(sheet, metadata, taken=set(paths))
        _save(_page(reference, pictures, order), path, metadata, flag="--sheet")
        paths.append(path)
    return paths


def _check_sheet(path: Path) -> None:
    """Before anything is drawn, not after it."""
    check_writable(path.parent, flag="--sheet")
    if path.suffix.lower() != ".png" or path.is_dir():
        raise InputError(f"--sheet {path} should be a file that ends in .png, as page.png.")
    if path.exists() and _metadata_of(path) is None:
        raise InputError(f"--sheet {path} is there already, and something else made it: choose another name.")


def _pipeline(order: Order, device: str) -> Any:
    from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

    place = device_of(device)
    pipe = BlipDiffusionPipeline.from_pretrained(order.model, torch_dtype=getattr(torch, order.dtype)).to(place)
    pipe.set_preset(ordered(order.preset, order.engine))
    return pipe


def _drawn(
    pipe: Any, order: Order, wanted: list[tuple[str, int]], subject: Tensor, control: dict[str, Any]
) -> list[Image.Image]:
    """One picture for each prompt and seed, all at once."""
    pictures: list[Image.Image] = pipe(
        [prompt for prompt, _ in wanted],
        target_subject_category=order.target_category,
        subject_embeds=subject,
        negative_prompt=order.negative,
        height=order.height,
        width=order.width,
        num_inference_steps=order.steps,
        guidance_scale=order.guidance,
        generator=[torch.Generator().manual_seed(seed) for _, seed in wanted],
        **control,
    ).images
    return pictures


def _net(control: ControlOrder, pipe: Any) -> Any:
    """The ControlNet of a control; nothing is fetched that could not fit."""
    if not control.net and pipe.controlnet is not None and control.kind in OWN:
        return pipe.controlnet
    if not control.net and (pipe.unet.config.cross_attention_dim != 768 or control.kind not in NETS):
        raise InputError(f"There is no ControlNet for {control.kind} and this model: name one with --controlnet.")
    dtype = pipe.unet.dtype
    return load_controlnet(control.net or NETS[control.kind], dtype=dtype).to(pipe.device)


def _control_arguments(controls: tuple[ControlOrder, ...], nets: list[Any]) -> dict[str, Any]:
    if not controls:
        return {}
    pictures = [images.open_picture(io.BytesIO(control.picture)) for control in controls]
    single = len(controls) == 1
    return {
        "image": pictures[0] if single else pictures,
        "controlnet": nets[0] if single else nets,
        "controlnet_conditioning_scale": [control.scale for control in controls],
    }


def order_of(path: Path, *, model: str | None = None, nets: Mapping[str, str] = MappingProxyType({})) -> Order:
    """The order of one picture that `draw` wrote, or of a page, on request for another model, or other nets.

    The file may be a stranger's: every value is held to its type, every picture to the checks of any other, and
    nothing is fetched on its word alone. Raises `InputError` for what isn't at hand, and without an order.
    """
    from blip_diffusion import config  # which nothing else here needs

    try:
        with Image.open(path) as picture:
            table = json.loads(picture.info[METADATA])
        names = {field.name for field in dataclasses.fields(Order)}
        known = {name: value for name, value in table.items() if name in names}
        known |= {"reference": _embedded(table["reference"])}
        if "prompt" in table:  # else it is a page, which has the whole order
            known |= {"prompts": [table["prompt"]], "count": 1}
        known["controls"] = [{**one, "picture": _embedded(one["picture"])} for one in table.get("controls", ())]
        known["subjects"] = [{**one, "picture": b""} for one in table.get("subjects", ())]
        if "size" in table:  # what version 0.1 wrote
            known |= {"width": table["size"], "height": table["size"]}
        order, version = config.build(Order, known), str(table.get("version"))[:20]
    except FileNotFoundError as error:
        raise InputError(f"There is no picture at {path}: check the path.") from error
    except Exception as error:  # on a damaged file, Pillow raises whatever it trips over
        raise InputError(f"{path} does not tell how it was made: only pictures of blip-diffusion do.") from error
    if version != __version__:
        warnings.warn(
            f"{path} was drawn by version {version} of blip-diffusion, this is {__version__}: presets and mini may "
            "have changed since, and the picture with them.",
            stacklevel=2,
        )
    return _at_hand(order, model, nets)


def _at_hand(order: Order, model: str | None, nets: Mapping[str, str]) -> Order:
    """An order with what the caller names in place of its own; what it names itself must be here, or be known."""
    if model is None and order.model != "mini" and not path_exists(Path(order.model), Path.is_dir):
        raise InputError(
            f"The picture was drawn by {order.model!r}, which isn't here: say --model {order.model!r} to fetch it, or "
            "where it is now."
        )
    for control in order.controls:
        known = control.kind in nets or control.net in ("", *NETS.values())
        if not known and not path_exists(Path(control.net)):
            raise InputError(
                f"The picture was drawn with the ControlNet {control.net!r}, which isn't here: say --controlnet "
                f"{control.kind}={control.net!r} to fetch it, or where it is now."
            )
    for idle in nets.keys() - {control.kind for control in order.controls}:
        raise InputError(f"--controlnet {idle} has nothing to look at: the picture was drawn without --control {idle}.")
    controls = tuple(dataclasses.replace(one, net=nets.get(one.kind, one.net)) for one in order.controls)
    return dataclasses.replace(order, model=model or order.model, controls=controls)


def _embedded(text: str) -> bytes:
    """The bytes of a picture within a picture's order, once they have proved to be one."""
    png = base64.b64decode(text)
    images.open_picture(io.BytesIO(png))
    return png


def _write(
    order: Order, pictures: list[Image.Image], wanted: list[tuple[str, int]], out: Path, taken: set[Path]
) -> list[Path]:
    """A file a picture, none of which is one of `taken`."""
    paths: list[Path] = []
    for picture, (prompt, seed) in zip(pictures, wanted, strict=True):
        metadata = _metadata(order, prompt=prompt, seed=seed, count=1)
        path = _free(out / f"{_slug(prompt)}-{seed}.png", metadata, taken.union(paths))
        _save(picture, path, metadata)
        paths.append(path)
    return paths


def _free(path: Path, metadata: str, taken: set[Path]) -> Path:
    """`path`, or it with _2, _3 … at its end: the first that no picture of another order has."""
    others = (path.with_stem(f"{path.stem}_{number}") for number in itertools.count(2))
    return next(
        place
        for place in itertools.chain([path], others)
        if place not in taken and (not place.exists() or _metadata_of(place) == metadata)
    )


def _metadata_of(path: Path) -> str | None:
    """What a file that is there says of its order, if anything."""
    try:
        with Image.open(path) as picture:
            return cast(str | None, picture.info.get(METADATA))
    except Exception:  # on a damaged file, Pillow raises whatever it trips over
        return None


def _metadata(order: Order, **own: Any) -> str:
    """All that makes an order's pictures again, as JSON; with what is its own, one of them."""
    table = dataclasses.asdict(order) | {"version": __version__}
    table["reference"] = base64.b64encode(order.reference).decode()
    table["controls"] = [{**one, "picture": base64.b64encode(one["picture"]).decode()} for one in table["controls"]]
    table["subjects"] = [{name: value for name, value in one.items() if name != "picture"} for one in table["subjects"]]
    table["reference_sha256"] = hashlib.sha256(order.reference).hexdigest()
    if own:
        del table["prompts"]
    return json.dumps(table | own, sort_keys=True)


def _save(picture: Image.Image, path: Path, metadata: str, *, flag: str = "--out") -> None:
    information = PngImagePlugin.PngInfo()
    information.add_text(METADATA, metadata)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, "PNG", pnginfo=information)
    except OSError as error:
        raise InputError(f"{path} can't be written ({error.strerror or error}): choose another {flag}.") from error


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48] or "picture"


def _page(reference: Image.Image, pictures: list[Image.Image], order: Order) -> Image.Image:
    """The reference at the left, a column a prompt, a row a seed."""
    first = ImageOps.pad(images.as_rgb(reference), pictures[0].size, color="white")
    if pictures[0].width == pictures[0].height:
        first = images.fit_square(images.as_rgb(reference), pictures[0].width, order.fit)
    blank = Image.new("RGB", first.size, "white")
    rows = []
    for copy in range(order.count):
        rows += [first if copy == 0 else blank, *pictures[copy :: order.count]]
    return images.grid(rows, len(order.prompts) + 1)
