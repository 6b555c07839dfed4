"""Algorithm 2 against a literal reading of the paper's box, games to solve in the head, and exact fronts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.classic.fronts import domination, maximum_utility_loss
from marl.classic.instances import make_linear_multiagent
from marl.classic.lsvi import Bonus
from marl.classic.mdp import LinearMultiagentMDP
from marl.classic.multiagent_loops import TIE, spectral_width
from marl.classic.multiagent_lsvi import JOINT_ACTION_LIMIT, MultiagentCoopLSVI, flat_threshold, rounds_bound
from marl.classic.planning import convex_coverage_set, optimal_values
from marl.types import UserError

WIN = 0.56
"""What a won game pays: .35 x 1.6."""


def game(wins, actions_each):
    """One state, one step: joint action a pays agent m ``WIN wins[m][a]``. ``||Phi||^2 <= 2 (.6^2 + .35^2) < 1``."""
    wins = np.array(wins, float)
    rewards = np.zeros((*wins.shape, 2))
    rewards[..., 0] = 0.35 * wins
    common = np.full((1, wins.shape[1], 1), 0.6)
    return LinearMultiagentMDP(rewards[:, None], common, [[1.6, 0.0]], [[[1 / 0.6]]], actions_each)


def small(agents=2, seed=1):
    return make_linear_multiagent(seed, states=4, horizon=3, actions_each=(2,) * agents)


def paper_policy(mdp, shared, v, beta, regulariser, weighted=False):
    """Equations (14) and (15) from the whole history, with the root and the clip of the proofs; lowest tied action."""
    phi, values = mdp.joint_features, np.zeros(mdp.states)
    policy = np.zeros((mdp.horizon, mdp.states), int)
    for h in reversed(range(mdp.horizon)):
        gram, targets = regulariser * np.eye(mdp.dim), np.zeros(mdp.dim)
        for x, a, rewards, following in shared[h]:
            gram += phi[x, a] @ phi[x, a].T
            targets += phi[x, a] @ (rewards + values[following])
        weights, now = np.linalg.solve(gram, targets), np.zeros(mdp.states)
        for x in range(mdp.states):
            q = np.zeros(mdp.actions)
            for a in range(mdp.actions):
                if weighted:
                    width = math.sqrt(v @ phi[x, a].T @ np.linalg.solve(gram, phi[x, a] @ v))
                else:
                    width = math.sqrt(np.linalg.norm(phi[x, a].T @ np.linalg.solve(gram, phi[x, a]), 2))
                q[a] = min(v @ phi[x, a].T @ weights + beta * width, mdp.horizon - h)
            now[x], policy[h, x] = q.max(), np.flatnonzero(q >= q.max() - TIE)[0]
        values = now
    return policy, values


class PaperAgent:
    """An agent of the box: it sees states and joint actions, but no reward except its own until all synchronise."""

    def __init__(self, mdp, me, beta, regulariser, weighted):
        self.mdp, self.me, self.settings = mdp, me, (beta, regulariser, weighted)
        self.shared = [[] for _ in range(mdp.horizon)]
        self.own = [[] for _ in range(mdp.horizon)]

    def plan(self, v):
        beta, regulariser, weighted = self.settings
        return paper_policy(self.mdp, self.shared, v, beta, regulariser, weighted)[0]

    def part(self, joint_action):
        return np.unravel_index(joint_action, self.mdp.actions_each)[self.me]

    def log_det(self, h, rows):
        phi = self.mdp.joint_features
        gram = self.settings[1] * np.eye(self.mdp.dim) + sum((phi[x, a] @ phi[x, a].T for x, a, *_ in rows), 0)
        return np.linalg.slogdet(gram)[1]

    def due(self, threshold):
        steps = range(self.mdp.horizon)
        growth = [self.log_det(h, self.shared[h] + self.own[h]) - self.log_det(h, self.shared[h]) for h in steps]
        return max(growth) > math.log(threshold)


def exchange(agents):
    """The server: everyone's rewards, in the order of time, to everyone."""
    for h in range(agents[0].mdp.horizon):
        together = [
            (rows[0][0], rows[0][1], np.array([row[2] for row in rows]), rows[0][3])
            for rows in zip(*(agent.own[h] for agent in agents), strict=True)
        ]
        for agent in agents:
            agent.shared[h] += together
            agent.own[h] = []


@pytest.mark.parametrize(("agents", "width"), [(2, "spectral"), (2, "weighted"), (3, "spectral")])
def test_agents_who_compute_alone_from_what_they_shared_do_what_the_fast_learner_does(agents, width):
    """M literal agents, each with its own memory: same joint actions, same episodes of synchronisation."""
    mdp, beta, regulariser, threshold, seed = small(agents), 0.7, 0.2, 1.7, 5
    learner = MultiagentCoopLSVI(
        mdp, threshold=threshold, bonus=Bonus(beta=beta), width=width, regulariser=regulariser, seed=seed
    )
    team = [PaperAgent(mdp, m, beta, regulariser, width == "weighted") for m in range(agents)]
    scalarisations, process = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    rounds = 0
    for _ in range(25):
        v, draws = scalarisations.dirichlet(np.ones(agents)), process.random(mdp.horizon + 1)
        expected = learner.plan(v)[0]
        plans = [agent.plan(v) for agent in team]
        assert all(np.array_equal(plan, expected) for plan in plans)
        x = int(np.searchsorted(np.cumsum(mdp.start), draws[0], side="right"))
        for h in range(mdp.horizon):
            parts = [agent.part(plan[h, x]) for agent, plan in zip(team, plans, strict=True)]
            a = int(np.ravel_multi_index(parts, mdp.actions_each))
            following = int(np.searchsorted(np.cumsum(mdp.transition[h, x, a]), draws[h + 1], side="right"))
            for m, agent in enumerate(team):
                agent.own[h].append((x, a, mdp.reward[h, x, a, m], following))
            x = following
        due = {agent.due(threshold) for agent in team}
        assert len(due) == 1, "states and joint actions are seen by all, and so is when to speak"
        played = learner.fit(1)
        np.testing.assert_array_equal(played.weights, v[None])
        assert played.synchronised.tolist() == list(due)
        if due.pop():
            exchange(team)
            rounds += 1
    assert 3 < rounds < 25
    assert learner.communication.rounds == rounds


def test_agents_who_break_ties_each_in_their_own_way_miss_each_other():
    """Both win at (0, 1) and at (1, 0). Alike, they play (0, 1); each its own way, they may play (0, 0)."""
    learner = MultiagentCoopLSVI(game([[0, 1, 1, 0]] * 2, (2, 2)), bonus=Bonus(beta=1.0))
    late = learner.fit(50).values[-10:]
    np.testing.assert_allclose(late, WIN)
    policy, _ = learner.plan([0.3, 0.7])
    assert policy.tolist() == [[1]], "of 1 = (0, 1) and 2 = (1, 0) the lowest"
    first, second = 1 // 2, 2 % 2  # the usual bug: agent 1 follows joint action 1, agent 2 joint action 2
    assert learner.mdp.reward[0, 0, 2 * first + second].tolist() == [0, 0]


def test_what_differs_by_rounding_only_is_tied():
    """Agent 1 wins at joint action 1, agent 2 at 2: worth .28 each at equal weights, but for the last digits."""
    learner = MultiagentCoopLSVI(game([[0, 1, 0, 0], [0, 0, 1, 0]], (2, 2)), bonus=Bonus(beta=1.0), regulariser=0.1)
    learner.fit(500)
    assert [learner.plan([0.5, 0.5 + more])[0].item() for more in (-1e-12, 0, 1e-12, 0.1)] == [1, 1, 1, 2]


def test_phi_phi_is_added_once_per_joint_step():
    """Phi has the columns (.35, 0, .6) and (0, 0, .6): Phi Phi^T = [[.1225, 0, .21], [0, 0, 0], [.21, 0, .72]]."""
    learner = MultiagentCoopLSVI(game([[1], [0]], (1, 1)))
    learner.fit(10)
    expected = [[0.1225, 0, 0.21], [0, 0, 0], [0.21, 0, 0.72]]
    np.testing.assert_allclose(learner.statistics.gram[0, 0], 10 * np.array(expected), atol=1e-12)
    np.testing.assert_allclose(learner.statistics.reward_sum[0, 0], 10 * np.array([0.35, 0, 0.6]) * WIN)
    np.testing.assert_allclose(learner.statistics.next_sum[0, 0, :, 0], 10 * np.array([0.35, 0, 1.2]))
    assert learner.statistics.count.tolist() == [[10]]


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_the_width_is_the_root_of_the_spectral_norm_and_bounds_every_weighted_width(outputs, seed):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(5, 5))
    inverse, columns = root @ root.T, rng.normal(size=(2, 3, outputs, 5))
    gram = columns @ inverse @ np.swapaxes(columns, -1, -2)
    width = spectral_width(inverse, columns)
    np.testing.assert_allclose(width, np.sqrt(np.linalg.norm(gram, ord=2, axis=(-2, -1))), rtol=1e-9)
    v = rng.dirichlet(np.ones(outputs))
    assert (np.sqrt(v @ gram @ v) <= width + 1e-9).all()


def test_upper_values_are_clipped_at_the_rewards_that_are_left():
    """H = 3: with a huge bonus 3, 2, 1, 0."""
    learner = MultiagentCoopLSVI(small(), bonus=Bonus(beta=1e6))
    _, values = learner.plan([0.5, 0.5])
    assert (values[0] == np.array([3, 2, 1, 0])[:, None]).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize("width", ["spectral", "weighted"])
def test_upper_values_are_at_least_the_optimum_with_theorys_bonus_and_a_tenth_of_it(seed, scale, width):
    mdp = small(seed=seed)
    learner = MultiagentCoopLSVI(mdp, bonus=Bonus(scale=scale), width=width, seed=seed)
    clipped = []
    for _ in range(4):
        learner.fit(1500)
        for share in np.linspace(0, 1, 5):
            v = np.array([share, 1 - share])
            upper, exact = learner.plan(v)[1][0], optimal_values(mdp.scalarised(v)).v
            assert (upper >= exact - 1e-9).all()
            clipped.append(np.all(upper[0] == mdp.horizon))
    assert scale == 1 or not all(clipped), "else the clip alone would be tested"


def test_policies_change_only_when_the_agents_synchronise():
    learner, weights = MultiagentCoopLSVI(small(), threshold=3.0, bonus=Bonus(beta=0.5), regulariser=0.1), [0.4, 0.6]
    kept = changed = 0
    for _ in range(60):
        values = learner.plan(weights)[1]
        spoke = learner.fit(1).synchronised[0]
        same = np.array_equal(learner.plan(weights)[1], values)
        assert same or spoke
        kept, changed = kept + (not spoke), changed + (not same)
    assert kept > 10
    assert changed > 3


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_a_threshold_of_one_or_less_synchronises_always(threshold):
    learner = MultiagentCoopLSVI(small(), threshold=threshold)
    assert learner.fit(7).synchronised.all()
    assert learner.communication.rounds == 7


@pytest.mark.parametrize("threshold", [1.2, 2.0, 10.0])
def test_the_rounds_keep_within_lemma_3(threshold):
    mdp, regulariser = small(), 0.3
    learner = MultiagentCoopLSVI(mdp, threshold=threshold, regulariser=regulariser)
    learner.fit(3000)
    bound = rounds_bound(3000, mdp.agents, mdp.dim, mdp.horizon, threshold, regulariser)
    assert 0 < learner.communication.rounds <= bound
    assert rounds_bound(3000, 2, 10, 3, 1.0) == 3000


def test_remark_9s_threshold_bounds_the_rounds_whatever_the_episodes():
    """S = (1 + M T / d)^(1 / C): d H log_S(1 + M T / d) + H = (d C + 1) H; with d = 10, C = 4, H = 6: 246."""
    for episodes in (10, 10**3, 10**6):
        threshold = flat_threshold(episodes, agents=2, dim=10, budget=4)
        assert rounds_bound(episodes, 2, 10, 6, threshold) == pytest.approx(246)


def test_the_account_by_hand():
    """H = 3, M = 2, d = 10. One episode a round: each sends 3 rewards and gets 6. The pairs: 2 x 2 x 3 (1 + 2) = 36.

    The isolated agents of the same process say nothing.
    """
    account = MultiagentCoopLSVI(small(), threshold=1.0)
    account.fit(4)
    said = account.communication
    assert (said.rounds, said.floats_up, said.floats_down, said.transition_floats) == (4, 4 * 6, 4 * 12, 4 * 36)
    assert said.bytes == 8 * 4 * 18


def test_a_message_about_many_episodes_is_the_sum_and_no_longer():
    """At most d = 10 numbers a step: 2 agents x 3 steps x 10 both ways, in every round."""
    learner = MultiagentCoopLSVI(small(), threshold=1e6)
    learner.fit(20_000)
    said = learner.communication
    assert said.rounds >= 1
    assert said.floats_up == said.floats_down == said.rounds * 2 * 3 * 10


def test_isolated_agents_who_each_want_another_joint_action_get_neither():
    """Agent 1 wins at (0, 0), agent 2 at (1, 1). Each plays its own part of its own wish: (0, 1), nobody wins.

    Cooperating agents play (0, 0) or (1, 1), whichever v_t prefers, and regret nothing in the end.
    """
    mdp = game([[1, 0, 0, 0], [0, 0, 0, 1]], (2, 2))
    front = np.array([[WIN, 0], [0, WIN]])
    alone = MultiagentCoopLSVI(mdp, bonus=Bonus(beta=1.0), isolated=True)
    lost = alone.fit(200)
    np.testing.assert_array_equal(lost.values[-20:], 0)
    np.testing.assert_allclose(lost.regret(front)[-20:], WIN * lost.weights[-20:].max(1))
    assert not lost.synchronised.any()
    assert (alone.communication.rounds, alone.communication.floats) == (0, 0)
    together = MultiagentCoopLSVI(mdp, bonus=Bonus(beta=1.0)).fit(2000)
    assert together.regret(front)[-500:].max() < 0.02


def test_an_isolated_agent_regresses_on_its_own_reward():
    """Ten steps: agent 1 has Phi r = (.35, 0, .6) .56, agent 2 earns nothing."""
    alone = MultiagentCoopLSVI(game([[1], [0]], (1, 1)), isolated=True)
    alone.fit(10)
    expected = [[10 * 0.35 * WIN, 0, 10 * 0.6 * WIN], [0, 0, 0]]
    np.testing.assert_allclose(alone.statistics.reward_sum[:, 0], expected, atol=1e-12)


def test_isolated_agents_suffice_where_nobody_depends_on_the_others():
    """Each wins by its own action 1 alone: joint action 3 = (1, 1) is best for all."""
    mdp = game([[0, 0, 1, 1], [0, 1, 0, 1]], (2, 2))
    alone = MultiagentCoopLSVI(mdp, bonus=Bonus(beta=1.0), isolated=True)
    np.testing.assert_allclose(alone.fit(200).values[-20:], WIN)


def test_parts_of_unequal_actions_are_put_together_right():
    """Agents with 2, 1 and 3 actions; each wins by its last one: (1, 0, 2) is joint action 1 x 3 + 0 x 3 + 2 = 5."""
    wins = [[0, 0, 0, 1, 1, 1], [1] * 6, [0, 0, 1, 0, 0, 1]]
    rewards = np.zeros((3, 1, 6, 4))
    rewards[:, 0, :, 0] = 0.2 * np.array(wins)
    mdp = LinearMultiagentMDP(rewards, np.full((1, 6, 1), 0.5), [[2.0, 0, 0, 0]], [[[2.0]]], (2, 1, 3))
    alone = MultiagentCoopLSVI(mdp, bonus=Bonus(beta=1.0), isolated=True)
    alone.fit(300)
    assert alone.plan([1 / 3] * 3)[0].tolist() == [[5]]


def test_the_recovered_front_is_the_exact_one_within_tolerance():
    mdp = small(seed=3)
    front = convex_coverage_set(mdp).values
    learner = MultiagentCoopLSVI(mdp, bonus=Bonus(beta=1.0), regulariser=0.1)
    share = np.linspace(0, 1, 101)
    before = maximum_utility_loss(learner.recover(np.stack([share, 1 - share], axis=1)), front)
    regret = learner.fit(6000).regret(front)
    recovered = learner.recover(np.stack([share, 1 - share], axis=1))
    assert maximum_utility_loss(recovered, front) < 0.01 < 0.1 < before
    assert domination(recovered, front).max() < 0.01
    assert regret.min() > -1e-9
    assert regret[-1000:].sum() < 0.2 * regret[:1000].sum()


@pytest.mark.parametrize(("threshold", "regulariser"), [(1e9, 0.1), (1.0, 1e-4)])
def test_inverse_and_determinant_do_not_drift_in_ten_thousand_updates(threshold, regulariser):
    """With lambda = 1e-4 the sum of the growths is 1e-6 off by then; an exchange after every episode mends that."""
    learner = MultiagentCoopLSVI(small(), threshold=threshold, regulariser=regulariser)
    learner.fit(10_000)
    known = learner.statistics
    whole = known.gram + regulariser * np.eye(known.dim)
    np.testing.assert_allclose(known.inverse, np.linalg.inv(whole), atol=1e-8)
    np.testing.assert_allclose(known.log_det, np.linalg.slogdet(whole)[1], rtol=0, atol=1e-8)


def test_in_pieces_and_from_a_saved_state_the_same_bits_follow():
    def make():
        return MultiagentCoopLSVI(small(), threshold=1.5, bonus=Bonus(scale=0.01), seed=9)

    whole, pieces = make(), make()
    expected = whole.fit(40)
    first = pieces.fit(13)
    state = pieces.state_dict()
    pieces.fit(5)  # the saved state is a copy
    again = make()
    again.load_state_dict(state)
    rest = again.fit(27)
    for name in expected._fields:
        both = np.concatenate([getattr(first, name), getattr(rest, name)])
        np.testing.assert_array_equal(both, getattr(expected, name))
    assert again.communication == whole.communication
    np.testing.assert_array_equal(again.plan([0.2, 0.8])[1], whole.plan([0.2, 0.8])[1])


def test_learners_of_one_seed_draw_the_same_weights_whatever_their_threshold():
    first, second = (MultiagentCoopLSVI(small(), threshold=s, seed=4).fit(20).weights for s in (1.0, 5.0))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first.sum(1), 1)


def test_a_joint_action_space_beyond_the_limit_is_refused_in_one_line():
    with pytest.raises(UserError, match=rf"8192 x 1 = 8192 joint actions: expected {JOINT_ACTION_LIMIT} at most"):
        MultiagentCoopLSVI(game(np.zeros((2, 8192)), (8192, 1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": -1}, "threshold: expected 0 or more"),
        ({"threshold": math.nan}, "threshold: expected 0 or more"),
        ({"width": "spectrum"}, "did you mean 'spectral'"),
        ({"regulariser": 0}, "regulariser: expected a number above 0"),
    ],
)
def test_bad_settings_are_named_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        MultiagentCoopLSVI(small(), **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda learner: learner.plan([1.0]), r"weights \[1\]: expected \[2\], one number for each objective"),
        (lambda learner: learner.plan([1.5, -0.5]), "weights: expected finite numbers of 0 or more, got -0.5"),
        (lambda learner: learner.recover(np.ones((2, 3))), r"weights \[2, 3\]: expected \[n, 2\], one row or more"),
        (lambda learner: learner.recover([]), r"weights \[0\]: expected \[n, 2\], one row or more"),
        (lambda learner: learner.recover([[1, math.nan]]), "weights: expected finite numbers of 0 or more, got nan"),
        (lambda learner: learner.fit(-1), "n_episodes: expected 0 or more, got -1"),
        (lambda _: flat_threshold(100, 2, 10, 0), "budget: expected 0.00435 or more, .* got 0"),
        (lambda _: flat_threshold(100, 2, 10, 0.001), "budget: expected 0.00435 or more, .* got 0.001"),
        (lambda _: rounds_bound(100, 2, 0, 6, 2.0), "dim 0: expected 1 or more"),
    ],
)
def test_weights_and_numbers_that_make_no_sense_are_said_in_one_line(call, message):
    """A threshold of e^700 is the largest: log(1 + 2 x 100 / 10) / 700 = .00435."""
    assert 1e300 < flat_threshold(100, 2, 10, 0.00435) < math.inf
    with pytest.raises(UserError, match=f"^{message}"):
        call(MultiagentCoopLSVI(small()))


def test_weights_may_be_whole_numbers_or_lists():
    learner = MultiagentCoopLSVI(small())
    for same in (np.eye(2, dtype=int), [[1.0, 0], [0, 1]]):
        np.testing.assert_array_equal(learner.recover(same), learner.recover(np.eye(2)))


def test_agents_who_are_never_to_synchronise_are_warned(caplog):
    MultiagentCoopLSVI(small(), threshold=math.inf)
    assert "learn nothing" in caplog.text
