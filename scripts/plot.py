"""`python scripts/plot.py ...` is `marl plot ...`, for people who prefer scripts."""

import sys

from marl.cli import main

if __name__ == "__main__":
    sys.exit(main(["plot", *sys.argv[1:]]))
