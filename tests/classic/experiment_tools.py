"""Running an experiment without the runner."""

from __future__ import annotations

import numpy as np


def finished(run):
    """All rows of an experiment from where it stands to its end."""
    rows = []
    while run.done < run.total:
        rows += run.advance()
    assert run.done == run.total
    return rows


def table_of(runs, without=()):
    """As the runner makes it from every seed's rows: curves whose x all seeds share; metrics ``without`` left out."""
    curves = {}
    for rows in runs:
        one = {}
        for row in rows:
            one.setdefault((row.series, row.metric), []).append((row.x, row.value))
        for key, points in one.items():
            curves.setdefault(key, []).append(points)
    arrays = {key: np.array(points) for key, points in curves.items() if key[1] not in without}
    return {key: (points[0, :, 0], points[..., 1]) for key, points in arrays.items()}
