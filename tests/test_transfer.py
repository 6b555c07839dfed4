"""Networks that start from those of another run: what is copied where, and what the table says."""

import pytest
import torch

from marl import registry
from marl.config import replace
from marl.envs.base import EnvSpec
from marl.modules.critics import joint_input
from marl.networks import networks, plain_networks
from marl.transfer import Row, Source, match, transfer
from marl.types import UserError, View


def make_spec(obs, actions, names="abcde", discrete=False, **more):
    return EnvSpec("test/any", tuple(names[: len(obs)]), obs, actions, discrete, max_steps=4, **more)


THREE = make_spec((4, 4, 4), (2, 2, 2))


def make(name, spec, seed=0, members=1, **settings):
    algorithm = registry.algorithm(name)
    config = algorithm.Config()
    for key, value in {"hidden": (8, 6), **settings}.items():
        config = replace(config, key, value)
    return algorithm(spec, [config] * members, [seed + p for p in range(members)])


def rows_of(new, spec, old, other, agent=None, wanted=None, p=0, member=0):
    """Fill ``new`` from ``old``; the table without what is new in every run."""
    init = {"agent": agent, "networks": wanted, "given": "there"}
    table = transfer(new, spec, p, Source(other, old, 0), member, init)
    assert table[-1] == Row("the rest", "all", "", "new", "optimisers, replay, exploration, random streams")
    return table[:-1]


def pair(name, spec, other, **settings):
    return make(name, spec, 1, **settings), make(name, other, 2, **settings)


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def act(learner, obs):
    return learner.act(View(obs), explore=False).action


def judge(learner, obs, action):
    """The critics of MADDPG: ``[P, N, B]``."""
    return learner.critic(joint_input(obs, action.unsqueeze(1), learner.critic.networks == 1))


# ---- nothing differs ----------------------------------------------------------------------------------------------

EVERY = {
    **{"ddpg": (False, {}), "td3": (False, {}), "maddpg": (True, {}), "maptf": (False, {}), "dvm": (True, {})},
    **{"mappo": (False, {}), "mappo-own": (True, {"shared": False}), "mappo-memory": (True, {"recurrent": True})},
    **{"qmix": (True, {}), "dqn": (True, {"duelling": True}), "maptf-mappo": (False, {})},
    **{"mappo-ippo": (True, {"critic": "own"})},
}  # fmt: skip


@pytest.mark.parametrize("case", EVERY)
def test_from_a_run_of_the_same_kind_every_weight_is_copied_and_targets_are_copies(case):
    discrete, settings = EVERY[case]
    name = case if case in registry.ALGORITHMS else case.partition("-")[0]
    spec = make_spec((4, 4, 4), (2, 2, 2), discrete=discrete)
    new, old = make(name, spec, 1, members=2, **settings), make(name, spec, 2, members=2, **settings)
    before = networks(new, spec)
    untouched = {name: [x.clone() for x in net.module.parameters()] for name, net in before.items()}
    for net in networks(old, spec).values():
        if net.norm is not None:
            net.norm.update(random(2, net.norm.sums.shape[1], 9))
    table = rows_of(new, spec, old, spec, p=1, member=0)
    assert {row.what for row in table} == {"kept"}
    theirs = networks(old, spec)
    for name, net in networks(new, spec).items():
        for mine, other, first in zip(
            net.module.parameters(), theirs[name].module.parameters(), untouched[name], strict=True
        ):
            assert torch.equal(mine[1], other[0]) and torch.equal(mine[0], first[0])
        if net.target is not None:
            assert all(map(torch.equal, net.target.parameters(), net.module.parameters()))
        if net.norm is not None:
            assert torch.equal(net.norm.sums[1], theirs[name].norm.sums[0]) and not net.norm.sums[0].any()
        if net.log_std is not None:
            assert torch.equal(net.log_std[1], theirs[name].log_std[0])
    for name, (module, target) in plain_networks(new).items():
        assert all(
            torch.equal(a[1], b[0])
            for a, b in zip(module.parameters(), plain_networks(old)[name][0].parameters(), strict=True)
        )
        if target is not None:
            assert all(map(torch.equal, target.parameters(), module.parameters()))


def test_what_the_learner_computes_with_is_what_was_filled():
    """The usual bug: layers are views of one tensor, and a copy into something else changes nothing."""
    new, old = pair("mappo", THREE, THREE)
    obs = random(1, 3, 5, 4)
    assert not torch.equal(act(new, obs), act(old, obs))
    rows_of(new, THREE, old, THREE)
    assert torch.equal(act(new, obs), act(old, obs))
    new.state_dict()["actor"]["net.layers.0.weight"].zero_()
    assert torch.equal(networks(new, THREE)["actor"].module.layers[0].weight, torch.zeros(1, 1, 7, 8))


# ---- other observations -------------------------------------------------------------------------------------------


def test_where_observations_are_wider_the_rest_starts_at_zero():
    wide = make_spec((6, 4, 7), (2, 2, 2))
    new, old = pair("maddpg", wide, THREE)
    table = rows_of(new, wide, old, THREE)
    # Critics see 6 + 4 + 7 numbers and 3 x 2 actions: 2 + 0 + 3 are new.
    assert table == [
        Row("actor", "a", "a", "padded", "2 of 6 inputs start at 0"),
        Row("actor", "b", "b", "kept"),
        Row("actor", "c", "c", "padded", "3 of 7 inputs start at 0"),
        *(Row("critic", x, x, "padded", "5 of 23 inputs start at 0") for x in "abc"),
    ]
    obs = random(1, 3, 5, 7) * wide.obs_mask[:, None]
    action = random(1, 3, 5, 2)
    # Whatever they see there, they do and judge as before.
    torch.testing.assert_close(act(new, obs), act(old, obs[..., :4]))
    torch.testing.assert_close(judge(new, obs, action), judge(old, obs[..., :4], action))
    assert all(map(torch.equal, new.target_critic.parameters(), new.critic.parameters()))


def test_what_is_narrower_is_cut_and_said_to_be():
    narrow = make_spec((3, 4, 4), (2, 1, 2))
    new, old = pair("maddpg", narrow, THREE)
    table = {(row.network, row.to): row for row in rows_of(new, narrow, old, THREE)}
    assert table["actor", "a"] == Row("actor", "a", "a", "cut", "1 inputs left out")
    assert table["actor", "b"] == Row("actor", "b", "b", "cut", "1 outputs left out")
    assert table["actor", "c"] == Row("actor", "c", "c", "kept")
    assert table["critic", "c"] == Row("critic", "c", "c", "cut", "2 inputs left out")
    obs = random(1, 3, 5, 4) * narrow.obs_mask[:, None]
    same = act(old, obs)
    torch.testing.assert_close(
        act(new, obs), torch.stack([same[:, 0], same[:, 1] * torch.tensor([1.0, 0]), same[:, 2]], 1)
    )


def test_naively_copied_rows_of_a_joint_critic_would_mix_observations_and_actions():
    """The usual bug: the first rows are copied, whatever they stand for."""
    wide = make_spec((5, 5, 5), (2, 2, 2))
    new, old = pair("maddpg", wide, THREE)
    rows_of(new, wide, old, THREE)
    mine, theirs = new.critic.layers[0].weight[0, 0], old.critic.layers[0].weight[0, 0]
    # There: 3 x 4 observations, then actions. Here agent b's observation begins at 5 and the actions at 15.
    assert torch.equal(mine[5:9], theirs[4:8]) and torch.equal(mine[15:21], theirs[12:18])
    assert not mine[[4, 9, 14]].any()
    assert not torch.equal(mine[:18], theirs)


# ---- other agents -------------------------------------------------------------------------------------------------


def test_agents_are_matched_by_name_then_in_order_then_round_and_round():
    spread, adversary = ["agent_0", "agent_1", "agent_2"], ["adversary_0", "agent_0", "agent_1"]
    assert match(adversary, spread, None) == ([2, 0, 1], [2, 0, 1])
    assert match(list("abcde"), list("abc"), None) == ([0, 1, 2, 0, 1], [0, 1, 2, None, None])
    assert match(["x", "y"], ["p", "q", "r"], None) == ([0, 1], [0, 1])
    assert match(list("abc"), list("abc"), 1) == ([1, 1, 1], [0, 1, 2])
    # Agent d sees itself where its origin, a, saw itself; a is nobody to it that it has met.
    assert match(list("abcd"), list("abc"), None).seen_by(3) == [None, 1, 2, 0]
    assert match(list("abc"), list("abc"), 1).seen_by(2) == [0, 2, 1]


def test_a_larger_team_judges_those_it_knows_as_before_and_ignores_the_new_one():
    four = make_spec((4,) * 4, (2,) * 4)
    new, old = pair("maddpg", four, THREE)
    table = rows_of(new, four, old, THREE)
    assert table[3] == Row("actor", "d", "a", "kept")
    assert table[4] == Row("critic", "a", "a", "padded", "6 of 24 inputs start at 0")
    assert table[7] == Row("critic", "d", "a", "padded", "6 of 24 inputs start at 0")
    obs, action = random(1, 4, 5, 4), random(1, 4, 5, 2)
    torch.testing.assert_close(judge(new, obs, action)[:, :3], judge(old, obs[:, :3], action[:, :3]))
    torch.testing.assert_close(act(new, obs)[:, 3], act(old, obs[:, [3, 1, 2]])[:, 0])
    # Agent d's critic is a's with d in a's place.
    theirs = judge(old, obs[:, [3, 1, 2]], action[:, [3, 1, 2]])
    torch.testing.assert_close(judge(new, obs, action)[:, 3], theirs[:, 0])


def test_a_smaller_team_leaves_the_others_out():
    two = make_spec((4, 4), (2, 2))
    new, old = pair("maddpg", two, THREE)
    table = rows_of(new, two, old, THREE)
    assert table[2] == Row("critic", "a", "a", "cut", "6 inputs left out")
    assert table[-1] == Row("agent", "", "c", "unused")
    obs, action = random(1, 2, 5, 4), random(1, 2, 5, 2)
    nobody = [torch.cat([x, torch.zeros(1, 1, 5, x.shape[-1])], 1) for x in (obs, action)]
    torch.testing.assert_close(judge(new, obs, action), judge(old, *nobody)[:, :2])


def test_one_agent_may_be_the_origin_of_all():
    new, old = pair("maddpg", THREE, THREE)
    table = rows_of(new, THREE, old, THREE, agent=1)
    assert [row.source for row in table] == ["b"] * 6 + ["a", "c"] and {row.what for row in table} == {"kept", "unused"}
    obs, action = random(1, 3, 5, 4), random(1, 3, 5, 2)
    for i in range(3):
        exchanged = {0: [1, 0, 2], 1: [0, 1, 2], 2: [0, 2, 1]}[i]  # b stands where i stood
        torch.testing.assert_close(act(new, obs)[:, i], act(old, obs[:, exchanged])[:, 1])
        theirs = judge(old, obs[:, exchanged], action[:, exchanged])[:, 1]
        torch.testing.assert_close(judge(new, obs, action)[:, i], theirs)


# ---- shared networks ----------------------------------------------------------------------------------------------


def test_a_shared_network_with_more_agents_answers_new_ones_as_their_origin():
    four = make_spec((4,) * 4, (2,) * 4)
    new, old = pair("mappo", four, THREE)
    table = rows_of(new, four, old, THREE)
    # The critic sees 3 x 4 numbers there and 4 x 4 here, and has a head for each.
    assert table == [
        Row("actor", "all", "all", "kept"),
        Row("critic", "all", "all", "padded", "4 of 16 inputs start at 0"),
    ]
    obs = random(1, 4, 5, 4)
    both = act(old, obs[:, [0, 1, 2]]), act(old, obs[:, [3, 1, 2]])
    torch.testing.assert_close(act(new, obs), torch.cat([both[0], both[1][:, :1]], 1))
    values = new.judge(new.judge.see(obs, None).unsqueeze(2))[0].squeeze(2)
    theirs = old.judge(old.judge.see(obs[:, :3], None).unsqueeze(2))[0].squeeze(2)
    torch.testing.assert_close(values, theirs[:, [0, 1, 2, 0]])


def test_from_a_shared_network_to_ones_own_and_back():
    own, shared = make("mappo", THREE, 1, shared=False), make("mappo", THREE, 2)
    table = rows_of(own, THREE, shared, THREE)
    assert table[:3] == [Row("actor", name, "all", "kept") for name in "abc"]
    obs = random(1, 3, 5, 4)
    torch.testing.assert_close(act(own, obs), act(shared, obs))

    new = make("mappo", THREE, 3)
    why = "one network for all here, one for each there; name one: RUN:agent"
    assert rows_of(new, THREE, own, THREE)[:2] == [Row(name, "all", "", "new", why) for name in ("actor", "critic")]
    table = rows_of(new, THREE, own, THREE, agent=2)
    assert table[0] == Row("actor", "all", "c", "padded", "3 of 7 inputs start at 0")  # whose turn it is
    same = random(1, 1, 5, 4).expand(-1, 3, -1, -1)
    torch.testing.assert_close(act(new, same), act(own, same)[:, 2:].expand(-1, 3, -1, -1))


# ---- other actions, other networks --------------------------------------------------------------------------------


def test_vectors_in_place_of_indices_keep_all_but_what_speaks_of_actions():
    indices = make_spec((4, 4, 4), (2, 2, 2), discrete=True)
    new, old = make("maddpg", THREE, 1), make("maddpg", indices, 2)
    last = new.actor.layers[-1].weight.clone()
    table = rows_of(new, THREE, old, indices)
    assert table[0] == Row("actor", "a", "a", "new outputs", "2 of 2 outputs are new")
    assert table[3] == Row("critic", "a", "a", "padded, cut", "6 of 18 inputs start at 0; 6 inputs left out")
    assert torch.equal(new.actor.layers[-1].weight, last)
    assert torch.equal(new.actor.layers[1].weight, old.actor.layers[1].weight)


def test_more_actions_are_new_and_the_first_ones_kept():
    more = make_spec((4, 4, 4), (5, 2, 2), discrete=True)
    indices = make_spec((4, 4, 4), (2, 2, 2), discrete=True)
    new, old = pair("dqn", more, indices, duelling=True)
    assert rows_of(new, more, old, indices)[0] == Row("critic", "a", "a", "new outputs", "3 of 6 outputs are new")
    assert torch.equal(new.critic.layers[-1].weight[0, 0, :, :3], old.critic.layers[-1].weight[0, 0])


def test_why_a_network_is_new_is_said():
    wider, narrower = make("maddpg", THREE, 1), make("maddpg", THREE, 2, hidden=(8, 7))
    first = wider.actor.layers[0].weight.clone()
    table = rows_of(wider, THREE, narrower, THREE)
    assert table[0] == Row("actor", "a", "", "new", "hidden 8,6 here, 8,7 there")
    assert torch.equal(wider.actor.layers[0].weight, first)
    memory = make("mappo", THREE, 1, recurrent=True)
    assert rows_of(memory, THREE, make("mappo", THREE), THREE)[0].details == "recurrent here, feedforward there"
    state = make_spec((4, 4, 4), (2, 2, 2), state_size=5)
    rows = rows_of(make("mappo", state), state, make("mappo", THREE), THREE)
    assert [row.details for row in rows] == ["", "reads state here, obs there"]
    mixing = make_spec((4, 4), (2, 2), discrete=True), make_spec((4, 4, 4), (2, 2, 2), discrete=True)
    rows = rows_of(make("qmix", mixing[0]), mixing[0], make("qmix", mixing[1]), mixing[1])
    assert rows[1] == Row("mixer", "all", "", "new", "utilities 2 here, 3 there")


def test_networks_of_the_same_name_go_from_one_algorithm_to_another():
    td3, ddpg = make("td3", THREE, 1), make("ddpg", THREE, 2)
    fresh = td3.critic.layers[0].weight[:, 1::2].clone()
    table = rows_of(td3, THREE, ddpg, THREE)
    assert [row.what for row in table if row.network == "actor"] == ["kept"] * 3
    assert table[-1] == Row("critic", "c", "c", "new twin", "1 of 2 twins are new")
    # Twins are neighbours. Two copies of one critic would have the same gradients for ever, and be one.
    weight = td3.critic.layers[0].weight
    assert torch.equal(weight[:, 0::2], ddpg.critic.layers[0].weight) and torch.equal(weight[:, 1::2], fresh)
    assert torch.equal(td3.target_critic.layers[0].weight, weight)
    back = make("ddpg", THREE, 3)
    assert rows_of(back, THREE, td3, THREE)[-1] == Row("critic", "c", "c", "cut", "1 of 2 twins left out")
    assert torch.equal(back.critic.layers[0].weight, ddpg.critic.layers[0].weight)
    dvm, maddpg = make("dvm", THREE, 1), make("maddpg", THREE, 2)
    table = rows_of(dvm, THREE, maddpg, THREE)
    assert [row for row in table if row.what != "kept"] == [
        Row(f"distilled_{name}", "all", "", "new", "the other run has no such network") for name in ("actor", "critic")
    ]
    why = {"not asked for": {"wanted": ["critic"]}, "other agents there": {"agent": 1}}
    for reason, more in why.items():
        rows = rows_of(make("dvm", THREE, 1), THREE, make("dvm", THREE, 2), THREE, **more)
        assert [row.details for row in rows if row.network == "distilled_actor"] == [reason]
    rows = rows_of(dvm, THREE, make("dvm", THREE, 2, hidden=(8, 7)), THREE)
    assert [row.details for row in rows if row.network == "distilled_actor"] == ["other sizes there"]
    assert rows_of(maddpg, THREE, dvm, THREE)[-1] == Row("distilled_critic", "", "all", "unused")
    mappo = make("mappo", THREE, 1, shared=False)
    table = rows_of(mappo, THREE, maddpg, THREE)
    # A mean that is clipped is not an action before its tanh, and the value of a state is not that of an action.
    assert table[0] == Row("actor", "a", "a", "new outputs", "2 of 2 outputs are new")
    assert table[3] == Row("critic", "a", "a", "cut, new outputs", "6 inputs left out; 1 of 1 outputs are new")


@pytest.mark.parametrize("case", [{}, {"shared": False}, {"critic": "own"}])
def test_values_learnt_in_real_units_stay_what_they_are_when_normalisation_begins(case):
    old, new = make("mappo", THREE, 2, normalize_value=False, **case), make("mappo", THREE, 1, **case)
    rows_of(new, THREE, old, THREE)
    states = new.judge.see(random(1, 3, 5, THREE.obs_size), None).unsqueeze(2)
    expected = old.judge(states)[0]
    for _ in range(2):
        assert torch.allclose(new.norm.denormalize(new.judge(states)[0]), expected, atol=1e-3)
        new.judge.rescale(*new.norm.update(50 * random(1, new.norm.sums.shape[1], 99) - 300))


def test_some_networks_may_be_left_new():
    new, old = pair("maddpg", THREE, THREE)
    critic = new.critic.layers[0].weight.clone()
    table = rows_of(new, THREE, old, THREE, wanted=["actor"])
    assert table[3] == Row("critic", "a", "", "new", "not asked for")
    assert torch.equal(new.critic.layers[0].weight, critic)
    assert torch.equal(new.actor.layers[0].weight, old.actor.layers[0].weight)
    with pytest.raises(UserError, match="init_networks: no network 'actr'; did you mean 'actor'"):
        rows_of(new, THREE, old, THREE, wanted=["actr"])


def test_pictures_are_looked_at_with_the_same_convolutions():
    spec = EnvSpec("test/pictures", ("a",), (75,), (4,), True, pixels=(3, 5, 5))
    other = EnvSpec("test/pictures", ("a",), (100,), (4,), True, pixels=(4, 5, 5))
    new, old = pair("dqn", spec, spec)
    rows_of(new, spec, old, spec)
    assert all(map(torch.equal, new.critic.parameters(), old.critic.parameters()))
    details = rows_of(new, spec, make("dqn", other), other)[0].details
    assert details.startswith("pictures 3,5,5 here, 4,5,5 there; convolutions ")
