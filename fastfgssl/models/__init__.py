"""The hierarchical network: backbone, blocks, heads."""
