"""Measured speed: one file a suite, each checked before it is timed."""

SUITES = ("loss", "jigsaw", "input", "step", "compile", "train", "scaling", "prepare")
"""Modules with `run(settings)`, which yields records."""
