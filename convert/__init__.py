"""Conversion of published PyTorch checkpoints to Orbax parameters, and export in the published layout."""

from .exports import export_checkpoint
from .imports import convert_checkpoint

__all__ = ["convert_checkpoint", "export_checkpoint"]
