"""LMSeg in JAX: one segmentation model for datasets whose label sets disagree."""

__version__ = "0.1.0"
