"""How long the phases of DistMT-LSVI are, and how large its bonuses: what Theorem 1 asks, and what is practical."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from marl.config import suggestion
from marl.types import UserError

Rounds = Literal["paper", "tight"]


@dataclass(frozen=True)
class Problem:
    """What the constants depend on.

    Attributes:
        dim: d, of the features.
        horizon: H, steps an episode.
        tasks: M.
        delta: the probability with which the guarantee may fail, in (0, 1).
        epsilon: how far below optimal a policy may be, in units of return.
        c_sep: by how much, at least, the tasks' optimal values at ``s_0`` differ (Assumption 2), same units.
    """

    dim: int
    horizon: int
    tasks: int
    delta: float
    epsilon: float
    c_sep: float

    def __post_init__(self) -> None:
        _check_delta(self.delta)
        for name in ("epsilon", "c_sep"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UserError(f"{name}: expected a number above 0, got {getattr(self, name)}")


class Phase(NamedTuple):
    """One exploration and the planning after it.

    Attributes:
        episodes: K.
        beta_explore: scales the bonus in ExpPh.
        beta_plan: scales it in Planning, and in the policy that follows from the plan.
    """

    episodes: int
    beta_explore: float
    beta_plan: float


class Constants(Protocol):
    """Where the numbers come from.

    Attributes:
        label: how results obtained with them are to be named.
    """

    label: str

    def phases(self, problem: Problem) -> tuple[Phase, Phase]:
        """Phase 1, which identifies a task, and phase 2, which learns it."""


@dataclass(frozen=True)
class TheoryConstants:
    """The constants of Algorithm 1, whose factors the paper leaves open; nobody can wait for their episodes.

    With ``L = log(d H M / (delta c_sep))``: ``beta_1 = c_beta d H sqrt(L)`` and ``K_1 = c_k d^3 H^6 L / c_sep^2``;
    ``beta_2`` and ``K_2`` are the same with epsilon in place of c_sep. In the logarithm of ``K_2`` the paper prints
    ``c_sep``; its Lemma 5 needs epsilon.

    Attributes:
        c_beta, c_k: "sufficiently large", not known.
        cap: episodes of one phase above which ``phases`` refuses.
    """

    c_beta: float = 1.0
    c_k: float = 1.0
    cap: int = 1_000_000
    label = "covered by Theorem 1 if c_beta and c_k are large enough"

    def __post_init__(self) -> None:
        for name in ("c_beta", "c_k"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UserError(f"{name}: expected a number above 0, got {getattr(self, name)}")

    def implied(self, problem: Problem) -> tuple[Phase, Phase]:
        """The phases as the formulas give them, however long."""
        return self._phase(problem, problem.c_sep), self._phase(problem, problem.epsilon)

    def phases(self, problem: Problem) -> tuple[Phase, Phase]:
        """Raises ``UserError`` with the episodes that the constants imply where they exceed the cap."""
        first, second = self.implied(problem)
        if max(first.episodes, second.episodes) > self.cap:
            raise UserError(
                f"TheoryConstants imply K_1 = {first.episodes:.3g} and K_2 = {second.episodes:.3g} episodes for each "
                f"task met, more than cap = {self.cap:.3g}; raise the cap, or take PracticalConstants"
            )
        return first, second

    def describe(self, problem: Problem) -> str:
        """One line with what they imply."""
        first, second = self.implied(problem)
        return (
            f"Theorem 1 (c_beta = {self.c_beta:g}, c_k = {self.c_k:g}): K_1 = {first.episodes:.3g} episodes with "
            f"beta_1 = {first.beta_plan:.3g}, K_2 = {second.episodes:.3g} with beta_2 = {second.beta_plan:.3g}"
        )

    def _phase(self, problem: Problem, accuracy: float) -> Phase:
        d, h = problem.dim, problem.horizon
        logarithm = math.log(d * h * problem.tasks / (problem.delta * accuracy))
        beta = self.c_beta * d * h * math.sqrt(max(logarithm, 0.0))
        return Phase(max(1, math.ceil(self.c_k * d**3 * h**6 * logarithm / accuracy**2)), beta, beta)


@dataclass(frozen=True)
class PracticalConstants:
    """Numbers that identify and solve small tasks; no theorem covers them.

    Attributes:
        k1, k2: episodes of the two phases.
        beta_explore: scale of the bonus in both explorations. ExpPh's reward is the bonus itself, so that the scale
            cancels until a clip at H bites.
        beta_plan: scale in phase 1's planning, whose value is the task's fingerprint.
        beta_deploy: scale in phase 2's planning and in the policy that is returned.
    """

    k1: int = 800
    k2: int = 1600
    beta_explore: float = 1.0
    beta_plan: float = 0.1
    beta_deploy: float = 0.1
    label = "not covered by Theorem 1"

    def __post_init__(self) -> None:
        for name in ("k1", "k2"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected 1 episode or more, got {getattr(self, name)}")
        for name in ("beta_explore", "beta_plan", "beta_deploy"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UserError(f"{name}: expected 0 or more, got {getattr(self, name)}")

    def phases(self, problem: Problem) -> tuple[Phase, Phase]:
        return (
            Phase(self.k1, self.beta_explore, self.beta_plan),
            Phase(self.k2, self.beta_explore, self.beta_deploy),
        )


def learning_rounds(tasks: int, agents: int, delta: float, rule: Rounds = "paper") -> int:
    """T, so many that every task is met with probability 1 - delta.

    ``paper``: ``max(1, ceil(6 M log(M / delta) / N))``. ``tight``: ``max(1, ceil((M / N) log(M / delta)))``: N T
    independent draws miss some task with probability ``M (1 - 1/M)^(N T) <= M exp(-N T / M) <= delta`` at most.
    """
    for name, number in (("tasks", tasks), ("agents", agents)):
        if number < 1:
            raise UserError(f"{name}: expected 1 or more, got {number}")
    _check_delta(delta)
    factors = {"paper": 6, "tight": 1}
    if rule not in factors:
        raise UserError(f"rounds: {rule!r} is not a choice{suggestion(rule, factors)}")
    return max(1, math.ceil(factors[rule] * tasks * math.log(tasks / delta) / agents))


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise UserError(f"delta: expected a number between 0 and 1, got {delta}")
