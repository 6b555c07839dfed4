"""The option module in numbers: successor features of small chains, who is worth imitating, when an option ends.

Observations are one-hot and phi is made to copy them, so that feature k counts visits to state k and every expectation
below is a discounted count.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from marl.config import replace
from marl.modules.options import OptionModule, OptionsConfig, common_actions, everybodys_view, whom

GAMMA = 0.5
STATES = 4


def make(agents: int = 1, seeds: tuple[int, ...] = (0,), **settings: Any) -> OptionModule:
    """phi copies the observation and never moves."""
    config = OptionsConfig(lr=0.01, feature_lr=0.01, target_interval=5)
    for name, value in settings.items():
        config = replace(config, name, value)
    gamma = torch.full((len(seeds), 1, 1), GAMMA)
    module = OptionModule([config] * len(seeds), gamma, seeds, torch.ones(agents, STATES, dtype=torch.bool))
    embed = module.nets["embed"]
    embed.flat.data.zero_()
    for layer in embed.layers:
        layer.weight.data.copy_(torch.eye(*layer.weight.shape[2:]).expand_as(layer.weight))
    freeze(module, "embed")
    return module


def freeze(module: OptionModule, *names: str) -> None:
    for name in names:
        for group in module.optimizers[name].adam.param_groups:
            group["lr"] = 0.0


def states(*numbers: int, agents: int = 1) -> Tensor:
    """One-hot observations, the same for all agents: ``[1, N, B, STATES]``."""
    return torch.eye(STATES)[list(numbers)].expand(1, agents, -1, -1).clone()


def flags(*values: int, agents: int = 1) -> Tensor:
    return torch.tensor(values).bool().expand(1, agents, -1).clone()


def constant(module: OptionModule, name: str, values: list[float] | Tensor, where: str = "nets") -> None:
    """The network's output is these numbers whatever it sees."""
    net = getattr(module, where)[name]
    net.flat.data.zero_()
    net.layers[-1].bias.data.copy_(torch.as_tensor(values).view(1, -1, 1, net.layers[-1].bias.shape[-1]))


def learn(module: OptionModule, updates: int, **batch: Tensor) -> None:
    rows = batch["obs"].shape[2]
    agents = module.agents
    rest = {"reward": torch.zeros(1, agents, rows), "option": torch.zeros(1, agents, rows, dtype=torch.int64)}
    for _ in range(updates):
        module.update(**{**rest, **batch})


def visits(module: OptionModule, obs: Tensor) -> Tensor:
    """``[B, O, STATES]`` of the first agent."""
    with torch.no_grad():
        return module.successors(module.embed(obs), module.nets)[0, 0, ..., :STATES]


def test_the_successor_representation_solves_a_chain_that_ends_and_a_cycle():
    """0 -> 1 -> end: (1, 1/2) and (0, 1). 2 <-> 3: a state is seen again every two steps, so 1 / (1 - 1/4) and half."""
    module = make()
    learn(module, 500, obs=states(0, 1, 2, 3), next_obs=states(1, 0, 3, 2), terminated=flags(0, 1, 0, 0))
    expected = torch.tensor([[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 4 / 3, 2 / 3], [0, 0, 2 / 3, 4 / 3]])
    torch.testing.assert_close(visits(module, states(0, 1, 2, 3))[:, 0], expected, atol=0.02, rtol=0)


def test_transitions_stored_with_the_state_as_its_own_successor_would_see_one_state_for_ever():
    """The fault of the authors' code: m(0) = 1 / (1 - 1/2) = 2 of state 0 and nothing of state 1."""
    module = make()
    learn(module, 400, obs=states(0, 1), next_obs=states(0, 1), terminated=flags(0, 1))
    expected = torch.tensor([[2.0, 0, 0, 0], [0, 1, 0, 0]])
    torch.testing.assert_close(visits(module, states(0, 1))[:, 0], expected, atol=0.02, rtol=0)


def test_the_target_goes_on_with_the_option_or_after_its_end_with_the_best_one():
    """Option 0 is followed by 8 of feature 0, option 1 by 4 of feature 1; option 1 is the better one."""
    module = make(agents=2)
    follows = torch.zeros(2, 2, 32)
    follows[:, 0, 0], follows[:, 1, 1] = 8.0, 4.0
    constant(module, "successor_heads", follows.flatten(), where="targets")
    features = torch.zeros(1, 2, 1, 32)
    features[..., 2] = 1.0
    values = torch.tensor([0.0, 1.0]).expand(1, 2, 1, 2)
    beta = torch.tensor([0.25, 0.25]).expand(1, 2, 1, 2)
    target = module.compute_target(features, features, values, beta, flags(0, agents=2))
    # option 0: 1/2 (3/4 * 8) = 3 of feature 0 and 1/2 (1/4 * 4) = .5 of feature 1; option 1: 1/2 * 4 = 2
    expected = torch.tensor([[3.0, 0.5, 1.0], [0.0, 2.0, 1.0]])
    torch.testing.assert_close(target[0, 0, 0, :, :3], expected)
    ended = module.compute_target(features, features, values, beta, flags(1, agents=2))
    torch.testing.assert_close(ended[0, 0, 0, :, :3], torch.tensor([[0.0, 0.0, 1.0]] * 2))


def test_the_better_teacher_ranks_higher():
    """Imitating agent 0 leads from state 0 to 1, imitating agent 1 to 2. Agent 0 is paid in 1, agent 1 in 2."""
    module = make(agents=2)
    obs, next_obs = states(0, 0, 1, 2, agents=2), states(1, 2, 3, 3, agents=2)
    learn(
        module,
        500,
        obs=obs,
        next_obs=next_obs,
        terminated=flags(0, 0, 1, 1, agents=2),
        option=torch.tensor([0, 1, 0, 0]).expand(1, 2, -1),
        reward=torch.tensor([[[0.0, 0, 1, 0], [0, 0, 0, 1]]]),
        taken=torch.tensor([[0, 0], [0, 0], [1, 1], [1, 1]]).bool().expand(1, 2, -1, -1),
    )
    worth = module.values(module.embed(states(0, agents=2)))[0, :, 0]
    torch.testing.assert_close(worth, torch.tensor([[0.5, 0.0], [0.0, 0.5]]), atol=0.02, rtol=0)


def test_every_option_that_would_have_done_the_same_learns_from_it():
    """Option 0 was in use; agent 0's option 1 would have acted alike, agent 1's would not and stays at 0."""
    module = make(agents=2)
    constant(module, "successor_heads", torch.zeros(2 * 2 * 32))
    obs, taken = states(0, agents=2), torch.tensor([[[[False, True]], [[False, False]]]])
    learn(module, 200, obs=obs, next_obs=obs, terminated=flags(1, agents=2), taken=taken)
    with torch.no_grad():
        count = module.successors(module.embed(obs), module.nets)[0, :, 0, :, 0]
    torch.testing.assert_close(count, torch.tensor([[1.0, 1.0], [1.0, 0.0]]), atol=0.02, rtol=0)


@pytest.mark.parametrize("gap, ends", [(0.5, True), (0.001, False)])
def test_an_option_is_ended_where_it_is_worse_than_the_best_by_more_than_xi(gap, ends):
    """Both start at beta = 1/2. The best one's advantage is 0, so xi lowers its beta; the other's is -gap + .005."""
    module = make(agents=2)
    freeze(module, "successor", "successor_heads", "reward")
    module.nets["reward"].flat.data.zero_()
    module.nets["reward"].weight.data[..., 0] = 1.0
    worth = torch.zeros(2, 2, 32)
    worth[:, 0, 0] = gap
    constant(module, "successor_heads", worth.flatten())
    constant(module, "termination_heads", torch.zeros(4))
    obs = states(0, 0, agents=2)
    option = torch.tensor([0, 1]).expand(1, 2, -1)
    learn(module, 50, obs=obs, next_obs=obs, terminated=flags(0, 0, agents=2), option=option)
    beta = module.beta(module.embed(obs))[0, 0, 0]
    assert beta[0] < 0.49
    assert (beta[1] > 0.51) if ends else (beta[1] < 0.49)
    module = make(agents=2)
    constant(module, "termination_heads", torch.zeros(4))
    learn(module, 50, obs=obs, next_obs=obs, terminated=flags(1, 1, agents=2), option=option)
    torch.testing.assert_close(module.beta(module.embed(obs)), torch.full((1, 2, 2, 2), 0.5))  # nothing goes on there


def test_only_rewards_and_reconstruction_teach_the_features():
    """Where both are right already phi gets no gradient, however wrong the successor features are."""
    module = make(reconstruction=0.0)
    obs, next_obs = states(0, 1), states(2, 3)
    reward = module.nets["reward"](module.embed(obs)).detach()
    for group in module.optimizers["embed"].adam.param_groups:
        group["lr"] = 0.01
    before = {name: net.flat.data.clone() for name, net in module.nets.items()}
    option = torch.zeros(1, 1, 2, dtype=torch.int64)
    module.update(obs, reward, next_obs, flags(0, 0), option)
    moved = {name for name, net in module.nets.items() if not torch.equal(net.flat.data, before[name])}
    assert moved == {"successor", "successor_heads", "termination", "termination_heads"}
    module.update(obs, reward + 1, next_obs, flags(0, 0), option)
    assert not torch.equal(module.nets["embed"].flat.data, before["embed"])


def test_features_learn_to_tell_the_reward_and_the_observation():
    config = OptionsConfig(feature_lr=0.01)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    module = OptionModule([config], torch.full((1, 1, 1), GAMMA), [0], mask)
    obs = states(0, 1, agents=2)
    reward = torch.tensor([[[1.0, -1.0], [0.0, 2.0]]])
    for _ in range(400):
        module.update(obs, reward, obs, flags(1, 1, agents=2), torch.zeros(1, 2, 2, dtype=torch.int64))
    features = module.embed(obs)
    torch.testing.assert_close(module.nets["reward"](features), reward, atol=0.1, rtol=0)
    missed = (module.nets["decode"](features) - obs).square() * mask[:, None]
    assert missed.sum(-1).max() < 0.05


def chooser(beta: float, **settings: Any) -> OptionModule:
    """Three agents; the options are worth 0, 2, 1 and end with chance sigmoid(beta)."""
    module = make(agents=3, **settings)
    module.nets["reward"].weight.data.fill_(0.0)[..., 0] = 1.0
    worth = torch.zeros(3, 3, 32)
    worth[:, :, 0] = torch.tensor([0.0, 2.0, 1.0])
    constant(module, "successor_heads", worth.flatten())
    constant(module, "termination_heads", torch.full((9,), beta))
    return module


def share(options: Tensor) -> Tensor:
    """How often each option was chosen, ``[3]``."""
    assert set(options.unique().tolist()) <= {1.0, 2.0, 3.0}
    return torch.stack([(options == k).float().mean() for k in (1, 2, 3)])


def test_an_option_goes_on_unless_it_ends_and_is_chosen_anew_where_an_episode_begins():
    obs, blank = torch.zeros(1, 3, 4000, STATES), torch.zeros(1, 3, 4000, 1)
    for beta, kept in ((-50.0, 1.0), (50.0, 1 / 3), (0.0, 2 / 3)):  # half end, and a third of these come back
        module = chooser(beta, greedy=0.0)
        first = module.choose(obs, blank)
        torch.testing.assert_close(share(first), torch.full((3,), 1 / 3), atol=0.03, rtol=0)
        second = module.choose(obs, first)
        assert abs((first == second).float().mean() - kept) < 0.02
        assert module.episodes.tolist() == [[4000] * 3]  # and not again


def test_agents_that_play_copies_of_their_own_count_their_own_episodes():
    module = chooser(0.0, greedy=0.0001)
    memory = torch.zeros(1, 3, 4000, 1)
    memory[:, 0] = 1.0  # agent 0 is in the middle of its first one
    options = module.choose(torch.zeros(1, 3, 4000, STATES), memory)
    assert module.episodes.tolist() == [[0, 4000, 4000]]
    best = (options == 2).float().mean((0, 2, 3))
    # agent 0: half of its options end, a third of these come to 2; the others: .4 + .6 / 3
    torch.testing.assert_close(best, torch.tensor([1 / 6, 0.6, 0.6]), atol=0.03, rtol=0)


def test_features_and_the_reward_in_them_have_a_rate_of_their_own():
    """Adam's first step is as long as the rate, whatever the gradient."""
    config = OptionsConfig(lr=0.5, feature_lr=0.25, xi=1.0)
    module = OptionModule([config], torch.full((1, 1, 1), GAMMA), [0], torch.ones(1, STATES, dtype=torch.bool))
    before = {name: net.flat.data.clone() for name, net in module.nets.items()}
    option = torch.zeros(1, 1, 2, dtype=torch.int64)
    module.update(states(0, 1), torch.ones(1, 1, 2), states(2, 3), flags(0, 0), option)
    steps = {name: float((net.flat.data - before[name]).abs().max()) for name, net in module.nets.items()}
    features = dict.fromkeys(("embed", "decode", "reward"), 0.25)
    options = dict.fromkeys(("successor", "successor_heads", "termination", "termination_heads"), 0.5)
    assert steps == pytest.approx({**features, **options}, rel=1e-3)


def test_the_best_option_is_chosen_more_often_with_every_episode_up_to_19_times_in_20():
    obs, blank = torch.zeros(1, 3, 4000, STATES), torch.zeros(1, 3, 4000, 1)
    module = chooser(0.0, greedy=0.0001)  # 4000 episodes begin: .4 + .6 / 3 = .6
    torch.testing.assert_close(share(module.choose(obs, blank)), torch.tensor([0.2, 0.6, 0.2]), atol=0.03, rtol=0)
    module.episodes.fill_(10**6)  # .95 + .05 / 3
    torch.testing.assert_close(share(module.choose(obs, blank))[1], torch.tensor(0.9667), atol=0.01, rtol=0)


def test_imitation_fades_with_the_episodes_is_nothing_for_oneself_and_may_count_how_likely_an_option_goes_on():
    obs, option = torch.zeros(1, 3, 1, STATES), torch.tensor([[[0], [0], [2]]])  # agent 1 imitates agent 0
    for staying, factor in ((False, 1.0), (True, 1 - 0.25)):
        module = chooser(math.log(1 / 3), weight=0.01, staying=staying)  # beta = 1/4
        for episodes, fading in ((0, 0.5 + 0.5 * math.tanh(3)), (6000, 0.5), (10**6, 0.0)):
            module.episodes.fill_(episodes)
            expected = torch.tensor([[[0.0], [0.01 * fading * factor], [0.0]]])
            torch.testing.assert_close(module.imitation_weight(obs, option), expected)


def test_what_was_noted_is_an_option_counted_from_one_and_oneself_where_nothing_was():
    module = make(agents=3)
    memory = torch.tensor([[[[0.0], [1.0], [3.0]]] * 3])
    assert module.option(memory)[0].tolist() == [[0, 0, 2], [1, 0, 2], [2, 0, 2]]


def test_rows_that_do_not_count_teach_nothing():
    obs, reward = states(0, 1), torch.tensor([[[1.0, 5.0]]])
    option = torch.zeros(1, 1, 2, dtype=torch.int64)
    both, one = make(), make()
    both.update(obs, reward, obs, flags(0, 0), option, valid=flags(1, 0))
    one.update(obs[:, :, :1], reward[..., :1], obs[:, :, :1], flags(0), option[..., :1])
    for name, net in both.nets.items():
        torch.testing.assert_close(net.flat.data, one.nets[name].flat.data)


def test_the_target_is_copied_at_its_interval_and_stands_still_between():
    module = make(target_interval=3)
    for count in range(1, 7):
        learn(module, 1, obs=states(0), next_obs=states(1), terminated=flags(0))
        same = torch.equal(module.targets["successor_heads"].flat.data, module.nets["successor_heads"].flat.data)
        assert same == (count % 3 == 0)


def test_whom_takes_the_row_of_the_agent_that_is_imitated():
    outputs = torch.arange(8.0).view(1, 2, 2, 2, 1)  # agent i, option o, row b: 4 i + 2 o + b
    option = torch.tensor([[[0, 1], [1, 0]]])
    assert whom(outputs, option).flatten().tolist() == [0.0, 3.0, 6.0, 5.0]


def test_a_teacher_is_shown_what_it_has_itself_and_may_be_followed_where_both_can():
    mask = torch.tensor([[True, True], [True, False]])
    seen = everybodys_view(torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]]), mask)
    assert seen.tolist() == [[[[1.0, 2.0], [3.0, 0.0]], [[1.0, 0.0], [3.0, 0.0]]]]
    both = common_actions(mask, None)[0, :, :, 0]
    assert both.tolist() == [[[True, True], [True, False]], [[True, False], [True, False]]]
    avail = torch.tensor([[[[False, True]], [[True, False]]]])
    both = common_actions(mask, avail)[0, :, :, 0]
    assert both.tolist() == [[[False, True], [False, False]], [[True, False], [True, False]]]
