"""Measured speed: one file a suite, each checked before it is timed."""
