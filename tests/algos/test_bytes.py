"""Observations in bytes are learnt from as what they stand for, by every registered algorithm."""

from __future__ import annotations

import dataclasses
from typing import Any

from test_contract import EVERY, Case, assert_same, batches, make, observations


def in_bytes(seen: Any, divisor: float) -> Any:
    """What is seen as whole numbers from 0 to 255, over ``divisor``; no global state."""
    numbers = {"obs", "next_obs"} & set(seen._fields)
    scaled = {name: (getattr(seen, name).abs() * 80).round().clamp(max=255) / divisor for name in numbers}
    return seen._replace(**scaled, **{name: None for name in {"state", "next_state"} & set(seen._fields)})


@EVERY
def test_bytes_are_learnt_from_as_the_same_numbers_from_0_to_1(case, monkeypatch):
    plain = dataclasses.replace(case.spec, state_size=0)
    ends = []
    for spec, divisor in ((dataclasses.replace(plain, bytes=True), 1), (plain, 255)):
        monkeypatch.setattr(Case, "spec", spec)
        learner = make(case, reciprocity__kappa=0.5)
        for batch in batches(learner, plain):
            learner.update(in_bytes(batch, divisor))
        acted = learner.act(in_bytes(observations(learner, plain), divisor), explore=False)
        ends.append({**learner.state_dict(), "action": acted.action})
    assert_same(*ends)
