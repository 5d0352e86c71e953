"""The views fan-out: anchor, puzzle view and every jigsaw puzzle of an image (README.md has the mathematics)."""
