"""fastfgssl: high-throughput fine-grained self-supervised learning on medical images (arXiv 2308.05770)."""

__version__ = "0.1.0"
