"""Hydra imports this file as BenchMARL's commands start, once its parent folder is on PYTHONPATH."""

import reciprocal_algorithms  # noqa: F401
