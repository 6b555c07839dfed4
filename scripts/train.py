"""`python scripts/train.py ...` is `marl train ...`, for people who prefer scripts."""

import sys

from marl.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
