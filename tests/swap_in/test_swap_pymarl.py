"""Reciprocity in learners as PyMARL and EPyMARL have them: the recipe, its promises, and the patch for EPyMARL."""

from __future__ import annotations

import ast
import itertools
import math
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch
from swap_tools import RECIPES, diff, script

from marl.reciprocity import AdjacencySpace
from marl.testing import check_reciprocity

RECIPE = RECIPES / "pymarl"
LEARNERS = ("qmix", "maddpg")
SMALL = {"batch_size": 8, "hidden_dim": 16}
STEPS = 250  # two rounds of eight episodes, an update after each


@pytest.fixture(scope="module", autouse=True)
def on_the_path():
    sys.path.insert(0, str(RECIPE))
    yield
    sys.path.remove(str(RECIPE))


@pytest.fixture(scope="module")
def reciprocal(on_the_path):
    return script("pymarl", "reciprocal")


@pytest.fixture(scope="module")
def parts(reciprocal):
    return sys.modules["small_pymarl"]


def networks(learner) -> list[torch.nn.Module]:
    found = [learner.mac.agent, learner.target_mac.agent]
    return found + [v for _, v in sorted(vars(learner).items()) if isinstance(v, torch.nn.Module)]


def parameters(learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for network in networks(learner) for p in network.parameters()])


def settings(reciprocal, **others) -> SimpleNamespace:
    return SimpleNamespace(**(reciprocal.DEFAULTS | SMALL | others))


def made(module, parts, learner, args):
    if learner == "qmix":
        return module.QLearner(parts.BasicMAC(args), args)
    return module.MADDPGLearner(parts.MADDPGMAC(args), args)


@pytest.mark.parametrize(
    "name, learner, options", [("plain", "qmix", []), ("reciprocal", "maddpg", ["--kappa", "0.5"])]
)
def test_the_script_runs_and_ends_with_its_return(name, learner, options):
    command = [sys.executable, RECIPE / f"{name}.py", "--steps", "500", "--seed", "1", "--learner", learner, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    word, number = done.stdout.splitlines()[-1].split()
    assert word == "return" and -15 < float(number) < 0 and math.isfinite(float(number))


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("double_q", [True, False])
def test_kappa_0_trains_to_the_same_bits_and_kappa_above_to_others(reciprocal, learner, double_q):
    options = {**SMALL, "double_q": double_q}
    expected = parameters(script("pymarl", "plain").train(STEPS, 3, learner, **options))
    stream = torch.get_rng_state()
    for setting in ({}, {"reciprocity": {"kappa": 0.0}}):
        assert torch.equal(parameters(reciprocal.train(STEPS, 3, learner, **options, **setting)), expected)
        assert torch.equal(torch.get_rng_state(), stream)
    other = reciprocal.train(STEPS, 3, learner, **options, reciprocity={"kappa": 0.5})
    assert not torch.equal(parameters(other), expected)


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("options", [{}, {"graph": "ring", "adjacency": "gaussian"}, {"adjacency": "peer"}])
def test_the_targets_keep_the_contract_of_reciprocity(reciprocal, parts, learner, options):
    """QMIX has one target for a team, of which the agents' utilities are a rising function."""

    class Host:
        def __init__(self, kappa, seed):
            module = script("pymarl", "plain") if kappa is None else reciprocal
            self.learner = made(module, parts, learner, settings(module, reciprocity={"kappa": kappa, **options}))
            self.batch = parts.run_episodes(self.learner.mac, 8, explore=1.0)
            self.learner.mac.init_hidden(8)
            for name in ("optimiser", "critic_optimiser", "agent_optimiser"):
                if hasattr(self.learner, name):
                    getattr(self.learner, name).step = lambda: None  # the targets alone are looked at

        def targets(self, terminated):
            self.batch["terminated"].fill_(float(terminated))
            self.learner.args.target_update_interval_or_tau = 0.0
            self.learner.train(self.batch)
            return self.learner.targets.flatten(0, 1).flatten(1).transpose(0, 1)

        def answer(self, values):
            """Agent j's slot answers values[j]: the network is shared."""
            if learner == "maddpg":
                self.learner.target_critic.register_forward_hook(
                    lambda _, __, said: torch.tensor(values).view(-1, 1).expand_as(said)
                )
            else:
                agents = torch.tensor(values)
                self.learner.target_mac.agent.register_forward_hook(
                    lambda _, __, said: (agents.repeat(len(said[0]) // 3).unsqueeze(-1).expand_as(said[0]), said[1])
                )

    check_reciprocity(Host, agents=3)


def episodes(reciprocal, parts, **others):
    torch.manual_seed(0)
    args = settings(reciprocal, **others)
    host = made(reciprocal, parts, "qmix", args)
    return host, parts.run_episodes(host.mac, 6, explore=1.0)


class Scaled(AdjacencySpace):
    """One adjacent state for each factor, all of one level: the state times the factor."""

    def __init__(self, *factors):
        self.factors, self.levels = factors, (1,) * len(factors)

    def __call__(self, states, real=None):
        yield from (states * factor for factor in self.factors)


@pytest.mark.parametrize("factors", [(1.0,), (2.0, -3.0)])
@pytest.mark.parametrize("graph", ["complete", "ring", "nearest", "self", "random"])
def test_a_neighbours_utility_is_its_network_run_through_the_other_agents_episode(reciprocal, parts, graph, factors):
    """Against one unroll for each pair (i, j): slot j of a batch is shown agent i's episode, adjacent observations.
    Z*_i = .5 Z_i + .5 sum_j W_ij mean_s# Z_j(i's adjacent episode, i's action)."""
    host, batch = episodes(
        reciprocal, parts, reciprocity={"kappa": 0.5, "graph": graph, "adjacency": Scaled(*factors), "neighbours": 1}
    )
    engine = host.reciprocity.reciprocal.engine
    actions = batch["actions"][:, 1:]

    def slot(j, i, factor):
        data = {key: batch[key].clone() for key in ("obs", "actions_onehot", "avail_actions", "filled")}
        for key in ("obs", "actions_onehot", "avail_actions"):
            data[key][:, :, j] = batch[key][:, :, i] * (factor if key == "obs" else 1)
        values = reciprocal.unrolled(host.target_mac, parts.EpisodeBatch(data))[:, 1:, j]
        return values.gather(2, actions[:, :, i]).squeeze(2)

    def said(j, i):
        return torch.stack([slot(j, i, factor) for factor in factors]).mean(0)

    with torch.no_grad():
        heard = torch.stack([torch.stack([said(j, i) for j in range(3)]) for i in range(3)])  # [i, j, bs, T]
        plain = reciprocal.unrolled(host.target_mac, batch)[:, 1:]
        own, others = host.reciprocity.unrolled(host.target_mac, batch)
        torch.testing.assert_close(own, plain)
        own = own.gather(3, actions).squeeze(3)
        state = engine.graph.state_dict()
        got = host.reciprocity.utilities(own, others, actions)
        engine.graph.load_state_dict(state)
        weights = engine.graph()[0].float()
    expected = 0.5 * own + 0.5 * torch.einsum("ij,ijbt->bti", weights, heard)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    "options, times",  # the episodes themselves, and so many adjacent ones for each offset between those who hear
    [
        ({"kappa": 0.0}, 1),
        ({"kappa": 0.5, "adjacency": "peer"}, 1),
        ({"kappa": 0.5, "graph": "self"}, 2),
        ({"kappa": 0.5, "graph": "nearest", "neighbours": 1}, 2),
        ({"kappa": 0.5, "rho": (1, 2)}, 5),  # complete: i + 1 and i + 2, at two states each
    ],
)
def test_the_target_network_is_unrolled_once_over_true_and_adjacent_episodes(reciprocal, parts, options, times):
    host, batch = episodes(reciprocal, parts, reciprocity=options)
    rows = []
    host.target_mac.agent.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    host.train(batch)
    assert rows == [times * 6 * 3] * 16  # six episodes of three agents, 15 + 1 moments


@pytest.mark.parametrize("individual, last", itertools.product([False, True], repeat=2))
@pytest.mark.parametrize("factors", [(1.0,), (2.0, -3.0)])
def test_a_neighbours_critic_keeps_its_identity_and_reads_the_other_agents_inputs(
    reciprocal, individual, last, factors
):
    """Critic j is told j, and the rest is i's. It answers 100 times what it reads of (state, observation, last action),
    plus its number: with the state 1, agent i's observation i, and i's last action j = i one-hot of 2. An adjacent
    state is that many times (state, observation); of two answers the mean counts."""
    args = settings(
        reciprocal,
        n_actions=2,
        obs_individual_obs=individual,
        obs_last_action=last,
        reciprocity={"kappa": 1.0, "graph": "nearest", "neighbours": 1, "adjacency": Scaled(*factors)},  # i hears i + 1
    )
    seen = [torch.ones(3, 1)] + ([torch.arange(3.0).view(3, 1)] if individual else [])
    seen += [torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]])] if last else []
    inputs = torch.cat([*seen, torch.eye(3)], -1).expand(2, 4, 3, -1)

    def critic(shown, actions):
        who = shown[..., -3:].argmax(-1, keepdim=True)
        return 100 * shown[..., :-3].sum(-1, keepdim=True) + who

    own, filled, actions = critic(inputs, None), torch.ones(2, 4, 1), torch.zeros(2, 4, 3, 6)
    got = reciprocal.ReciprocalTargets(args).critics(own, critic, inputs, actions, filled)
    times = sum(factors) / len(factors)
    read = [(1 + i * individual) * times + i * last for i in range(3)]
    expected = torch.tensor([100.0 * read[i] + (i + 1) % 3 for i in range(3)])
    torch.testing.assert_close(got, expected.view(3, 1).expand(2, 4, 3, 1))


def test_nothing_is_taken_from_what_fills_up_a_batch(reciprocal, parts):
    """Two filled rows whose coordinates are 1 and 2; padding holds 1000. Whatever is resampled is 1 or 2."""
    host, _ = episodes(reciprocal, parts, reciprocity={"kappa": 0.5, "rho": (6,)})
    seen = torch.full((1, 4, 3, 6), 1000.0)
    seen[:, 0], seen[:, 1] = 1.0, 2.0
    (near,) = host.reciprocity.near(seen, torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 4, 1))
    assert near.shape == (1, 4, 3, 6)
    torch.testing.assert_close(near[0, 0], torch.full((3, 6), 2.0))  # all six coordinates from the other row
    torch.testing.assert_close(near[0, 1], torch.full((3, 6), 1.0))


def added(lines) -> list[str]:
    return [line[1:] for line in lines if line.startswith("+") and not line.startswith("+++")]


def hunks() -> dict[str, list[list[str]]]:
    """Upstream's file -> the lines of each hunk of the patch."""
    found: dict[str, list[list[str]]] = {}
    for line in (RECIPE / "epymarl.patch").read_text().splitlines():
        if line.startswith("+++ "):
            hunk_list = found.setdefault(line.removeprefix("+++ b/"), [])
        elif line.startswith("@@"):
            hunk_list.append([])
        elif not line.startswith("---"):
            hunk_list[-1].append(line)
    return found


def test_the_patch_adds_to_epymarl_what_the_recipe_adds():
    recipe = added(diff("pymarl"))
    learner = [line for line in recipe if "reciprocity" in line or "cur_max" in line or "target_vals" in line]
    learner = [line for line in learner if "kappa" not in line]
    by_file = {name: [line for hunk in of for line in added(hunk)] for name, of in hunks().items()}
    assert sorted(by_file) == ["src/learners/maddpg_learner.py", "src/learners/q_learner.py"]
    patched = {line for lines in by_file.values() for line in lines}
    assert set(learner) == patched - {"        )"}
    assert sum(map(len, by_file.values())) == 10


def test_the_patch_takes_nothing_away_but_the_unroll_of_qlearners_target_network():
    by_file = {name: [line[1:] for hunk in of for line in hunk if line.startswith("-")] for name, of in hunks().items()}
    assert by_file["src/learners/maddpg_learner.py"] == []
    taken = ast.parse(textwrap.dedent("\n".join(by_file["src/learners/q_learner.py"])))
    empty, start, loop, stacked = taken.body
    assert ast.unparse(start) == "self.target_mac.init_hidden(batch.batch_size)"
    assert isinstance(loop, ast.For) and "self.target_mac.forward(batch, t=t)" in ast.unparse(loop)
    for line in (empty, stacked):
        assert isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "target_mac_out"


def test_each_hunk_of_the_patch_parses_and_counts_its_lines():
    text = (RECIPE / "epymarl.patch").read_text()
    headers = [line.split()[1:3] for line in text.splitlines() if line.startswith("@@")]
    bodies = [hunk for of in hunks().values() for hunk in of]
    for (old, new), body in zip(headers, bodies, strict=True):
        before, after = (len([line for line in body if not line.startswith(sign)]) for sign in "+-")
        assert (int(old.split(",")[1]), int(new.split(",")[1])) == (before, after)
        lines = added(body)
        if lines[0].startswith("            "):  # the first line belongs to upstream's else
            lines[0] = lines[0].removeprefix("    ")
        ast.parse(textwrap.dedent("\n".join(lines)))
