"""`python scripts/resume.py ...` is `marl resume ...`, for people who prefer scripts."""

import sys

from marl.cli import main

if __name__ == "__main__":
    sys.exit(main(["resume", *sys.argv[1:]]))
