"""``python -m marl``: the command ``marl`` where its script is not on the path."""

from marl.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
