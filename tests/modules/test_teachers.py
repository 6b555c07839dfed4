"""What frozen teachers answer, and what MAPTF and DVM make of it, in numbers that a reader can check in the head.

With ``hidden=()`` a policy is ``o W + b``.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from marl.algos.dvm import DVM, DVMConfig
from marl.algos.maptf import MAPTF
from marl.algos.maptf_mappo import MAPTFMAPPO
from marl.config import replace
from marl.envs.base import EnvSpec
from marl.modules.teachers import Teacher, Teachers
from marl.types import Batch, Trajectory, UserError, View

FULL = 0.5 + 0.5 * math.tanh(3)  # what imitation weighs before the first episode


def make_spec(obs: tuple[int, ...], actions: tuple[int, ...], discrete: bool) -> EnvSpec:
    return EnvSpec("test/line", tuple("abc"[: len(obs)]), obs, actions, discrete)


def linear(gives: Any, *sizes: int) -> Teacher:
    return Teacher("there:a", sizes, "relu", gives)


def weigh(teachers: Teachers, k: int, weight: list[list[float]], bias: list[float]) -> None:
    (layer,) = teachers.nets[k].layers
    layer.get_parameter("weight").data[:, 0] = torch.tensor(weight)
    layer.get_parameter("bias").data[:, 0, 0] = torch.tensor(bias)


# ---- what they answer ---------------------------------------------------------------------------------------------


def test_a_teacher_reads_the_leading_numbers_or_zeros_and_speaks_of_the_leading_components():
    spec = make_spec((3, 1), (3, 1), False)
    teachers = Teachers([linear("clip", 2, 2), linear("tanh", 4, 3)], spec, 1)
    weigh(teachers, 0, [[0.1, 0.2], [0.01, 1.0]], [0.0, 0.0])
    weigh(teachers, 1, [[1.0, 0.0, 0.0]] * 4, [0.0, 0.0, 1.0])
    obs = torch.tensor([[[[5.0, 7.0, 9.0]], [[2.0, 0.0, 0.0]]]])
    answers, common = teachers.answers(obs, None)
    # the first reads 5 and 7: 0.5 + 0.07, and 1 + 7 cut to 1; of agent b it reads 2 and a zero
    torch.testing.assert_close(answers[0, 0, 0, 0], torch.tensor([0.57, 1.0, 0.0]))
    torch.testing.assert_close(answers[0, 1, 0, 0], torch.tensor([0.2, 0.4, 0.0]))
    assert common[0, :, 0, 0].tolist() == [[True, True, False], [True, False, False]]
    # the second reads all three and one zero
    torch.testing.assert_close(answers[0, 0, 1, 0], torch.tanh(torch.tensor([21.0, 0.0, 1.0])))
    assert common[0, :, 1, 0].tolist() == [[True, True, True], [True, False, False]]


def test_logits_are_those_of_what_the_agent_may_do_and_values_speak_for_the_best_of_it():
    spec = make_spec((1,), (3,), True)
    teachers = Teachers([linear("logits", 1, 4), linear("values", 1, 4)], spec, 1)
    for k in (0, 1):
        weigh(teachers, k, [[0.0] * 4], [1.0, 2.0, 3.0, 4.0])  # the fourth is no action of the agent's
    avail = torch.tensor([[[[True, True, False]]]])
    answers, common = teachers.answers(torch.zeros(1, 1, 1, 1), avail)
    assert common[0, 0, :, 0].tolist() == [[True, True, False]] * 2
    odds = math.exp(1) / (math.exp(1) + math.exp(2))
    expected = torch.tensor([[odds, 1 - odds, 0.0], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(torch.softmax(answers, -1)[0, 0, :, 0], expected)


def test_members_have_teachers_of_their_own():
    teachers = Teachers([linear("tanh", 1, 1)], make_spec((1,), (1,), False), 2)
    weigh(teachers, 0, [[0.0]], [0.0])
    teachers.nets[0].layers[0].get_parameter("bias").data[1] = 1.0
    answers, _ = teachers.answers(torch.zeros(2, 1, 1, 1), None)
    torch.testing.assert_close(answers.flatten(), torch.tensor([0.0, math.tanh(1)]))


@pytest.mark.parametrize("gives, discrete, answer", [
    ("tanh", True, "there:a has continuous actions (vectors), test/line has discrete actions (indices); "),
    ("values", False, "there:a has discrete actions (indices), test/line has continuous actions (vectors); "),
])  # fmt: skip
@pytest.mark.parametrize("kind", [MAPTF, MAPTFMAPPO, DVM])
def test_a_teacher_whose_actions_are_of_another_kind_is_refused(kind, gives, discrete, answer):
    with pytest.raises(UserError) as caught:
        kind(make_spec((1, 1), (2, 2), discrete), [kind.Config()], [0], [linear(gives, 1, 2)])
    assert str(caught.value) == f"teachers: {answer}choose a teacher with actions of the same kind"


# ---- MAPTF: one option more ---------------------------------------------------------------------------------------


def imitators(kind: Any, discrete: bool, teacher: Teacher, **settings: Any) -> Any:
    """Two agents with one observation, who answer 0 (or by even odds), and whom imitation moves alone."""
    common = {"hidden": (), "gamma": 0.5, "actor_lr": 0.1, "options.weight": 1.0}
    own = {"action_l2": 0.0, "tau": 0.0} if kind is MAPTF else {"entropy": 0.0, "epochs": 1, "max_grad_norm": None}
    config = kind.Config()
    for name, value in {**common, **own, **settings}.items():
        config = replace(config, name, value)
    learner = kind(make_spec((1, 1), (2, 2) if discrete else (1, 1), discrete), [config], [0], [teacher])
    for name in ("actor", "critic", "target_actor", "target_critic"):
        if hasattr(learner.base, name):
            getattr(learner.base, name).flat.data.zero_()
    return learner


def batch(options: list[float], discrete: bool) -> Batch:
    n = len(options)
    obs, zero = torch.zeros(1, n, 1, 1), torch.zeros(1, n, 1)
    action = torch.zeros(1, n, 1, dtype=torch.int64) if discrete else torch.zeros(1, n, 1, 1)
    return Batch(obs, action, zero, obs.clone(), zero.bool(), memory=torch.tensor(options).view(1, n, 1, 1))


def test_the_option_after_the_last_agent_is_the_first_teacher():
    learner = imitators(MAPTF, False, linear("tanh", 1, 1))
    weigh(learner.teachers, 0, [[0.0]], [math.atanh(0.5)])
    metrics = learner.update(batch([3.0, 1.0], False))  # agent 0 imitates the teacher: (0 - 1/2)^2
    torch.testing.assert_close(metrics["loss/imitation"], torch.tensor([[FULL / 4, 0.0]]))
    torch.testing.assert_close(metrics["grad/actor_norm"], torch.tensor([[1.0 * FULL, 0.0]]))
    assert metrics["option/teacher"].tolist() == [[1.0, 0.0]] and metrics["option/own"].tolist() == [[0.0, 0.0]]


def test_a_discrete_agent_pays_the_cross_entropy_to_the_teacher_who_counts_as_in_use_where_it_would_do_the_same():
    learner = imitators(MAPTF, True, linear("logits", 1, 2))
    weigh(learner.teachers, 0, [[0.0, 0.0]], [math.log(3), 0.0])
    metrics = learner.update(batch([3.0, 3.0], True))
    torch.testing.assert_close(metrics["loss/imitation"], torch.full((1, 2), math.log(2) * FULL))
    answers, _ = learner.everybodys_answers(torch.zeros(1, 2, 1, 1), None)
    assert answers.shape == (1, 2, 3, 1, 2) and (answers.argmax(-1) == 0).all()


@pytest.mark.parametrize("kind", [MAPTF, MAPTFMAPPO])
def test_teachers_are_chosen_like_team_mates_and_imitated_until_agents_act_like_them(kind):
    learner = imitators(kind, False, linear("tanh", 1, 1), critic_lr=1e-9)
    weigh(learner.teachers, 0, [[0.0]], [1.0])
    view = View(torch.zeros(1, 2, 60, 1), memory=torch.zeros(1, 2, 60, 1))
    acted = learner.act(view, explore=True)
    assert set(acted.memory.flatten().tolist()) == {1.0, 2.0, 3.0}
    before = learner.teachers.nets[0].flat.data.clone()
    given = batch([3.0, 3.0], False) if kind is MAPTF else trajectory([3.0, 3.0])
    for _ in range(100):
        learner.update(given)
    action = learner.act(View(torch.zeros(1, 2, 1, 1)), explore=False).action
    torch.testing.assert_close(action.flatten(), torch.full((2,), math.tanh(1)), atol=0.05, rtol=0)
    assert torch.equal(before, learner.teachers.nets[0].flat.data)


def trajectory(options: list[float]) -> Trajectory:
    n, grid = len(options), (1, len(options), 2, 1)
    obs, no = torch.zeros(*grid, 1), torch.zeros(grid, dtype=torch.bool)
    memory = torch.tensor(options).view(1, n, 1, 1, 1).expand(*grid, 1).clone()
    return Trajectory(obs, torch.zeros(*grid, 1), torch.zeros(grid), obs.clone(), no, no, ~no, memory=memory)


def test_on_mappo_a_teachers_spread_counts_as_the_agents_own():
    """log sigma + (sigma^2 + (mu_i - mu_o)^2) / (2 sigma^2): sigma = 2, means 0 and 1/2."""
    learner = imitators(MAPTFMAPPO, False, linear("clip", 1, 1))
    weigh(learner.teachers, 0, [[0.0]], [0.5])
    learner.base.actor.log_std.data.fill_(math.log(2))
    metrics = learner.update(trajectory([3.0, 2.0]))
    expected = (math.log(2) + (4 + 0.25) / 8) * FULL
    torch.testing.assert_close(metrics["loss/imitation"], torch.tensor([[expected, 0.0]]))


# ---- DVM: one agent more in what is distilled ---------------------------------------------------------------------


def distillers(teachers: list[Teacher], discrete: bool = False) -> DVM:
    config = DVMConfig(hidden=(), distil_lr=0.05, cycle_train=1, cycle_distil=400)
    learner = DVM(make_spec((1, 1), (2, 2) if discrete else (1, 1), discrete), [config], [0], teachers)
    learner.base.actor.flat.data.zero_()
    return learner


def distil(learner: DVM) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    obs, zero = torch.randn(1, 2, 32, 1, generator=generator), torch.zeros(1, 2, 32)
    action = torch.zeros(1, 2, 32, dtype=torch.int64) if learner.discrete else torch.zeros(1, 2, 32, 1)
    for _ in range(400):
        metrics = learner.distil(Batch(obs, action, zero, obs, zero.bool()))
    return metrics


def test_a_teacher_is_worth_one_more_agent():
    """Two agents that answer 0 and a teacher that answers 0.6: least squares is a third of the way, 0.2."""
    learner = distillers([linear("clip", 1, 1)])
    weigh(learner.teachers, 0, [[0.0]], [0.6])
    metrics = distil(learner)
    learner.hand_out()
    action = learner.act(View(torch.zeros(1, 2, 1, 1)), explore=False).action
    torch.testing.assert_close(action.flatten(), torch.full((2,), 0.2), atol=0.01, rtol=0)
    torch.testing.assert_close(metrics["distil/teachers"], torch.full((1, 2), 0.4**2 / 2), atol=0.005, rtol=0)
    torch.testing.assert_close(metrics["distil/policy"], torch.full((1, 2), 0.2**2 / 2), atol=0.005, rtol=0)


def test_discrete_policies_are_mixed_by_their_probabilities():
    """Two even agents and one teacher that always takes the first: the nearest policy takes it 2/3 of the time."""
    learner = distillers([linear("values", 1, 2)], discrete=True)
    weigh(learner.teachers, 0, [[0.0, 0.0]], [1.0, 0.0])
    distil(learner)
    odds = torch.softmax(learner.distilled_actor(torch.zeros(1, 1, 1, 1)), -1)
    torch.testing.assert_close(odds.flatten(), torch.tensor([2 / 3, 1 / 3]), atol=0.01, rtol=0)
