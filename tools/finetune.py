"""`fastfgssl finetune`, from a checkout."""

from fastfgssl.commands import run

if __name__ == "__main__":
    run("finetune")
