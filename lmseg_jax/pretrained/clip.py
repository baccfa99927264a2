"""worlds-clip files: a whole CLIP in OpenAI's names, as small as it can be.

They differ from open_clip's safetensors in one thing: of the token table they store only the rows
that were trained, "token_embedding.rows" (i32 ids) and "token_embedding.values" (their rows). The
other rows are drawn again, as before training:
`np.random.default_rng(seed).standard_normal((49408, width), np.float32) * 0.02`, with the seed in
the file's metadata.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from lmseg_jax.errors import UserError
from lmseg_jax.pretrained import clip_names, mapping
from lmseg_jax.pretrained.mapping import Tree

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of R, G, B in 0..1
STD = (0.26862954, 0.26130258, 0.27577711)
VOCABULARY = 49408


def token_table(width: int, *, seed: int) -> np.ndarray:
    """The token embeddings before training, f32 [49408, width], N(0, 0.02)."""
    normal = np.random.default_rng(seed).standard_normal((VOCABULARY, width), np.float32)
    return normal * np.float32(0.02)


def with_all_rows(
    tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], *, path: Path
) -> dict[str, np.ndarray]:
    """The tensors with the whole token table.

    Args:
      tensors: of a worlds-clip file.
      metadata: of the file; "token_embedding_seed" draws the rows that are not stored.
      path: of the file, for the message.

    Raises:
      UserError: rows, values or seed do not belong together.
    """
    tensors = dict(tensors)
    rows = tensors.pop("token_embedding.rows")
    values = tensors.pop("token_embedding.values", None)
    seed = metadata.get("token_embedding_seed", "")
    whole = np.issubdtype(rows.dtype, np.integer) and rows.ndim == 1
    inside = whole and (rows >= 0).all() and (rows < VOCABULARY).all()
    matched = values is not None and values.ndim == 2 and len(values) == len(rows)
    if not (inside and matched and seed.isdigit()):
        raise UserError(
            f"{path}: token_embedding.rows, .values and the metadata's token_embedding_seed do not"
            " belong together; make the file again"
        )
    table = token_table(values.shape[1], seed=int(seed))
    table[rows] = values
    return tensors | {"token_embedding.weight": table}


def fill_pool(tensors: Mapping[str, np.ndarray], tree: Tree) -> Tree:
    """The tree of an `AttentionPool`, from tensors in OpenAI's names.

    Raises:
      UserError: see `mapping.fill`.
    """
    drop = (r"(?!visual\.attnpool\.).*",)
    return mapping.fill(tree, tensors, rules=clip_names.POOL, drop=drop, name="of the pool")


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


def write_image(path: Path, image: Tree) -> None:
    """Writes a `ClipResNet` alone, float16, OpenAI's names.

    Args:
      path: of the .safetensors file.
      image: its tree, with batch norms.
    """
    tensors = mapping.unfill(image, clip_names.IMAGE)
    tensors = {name: np.ascontiguousarray(array, np.float16) for name, array in tensors.items()}
    safetensors.numpy.save_file(tensors, path)
