"""The network as a StableHLO artefact of `jax.export`, for processes without this package.

The weights are constants of the artefact, so it is one file; it holds no text tower: the words that
are asked for are an input, and `words.npz` has those of the model's own taxonomies.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from lmseg_jax import state
from lmseg_jax.errors import UserError
from lmseg_jax.loading import Stored
from lmseg_jax.models.lmseg import MULTIPLE
from lmseg_jax.tokenizer import BACKGROUND

NETWORK, WORDS = "network.stablehlo", "words.npz"
PLATFORMS = ("cpu", "cuda", "tpu")


def write(folder: Path, found: Stored, *, text: np.ndarray) -> None:
    """Writes the artefact and the words of the taxonomies.

    The artefact's function has the inputs

      images: uint8 [B, 32 h, 32 w, 3], RGB;
      inside: bool [B, 32 h, 32 w], False where the image is padding;
      embeddings: f32 [K, D], of the names asked for, "background" last;
      valid: bool [K], False in rows that pad the names; any number of them, anywhere;

    for any B, h, w and K, and returns {"logits": f32 [B, Q, K], "masks": f32 [B, Q, 8 h, 8 w]}, as
    `Segmenter.raw` does.

    Args:
      folder: where to.
      found: the model.
      text: f32 [M, K, D], embeddings of the names of its taxonomies.

    Raises:
      UserError: JAX's serialisation needs a package that is not installed.
    """
    (folder / NETWORK).write_bytes(artefact(found))
    words = {}
    for rows, (name, space) in zip(text, found.spaces.items(), strict=True):
        names = (*space.taxonomy.names, BACKGROUND)
        words |= {name: rows[: len(names)], f"{name}/names": np.array(names)}
    np.savez(folder / WORDS, **words)


def artefact(found: Stored) -> bytes:
    """The serialised function that `write` describes."""
    try:
        import flatbuffers  # noqa: F401, of the extra export: jax.export needs it to serialise
    except ImportError as error:
        raise UserError(
            "--stablehlo: needs the package flatbuffers; pip install 'lmseg_jax[export]'"
        ) from error
    graph = state.graph(found.model, found.vocabulary, text=False)
    params, frozen = state.without_text(found.params), state.without_text(found.frozen)

    def network(images, inside, embeddings, valid):
        text = {"embeddings": embeddings[None], "valid": valid[None]}
        dataset = jnp.zeros(images.shape[0], jnp.int32)
        model = state.merge(graph, params, frozen)
        answer = model(images, text, dataset, valid=inside, last=True)
        return {"logits": answer["logits"][0], "masks": answer["masks"][0]}

    b, h, w, k = export.symbolic_shape("b, h, w, k")
    size = (b, MULTIPLE * h, MULTIPLE * w)
    inputs = (
        jax.ShapeDtypeStruct((*size, 3), jnp.uint8),
        jax.ShapeDtypeStruct(size, bool),
        jax.ShapeDtypeStruct((k, found.model.width), jnp.float32),
        jax.ShapeDtypeStruct((k,), bool),
    )
    return bytes(export.export(jax.jit(network), platforms=PLATFORMS)(*inputs).serialize())


def run(
    path: Path, images: np.ndarray, *, inside: np.ndarray, embeddings: np.ndarray, valid: np.ndarray
) -> dict[str, np.ndarray]:
    """The answer of an artefact on disk, compiled for these shapes; see `write`."""
    network = export.deserialize(bytearray(path.read_bytes()))
    return jax.device_get(jax.jit(network.call)(images, inside, embeddings, valid))
