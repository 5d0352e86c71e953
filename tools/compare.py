"""`fastfgssl compare`, from a checkout."""

from fastfgssl.commands.compare import main
from fastfgssl.runtime.console import run_tool

if __name__ == "__main__":
    run_tool(main)
