"""MAPPO in numbers that a reader can check in the head: targets, advantages, both losses, memories, masks.

With ``hidden=()`` a critic of width 1 is linear: a weight and a bias. Agents are two, observations one number wide.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from marl.algos.mappo import MAPPO, MAPPOConfig, Sequences
from marl.config import replace
from marl.envs import make_env
from marl.envs.base import EnvSpec
from marl.loop import first_view, interact
from marl.modules.adjacency import Exact
from marl.rollout import Rollout
from marl.types import Trajectory, UserError, View

LN2 = math.log(2)
SPEC = EnvSpec("test/line", ("a", "b"), (1, 1), (2, 2), discrete=True)
LINE = {"hidden": (), "gamma": 0.5, "gae_lambda": 0.5, "normalize_value": False, "entropy": 0.0}


def make(spec: EnvSpec = SPEC, members: int = 1, **settings: Any) -> MAPPO:
    config = MAPPOConfig()
    for name, value in settings.items():
        config = replace(config, name.replace("__", "."), value)
    return MAPPO(spec, [config] * members, list(range(members)))


def line(weights: list[list[float]], **settings: Any) -> MAPPO:
    """One network's weights and bias for each list; actors choose with even odds."""
    learner = make(**{**LINE, **settings})
    learner.critic.flat.data.copy_(torch.tensor([weights]))
    learner.actor.flat.data.zero_()
    return learner


def times(*per_agent: list[float]) -> Tensor:
    """``[1, N, T, 1]`` from a list over T for each agent."""
    return torch.tensor([per_agent]).unsqueeze(-1)


def trajectory(**changes: Any) -> Trajectory:
    """Two steps of one copy: agent 0 earns 1 and sees 1, 2, then 3; agent 1 earns 2 and sees 4, 5, then 6."""
    no = torch.zeros(1, 2, 2, 1, dtype=torch.bool)
    return Trajectory(
        obs=times([1.0, 2.0], [4.0, 5.0]).unsqueeze(-1),
        action=no.long(),
        reward=times([1.0, 1.0], [2.0, 2.0]),
        next_obs=times([2.0, 3.0], [5.0, 6.0]).unsqueeze(-1),
        terminated=no,
        done=no.clone(),
        valid=~no,
    )._replace(**changes)


OWN = {"critic": "own", "shared": False}
V = [[2.0, 0.0], [1.0, 1.0]]
"""V_0 = 2 o and V_1 = o + 1: at the next observations 4, 6 and 6, 7."""


def target(learner: MAPPO, batch: Trajectory) -> list[list[float]]:
    return learner.compute_target(batch, None)[0, :, :, 0].tolist()


@torch.no_grad()
def worth(learner: MAPPO, batch: Trajectory) -> Tensor:
    """Values in real units, ``[P, N, T, 1]``."""
    states = learner.judge.see(batch.obs.flatten(2, 3), None).unflatten(2, (2, 1))
    memory = None if batch.memory is None else batch.memory[:, :, 0, :, learner.width :]
    return learner.norm.denormalize(learner.judge(states, memory)[0])


# ---- targets ------------------------------------------------------------------------------------------------------


def test_targets_are_lambda_returns_over_the_values_of_true_successors():
    # G_1 = 1 + .5 * 6 = 4, G_0 = 1 + .5 (.5 * 4 + .5 * 4) = 3; agent 1: 2 + 3.5, then 2 + .5 (.5 * 6 + .5 * 5.5)
    assert target(line(V, **OWN), trajectory()) == [[3.0, 4.0], [4.875, 5.5]]


def test_a_time_limit_is_bootstrapped_from_and_an_end_is_not():
    cut = trajectory(done=times([True, False], [True, False]))
    # nothing comes back from step 1: 1 + .5 * 4 and 2 + .5 * 6
    assert target(line(V, **OWN), cut) == [[3.0, 4.0], [5.0, 5.5]]
    far = cut._replace(reward=times([1.0, 100.0], [2.0, 100.0]))
    assert [g[0] for g in target(line(V, **OWN), far)] == [3.0, 5.0]
    ended = cut._replace(terminated=cut.done)  # a learner that takes a limit for an end computes this
    assert target(line(V, **OWN), ended) == [[1.0, 4.0], [2.0, 5.5]]


def test_reciprocity_blends_the_values_that_are_bootstrapped_and_nothing_else():
    learner = line(V, **OWN, reciprocity__kappa=0.5, reciprocity__adjacency="exact")
    # critic 1 at agent 0's states: 3, 4: blended 3.5, 5. critic 0 at agent 1's: 10, 12: blended 8, 9.5
    # G_1 = 1 + 2.5, G_0 = 1 + .5 (.5 * 3.5 + .5 * 3.5); 2 + 4.75, 2 + .5 (.5 * 8 + .5 * 6.75)
    assert target(learner, trajectory()) == [[2.75, 3.5], [5.6875, 6.75]]
    assert learner.prepare(trajectory())[1]["value/q_mean"].tolist() == [[3.0, 5.5]]  # V itself: 2, 4 and 5, 6


def test_with_peer_adjacency_the_neighbour_says_what_it_sees_itself():
    learner = line(V, **OWN, reciprocity__kappa=0.5, reciprocity__adjacency="peer")
    # critic 1 at its own next observations: 6, 7; critic 0: 4, 6. Both blend to 5, 6.5
    # 1 + .5 * 6.5 = 4.25, 1 + .5 (.5 * 5 + .5 * 4.25); 2 + 3.25, 2 + .5 (.5 * 5 + .5 * 5.25)
    assert target(learner, trajectory()) == [[3.3125, 4.25], [4.5625, 5.25]]


def test_central_critics_of_their_own_see_all_observations():
    # V_0 = 2 o_0 + o_1, V_1 = o_1: at (2, 5) and (3, 6) they say 9, 12 and 5, 6
    central = [[2.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
    learner = line(central, shared=False)
    # G_1 = 1 + 6, G_0 = 1 + .5 (.5 * 9 + .5 * 7); 2 + 3, 2 + .5 (.5 * 5 + .5 * 5)
    assert target(learner, trajectory()) == [[5.0, 7.0], [4.5, 5.0]]
    heard = line(central, shared=False, gae_lambda=0.0, reciprocity__kappa=1.0, reciprocity__adjacency="exact")
    assert target(heard, trajectory()) == [[3.5, 4.0], [6.5, 8.0]]  # 1 + .5 * 5, 1 + .5 * 6; 2 + .5 * 9, 2 + .5 * 12
    peer = line(central, shared=False, gae_lambda=0.0, reciprocity__kappa=1.0, reciprocity__adjacency="peer")
    # exchanged (5, 2), (6, 3): V_1 = 2, 3 and V_0 = 12, 15
    assert target(peer, trajectory()) == [[2.0, 2.5], [8.0, 9.5]]


def test_central_critics_see_the_environments_own_state_where_it_has_one():
    spec = EnvSpec("test/line", ("a", "b"), (1, 1), (2, 2), discrete=True, state_size=1)
    state = torch.tensor([[[[1.0]], [[2.0]]]])
    given = trajectory(state=state, next_state=state + 1)
    learner = make(spec, **LINE, shared=False)
    learner.critic.flat.data.copy_(torch.tensor([V]))  # at states 2, 3: 4, 6 and 3, 4
    assert target(learner, given) == [[3.0, 4.0], [3.75, 4.0]]  # as above; 2 + 2, 2 + .5 (.5 * 3 + .5 * 4)
    assert learner.prepare(given)[1]["value/q_mean"].tolist() == [[3.0, 2.5]]


def test_a_shared_critic_of_everything_has_a_head_for_each_agent():
    # V_0 = 2 o_0 + o_1, V_1 = o_1 + 20: at (2, 5) and (3, 6) they say 9, 12 and 25, 26
    heads = [[2.0, 0.0, 1.0, 1.0, 0.0, 20.0]]
    assert target(line(heads, gae_lambda=0.0), trajectory()) == [[5.5, 7.0], [14.5, 15.0]]  # 1 + 4.5 ... 2 + 13
    for adjacency in ("exact", "peer"):  # the other head, at the same place: there is no other
        heard = line(heads, gae_lambda=0.0, reciprocity__kappa=1.0, reciprocity__adjacency=adjacency)
        assert target(heard, trajectory()) == [[13.5, 14.0], [6.5, 8.0]]


def test_a_shared_critic_of_ones_own_knows_whom_it_speaks_for_and_its_neighbours_are_itself_in_their_names():
    # inputs: own observation, number one-hot. V_i = o_i + 10 [i = 0] + 20 [i = 1]
    shared = [[1.0, 10.0, 20.0, 0.0]]
    # at 2, 3 and 5, 6: 12, 13 and 25, 26; lambda = 0: 1 + 6, 1 + 6.5; 2 + 12.5, 2 + 13
    assert target(line(shared, critic="own", gae_lambda=0.0), trajectory()) == [[7.0, 7.5], [14.5, 15.0]]
    # in the other's name at the same place: 22, 23 and 15, 16
    settings = {"critic": "own", "gae_lambda": 0.0, "reciprocity__kappa": 1.0}
    assert target(line(shared, **settings, reciprocity__adjacency="exact"), trajectory()) == [[12.0, 12.5], [9.5, 10.0]]
    peer = line(shared, **settings, reciprocity__adjacency="peer")
    assert target(peer, trajectory()) == [[13.5, 14.0], [8.0, 8.5]]  # 25, 26 and 12, 13


def test_a_normalised_critic_is_asked_for_real_values():
    learner = line(V, **{**LINE, **OWN, "normalize_value": True})
    learner.norm.update(times([10.0, 30.0], [0.0, 2.0]))  # means 20, 1, standard deviations 10, 1
    # V_0 = 20 + 10 * (4, 6) = 60, 80 and V_1 = 1 + (6, 7) = 7, 8; 1 + 40, 1 + .5 (.5 * 60 + .5 * 41); 2 + 4, ...
    torch.testing.assert_close(torch.tensor(target(learner, trajectory())), torch.tensor([[26.25, 41.0], [5.25, 6.0]]))


def test_a_normaliser_that_moves_takes_no_value_along():
    """Else values of more than one deviation would feed on themselves."""
    learner = line(V, **{**LINE, **OWN, "normalize_value": True})
    learner.norm.update(times([10.0, 30.0], [0.0, 2.0]))
    rows, metrics = learner.prepare(trajectory())
    # V_0 = 20 + 10 * 2 o at 1, 2 and V_1 = 1 + (o + 1) at 4, 5, before and after
    assert metrics["value/q_mean"].tolist() == [[50.0, 6.5]]
    torch.testing.assert_close(worth(learner, trajectory()), times([40.0, 60.0], [6.0, 7.0]))
    torch.testing.assert_close(learner.norm.denormalize(rows.value)[0, :, 0], torch.tensor([[40.0, 60.0], [6.0, 7.0]]))
    assert (learner.norm.sums[..., 0] > 3).all()  # it has moved


@pytest.mark.parametrize("kind", [{}, OWN, {"shared": False}, {"critic": "own"}, {"recurrent": True, "chunk": 1}])
def test_values_do_not_grow_by_being_asked_again(kind):
    """A critic that does not learn says the same after 50 updates, however large its answers are."""
    learner = make(**{**LINE, "hidden": (8,), "normalize_value": True, "critic_lr": 0.0, **kind})
    batch = trajectory(memory=torch.zeros(1, 2, 2, 1, 16)) if kind.get("recurrent") else trajectory()
    learner.update(batch)  # the first time values get their unit
    learner.critic.flat.data.mul_(3)
    before = worth(learner, batch)
    for _ in range(50):
        learner.update(batch)
    torch.testing.assert_close(worth(learner, batch), before, rtol=1e-3, atol=1e-2)


# ---- advantages ---------------------------------------------------------------------------------------------------


def test_advantages_are_standardised_over_what_each_network_learns_from():
    # G - V: 3 - 2, 4 - 4 and 4.875 - 5, 5.5 - 6: (1, 0) and (-.125, -.5), to +-1 each
    rows, _ = line(V, **OWN).prepare(trajectory())
    expected = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    torch.testing.assert_close(rows.advantage[0, :, 0], expected, atol=1e-4, rtol=0)
    assert torch.equal(rows.logp[0, :, 0], torch.full((2, 2), -LN2))
    shared = line([[2.0, 0.0, 0.0, 0.0]], critic="own")  # V = 2 o: G - V of both agents in one mean
    raw = torch.tensor(target(shared, trajectory())) - torch.tensor([[2.0, 4.0], [8.0, 10.0]])
    expected = (raw - raw.mean()) / raw.std(correction=0)
    torch.testing.assert_close(shared.prepare(trajectory())[0].advantage[0, :, 0], expected, atol=1e-4, rtol=0)


def test_rows_that_do_not_count_change_nothing():
    """Agent 0 terminates at step 0 and is gone at step 1."""
    end = times([True, True], [False, False])
    gone = trajectory(terminated=end, valid=times([True, False], [True, True]), done=torch.zeros_like(end))
    states = []
    for reward, seen, action in ((1.0, 2.0, 0), (9.0, -7.0, 1)):
        learner = make(**OWN, hidden=(4,), actor_lr=0.1, critic_lr=0.1)
        obs, act = gone.obs.clone(), gone.action.clone()
        obs[0, 0, 1], act[0, 0, 1] = seen, action
        metrics = learner.update(gone._replace(obs=obs, action=act, reward=times([1.0, reward], [2.0, 2.0])))
        states.append((learner.actor.flat.data, learner.critic.flat.data, *metrics.values()))
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_an_actor_learns_where_it_has_a_choice_and_a_critic_everywhere():
    """Agent 0 may do anything at step 0, one thing alone at step 1, as the dead in StarCraft."""
    avail = torch.ones(1, 2, 2, 1, 2, dtype=torch.bool)
    avail[0, 0, 1, 0, 1] = False
    rows, _ = line(V, **OWN).prepare(trajectory(avail=avail))
    assert rows.advantage[0, 0, 0, 0] == 0  # the mean is over step 0 alone
    learner = line(ZERO, **{**OWN, "entropy": 0.5})
    metrics = learner.learn(rows_of(avail=avail.view(1, 2, 1, 2, 2), target=torch.ones(1, 2, 1, 2)))
    torch.testing.assert_close(metrics["policy/entropy"], torch.full((1, 2), LN2))  # not half of it for agent 0
    torch.testing.assert_close(metrics["loss/actor"], torch.full((1, 2), -0.5 * LN2))
    assert metrics["loss/critic"].tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("critic", ["own", "central"])
def test_adjacent_states_are_made_from_rows_that_happened(critic):
    """Agent 0 is gone at step 1: of its own observations one is left, of what all see together none is missing."""
    asked: list[Tensor] = []

    class Watched(Exact):
        def __call__(self, states, real=None):
            asked.append(real)
            yield states

    learner = make(critic=critic, shared=False, reciprocity__kappa=0.5)
    learner.reciprocity.space = Watched()
    learner.compute_target(trajectory(valid=times([True, False], [True, True])), None)
    assert asked[0].tolist() == ([[[True, False], [True, True]]] if critic == "own" else [[[True, True]]])


# ---- losses -------------------------------------------------------------------------------------------------------


def rows_of(**changes: Any) -> Sequences:
    """Two rows of each of two agents in which nothing is to be learnt."""
    zero = torch.zeros(1, 2, 1, 2)
    x = torch.ones(1, 2, 1, 2, 1)
    return Sequences(x, x, zero.long(), zero - LN2, zero, zero, zero, zero == 0)._replace(**changes)


ZERO = [[0.0, 0.0], [0.0, 0.0]]


def test_the_actors_loss_is_the_clipped_surrogate_less_the_entropy():
    learner = line(ZERO, **{**OWN, "entropy": 0.5})
    old = -LN2 - torch.log(torch.tensor([[[[1.5, 1.5]], [[0.5, 0.5]]]]))  # ratios 1.5 and .5, bounds .8 and 1.2
    gain = torch.tensor([[[[1.0, -1.0]], [[1.0, -1.0]]]])
    metrics = learner.learn(rows_of(logp=old, advantage=gain))
    # agent 0: -min(1.5, 1.2) = -1.2 and -min(-1.5, -1.2) = 1.5; agent 1: -.5 and -min(-.5, -.8) = .8; means .15
    torch.testing.assert_close(metrics["loss/actor"], torch.tensor([[0.15, 0.15]]) - 0.5 * LN2)
    torch.testing.assert_close(metrics["policy/entropy"], torch.tensor([[LN2, LN2]]))
    assert metrics["policy/clip_fraction"].tolist() == [[1.0, 1.0]]
    # ratio - 1 - log ratio: .5 - .4055 and -.5 + .6931
    torch.testing.assert_close(metrics["policy/kl"], torch.tensor([[0.0945, 0.1931]]), atol=1e-4, rtol=0)


def test_a_probability_that_has_moved_far_enough_is_left_alone_and_one_that_went_astray_is_not():
    old = torch.full((1, 2, 1, 2), -LN2 - math.log(1.5))
    learner = line(ZERO, **OWN)
    metrics = learner.learn(rows_of(logp=old, advantage=torch.tensor([[[[1.0, 1.0]], [[-1.0, -1.0]]]])))
    assert metrics["grad/actor_norm"][0, 0] == 0 and metrics["grad/actor_norm"][0, 1] > 0


def test_the_first_step_of_an_actor_has_the_policy_gradient():
    # d log p(0) / d logits = (1/2, -1/2); loss -A log p. Input 1 and a bias: gradient (-.5, .5, -.5, .5) A, norm A
    learner = line(ZERO, **OWN)
    metrics = learner.learn(rows_of(advantage=torch.tensor([[[[3.0, 1.0]], [[-1.0, -1.0]]]])))
    torch.testing.assert_close(metrics["grad/actor_norm"], torch.tensor([[2.0, 1.0]]))
    moved = learner.actor.flat.data[0]
    assert (moved[0].view(2, 2) * torch.tensor([1.0, -1.0]) > 0).all()
    assert (moved[1].view(2, 2) * torch.tensor([-1.0, 1.0]) > 0).all()


def test_the_critics_loss_is_the_larger_of_two_errors_and_clipped_values_stay():
    old = torch.ones(1, 2, 1, 2)
    goal = torch.tensor([[[[0.5, 0.5]], [[-1.0, -1.0]]]])
    # v = 0 was 1, so its clipped self is .8. To .5: .5^2 / 2 against .3^2 / 2. To -1: 1 / 2 against 1.8^2 / 2
    metrics = line(ZERO, **OWN).learn(rows_of(value=old, target=goal))
    torch.testing.assert_close(metrics["loss/critic"], torch.tensor([[0.125, 1.62]]))
    assert metrics["grad/critic_norm"][0, 0] > 0 and metrics["grad/critic_norm"][0, 1] == 0
    free = line(ZERO, **OWN, value_clip=None).learn(rows_of(value=old, target=goal))
    torch.testing.assert_close(free["loss/critic"], torch.tensor([[0.125, 0.5]]))
    assert (free["grad/critic_norm"] > 0).all()
    # delta .25: .25 (.5 - .125) and .25 (1 - .125)
    linear = line(ZERO, **OWN, value_clip=None, huber_delta=0.25).learn(rows_of(target=goal))
    torch.testing.assert_close(linear["loss/critic"], torch.tensor([[0.09375, 0.21875]]))


# ---- minibatches and memories -------------------------------------------------------------------------------------


def test_every_epoch_shows_every_sequence_once_and_each_member_shuffles_its_own():
    learner = make(members=2, epochs=2, minibatches=3)
    count = torch.arange(7.0).expand(2, 2, 1, 7)
    shown = [part.logp for part in learner.parts(rows_of()._replace(**{f: count for f in Sequences._fields[:8]}))]
    assert [x.shape[-1] for x in shown] == [3, 2, 2] * 2
    for epoch in (torch.cat(shown[:3], -1), torch.cat(shown[3:], -1)):
        assert torch.equal(epoch.sort(-1).values, count)
        assert torch.equal(epoch[:, 0], epoch[:, 1])  # agents of one moment stay together
        assert not torch.equal(epoch[0], epoch[1])
    with pytest.raises(UserError, match="2 sequences cannot fill 3"):
        next(learner.parts(rows_of()))


def test_a_rollout_is_cut_into_sequences_that_begin_with_their_own_memory():
    steps = torch.arange(4.0).view(1, 1, 4, 1).expand(1, 2, 4, 2)
    whole = Sequences(*[steps] * 8, memory=steps.unsqueeze(-1))
    parts = whole.cut(2)
    assert parts.logp[0, 0].tolist() == [[0, 0, 2, 2], [1, 1, 3, 3]]
    assert parts.memory is not None and parts.memory[0, 0, :, :, 0].tolist() == [[0, 0, 2, 2]]


def played(learner: MAPPO, env: Any, steps: int) -> tuple[Trajectory, Tensor]:
    """A rollout, and the log-probabilities of its actions as the actor saw them step by step."""
    rollout = Rollout(steps, env.spec, env.members, env.copies, learner.memory_size)
    seen = interact(env, first_view(env, learner), lambda view: learner.act(view, explore=True))
    logps = []
    for _, (view, acted, step) in zip(range(steps), seen, strict=False):
        rollout.add(view, acted, step)
        hidden = view.memory[..., : learner.width]
        x = view.obs if not learner.shared else torch.cat([view.obs, one_hot(view.obs)], dim=-1)
        logits, _ = learner.actor.net.step(x, hidden)
        logps.append(torch.log_softmax(logits, -1).gather(-1, acted.action.unsqueeze(-1)).squeeze(-1).detach())
    return rollout.draw(), torch.stack(logps, dim=2)


def one_hot(obs: Tensor) -> Tensor:
    agents = obs.shape[1]
    return torch.eye(agents).view(1, agents, 1, agents).expand(len(obs), -1, obs.shape[2], -1)


@pytest.mark.parametrize("shared", [False, True])
def test_memories_unrolled_from_what_was_stored_say_what_was_said_while_acting(shared):
    env = make_env("mpe/simple_spread_v3", seeds=[1, 2], copies=3, options={"continuous": False})
    learner = make(env.spec, members=2, recurrent=True, hidden=(8,), rollout=40, chunk=10, shared=shared)
    learner.actor.flat.data.mul_(3)  # away from even odds
    batch, logp = played(learner, env, 40)  # episodes of 25 steps: one ends inside, and inside a chunk
    sequences, _ = learner.prepare(batch)
    assert sequences.logp.shape == (2, 3, 10, 4 * 3)
    torch.testing.assert_close(sequences.logp, logp.unflatten(2, (4, 10)).transpose(2, 3).flatten(3, 4))
    metrics = learner.learn(sequences)  # from the memory at each chunk's start: the same policy
    torch.testing.assert_close(metrics["policy/kl"], torch.zeros(2, 3), atol=1e-6, rtol=0)
    # the critics' value after 25 steps is that of a fresh memory: the first of an episode
    first = batch.memory[:, :, 25]
    assert (first == 0).all() and (batch.memory[:, :, 24] != 0).any()
    state = batch.done.clone().fill_(False)
    wrong, _ = learner.prepare(batch._replace(done=state))  # a memory that runs on from episode to episode
    assert (wrong.logp - sequences.logp).abs().max() > 1e-3


@pytest.mark.parametrize("shared", [False, True])
def test_the_value_of_a_successor_goes_on_from_the_memory_after_the_step(shared):
    """Inside an episode the successor's value is the next step's own: with lambda = 0, G_t = r + gamma V_{t+1}."""
    env = make_env("mpe/simple_spread_v3", seeds=[1], copies=2, options={"continuous": False})
    learner = make(env.spec, recurrent=True, hidden=(8,), rollout=20, chunk=20, gae_lambda=0.0, shared=shared)
    batch, _ = played(learner, env, 20)
    sequences, _ = learner.prepare(batch)  # the normaliser has seen these targets now
    learner.norm = type(learner.norm)(1, 1 if shared else 3)
    _, heard = learner.judge(sequences.states, batch.memory[:, :, 0, :, 8:])
    assert heard is not None
    value = learner.compute_target(batch, heard.detach())
    expected = batch.reward[:, :, :-1] + 0.99 * sequences.value[:, :, 1:]
    torch.testing.assert_close(value[:, :, :-1].detach(), expected, atol=1e-4, rtol=1e-4)


def test_playing_without_exploration_needs_no_global_state_and_leaves_the_critics_memory():
    spec = EnvSpec("test/line", ("a", "b"), (1, 1), (2, 2), discrete=True, state_size=2)
    learner = make(spec, recurrent=True, hidden=(4,), rollout=10)
    view = View(torch.ones(1, 2, 3, 1), memory=torch.zeros(1, 2, 3, learner.memory_size))
    memory = learner.act(view, explore=False).memory
    assert (memory[..., 4:] == 0).all() and (memory[..., :4] != 0).any()
    memory = learner.act(view._replace(state=torch.ones(1, 3, 2)), explore=True).memory
    assert (memory[..., 4:] != 0).any()


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="100 steps is no whole number of chunks of 30"):
        make(recurrent=True, chunk=30)
    with pytest.raises(UserError, match="hidden is empty"):
        make(recurrent=True, hidden=())
    apart = EnvSpec("test/apart", ("a", "b"), (1, 1), (2, 2), discrete=True, independent=True)
    with pytest.raises(UserError, match="play copies of their own, so nothing is central; choose critic=own"):
        make(apart)
    make(apart, critic="own")
