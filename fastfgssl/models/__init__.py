"""Networks: what they have in common, and the hierarchical one with its blocks and heads."""

from fastfgssl.models.fgssl import FGSSL, build_model
from fastfgssl.models.network import Network

__all__ = ["FGSSL", "Network", "build_model"]
