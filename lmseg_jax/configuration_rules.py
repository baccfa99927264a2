"""Which values a config may hold."""

import difflib
from collections.abc import Mapping

from lmseg_jax.errors import UserError

MODES = ("train", "evaluate", "pretrain", "words")

CHOICES = {
    "mode": MODES,
    "data.names": ("first", "whole"),
    "data.on_error": ("stop", "skip"),
    "batching.policy": ("stratified", "one_dataset", "padded"),
    "model.backbone": ("clip_resnet", "resnet"),
    "model.dtype": ("float32", "bfloat16"),
    "model.head": ("text", "linear", "multi_head", "manual_taxonomy"),
    "model.pixels": ("clip", "imagenet"),
    "model.remat": ("none", "blocks"),
    "model.similarity": ("cosine", "raw"),
    "model.resnet.norm": ("frozen", "group"),
    "model.pixel_decoder.name": ("fpn",),
    "model.decoder.order": ("visual-text", "text-visual", "visual"),
    "model.decoder.queries": ("zeros", "learned"),
    "model.decoder.memory": ("res3", "res4", "res5", "pixel8", "pixel16"),
    "model.decoder.padding": ("hidden", "seen"),
    "loss.resolution": ("full", "quarter"),
    "loss.unlabelled": ("excluded", "negative"),
    "matcher.where": ("host", "device"),
    "optimizer.schedule": ("poly", "cosine"),
    "pretrain.objective": ("captions", "classifier"),
}

AT_LEAST = {
    "seed": 0,
    "data.evaluate_limit": 0,
    "data.max_targets": 1,
    "data.workers": 0,
    "data.threads": 1,
    "batching.batch": 1,
    "batching.multiple": 1,
    "batching.micro": 0,
    "model.queries": 1,
    "model.width": 1,
    "model.resnet.width": 2,
    "model.pixel_decoder.width": 1,
    "model.pixel_decoder.groups": 1,
    "model.pixel_decoder.mask_width": 0,
    "model.decoder.layers": 1,
    "model.decoder.heads": 1,
    "model.decoder.feedforward": 1,
    "model.text.width": 1,
    "model.text.layers": 1,
    "model.text.heads": 1,
    "model.text.embedding": 1,
    "model.text.prompt": 1,
    "model.text.prompt_std": 0,
    "loss.classification": 0,
    "loss.focal": 0,
    "loss.dice": 0,
    "matcher.classification": 0,
    "matcher.focal": 0,
    "matcher.dice": 0,
    "optimizer.steps": 1,
    "optimizer.rate": 0,
    "optimizer.decay": 0,
    "optimizer.backbone_rate": 0,
    "optimizer.warmup": 0,
    "mesh.fsdp": 1,
    "mesh.cpu_devices": 0,
    "evaluation.every": 1,
    "evaluation.batch": 1,
    "evaluation.average": 1,
    "evaluation.pictures": 0,
    "checkpoint.every": 1,
    "checkpoint.keep": 1,
    "log.every": 1,
}

ABOVE_ZERO = ("model.temperature", "loss.no_object", "optimizer.power", "optimizer.clip")

BELOW_ONE = ("model.decoder.dropout", "optimizer.average")

TEMPERATURES = (0.01, 1.0)  # bounds of a learned one

# Keys that only a head that reads names has a use for, with the values that leave it as it is.
OF_TEXT = {
    "model.similarity": "cosine",
    "model.temperature_learned": False,
    "model.query_mlp": False,
    "model.adapter_norm": False,
}

GROUP = 8  # channels of a group of the backbone's GroupNorm
LARGEST_SCALE = 4  # of the test size: 16 times the memory
LONGEST_PROMPT = 64  # of 77 positions; start, end and eleven tokens of a name remain

# The first divides the second.
DIVIDES = (
    ("model.decoder.heads", "model.width"),
    ("model.text.heads", "model.text.width"),
    ("model.pixel_decoder.groups", "model.pixel_decoder.width"),
    ("batching.multiple", "batching.batch"),
    ("batching.multiple", "batching.micro"),
)


def check_values(values: Mapping[str, object], base: Mapping[str, object]) -> None:
    """Refuses a config that no run can follow.

    Args:
      values: by dotted key, of the config.
      base: likewise, of configs/base.py, which has every key; a config of mode "pretrain" has
        others, those it shares are checked.

    Raises:
      UserError: names the key, what it holds and what it may hold.
    """
    mode = values.get("mode")
    if mode not in MODES:
        raise _wrong(values, "mode", f"is not one of {', '.join(MODES)}")
    if mode != "pretrain":
        _same_keys(values, base)
    for key, value in values.items():
        if key in base:
            _same_type(key, value, base[key])
    for key, choices in CHOICES.items():
        if mode == "pretrain" and key == "model.resnet.norm":
            choices = (*choices, "batch")  # live statistics, for encoders only
        if values.get(key, choices[0]) not in choices:
            raise _wrong(values, key, f"is not one of {', '.join(choices)}")
    _ranges(values)
    for divisor, key in DIVIDES:
        if key in values and divisor in values and values[key] % values[divisor]:
            raise _wrong(values, key, f"is no multiple of config.{divisor} = {values[divisor]}")
    if mode != "pretrain":
        _together(values)


def _wrong(values: Mapping[str, object], key: str, what: str) -> UserError:
    return UserError(f"config.{key} = {values.get(key)!r}: {what}; set --config.{key}=...")


def _same_keys(values: Mapping[str, object], base: Mapping[str, object]) -> None:
    for key in values:
        if key not in base:
            nearest = difflib.get_close_matches(key, base, n=1, cutoff=0)[0]
            raise UserError(f"config.{key}: no such key; the nearest is config.{nearest}")
    for key in base:
        if key not in values:
            raise UserError(f"config.{key}: is missing; start from base.get_config()")


def _same_type(key: str, value: object, known: object) -> None:
    kinds = (int, float) if isinstance(known, float) else type(known)
    if not isinstance(value, kinds) or (isinstance(value, bool) and not isinstance(known, bool)):
        found = type(value).__name__
        raise UserError(f"config.{key} = {value!r}: is {found}, not {type(known).__name__}")


def _ranges(values: Mapping[str, object]) -> None:
    for key, lowest in AT_LEAST.items():
        if key in values and not values[key] >= lowest:
            raise _wrong(values, key, f"is below {lowest}")
    for key in ABOVE_ZERO:
        if key in values and not values[key] > 0:
            raise _wrong(values, key, "is not above 0")
    for key in BELOW_ONE:
        if key in values and not 0 <= values[key] < 1:
            raise _wrong(values, key, "is not in [0, 1)")
    depths = values.get("model.resnet.depths", (1,) * 4)
    if len(depths) != 4 or not all(isinstance(n, int) and n > 0 for n in depths):
        raise _wrong(values, "model.resnet.depths", "is not four numbers of blocks, of res2..res5")
    for key in ("evaluation.scale", "evaluation.scales"):
        scales = values.get(key, ())
        scales = scales if isinstance(scales, tuple) else (scales,)
        if not all(isinstance(x, int | float) and 0 < x <= LARGEST_SCALE for x in scales):
            raise _wrong(values, key, f"has a factor outside 0 to {LARGEST_SCALE}")
    for key, divisor in (("model.width", 4), ("model.resnet.width", 2)):
        if key in values and values[key] % divisor:
            raise _wrong(values, key, f"is no multiple of {divisor}")


def _without_text(values: Mapping[str, object]) -> None:
    """Values that must agree with a head whose classes are numbers."""
    head = f'config.model.head = "{values["model.head"]}"'
    if values["model.decoder.order"] != "visual":
        raise _wrong(values, "model.decoder.order", f'{head} has no text; only "visual" fits')
    if values["pretrained.text"]:
        raise _wrong(values, "pretrained.text", f"{head} has no text tower; only nothing fits")
    train, scored = values["data.train"], values["data.evaluate"]
    unknown = [card for card in scored if card not in train] if train else []
    if unknown:
        raise _wrong(values, "data.evaluate", f"{head} has no classes for {unknown[0]}, untrained")
    if values["model.head"] == "linear" and len(train or scored) > 1:
        key = "data.train" if train else "data.evaluate"
        raise _wrong(values, key, f"{head} is for one dataset; multi_head has a layer for each")


def _together(values: Mapping[str, object]) -> None:
    """Values that must agree with each other in a run of the segmentation model."""
    if values["model.text.prompt"] > LONGEST_PROMPT:
        raise _wrong(values, "model.text.prompt", f"leaves no room for names; {LONGEST_PROMPT} fit")
    if values["model.text.template"].count("{name}") != 1:
        raise _wrong(values, "model.text.template", "has not one {name} in it")
    lowest, highest = TEMPERATURES
    if values["model.temperature_learned"] and not lowest <= values["model.temperature"] <= highest:
        expected = f"is not in [{lowest}, {highest}], where a learned one stays"
        raise _wrong(values, "model.temperature", expected)
    for key, plain in OF_TEXT.items():
        if values["model.head"] != "text" and values[key] != plain:
            raise _wrong(values, key, "is for config.model.head = 'text' only")
    norm, width = values["model.resnet.norm"], values["model.resnet.width"]
    if norm == "group" and values["pretrained.image"]:
        raise _wrong(
            values, "pretrained.image", 'has BatchNorm; config.model.resnet.norm must be "frozen"'
        )
    if values["pretrained.model"] and values["pretrained.image"]:
        raise UserError(
            f"config.pretrained.model = {values['pretrained.model']!r} has an image encoder of its"
            f" own beside config.pretrained.image = {values['pretrained.image']!r}; set"
            " --config.pretrained.image= to begin from the whole model, or"
            " --config.pretrained.model= to take the encoder alone"
        )
    if norm == "group" and width % GROUP:
        raise _wrong(values, "model.resnet.width", f"is no multiple of {GROUP}, a norm's group")
    train, weights = values["data.train"], values["batching.weights"]
    if not train and (values["mode"] == "train" or not values["data.evaluate"]):
        raise _wrong(values, "data.train", "names no dataset card")
    for key in ("data.train", "data.evaluate"):
        names = values[key]
        if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            raise _wrong(values, key, "is not a list of different cards")
    recipes = ("own", "fixed", *(train or values["data.evaluate"]))
    if values["data.augmentation"] not in recipes:
        raise _wrong(values, "data.augmentation", f"is not one of {', '.join(recipes)}")
    if weights and len(weights) != len(train):
        raise _wrong(values, "batching.weights", f"has not one share for each of {train}")
    if not all(isinstance(weight, int | float) and weight > 0 for weight in weights):
        raise _wrong(values, "batching.weights", "has a share that is not above 0")
    if values["model.head"] != "text":
        _without_text(values)
    if values["model.resnet.affine"] and norm != "frozen":
        raise _wrong(values, "model.resnet.affine", "is for frozen norms; other norms always train")
    memory, stem = values["model.decoder.memory"], values["model.resnet.width"]
    channels = {f"res{2 + stage}": 4 * 2**stage * stem for stage in range(4)}
    channels = channels.get(memory, values["model.pixel_decoder.width"])
    if not values["model.decoder.project"] and channels != values["model.width"]:
        what = f"{memory} has {channels} channels, config.model.width is {values['model.width']}"
        raise _wrong(values, "model.decoder.project", what)
    if values["model.queries"] < values["data.max_targets"]:
        targets = values["data.max_targets"]
        raise _wrong(values, "model.queries", f"is below config.data.max_targets = {targets}")
    start = values["pretrained.image"] or values["pretrained.model"]
    if values["model.resnet.norm"] == "frozen" and not start:
        raise UserError(
            "config.model.resnet.norm = 'frozen': frozen norms need weights;"
            " set --config.pretrained.image=... or --config.model.resnet.norm=group"
        )
    data, fsdp, multiple = (values[k] for k in ("mesh.data", "mesh.fsdp", "batching.multiple"))
    if data < 1 and data != -1:
        raise _wrong(values, "mesh.data", "is neither -1 nor a number of devices")
    if multiple % (max(data, 1) * fsdp):
        raise _wrong(
            values,
            "mesh.data" if data > 1 else "mesh.fsdp",
            f"mesh.data x mesh.fsdp devices do not divide config.batching.multiple = {multiple}",
        )
