"""The loop: steps, updates, optimiser, checkpoints, metrics."""
