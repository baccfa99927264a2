"""LMSeg in JAX: one segmentation model for datasets whose label sets disagree."""

__version__ = "0.1.0"


def __getattr__(name: str):
    """`load` and `Segmenter`, imported when they are first used: JAX takes seconds."""
    if name in ("load", "Segmenter"):
        from lmseg_jax import segmenter

        return getattr(segmenter, name)
    raise AttributeError(f"module 'lmseg_jax' has no attribute {name!r}")
