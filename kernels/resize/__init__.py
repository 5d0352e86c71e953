"""The resize of decoded images on the CPU (README.md has the mathematics)."""
