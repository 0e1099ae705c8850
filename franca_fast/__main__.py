"""`python -m franca_fast VERB`, the same as the `franca-fast` command."""

from franca_fast.cli.main import entry

if __name__ == "__main__":
    raise SystemExit(entry())
