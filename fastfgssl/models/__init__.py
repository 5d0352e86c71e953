"""The hierarchical network: backbone, blocks, heads."""

from fastfgssl.models.fgssl import FGSSL, build_model

__all__ = ["FGSSL", "build_model"]
