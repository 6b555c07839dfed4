"""Reciprocity for foreign code: the pure function, the wrapper around plain critics, and what importing it costs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from marl.reciprocity import Exact, ReciprocalCritics, UserError, reciprocate

HALF = torch.tensor([[0.0, 1.0], [1.0, 0.0]])


def test_pure_function_by_hand():
    own = torch.tensor([1.0, 20.0, 300.0])
    peers = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0], [3.0, 30.0, 300.0]])
    # .5 * 1 + .5 * (10 + 100) / 2, .5 * 20 + .5 * (2 + 200) / 2, .5 * 300 + .5 * (3 + 30) / 2
    assert reciprocate(own, peers, 0.5).tolist() == [28.0, 60.5, 158.25]


def test_pure_function_with_weights_and_a_kappa_for_each_agent():
    own, peers = torch.tensor([[2.0], [4.0]]), torch.tensor([[[0.0], [8.0]], [[6.0], [0.0]]])
    result = reciprocate(own, peers, torch.tensor([0.25, 0.0]), HALF)
    assert result.tolist() == [[3.5], [4.0]]  # .75 * 2 + .25 * 8; kappa 0


def test_pure_function_leaves_an_agent_without_neighbours_alone():
    own = torch.tensor([0.1, 0.2])
    result = reciprocate(own, torch.full((2, 2), 9.0), 1.0, torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    assert result.tolist() == [own[0].item(), 9.0]


def test_pure_function_of_one_agent_blends_with_its_own_adjacent_value():
    assert reciprocate(torch.tensor([2.0]), torch.tensor([[4.0]]), 0.5).tolist() == [3.0]


def test_pure_function_leaves_no_derivative_of_either_kind():
    given = torch.ones(2), torch.ones(2, 2), torch.full((2,), 0.5)
    _, tangent = torch.func.jvp(reciprocate, given, given)
    assert tangent.tolist() == [0.0, 0.0]
    assert not reciprocate(*(x.requires_grad_() for x in given)).requires_grad


@pytest.mark.parametrize(
    ("peers", "kappa", "weights", "message"),
    [
        (torch.ones(2, 3), 0.5, None, r"peers: expected shape \[2, 2\] for own \[2\], got \[2, 3\]"),
        (torch.ones(2, 2), 1.5, None, "kappa: expected a number from 0 to 1, got 1.5"),
        (torch.ones(2, 2), float("nan"), None, "kappa: expected a number from 0 to 1, got nan"),
        (torch.ones(2, 2), 0.5, torch.eye(3), r"weights: expected shape \[2, 2\], got \[3, 3\]"),
        (torch.ones(2, 2), 0.5, torch.ones(2, 2), r"row 0 is \[1.0, 1.0\]"),
    ],
)
def test_pure_function_refuses_what_does_not_fit(peers, kappa, weights, message):
    with pytest.raises(UserError, match=message):
        reciprocate(torch.ones(2), peers, kappa, weights)


def test_wrapper_equals_the_pure_function_at_exact_states_with_further_arguments():
    generator = torch.Generator().manual_seed(0)
    layers = [torch.nn.Linear(5, 2) for _ in range(3)]
    states, actions = torch.randn(3, 7, 3, generator=generator), torch.randn(3, 7, 2, generator=generator)

    def critic(j):
        return lambda state, action: layers[j](torch.cat([state, action], -1))

    table = torch.stack([torch.stack([critic(j)(states[i], actions[i]) for j in range(3)]) for i in range(3)])
    own = table.diagonal(dim1=0, dim2=1).movedim(-1, 0)
    result = ReciprocalCritics([critic(j) for j in range(3)], 0.3, adjacency="exact")(states, actions)
    torch.testing.assert_close(result, reciprocate(own, table, 0.3))
    assert not result.requires_grad


def test_wrapper_accepts_lists_and_discrete_actions():
    critics = [lambda state, action, k=k: state.gather(-1, action[:, None])[:, 0] * k for k in (1, 10)]
    states = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])]
    actions = [torch.tensor([0, 1]), torch.tensor([1, 0])]
    result = ReciprocalCritics(critics, 0.5, adjacency="exact")(states, actions)
    # agent 0 picks 1 and 4: .5 * 1 + .5 * 10, .5 * 4 + .5 * 40
    # agent 1 picks 6 and 7: .5 * 60 + .5 * 6, .5 * 70 + .5 * 7
    assert result.tolist() == [[5.5, 22.0], [33.0, 38.5]]


def test_wrapper_with_one_joint_state():
    critics = [lambda s, k=k: s.sum(-1) * k for k in (1, 10)]
    wrapper = ReciprocalCritics(critics, 0.5, adjacency="exact")
    result = wrapper(torch.tensor([[[1.0, 1.0]]]))
    assert result.tolist() == [[11.0], [11.0]]  # .5 * 2 + .5 * 20 and the other way round
    assert wrapper.gap is not None and wrapper.gap.tolist() == [9.0, 9.0]


def test_states_and_actions_of_unequal_size_are_cut_and_filled_to_each_critic():
    seen = []

    def critic(j):
        def value(state, action):
            seen.append((j, state.tolist(), action.tolist()))
            return state.sum(-1)

        return value

    wrapper = ReciprocalCritics([critic(0), critic(1)], 0.5, adjacency="exact", widths=[2, 3])
    result = wrapper(
        [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0, 5.0]])], [torch.ones(1, 1), torch.full((1, 2), 7.0)]
    )
    assert (0, [[3.0, 4.0]], [[7.0]]) in seen and (1, [[1.0, 2.0, 0.0]], [[1.0, 0.0]]) in seen
    assert result.tolist() == [[3.0], [9.5]]  # agent 0: 3 and 3; agent 1: 12 by its own critic, 3 + 4 by the other's


def test_padding_of_unequal_states_is_never_perturbed():
    widths = [2, 4]
    seen = []

    def wide(state):
        seen.append(state.clone())
        return state.sum(-1)

    everybody = torch.full((2, 2), 0.5)
    wrapper = ReciprocalCritics(
        [lambda s: s.sum(-1), wide], 1.0, everybody, adjacency="gaussian", rho=(4,), sigma=9.0, widths=widths
    )
    wrapper([torch.randn(6, width) for width in widths])
    assert len(seen) == 3  # its own state, then agent 0's and agent 1's adjacent states
    assert not bool(seen[1][:, 2:].any()) and bool(seen[2][:, 2:].all())


def test_with_peer_each_critic_is_asked_at_its_own_state():
    critics = [lambda s: s[:, 0], lambda s: s[:, 0] * 10]
    result = ReciprocalCritics(critics, 0.5, adjacency="peer")([torch.tensor([[1.0]]), torch.tensor([[2.0]])])
    assert result.tolist() == [[10.5], [10.5]]  # .5 * 1 + .5 * 20, .5 * 20 + .5 * 1


def test_with_kappa_zero_each_critic_is_asked_once_and_nothing_is_drawn():
    calls = []
    generator = torch.Generator().manual_seed(3)
    before, global_before = generator.get_state(), torch.get_rng_state()

    def critic(state):
        calls.append(1)
        return state.sum(-1)

    states = torch.ones(3, 4, 2)
    result = ReciprocalCritics([critic] * 3, 0.0, "random", generator=generator)(states)
    assert torch.equal(result, states.sum(-1)) and len(calls) == 3
    assert torch.equal(generator.get_state(), before) and torch.equal(torch.get_rng_state(), global_before)


def test_random_numbers_come_from_the_generator_given_and_never_from_the_global_one():
    states = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(1))
    critics = [lambda s, k=k: s.square().sum(-1) * k for k in (1, 2, 3)]

    def values(generator):
        return ReciprocalCritics(critics, generator=generator)(states)

    global_before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(4)
    before = generator.get_state()
    first = values(generator)
    assert not torch.equal(generator.get_state(), before)
    assert torch.equal(first, values(torch.Generator().manual_seed(4)))
    assert not torch.equal(first, values(torch.Generator().manual_seed(5)))
    assert torch.equal(values(None), values(None))
    assert torch.equal(torch.get_rng_state(), global_before)


def test_wrapper_continues_in_the_same_bits_after_a_restore():
    states = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(1))
    critics = [lambda s, k=k: s.square().sum(-1) * k for k in (1, 2)]
    first, restored = (ReciprocalCritics(critics, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    first(states)
    restored.load_state_dict(first.state_dict())
    assert torch.equal(first(states), restored(states))


def test_own_graph_and_own_adjacency_objects_are_accepted():
    critics = [lambda s: s.sum(-1), lambda s: s.sum(-1) * 10]
    only_first_listens = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    result = ReciprocalCritics(critics, 1.0, only_first_listens, Exact())(torch.ones(2, 1, 1))
    assert result.tolist() == [[10.0], [10.0]]


@pytest.mark.parametrize(
    ("states", "rest", "message"),
    [
        (torch.ones(3, 4, 2), (), "states: expected one for each of 2 critics or one for all, got 3"),
        (torch.ones(2, 4, 2), (torch.ones(3, 4, 1),), "argument 1: expected 2, as many as states, got 3"),
        ([torch.ones(4, 2), torch.ones(4, 3)], (), r"states: sizes \[2, 3\] arrived, but widths is None"),
        (torch.ones(2, 1, 2), (), "needs a batch of 2 states or more, got 1"),
    ],
)
def test_wrapper_refuses_what_does_not_fit(states, rest, message):
    with pytest.raises(UserError, match=message):
        ReciprocalCritics([lambda s, *a: s.sum(-1)] * 2)(states, *rest)


def test_wrapper_refuses_unknown_names_and_widths_that_do_not_fit():
    with pytest.raises(UserError, match="did you mean 'complete'"):
        ReciprocalCritics([lambda s: s] * 2, graph="complet")
    with pytest.raises(UserError, match="did you mean 'gaussian'"):
        ReciprocalCritics([lambda s: s] * 2, adjacency="gausian")
    with pytest.raises(UserError, match="widths: expected one for each of 2 critics, got 1"):
        ReciprocalCritics([lambda s: s] * 2, widths=[3])


def test_the_program_on_the_documentation_page_runs_and_learns():
    page = Path(__file__).parent.parent / "docs" / "algorithms" / "reciprocity.md"
    (program,) = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    names: dict = {}
    with torch.random.fork_rng():
        exec(program, names)
    losses = names["losses"]
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


ROOT = Path(__file__).parent.parent


def run(program: str) -> dict:
    names: dict = {"__name__": "page"}
    with torch.random.fork_rng():
        exec(program, names)
    return names


@pytest.mark.parametrize(
    "program", re.findall(r"```python\n(.*?)```", (ROOT / "docs/howto/plug-in.md").read_text(), flags=re.DOTALL)
)
def test_the_programs_on_the_how_to_page_run(program):
    run(program)


def test_the_loop_in_the_readme_learns_with_kappa_and_trains_to_the_same_bits_without():
    (program,) = re.findall(r"```python\n(import torch\n.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    with_line, without_line = "value = reciprocal(next_state)", "value = torch.stack("
    (plain,) = [line.removeprefix("    # ") for line in program.splitlines() if f"# {without_line}" in line]
    assert len(program.splitlines()) <= 22 and with_line in program

    def critics(program: str) -> list:
        return run(program)["critics"]

    def weights(critics: list) -> torch.Tensor:
        return torch.cat([p.flatten() for q in critics for p in q.parameters()])

    before, learnt = weights(critics(program.replace(with_line, plain))), critics(program)
    assert torch.equal(weights(critics(program.replace("kappa=0.5", "kappa=0.0"))), before)
    assert not torch.equal(weights(learnt), before)
    states = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    for q in learnt:  # the reward is the sum of the state, and what follows does not depend on the state
        seen = torch.stack([q(states).detach()[:, 0], states.sum(-1)])
        assert torch.corrcoef(seen)[0, 1] > 0.95


def test_importing_needs_torch_and_twelve_small_modules_and_less_than_half_a_second_beyond_it():
    code = (
        "import sys, time, json, torch; before = set(sys.modules); start = time.process_time();"
        "import marl.reciprocity, marl.testing; seconds = time.process_time() - start;"
        "print(json.dumps([seconds, sorted(set(sys.modules) - before)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, new = json.loads(done.stdout)
    outside = {name for name in new if name.split(".")[0] not in sys.stdlib_module_names}
    parts = ("adjacency", "ahead", "foreign", "graph", "guards", "hooks", "moments", "onednn", "plain", "quick")
    parts += ("reciprocity", "sizes")
    assert outside == {
        *("marl", "marl.config", "marl.streams", "marl.types", "marl.reciprocity", "marl.testing", "marl.modules"),
        *(f"marl.modules.{part}" for part in parts),
    }
    assert seconds < 0.5
