"""`python scripts/evaluate.py ...` is `marl evaluate ...`, for people who prefer scripts."""

import sys

from marl.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
