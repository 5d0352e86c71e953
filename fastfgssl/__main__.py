"""`python -m fastfgssl NAME ...`: the commands."""

from fastfgssl.commands import run

if __name__ == "__main__":  # workers that are spawned import this module again
    run()
