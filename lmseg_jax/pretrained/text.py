"""Class names as vectors of a pretrained text tower alone, without a segmentation model."""

from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from lmseg_jax import tokenizer
from lmseg_jax.errors import UserError
from lmseg_jax.models.keys import Rngs
from lmseg_jax.models.text_encoder import TextEncoder
from lmseg_jax.pretrained import safetensors_file, sources, weights


def embed(source: str, names: Sequence[str], *, template: str) -> np.ndarray:
    """Embeddings of names, f32 [N, D], each of length one.

    Args:
      source: what `pretrained.text` accepts: "worlds-clip", a name of the hub, a .safetensors file
        or a folder that `lmseg convert` wrote.
      names: in any spelling; case and underscores do not matter.
      template: words around each name, which replaces "{name}".

    Raises:
      UserError: there are no such weights, they have no text tower, or a name is too long for it.
    """
    read = weights.read(source)
    if not read.text_config:
        raise UserError(f"--text {source}: has no text tower; it is {read.names.words}")
    graphdef, abstract = nnx.split(
        nnx.eval_shape(lambda: TextEncoder(**read.text_config, rngs=Rngs(0)))
    )
    tree = weights.fill_text(read, nnx.to_pure_dict(abstract))
    tokens = tokenizer.tokenize_full([template.replace("{name}", name) for name in names])
    used = int((tokens != tokenizer.END).sum(axis=1).max()) + 1  # what follows is padding
    encode = jax.jit(lambda tree, tokens: nnx.merge(graphdef, tree).encode(tokens))
    found = np.asarray(encode(tree, tokens[:, :used]))
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def read_in_training(source: str, names: Sequence[str]) -> np.ndarray:
    """bool [N], False where a shipped tower never met a word of the name; other towers know all."""
    if source not in sources.SHIPPED:
        return np.ones(len(names), bool)
    tensors, _ = safetensors_file.read(sources.find(source))
    rows = np.append(tensors["token_embedding.rows"], (tokenizer.START, tokenizer.END))
    return np.isin(tokenizer.tokenize_full(names), rows).all(axis=1)
