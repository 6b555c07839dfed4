"""QMIX worked out by hand: utilities are set to numbers, so that targets and gradients can be checked in the head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from marl.algos.qmix import QMIX, QMIXConfig
from marl.config import replace
from marl.envs.base import EnvSpec
from marl.types import EpisodeBatch, UserError, View

SPEC = EnvSpec("hand", ("a", "b"), (2, 2), (3, 3), True, max_steps=2, masked=True)
GAMMA = 0.5


def make(spec: EnvSpec = SPEC, seeds: tuple[int, ...] = (0,), **options: Any) -> QMIX:
    config = QMIXConfig(gamma=GAMMA, hidden=(8, 8), target_interval=1)
    for name, value in options.items():
        config = replace(config, name.replace("__", "."), value)
    return QMIX(spec, [config] * len(seeds), list(seeds))


class Table:
    """Utilities that are the first observation entries times a table: ``[T + 1, A]``, the same for every agent."""

    def __init__(self, rows: list[list[float]]) -> None:
        self.rows = torch.tensor(rows)

    def unroll(self, obs: Tensor) -> Tensor:
        """``[P, N, T + 1, B, D]`` -> ``[P, N, T + 1, B, A]``."""
        return obs[..., :1] * self.rows[: obs.shape[2], None]


def batch(scale: tuple[float, float] = (1.0, 2.0), steps: int = 2, ends: bool = False) -> EpisodeBatch:
    """One episode of two agents whose observations are their scale, everywhere; rewards 1 and 3, then 2 and 6."""
    obs = torch.tensor(scale).view(1, 2, 1, 1, 1).expand(1, 2, 3, 1, 2).clone()
    filled = torch.tensor([True, steps == 2]).view(1, 2, 1)
    terminated = torch.zeros(1, 2, 2, 1, dtype=torch.bool)
    terminated[:, :, steps - 1 :] = ends
    reward = torch.tensor([[1.0, 2.0], [3.0, 6.0]]).view(1, 2, 2, 1)
    avail = torch.ones(1, 2, 3, 1, 3, dtype=torch.bool)
    return EpisodeBatch(obs, torch.zeros(1, 2, 2, 1, dtype=torch.int64), reward, terminated, filled, avail)


ONLINE = [[0.0, 0.0, 0.0], [1.0, 5.0, 3.0], [9.0, 2.0, 4.0]]  # best: -, action 1, action 0
TARGET = [[0.0, 0.0, 0.0], [10.0, 20.0, 40.0], [60.0, 80.0, 100.0]]


def target_of(learner: QMIX, given: EpisodeBatch) -> list[list[float]]:
    """The target by agent (or team) and time."""
    learner.target_utilities = Table(TARGET)  # type: ignore[assignment]
    online = Table(ONLINE).unroll(given.obs)
    state = torch.zeros(1, given.obs.shape[2], 1, 4)
    return learner.compute_target(given, online, state)[0, :, :, 0].tolist()


# ---- targets ------------------------------------------------------------------------------------------------------


def test_the_online_network_chooses_and_the_target_network_values():
    """Online best: action 1, then 0. The targets say 20 and 60 there (their own best would be 40 and 100)."""
    # Agent a, scale 1: 1 + 20/2 = 11, 2 + 60/2 = 32. Agent b, scale 2: 3 + 40/2 = 23, 6 + 120/2 = 66.
    assert target_of(make(mixer="none"), batch()) == [[11.0, 32.0], [23.0, 66.0]]


def test_vdn_adds_the_utilities_and_learns_from_the_teams_mean_reward():
    # Rewards (1 + 3)/2 = 2 and (2 + 6)/2 = 4; values 20 + 40 = 60 and 60 + 120 = 180.
    assert target_of(make(mixer="vdn"), batch()) == [[2 + 30.0, 4 + 90.0]]


def test_an_action_that_may_not_be_taken_next_is_not_chosen():
    given = batch()
    given.avail[:, 0, 1, :, 1] = False  # agent a at time 1: the best is now action 2, with 3, which is worth 40
    assert target_of(make(mixer="none"), given) == [[1 + 20.0, 32.0], [23.0, 66.0]]
    given.avail[:, :, 0] = False  # what could be done at the start is of no account
    assert target_of(make(mixer="none"), given) == [[1 + 20.0, 32.0], [23.0, 66.0]]


def test_a_padding_action_of_a_smaller_agent_is_not_chosen_either():
    spec = EnvSpec("hand", ("a", "b"), (2, 2), (1, 3), True, max_steps=2)
    # Agent a has action 0 only: 10 and 60 -> 1 + 5, 2 + 30.
    assert target_of(make(spec, mixer="none"), batch()._replace(avail=None)) == [[6.0, 32.0], [23.0, 66.0]]


def test_only_a_termination_stops_the_bootstrap_and_a_time_limit_does_not():
    learner = make(mixer="none")
    assert target_of(learner, batch(ends=True)) == [[11.0, 2.0], [23.0, 6.0]]
    assert target_of(learner, batch(ends=False)) == [[11.0, 32.0], [23.0, 66.0]]  # the true last observation's value
    assert target_of(make(mixer="none", limit_is_end=True), batch(ends=False)) == [[11.0, 2.0], [23.0, 6.0]]


def test_a_team_ends_when_all_its_agents_have():
    given = batch(ends=True)
    given.terminated[:, 0] = False
    assert target_of(make(mixer="vdn"), given) == [[32.0, 94.0]]  # agent b is dead, the team goes on
    assert target_of(make(mixer="none"), given) == [[11.0, 32.0], [23.0, 6.0]]


def test_two_step_returns_and_td_lambda():
    # Two steps: time 0: 1 + (2 + 60/2)/2 = 17; time 1: as before, since the episode ends there.
    assert target_of(make(mixer="none", n_step=2), batch()) == [[17.0, 32.0], [3 + 33.0, 66.0]]
    # lambda = 1/2: time 0: 1 + (20/2 + 32/2)/2 = 14; agent b: 3 + (40/2 + 66/2)/2 = 29.5.
    assert target_of(make(mixer="none", td_lambda=0.5), batch()) == [[14.0, 32.0], [29.5, 66.0]]


def test_longer_returns_stop_where_the_episode_does_and_do_not_reach_into_the_padding():
    """An episode of one step, not terminated: whatever n or lambda, r + gamma v' = 1 + 20/2 and 3 + 40/2."""
    for options in ({}, {"n_step": 2}, {"td_lambda": 0.9}):
        found = target_of(make(mixer="none", **options), batch(steps=1))
        assert [row[0] for row in found] == pytest.approx([11.0, 23.0])


def test_n_step_and_td_lambda_do_not_go_together():
    with pytest.raises(UserError, match="n_step: 3 does not go with td_lambda"):
        make(n_step=3, td_lambda=0.5)


# ---- reciprocity --------------------------------------------------------------------------------------------------


def test_utilities_are_blended_before_they_are_mixed():
    """Half of each neighbour's utility at the same episode: the table is the same for all, so that changes nothing."""
    options = {"reciprocity__kappa": 0.5, "reciprocity__adjacency": "exact"}
    assert target_of(make(mixer="vdn", **options), batch()) == [[32.0, 94.0]]
    # "peer": the neighbour at its own episode, scale 2 for 1: (20 + 40)/2 = 30 for both, (60 + 120)/2 = 90 for both.
    options["reciprocity__adjacency"] = "peer"
    assert target_of(make(mixer="none", **options), batch()) == [[1 + 15.0, 2 + 45.0], [3 + 15.0, 6 + 45.0]]
    assert target_of(make(mixer="vdn", **options), batch()) == [[2 + 30.0, 4 + 90.0]]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("recurrent", [True, False])
def test_a_neighbour_is_asked_at_the_agents_episode_and_action_by_its_own_network_or_name(shared, recurrent):
    """Against plain loops over i and j: network (or name) j unrolled over agent i's observations."""
    spec = EnvSpec("hand", ("a", "b", "c"), (2, 2, 2), (3, 3, 3), True, max_steps=4)
    learner = make(
        spec,
        (0, 1),
        mixer="none",
        shared=shared,
        recurrent=recurrent,
        reciprocity__kappa=0.5,
        reciprocity__adjacency="exact",
    )
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(2, 3, 5, 6, 2, generator=generator)
    zeros = torch.zeros(2, 3, 4, 6)
    given = EpisodeBatch(obs, zeros.long(), zeros, zeros.bool(), torch.ones(2, 4, 6, dtype=torch.bool))
    with torch.no_grad():
        online = learner.utilities.unroll(obs)
        best = online[:, :, 1:].argmax(-1)
        state = torch.zeros(2, 5, 6, 1)
        found = learner.compute_target(given, online, state)
        for i in range(3):
            asked = []  # every network at agent i's episode: agent i is put into all three places
            heard = learner.target_utilities.unroll(obs[:, i : i + 1].expand(-1, 3, -1, -1, -1))[:, :, 1:]
            for j in range(3):
                asked.append(heard[:, j].gather(-1, best[:, i].unsqueeze(-1)).squeeze(-1))
            others = sum(asked[j] for j in range(3) if j != i) / 2
            expected = GAMMA * (asked[i] + others) / 2
            torch.testing.assert_close(found[:, i], expected)
            assert not torch.allclose(found[:, i], GAMMA * asked[i], atol=1e-4)


def test_a_neighbour_that_lacks_the_action_agrees_with_the_agent_that_asks():
    spec = EnvSpec("hand", ("a", "b"), (2, 2), (1, 3), True, max_steps=2)
    options = {"reciprocity__kappa": 0.5, "reciprocity__adjacency": "exact"}
    # Agent b's best is action 1, which agent a does not have; action 0 at time 2 both have. The table is the same for
    # all, so nothing changes; what agent a's network says about action 1 may even be nonsense.
    learner = make(spec, mixer="none", **options)
    given = batch()._replace(avail=None)
    nonsense = Table(TARGET)
    unroll = nonsense.unroll

    def spoilt(obs: Tensor) -> Tensor:
        values = unroll(obs)
        values[:, 0, ..., 1:] = 1e6
        return values

    nonsense.unroll = spoilt  # type: ignore[method-assign]
    learner.target_utilities = nonsense  # type: ignore[assignment]
    found = learner.compute_target(given, Table(ONLINE).unroll(given.obs), torch.zeros(1, 3, 1, 4))
    assert found[0, :, :, 0].tolist() == [[6.0, 32.0], [23.0, 66.0]]


# ---- updates ------------------------------------------------------------------------------------------------------


def random_batch(seed: int, members: int = 1, steps: tuple[int, ...] = (2, 1, 2)) -> EpisodeBatch:
    g = torch.Generator().manual_seed(seed)
    rows = len(steps)
    filled = (torch.arange(2)[:, None] < torch.tensor(steps)).expand(members, -1, -1)
    return EpisodeBatch(
        torch.randn(members, 2, 3, rows, 2, generator=g),
        torch.randint(3, (members, 2, 2, rows), generator=g),
        torch.randn(members, 2, 2, rows, generator=g),
        torch.rand(members, 2, 2, rows, generator=g) < 0.2,
        filled,
        torch.ones(members, 2, 3, rows, 3, dtype=torch.bool),
    )


@pytest.mark.parametrize("mixer", ["qmix", "vdn", "none"])
def test_what_lies_in_the_padding_changes_nothing(mixer):
    given = random_batch(1)
    padding = ~given.filled
    spoilt = given._replace(
        reward=given.reward.masked_fill(padding.unsqueeze(1), 100.0),
        action=given.action.masked_fill(padding.unsqueeze(1), 2),
        terminated=given.terminated ^ padding.unsqueeze(1),
    )
    spoilt.obs[:, :, 2, 1] = 50.0  # the last entry of the episode of one step
    ours, theirs = make(mixer=mixer), make(mixer=mixer)
    a, b = ours.update(given), theirs.update(spoilt)
    for name in a:
        assert torch.equal(a[name], b[name]), name
    assert torch.equal(ours.utilities.network.flat.data, theirs.utilities.network.flat.data)


def test_steps_that_no_episode_reaches_change_nothing():
    """Without reciprocity the batch is cut to its longest episode; with it no: the same target, more rows."""
    short = random_batch(2, steps=(1, 1, 1))
    cut = short._replace(
        obs=short.obs[:, :, :2],
        **{name: getattr(short, name)[:, :, :1] for name in ("action", "reward", "terminated")},
        filled=short.filled[:, :1],
        avail=short.avail[:, :, :2],
    )
    learners = [make() for _ in range(3)]
    learners[2].trims = False
    for learner, given in zip(learners, (short, cut, short), strict=True):
        learner.update(given)
    data = [learner.utilities.network.flat.data for learner in learners]
    assert torch.equal(data[0], data[1])
    torch.testing.assert_close(data[0], data[2])


def test_the_loss_is_the_mean_square_over_filled_steps():
    """Target networks and rewards such that the numbers are small: utilities 0 everywhere, so targets are rewards."""
    learner = make(mixer="vdn")
    for flat in (learner.utilities.network.flat, learner.target_utilities.network.flat):
        flat.data.zero_()
    metrics = learner.update(batch())
    # Team rewards 2 and 4: mean square (4 + 16)/2 = 10, mean target 3.
    assert metrics["loss/critic"].tolist() == [[10.0, 10.0]] and metrics["value/target_mean"].tolist() == [[3.0, 3.0]]
    learner = make(mixer="vdn")
    for flat in (learner.utilities.network.flat, learner.target_utilities.network.flat):
        flat.data.zero_()
    metrics = learner.update(batch(steps=1))
    assert metrics["loss/critic"].tolist() == [[4.0, 4.0]]  # the second step is padding


def test_one_loss_moves_utilities_and_mixing_network_as_torch_would():
    """Against autograd on the same expression and ``torch.optim.Adam`` with ``clip_grad_norm_``."""
    learner, twin = make(lr=0.01, max_grad_norm=0.05), make()
    given = random_batch(3)
    parameters = [list(twin.utilities.network.parameters()), list(twin.mixer.parameters())]
    adams = [torch.optim.Adam(p, lr=0.01) for p in parameters]
    for _ in range(3):
        learner.update(given)
        values = twin.utilities.unroll(given.obs)
        state = given.obs.permute(0, 2, 3, 1, 4).flatten(3)
        target = twin.compute_target(given, values.detach(), state)[:, 0]
        taken = values[:, :, :-1].gather(-1, given.action.unsqueeze(-1)).squeeze(-1)
        q = twin.mixer(taken.flatten(2), state[:, :-1].flatten(1, 2)).unflatten(1, taken.shape[2:])
        loss = ((q - target)[given.filled] ** 2).mean()
        for adam in adams:
            adam.zero_grad()
        loss.backward()
        for adam, part in zip(adams, parameters, strict=True):
            torch.nn.utils.clip_grad_norm_(part, 0.05)
            adam.step()
        twin.target_utilities.network.follow(twin.utilities.network, torch.ones(1, 1, 1))
        twin.target_mixer.follow(twin.mixer, torch.ones(1, 1, 1))
    for ours, theirs in zip(learner.utilities.network.parameters(), parameters[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(learner.mixer.parameters(), parameters[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_targets_are_copied_at_every_interval_or_follow_by_tau():
    hard, soft = make(target_interval=3), make(target_interval=0, tau=0.25)
    start = hard.target_utilities.network.flat.data.clone()
    for count in range(1, 7):
        hard.update(random_batch(count))
        online, target = hard.utilities.network.flat.data, hard.target_utilities.network.flat.data
        assert torch.equal(target, online) == (count % 3 == 0)
        assert torch.equal(target, start) == (count < 3)
        assert torch.equal(hard.target_mixer.flat.data, hard.mixer.flat.data) == (count % 3 == 0)
    before = soft.target_mixer.flat.data.clone()
    soft.update(random_batch(0))
    torch.testing.assert_close(soft.target_mixer.flat.data, 0.75 * before + 0.25 * soft.mixer.flat.data)


# ---- acting -------------------------------------------------------------------------------------------------------


def view(copies: int, memory: Tensor | None = None) -> View:
    obs = torch.ones(1, 2, copies, 2)
    return View(obs, torch.tensor([True, False, True]).expand(1, 2, copies, 3), None, memory)


def test_epsilon_falls_linearly_with_the_environment_steps_of_all_copies():
    learner = make(epsilon_start=1.0, epsilon_end=0.2, epsilon_steps=100)
    seen = []
    for _ in range(12):
        seen.append(learner.epsilon().item())
        learner.act(view(10, torch.zeros(1, 2, 10, 8)), explore=True)
    # Down .8 in 100 steps, 10 steps a call: .08 a call, until .2.
    assert seen == pytest.approx([1.0, 0.92, 0.84, 0.76, 0.68, 0.6, 0.52, 0.44, 0.36, 0.28, 0.2, 0.2])
    before = learner.state_dict()["explore"]["generators"].clone()
    learner.act(view(10, torch.zeros(1, 2, 10, 8)), explore=False)
    assert learner.steps == 120 and torch.equal(before, learner.state_dict()["explore"]["generators"])


def test_random_actions_are_uniform_on_what_may_be_done_and_greedy_otherwise():
    learner = make(epsilon_start=0.5, epsilon_end=0.5)
    action = learner.act(view(20_000, torch.zeros(1, 2, 20_000, 8)), explore=True).action
    best = learner.act(view(1, torch.zeros(1, 2, 1, 8)), explore=False).action[0, :, 0]
    share = torch.stack([(action[0] == a).float().mean(-1) for a in range(3)])  # [A, N]
    for agent in range(2):
        assert share[1, agent] == 0
        assert share[best[agent], agent] == pytest.approx(0.75, abs=0.015)  # half, and half of the other half


def test_acting_step_by_step_is_unrolling_the_episode():
    learner = make()
    obs = torch.randn(1, 2, 3, 4, 2, generator=torch.Generator().manual_seed(0))
    whole = learner.utilities.unroll(obs).argmax(-1)
    memory = torch.zeros(1, 2, 4, 8)
    for t in range(3):
        action, memory = learner.act(View(obs[:, :, t], None, None, memory), explore=False)
        assert torch.equal(action, whole[:, :, t])


@pytest.mark.parametrize(
    "spec, line",
    [
        (EnvSpec("x/y", ("a",), (1,), (1,), False, max_steps=3), "qmix needs discrete actions.*mappo and maddpg"),
        (
            EnvSpec("x/y", ("a",), (1,), (2,), True),
            "qmix learns from whole episodes and needs a time limit, x/y has none that marl can see",
        ),
        (EnvSpec("x/y", ("a", "b"), (1, 1), (2, 2), True, 3, True), "qmix needs agents that share their episodes"),
    ],
)
def test_what_it_does_not_fit_is_refused_in_one_line(spec, line):
    with pytest.raises(UserError, match=line) as error:
        QMIX(spec, [QMIXConfig()], [0])
    assert "\n" not in str(error.value)


def test_what_fills_up_a_batch_is_no_part_of_the_gap():
    """Two steps and one: the second episode's missing step, filled up with numbers of a thousand, says nothing."""
    gaps = []
    for filler in (1.0, 1000.0):
        given = batch(steps=1)
        given.obs[:, :, 2] *= filler
        learner = make(shared=False, reciprocity__kappa=0.5, reciprocity__adjacency="exact")
        gaps.append(learner.update(given)["value/target_gap"])
    assert torch.equal(*gaps) and (gaps[0] > 0).all()
