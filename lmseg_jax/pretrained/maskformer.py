"""Reads a Hugging Face `MaskFormerForInstanceSegmentation` with a ResNet backbone.

Such a model is ours with head "linear" and decoder order "visual", in the ImageNet form of the
ResNet, with attention that sees padding. What its config can say and ours cannot is refused by
name. Its batch norms become frozen norms. The decoder's three dropout rates become one, that of
the residuals (`dropout`); `attention_dropout` and `activation_dropout`, which the library sets to
zero and MaskFormer itself to the same 0.1, make a difference to further training only.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from lmseg_jax import configuration, state
from lmseg_jax.errors import UserError
from lmseg_jax.models.lmseg import PIXELS
from lmseg_jax.pretrained import mapping, maskformer_names, safetensors_file

CONFIG, PROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
GROUPS = 32  # of every GroupNorm of the pixel decoder; no key of theirs changes it

# What the modules here are made for. A key that a file lacks has this value, but for model types.
FIXED = {
    "model_type": "maskformer",
    "backbone_config.model_type": "resnet",
    "backbone_config.num_channels": 3,
    "backbone_config.layer_type": "bottleneck",
    "backbone_config.hidden_act": "relu",
    "backbone_config.downsample_in_first_stage": False,
    "backbone_config.downsample_in_bottleneck": False,
    "decoder_config.model_type": "detr",
    "decoder_config.activation_function": "relu",
}
REQUIRED = ("model_type", "backbone_config.model_type")

# Defaults of the library, for keys that a file lacks.
DEFAULTS = {
    "fpn_feature_size": 256,
    "mask_feature_size": 256,
    "backbone_config.embedding_size": 64,
    "backbone_config.hidden_sizes": [256, 512, 1024, 2048],
    "backbone_config.depths": [3, 4, 6, 3],
    "decoder_config.d_model": 256,
    "decoder_config.num_queries": 100,
    "decoder_config.decoder_layers": 6,
    "decoder_config.decoder_attention_heads": 8,
    "decoder_config.decoder_ffn_dim": 2048,
    "decoder_config.dropout": 0.1,
    "decoder_config.auxiliary_loss": False,
}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def read_maskformer(folder: Path) -> tuple[ConfigDict, dict, dict, list[str]]:
    """A MaskFormer as a model of this package.

    Args:
      folder: holds config.json, preprocessor_config.json and model.safetensors, as
        `save_pretrained` of model and image processor writes them.

    Returns:
      `config.model`; its parameters and its constants, nested dicts of float32 NumPy arrays as in
      `state.weights`; the names of its classes, without background.

    Raises:
      UserError: a file is missing or broken, the model has another architecture (every key that
        differs is named), or its tensors do not fit (see `mapping.fill`).
    """
    settings = _json(folder / CONFIG)
    names = class_names(settings, where=folder / CONFIG)
    model = model_config(settings, where=folder / CONFIG)
    model.pixels = pixels_of(_json(folder / PROCESSOR), where=folder / PROCESSOR)
    count = len(names) + 1
    words = {"index": np.arange(count)[None], "valid": np.ones((1, count), bool)}
    try:
        trees = jax.eval_shape(lambda: state.weights(model, 0, vocabulary=words))
    except ValueError as error:  # groups that do not divide the pyramid's width
        raise UserError(f"{folder / CONFIG}: no such model can be made: {error}") from error
    filled = mapping.fill(
        state.join(*trees),
        _tensors(folder / WEIGHTS),
        rules=maskformer_names.RULES,
        drop=maskformer_names.NOT_READ,
        name=str(folder / WEIGHTS),
    )
    return model, *state.split_like(trees, filled), names


def model_config(settings: Mapping[str, object], *, where: Path) -> ConfigDict:
    """`config.model` of a config.json; `pixels` keeps its default.

    Args:
      settings: contents of the file.
      where: the file, for messages.

    Raises:
      UserError: names every key with a value that the modules here do not have.
    """
    values = _flat(settings)
    found = {key: values.get(key, None if key in REQUIRED else FIXED[key]) for key in FIXED}
    wrong = [
        f"{key} is {found[key]!r}, only {wanted!r} is read"
        for key, wanted in FIXED.items()
        if found[key] != wanted
    ]
    backbone = values.get("backbone_config.model_type")
    if backbone == "timm_backbone" or values.get("use_timm_backbone"):
        wrong.append("backbones of timm have other names and are not read")
    values = DEFAULTS | {key: value for key, value in values.items() if value is not None}
    for key, default in DEFAULTS.items():
        if not _same_kind(values[key], default):
            raise UserError(f"{where}: {key} is {values[key]!r}, not like {default!r}; mend it")
    width, sizes = (values[f"backbone_config.{key}"] for key in ("embedding_size", "hidden_sizes"))
    if sizes != [width * 4 * 2**stage for stage in range(4)]:
        wrong.append(
            f"backbone_config.hidden_sizes is {sizes}, only 4, 8, 16 and 32 times embedding_size"
            f" = {width} is read"
        )
    if len(values["backbone_config.depths"]) != 4:
        wrong.append("backbone_config.depths are not four numbers")
    stages = values.get("backbone_config.out_features"), values.get("backbone_config.out_indices")
    if ["stage1", "stage2", "stage3", "stage4"] != stages[0] and [1, 2, 3, 4] != stages[1]:
        wrong.append(f"backbone_config.out_features is {stages[0]}, only all four stages are read")
    heads, model_width = (
        values[f"decoder_config.{key}"] for key in ("decoder_attention_heads", "d_model")
    )
    if model_width % heads or model_width % 4:
        wrong.append(f"decoder_config.d_model is {model_width}, no multiple of {heads} heads and 4")
    if wrong:
        raise UserError(f"{where}: another architecture: {'; '.join(wrong)}")

    config = configuration.load("base")
    config.unlock()
    model, decoder = config.model, config.model.decoder
    model.backbone, model.head = "resnet", "linear"
    model.queries = values["decoder_config.num_queries"]
    model.width = model_width
    model.resnet.depths, model.resnet.width = tuple(values["backbone_config.depths"]), width
    model.resnet.norm = "frozen"
    pyramid, masks = values["fpn_feature_size"], values["mask_feature_size"]
    model.pixel_decoder.width, model.pixel_decoder.groups = pyramid, GROUPS
    model.pixel_decoder.mask_width = 0 if masks == pyramid else masks
    decoder.order, decoder.memory, decoder.padding = "visual", "res5", "seen"
    decoder.layers = values["decoder_config.decoder_layers"]
    decoder.heads = heads
    decoder.feedforward = values["decoder_config.decoder_ffn_dim"]
    decoder.dropout = float(values["decoder_config.dropout"])
    decoder.project = sizes[-1] != model.width  # theirs has no projection where sizes agree
    decoder.norm_between = values["decoder_config.auxiliary_loss"]
    return model


def class_names(settings: Mapping[str, object], *, where: Path) -> list[str]:
    """Names of the classes in the order of their numbers, from `id2label`.

    A file without it has the library's two classes, LABEL_0 and LABEL_1.

    Raises:
      UserError: the numbers are not 0, 1, 2 ..., or there are none.
    """
    labels = settings.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    wanted = [str(number) for number in range(len(labels))] if isinstance(labels, dict) else []
    if not wanted or set(labels) != set(wanted):
        raise UserError(f"{where}: id2label does not number the classes 0, 1, 2, ...; mend it")
    return [str(labels[number]) for number in wanted]


def pixels_of(settings: Mapping[str, object], *, where: Path) -> str:
    """Which of `PIXELS` a preprocessor_config.json normalises with.

    Raises:
      UserError: none of them.
    """
    scale = settings.get("rescale_factor", 1 / 255)
    plain = settings.get("do_normalize", True) and settings.get("do_rescale", True)
    found = [settings.get(key, IMAGENET[key]) for key in ("image_mean", "image_std")]
    try:
        if plain and np.isclose(scale, 1 / 255):
            for name, constants in PIXELS.items():
                if np.allclose(np.array(found, float) * 255, constants, rtol=0, atol=1e-3):
                    return name
    except (TypeError, ValueError):
        pass  # no numbers: told as found, like other numbers
    raise UserError(
        f"{where}: images are normalised with mean {found[0]} and std {found[1]} of 1/255"
        f" ({', '.join(PIXELS)} are read; rescale_factor {scale}, do_rescale and do_normalize"
        " on); such weights do not fit model.pixels"
    )


def _json(path: Path) -> dict:
    try:
        contents = json.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); save_pretrained of the model and of its"
            " image processor write this folder"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: no JSON ({error}); save the model again") from error
    if not isinstance(contents, dict):
        raise UserError(f"{path}: no JSON object; save the model again")
    return contents


def _tensors(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; save the model with save_pretrained, which writes safetensors"
        )
    return safetensors_file.read(path)[0]


def _flat(settings: Mapping[str, object]) -> dict[str, object]:
    """Values of the file and of its two parts, by dotted key."""
    values = dict(settings)
    for part in ("backbone_config", "decoder_config"):
        inner = settings.get(part)
        values |= {f"{part}.{k}": v for k, v in (inner if isinstance(inner, dict) else {}).items()}
    return values


def _same_kind(value: object, default: object) -> bool:
    """Whether a value is a flag, a size, a share or a list of sizes as the default is."""
    if isinstance(default, list):
        return isinstance(value, list) and all(_same_kind(item, default[0]) for item in value)
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float) and 0 <= value < 1
    return isinstance(value, int) and value > 0
