"""The Gaussian blur of the fan-out's CPU backend (README.md has the mathematics)."""
