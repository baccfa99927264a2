"""Pretrained towers by name or path, whatever their format, into our parameter trees.

A format is known by the names of its tensors (docs/weights.md). No pickle is opened.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmseg_jax.errors import UserError
from lmseg_jax.pretrained import (
    clip,
    clip_names,
    converted,
    imagenet_names,
    mapping,
    safetensors_file,
    sources,
)
from lmseg_jax.pretrained.mapping import Rule, Tree


@dataclass(frozen=True)
class Format:
    """How one kind of file names its tensors.

    Attributes:
      words: what the kind is called in messages.
      known_by: two names that every such file has, of its image and of its text tower; "" = none.
      backbone: what `model.backbone` its image tower fits.
      image, text: tables to `ClipResNet` or `ResNet`, and to `TextEncoder`.
      image_names, text_names: regular expressions of all names of a tower.
      not_read: regular expressions of names that are left out, each with the reason.
      blocks: regular expression of a block's names; its groups are stage and number.
      first_stage: number of the first stage in those names.
      width: tensor whose first axis is the width of the stem.
    """

    words: str
    known_by: tuple[str, str]
    backbone: str
    image: Sequence[Rule]
    image_names: str
    not_read: Mapping[str, str]
    blocks: str
    first_stage: int
    width: str
    text: Sequence[Rule] = ()
    text_names: str = r"(?!)"


FORMATS = {
    "open_clip": Format(
        words="CLIP under OpenAI's names",
        known_by=("visual.conv3.weight", "text_projection"),
        backbone="clip_resnet",
        image=clip_names.IMAGE,
        image_names=clip_names.VISUAL,
        not_read=clip_names.NOT_READ,
        blocks=r"visual\.layer(\d)\.(\d+)\..*",
        first_stage=1,
        width="visual.conv3.weight",
        text=clip_names.TEXT,
        text_names=clip_names.TEXTUAL,
    ),
    "timm_clip": Format(
        words="timm's image tower of CLIP",
        known_by=("stem.conv3.conv.weight", ""),
        backbone="clip_resnet",
        image=clip_names.TIMM,
        image_names=r"(stem|stages)\..*",
        not_read=clip_names.TIMM_NOT_READ,
        blocks=r"stages\.(\d)\.(\d+)\..*",
        first_stage=0,
        width="stem.conv3.conv.weight",
    ),
    "torchvision": Format(
        words="ImageNet's ResNet under torchvision's names",
        known_by=("layer1.0.conv3.weight", ""),
        backbone="resnet",
        image=imagenet_names.IMAGE,
        image_names=r"(conv1|bn1|layer\d)\..*",
        not_read=imagenet_names.NOT_READ,
        blocks=r"layer(\d)\.(\d+)\..*",
        first_stage=1,
        width="conv1.weight",
    ),
}

# What `lmseg convert` wrote holds our own paths.
CONVERTED = Format(
    words="weights that lmseg convert wrote",
    known_by=("", ""),
    backbone="",
    image=[Rule(r"backbone/(.+)", r"\1")],
    image_names=r"backbone/.*",
    not_read={r"(?!backbone/|text_encoder/).*": "other parts of a whole model"},
    blocks=r"(?!)",
    first_stage=0,
    width="",
    text=[Rule(r"text_encoder/(.+)", r"\1")],
    text_names=r"text_encoder/.*",
)


@dataclass(frozen=True)
class Weights:
    """Tensors of an image tower, a text tower or both, and the sizes they imply.

    Attributes:
      name: what the user called them.
      format: how they are named; key of `FORMATS`, or "converted".
      tensors: foreign name -> array.
      backbone: the `model.backbone` that the image tower fits; "" without one.
      image_config: {"depths", "width"} of that backbone; empty without an image tower.
      text_config: {"width", "layers", "heads", "embedding"}; empty without a text tower.
    """

    name: str
    format: str
    tensors: Mapping[str, np.ndarray]
    backbone: str
    image_config: dict[str, object]
    text_config: dict[str, int]

    @property
    def names(self) -> Format:
        return FORMATS.get(self.format, CONVERTED)


def read(source: str, *, form: str | None = None) -> Weights:
    """Weights by name or path; see `sources.find` for what may be downloaded.

    Args:
      source: a name such as "worlds-clip" or "openai/rn50", the path of a .safetensors file, or a
        folder that `lmseg convert` wrote.
      form: key of `FORMATS` that the file must have; None = whatever its names show.

    Raises:
      UserError: there is no such file, it is broken, or its names are of no format that is read.
    """
    path = sources.find(source)
    if path.is_dir():
        if form is not None:
            raise UserError(f"{path}: is a folder; {form} is one .safetensors file")
        return _converted(source, converted.read(path))
    tensors, metadata = safetensors_file.read(path)
    if "token_embedding.rows" in tensors:
        tensors = clip.with_all_rows(tensors, metadata, path=path)
    shown = _format(tensors)
    if shown is None or form not in (None, shown):
        kinds = "; ".join(f"{key}: {names.words}" for key, names in FORMATS.items())
        what = f"the names are those of {shown}" if shown else "the names are of no known kind"
        first = ", ".join(sorted(tensors)[:3]) or "nothing"
        raise UserError(
            f"{path}: {what}{f', not of {form}' if form and shown else ''}"
            f" (it starts with {first}); known: {kinds}"
        )
    image = _image_config(tensors, shown, path)
    backbone = FORMATS[shown].backbone if image else ""
    return Weights(source, shown, tensors, backbone, image, _text_config(tensors, metadata))


def check_image(weights: Weights, *, backbone: str, depths: Iterable[int], width: int) -> None:
    """Compares the config's image tower with the weights.

    Raises:
      UserError: names the config keys that differ, with both values.
    """
    if weights.backbone and weights.backbone != backbone:
        raise UserError(
            f"pretrained weights {weights.name!r} are for model.backbone = {weights.backbone!r},"
            f" the config has {backbone!r}; set model.backbone, or pretrained.image to weights of"
            " that backbone"
        )
    _check(weights, "model.resnet", weights.image_config, {"depths": tuple(depths), "width": width})


def check_text(weights: Weights, *, width: int, layers: int, heads: int, embedding: int) -> None:
    """Compares the config's text tower with the weights.

    Raises:
      UserError: names the config keys that differ, with both values.
    """
    asked = {"width": width, "layers": layers, "heads": heads, "embedding": embedding}
    _check(weights, "model.text", weights.text_config, asked)


def fill_image(weights: Weights, tree: Tree) -> Tree:
    """The tree of a `ClipResNet` or `ResNet` with frozen or batch norms, all variables in one dict.

    Raises:
      UserError: see `mapping.fill`.
    """
    names = weights.names
    drop = (*names.not_read, names.text_names)
    return mapping.fill(tree, weights.tensors, rules=names.image, drop=drop, name=weights.name)


def fill_text(weights: Weights, tree: Tree) -> Tree:
    """The tree of a `TextEncoder`.

    Raises:
      UserError: see `mapping.fill`.
    """
    names = weights.names
    drop = (*names.not_read, names.image_names)
    return mapping.fill(tree, weights.tensors, rules=names.text, drop=drop, name=weights.name)


def left_out(weights: Weights) -> dict[str, list[str]]:
    """The names that no tower takes, by the reason."""
    found = {}
    for name in weights.tensors:
        for pattern, reason in weights.names.not_read.items():
            if re.fullmatch(pattern, name):
                found.setdefault(reason, []).append(name)
                break
    return found


def _converted(source: str, found: converted.Converted) -> Weights:
    """Weights of a folder that `lmseg convert` wrote; the manifest tells their sizes."""
    tensors = dict(mapping.paths(found.joined()))
    backbone, image, text = "", {}, {}
    try:
        if any(name.startswith("backbone/") for name in tensors):
            backbone, resnet = found.model["backbone"], found.model["resnet"]
            image = {"depths": tuple(resnet["depths"]), "width": resnet["width"]}
        if any(name.startswith("text_encoder/") for name in tensors):
            keys = ("width", "layers", "heads", "embedding")
            text = {key: found.model["text"][key] for key in keys}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{source}: its {converted.MANIFEST} does not tell the sizes of the towers ({error});"
            " convert the weights again"
        ) from error
    return Weights(source, "converted", tensors, backbone, image, text)


def _format(tensors: Mapping[str, np.ndarray]) -> str | None:
    """The format whose typical names occur."""
    for form, names in FORMATS.items():
        if any(name in tensors for name in names.known_by if name):
            return form
    return None


def _image_config(tensors: Mapping[str, np.ndarray], form: str, path: Path) -> dict[str, object]:
    names = FORMATS[form]
    if not any(re.fullmatch(names.image_names, name) for name in tensors):
        return {}
    if names.width not in tensors or tensors[names.width].ndim != 4:
        raise UserError(
            f"{path}: its image tower is no ResNet that is read here: {names.width} is no"
            " convolution of it"
        )
    blocks = {match.groups() for name in tensors if (match := re.fullmatch(names.blocks, name))}
    stages = range(names.first_stage, names.first_stage + 4)
    depths = tuple(sum(stage == str(number) for stage, _ in blocks) for number in stages)
    if not all(depths):
        raise UserError(f"{path}: its image tower has {list(depths)} blocks in four stages")
    width = tensors[names.width].shape[0]
    return {"depths": depths, "width": width}


def _text_config(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> dict[str, int]:
    projection = tensors.get("text_projection")
    if projection is None or projection.ndim != 2:
        return {}
    width, embedding = projection.shape
    blocks = {re.match(r"transformer\.resblocks\.(\d+)\.", name) for name in tensors} - {None}
    heads = metadata.get("text_heads", "")  # CLIP's own heads have 64 channels
    return {
        "width": width,
        "layers": len({m[1] for m in blocks}),
        "heads": int(heads) if heads.isdecimal() and int(heads) else max(1, width // 64),
        "embedding": embedding,
    }


def _check(weights: Weights, key: str, found: dict, asked: dict) -> None:
    if not found:
        tower = "image" if key == "model.resnet" else "text"
        raise UserError(
            f"pretrained weights {weights.name!r} have no {tower} tower; they are"
            f" {weights.names.words}"
        )
    different = [
        f"{key}.{name} is {value}, the weights have {found[name]}"
        for name, value in asked.items()
        if value != found[name]
    ]
    if different:
        raise UserError(
            f"pretrained weights {weights.name!r} do not fit the config: {'; '.join(different)}; "
            "set the keys to what the weights have"
        )
