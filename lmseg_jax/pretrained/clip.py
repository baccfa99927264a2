"""Reads CLIP weights: OpenAI's RN50 in open_clip's safetensors, and the shipped worlds-clip.

Both use OpenAI's names (reference sections 1.5 and 1.6). A worlds-clip file differs in one thing:
of the token table it stores only the rows that were trained, "token_embedding.rows" (i32 ids) and
"token_embedding.values" (their rows). The other rows are drawn again, as before training:
`np.random.default_rng(seed).standard_normal((49408, width), np.float32) * 0.02`, with the seed in
the file's metadata.
"""

import importlib.resources
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from lmseg_jax.errors import UserError
from lmseg_jax.pretrained import clip_names, mapping
from lmseg_jax.pretrained.mapping import Tree

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of R, G, B in 0..1
STD = (0.26862954, 0.26130258, 0.27577711)
VOCABULARY = 49408

SHIPPED = {"worlds-clip": "assets/worlds_clip.safetensors"}  # package data
HUB = {"openai/rn50": ("timm/resnet50_clip.openai", "open_clip_model.safetensors")}


@dataclass(frozen=True)
class ClipWeights:
    """Tensors of a CLIP under OpenAI's names, and the sizes they imply.

    Attributes:
      name: what the user called them.
      tensors: OpenAI name -> array, float16 or float32.
      image_config: {"depths", "width"} of `ClipResNet`; empty without an image tower.
      text_config: {"width", "layers", "heads", "embedding"} of `TextEncoder`; empty without one.
    """

    name: str
    tensors: Mapping[str, np.ndarray]
    image_config: dict[str, object]
    text_config: dict[str, int]


def read_clip(source: str) -> ClipWeights:
    """Weights by name or path; nothing is downloaded.

    Args:
      source: "worlds-clip" (shipped), "openai/rn50" (from the Hugging Face cache) or the path of a
        .safetensors file with OpenAI's names.

    Raises:
      UserError: if there is no such file, or it is no CLIP with a ResNet or text tower.
    """
    path = _find(source)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    if "token_embedding.rows" in tensors:
        tensors = _with_all_rows(tensors, seed=int(metadata["token_embedding_seed"]))
    image, text = _image_config(tensors), _text_config(tensors, metadata)
    if not image and not text:
        raise UserError(
            f"{path}: no tensors named like OpenAI's CLIP ResNet ('visual.conv1.weight') or text "
            f"tower ('text_projection'); it starts with {', '.join(sorted(tensors)[:3])}"
        )
    return ClipWeights(source, tensors, image, text)


def check_image(weights: ClipWeights, *, depths: Iterable[int], width: int) -> None:
    """Compares the config's image tower with the weights.

    Raises:
      UserError: names the config keys that differ, with both values.
    """
    _check(weights, "model.resnet", weights.image_config, {"depths": tuple(depths), "width": width})


def check_text(
    weights: ClipWeights, *, width: int, layers: int, heads: int, embedding: int
) -> None:
    """Compares the config's text tower with the weights.

    Raises:
      UserError: names the config keys that differ, with both values.
    """
    asked = {"width": width, "layers": layers, "heads": heads, "embedding": embedding}
    _check(weights, "model.text", weights.text_config, asked)


def fill_image(weights: ClipWeights, tree: Tree) -> Tree:
    """The tree of a `ClipResNet` with frozen or batch norms, all variables in one nested dict.

    Raises:
      UserError: see `mapping.fill`.
    """
    drop = (*clip_names.NEVER, clip_names.ATTENTION_POOL, clip_names.NOT_VISUAL)
    return mapping.fill(tree, weights.tensors, rules=clip_names.IMAGE, drop=drop, name=weights.name)


def fill_pool(weights: ClipWeights, tree: Tree) -> Tree:
    """The tree of an `AttentionPool`.

    Raises:
      UserError: see `mapping.fill`.
    """
    drop = (*clip_names.NEVER, r"visual\.(?!attnpool\.).*", clip_names.NOT_VISUAL)
    return mapping.fill(tree, weights.tensors, rules=clip_names.POOL, drop=drop, name=weights.name)


def fill_text(weights: ClipWeights, tree: Tree) -> Tree:
    """The tree of a `TextEncoder`.

    Raises:
      UserError: see `mapping.fill`.
    """
    drop = (*clip_names.NEVER, clip_names.VISUAL, "logit_scale")
    return mapping.fill(tree, weights.tensors, rules=clip_names.TEXT, drop=drop, name=weights.name)


def token_table(width: int, *, seed: int) -> np.ndarray:
    """The token embeddings before training, f32 [49408, width], N(0, 0.02)."""
    normal = np.random.default_rng(seed).standard_normal((VOCABULARY, width), np.float32)
    return normal * np.float32(0.02)


def write_clip(
    path: Path,
    *,
    image: Tree,
    pool: Tree,
    text: Tree,
    logit_scale: float,
    rows: np.ndarray,
    seed: int,
    heads: int,
) -> None:
    """Writes a worlds-clip file, float16, OpenAI's names.

    Args:
      path: of the .safetensors file.
      image: tree of a `ClipResNet` with batch norms.
      pool: tree of its `AttentionPool`.
      text: tree of a `TextEncoder` whose token table began as `token_table(width, seed=seed)`.
      logit_scale: logarithm of the inverse temperature.
      rows: i32 [R], ids of the trained rows of the token table.
      seed: of the token table.
      heads: of the text tower, which no shape tells.
    """
    tensors = mapping.unfill(image, clip_names.IMAGE) | mapping.unfill(pool, clip_names.POOL)
    tensors |= mapping.unfill(text, clip_names.TEXT)
    tensors["logit_scale"] = np.asarray(logit_scale)
    table = tensors.pop("token_embedding.weight")
    tensors = {name: np.ascontiguousarray(array, np.float16) for name, array in tensors.items()}
    tensors["token_embedding.rows"] = np.ascontiguousarray(rows, np.int32)
    tensors["token_embedding.values"] = np.ascontiguousarray(table[rows], np.float16)
    metadata = {"token_embedding_seed": str(seed), "text_heads": str(heads)}
    safetensors.numpy.save_file(tensors, path, metadata=metadata)


def _find(source: str) -> Path:
    """The file of a name or path."""
    if source in SHIPPED:
        path = Path(str(importlib.resources.files("lmseg_jax").joinpath(SHIPPED[source])))
    elif source in HUB:
        path = _cached(source)
    else:
        path = Path(source).expanduser()
    if not path.is_file():
        known = ", ".join([*SHIPPED, *HUB])
        raise UserError(
            f"pretrained weights {source!r}: no such file; pretrained.image and pretrained.text "
            f"take {known} or the path of a .safetensors file"
        )
    return path


def _cached(source: str) -> Path:
    """Where the Hugging Face cache keeps a file; asks no network."""
    from huggingface_hub import try_to_load_from_cache  # only for weights from the hub

    repository, file = HUB[source]
    found = try_to_load_from_cache(repository, file)
    if not isinstance(found, str):
        raise UserError(
            f"pretrained weights {source!r}: {file} of {repository} is not in the Hugging Face "
            f"cache; run `hf download {repository} {file}`, or set pretrained.image and "
            "pretrained.text to the path of that file"
        )
    return Path(found)


def _with_all_rows(tensors: Mapping[str, np.ndarray], *, seed: int) -> dict[str, np.ndarray]:
    """Rebuilds the token table of a worlds-clip file."""
    tensors = dict(tensors)
    rows, values = tensors.pop("token_embedding.rows"), tensors.pop("token_embedding.values")
    table = token_table(values.shape[1], seed=seed)
    table[rows] = values
    return tensors | {"token_embedding.weight": table}


def _image_config(tensors: Mapping[str, np.ndarray]) -> dict[str, object]:
    if "visual.conv3.weight" not in tensors:
        return {}
    blocks = {re.match(r"visual\.layer(\d)\.(\d+)\.", name) for name in tensors} - {None}
    depths = [len({m[2] for m in blocks if m[1] == str(stage)}) for stage in range(1, 5)]
    return {"depths": tuple(depths), "width": tensors["visual.conv3.weight"].shape[0]}


def _text_config(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> dict[str, int]:
    if "text_projection" not in tensors:
        return {}
    width, embedding = tensors["text_projection"].shape
    blocks = {re.match(r"transformer\.resblocks\.(\d+)\.", name) for name in tensors} - {None}
    return {
        "width": width,
        "layers": len({m[1] for m in blocks}),
        "heads": int(metadata.get("text_heads", max(1, width // 64))),
        "embedding": embedding,
    }


def _check(weights: ClipWeights, key: str, found: dict, asked: dict) -> None:
    if not found:
        tower = "image" if key == "model.resnet" else "text"
        raise UserError(f"pretrained weights {weights.name!r} have no {tower} tower")
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
