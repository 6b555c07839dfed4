"""``HookedCritics``: a library calls its target critics itself, and what they answer is blended."""

import copy
import random
import threading
import weakref

import numpy as np
import pytest
import torch
from hook_tools import ACTIONS, NOTHING, STATES, Odd, Single, Twins, networks, number, seeded
from torch import nn

from marl.reciprocity import HookedCritics, LinearKappa, ReciprocalCritics, reciprocate
from marl.testing import answering, check_reciprocity
from marl.types import UserError

# what it computes


def test_each_twin_is_blended_for_itself_with_the_same_action():
    """s = (1, 1), a = 1: critics say 2k + a and its double: 3, 21 and 201; of agent 0: .5 x 3 + .5 x (21 + 201) / 2."""
    critics = [Twins(1.0), Twins(10.0), Twins(100.0)]
    HookedCritics(critics, 0.5, adjacency="exact")
    first, second = critics[0](torch.ones(1, 2), torch.ones(1, 1))
    assert (first.tolist(), second.tolist()) == ([[57.0]], [[114.0]])
    assert critics[2](torch.ones(1, 2), torch.ones(1, 1))[0].item() == 106.5  # .5 x 201 + .5 x (3 + 21) / 2


def test_twins_that_are_modules_of_their_own_hear_each_its_own_kind():
    """s = (1, 1), a = 1, say 2k + a. First twins 3, 21: .5 x 3 + .5 x 21 = 12; second ones 5, 201: 103."""
    pairs = [(Single(1.0), Single(2.0)), (Single(10.0), Single(100.0))]
    HookedCritics(pairs, 0.5, adjacency="exact")
    assert [critic(torch.ones(1, 2), torch.ones(1, 1)).item() for critic in pairs[0]] == [12.0, 103.0]


def test_twins_are_asked_at_the_same_adjacent_states_and_the_next_call_at_others():
    pairs = [(Single(), Single()) for _ in range(2)]
    HookedCritics(pairs, 1.0, generator=seeded())
    states, action, (one, two) = STATES[0], ACTIONS[0], pairs[0]
    first = one(states, action)
    assert torch.equal(two(states, action), first)
    again = two(states, action)  # in whatever order
    assert torch.equal(one(states, action), again) and not torch.equal(again, first)
    assert not torch.equal(one(states, action), one(states, action))  # one twin twice
    assert not torch.equal(two(states.clone(), action), one(states, action))  # equal numbers, but another tensor


def test_twins_hear_the_same_neighbour_of_a_graph_that_changes():
    pairs = [(Single(10.0**k), Single(10.0**k)) for k in range(5)]
    HookedCritics(pairs, 1.0, "random", "exact", neighbours=1, generator=seeded())
    states, actions = torch.ones(1, 1), torch.zeros(1, 1)
    heard = [(pairs[0][0](states, actions).item(), pairs[0][1](states, actions).item()) for _ in range(20)]
    assert all(one == two for one, two in heard) and len(set(heard)) > 1


def test_twins_may_come_as_a_list_of_modules_and_all_as_an_iterator():
    pairs = [nn.ModuleList([Single(1.0), Single(2.0)]), nn.ModuleList([Single(10.0), Single(100.0)])]
    HookedCritics((pair for pair in pairs), 0.5, adjacency="exact")
    assert [critic(torch.ones(1, 2), torch.ones(1, 1)).item() for critic in pairs[0]] == [12.0, 103.0]  # as above


def test_learners_in_threads_of_their_own_do_not_put_each_others_hooks_to_sleep():
    """Critics say 1 and 3, so that both answer 2; each waits, when it is asked, for the other to be asked as well."""
    together = threading.Barrier(2, timeout=10)

    class Slow(Single):
        def forward(self, state, action):
            together.wait()
            return super().forward(state, action)

    critics, heard = [Slow(1.0), Slow(3.0)], {}
    HookedCritics(critics, 0.5, adjacency="exact")

    def learn(i):
        heard[i] = [critics[i](torch.ones(1, 1), torch.zeros(1, 1)).item() for _ in range(3)]

    threads = [threading.Thread(target=learn, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == {0: [2.0] * 3, 1: [2.0] * 3}


def test_twins_that_are_asked_at_a_buffer_that_was_filled_anew_see_what_is_in_it():
    pair = (Single(), Single())
    HookedCritics([pair], 1.0, adjacency="mask", generator=seeded())
    states, action = torch.ones(1, 2), torch.zeros(1, 1)
    assert pair[0](states, action).item() == 1.0  # one coordinate of the two is masked
    states.fill_(100.0)
    assert pair[1](states, action).item() == 100.0


def test_a_copy_of_learners_with_a_twin_yet_to_be_asked_works_and_keeps_no_graph_alive():
    pair, state = (Single(), Single()), torch.ones(4, 2, requires_grad=True)
    HookedCritics([pair], 1.0, generator=seeded())
    pair[0](seen := state * 2, torch.zeros(4, 1))
    other = copy.deepcopy(pair)
    alive = weakref.ref(seen)
    del seen
    assert alive() is None and other[1](state.detach(), torch.zeros(4, 1)).shape == (4, 1)


def test_the_other_learners_twins_draw_their_own_adjacent_states():
    pairs = [(Single(), Single()) for _ in range(2)]
    HookedCritics(pairs, 1.0, generator=seeded())
    states, action = STATES[0], ACTIONS[0]
    first, other = (pair[0](states, action) for pair in pairs)
    assert not torch.equal(first, other) and not torch.equal(pairs[0][1](states, action), other)


def test_the_gap_of_twins_is_the_mean_over_both():
    """Z 3 and 6, Z* 57 and 114: |54| and |108|, mean 81."""
    hooks = HookedCritics(critics := [Twins(1.0), Twins(10.0), Twins(100.0)], 0.5, adjacency="exact")
    critics[0](torch.ones(1, 2), torch.ones(1, 1))
    assert hooks.gap.tolist() == [81.0]


def test_a_tensor_stays_a_tensor_and_a_list_a_list():
    class Listed(Twins):
        def forward(self, state, action):
            return list(super().forward(state, action))

    for kind, expected in ((Single, number(4.0)), (Listed, [number(4.0), number(8.0)])):
        critics = [kind(1.0), kind(3.0)]
        HookedCritics(critics, 0.5, adjacency="exact")
        answer = critics[0](torch.full((1, 1), 2.0), NOTHING)  # 2 and 6: (2 + 6) / 2
        assert type(answer) is type(expected) and torch.equal(torch.stack([*answer]), torch.stack([*expected]))


def test_weights_say_who_is_asked_and_the_others_are_not():
    critics = [Twins(1.0), Twins(10.0), Twins(100.0)]
    HookedCritics(critics, 0.5, torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]), adjacency="exact")
    state = torch.full((1, 1), 2.0)
    assert critics[0](state, NOTHING)[0].item() == 101.0  # .5 x 2 + .5 x 200
    assert [len(critic.asked) for critic in critics] == [1, 0, 1]
    assert critics[1](state, NOTHING)[0].item() == 15.5  # .5 x 20 + .5 x (.5 x 2 + .5 x 20)
    assert critics[2](state, NOTHING)[0].item() == 200.0  # hears nobody


def test_one_learner_alone_hears_itself_at_adjacent_states():
    """Two rows and one coordinate: the only adjacent state of 0 is 4 and the other way round; kappa .25: 1 and 3."""
    critic = Twins()
    for graph in ("self", "complete"):
        hooks = HookedCritics([critic], 0.25, graph)
        assert critic(torch.tensor([[0.0], [4.0]]), torch.zeros(2, 1))[0].tolist() == [[1.0], [3.0]]
        hooks.remove()


def test_levels_have_the_weights_of_their_distance():
    """rho 1 and 2 of (1, 1), masked: (0, 1) or (1, 0), and (0, 0); softmax(-rho): .7311 x 1 + .2689 x 0."""
    critic = Single()
    HookedCritics([critic], 1.0, "self", "mask", rho=(1, 2))
    assert critic(torch.ones(1, 2), NOTHING).item() == pytest.approx(0.7311, abs=1e-4)


def test_one_after_the_other_gives_what_a_list_of_critics_gives_at_once():
    critics = networks()
    together = ReciprocalCritics(critics, 0.3, "nearest", "exact", neighbours=1)(STATES, ACTIONS)
    HookedCritics(critics, 0.3, "nearest", "exact", neighbours=1)
    for i, critic in enumerate(critics):
        torch.testing.assert_close(critic(STATES[i], ACTIONS[i]), together[i])


def test_adjacent_states_are_those_of_the_batch_at_hand_which_may_change_its_size():
    critics = [Twins(), Twins()]
    HookedCritics(critics, 0.5)
    for rows in (2, 5):
        batch = STATES[0, :rows]
        critics[0](batch, torch.zeros(rows, 1))
        near = torch.tensor(critics[1].asked[-1])
        changed = near != batch
        assert changed.sum(-1).tolist() == [1] * rows
        assert all((near[row, d] == batch[:, d]).any() for row, d in changed.nonzero().tolist())


def test_named_arguments_reach_the_peers():
    critics = [Single(1.0), Single(3.0)]
    HookedCritics(critics, 0.5, adjacency="exact")
    assert critics[0](torch.zeros(1, 1), action=torch.ones(1, 1)).item() == 1.0  # both answer the action


def test_the_last_gap_is_told():
    critics = [Single(1.0), Single(3.0)]
    hooks = HookedCritics(critics, lambda calls: 0.5 * (calls < 1), adjacency="exact")
    assert hooks.gap is None
    critics[0](torch.full((1, 1), 2.0), NOTHING)
    assert hooks.gap.tolist() == [2.0]  # 4 instead of 2
    critics[0](torch.full((1, 1), 2.0), NOTHING)
    assert hooks.gap is None


# what it leaves alone


def test_kappa_zero_changes_no_bit_draws_nothing_asks_nobody_and_keeps_gradients():
    critics, generator = [Twins(1.0), Twins(10.0)], seeded()
    own = [part.detach() for part in critics[0](STATES[0], ACTIONS[0, :, :1])]
    before = generator.get_state()
    HookedCritics(critics, 0.0, generator=generator)
    answer = critics[0](STATES[0], ACTIONS[0, :, :1])
    assert all(torch.equal(one, two) and one.requires_grad for one, two in zip(answer, own, strict=True))
    assert torch.equal(generator.get_state(), before) and not critics[1].asked


def test_no_gradient_and_no_global_random_number():
    critics = networks()
    HookedCritics(critics, 0.5, "random", "gaussian", neighbours=1)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    answer = critics[0](STATES[0].requires_grad_(), ACTIONS[0])
    STATES.requires_grad_(False)
    assert not answer.requires_grad
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_peers_are_asked_without_building_a_graph():
    class Watched(Single):
        def forward(self, state, action):
            modes.append(torch.is_grad_enabled())
            return super().forward(state, action)

    modes: list[bool] = []
    critics = [Watched(), Watched()]
    HookedCritics(critics)
    critics[0](STATES[0], ACTIONS[0, :, :1])
    assert modes == [True, False]  # its own call as the host makes it


def test_removed_hooks_leave_nothing_behind():
    critics = networks()
    own = critics[0](STATES[0], ACTIONS[0])
    hooks = HookedCritics(critics, 0.5)
    assert not torch.equal(critics[0](STATES[0], ACTIONS[0]), own)
    hooks.remove()
    assert torch.equal(critics[0](STATES[0], ACTIONS[0]), own) and not critics[0]._forward_hooks
    HookedCritics(critics, 0.5)  # and may be hooked again


def test_the_critics_stay_the_hosts():
    critics = networks()
    names = set(critics[0].state_dict())
    hooks = HookedCritics(critics)
    assert not list(hooks.parameters()) and set(hooks.state_dict()) == {"_extra_state", "reciprocal._extra_state"}
    assert set(critics[0].state_dict()) == names


def test_other_hooks_on_a_peer_count():
    critics = [Single(1.0), Single(3.0)]
    HookedCritics(critics, 1.0, adjacency="exact")
    answering(critics[1], 7.0)
    assert critics[0](torch.ones(1, 1), NOTHING).item() == 7.0


def test_a_critic_that_fails_while_it_is_asked_leaves_the_hooks_awake():
    class Fragile(Single):
        broken = True

        def forward(self, state, action):
            if self.broken:
                raise ValueError("broken")
            return super().forward(state, action)

    critics = [Single(1.0), Fragile(3.0)]
    HookedCritics(critics, 1.0, adjacency="exact")
    with pytest.raises(ValueError, match="broken"):
        critics[0](torch.ones(1, 1), NOTHING)
    critics[1].broken = False
    assert critics[0](torch.ones(1, 1), NOTHING).item() == 3.0


# what it remembers


def test_kappa_follows_the_calls_of_all_critics_together():
    critics = [Single(1.0), Single(3.0)]
    HookedCritics(critics, LinearKappa(0.0, 1.0, 4), adjacency="exact")
    state = torch.ones(1, 1)  # kappa 0, .25, .5, .75, 1: 1, 3 - .25 x 2, 1 + .5 x 2, 3 - .75 x 2, 1 + 2
    assert [critics[k % 2](state, NOTHING).item() for k in range(5)] == [1.0, 2.5, 2.0, 1.5, 3.0]


def test_the_state_survives_a_file_that_holds_no_code(tmp_path):
    def hooked() -> tuple[list[nn.Module], HookedCritics]:
        critics = networks()
        return critics, HookedCritics(
            critics, LinearKappa(0.2, 0.8, 4), "random", "gaussian", neighbours=1, generator=seeded()
        )

    (critics, hooks), (critics_again, restored) = hooked(), hooked()
    critics[0](STATES[0], ACTIONS[0])
    torch.save(hooks.state_dict(), tmp_path / "hooks.pt")
    following = critics[1](STATES[1], ACTIONS[1])
    restored.load_state_dict(torch.load(tmp_path / "hooks.pt", weights_only=True))
    assert torch.equal(critics_again[1](STATES[1], ACTIONS[1]), following)


def test_a_copy_of_the_learners_listens_to_the_copies():
    learners = nn.ModuleList([Single(1.0), Single(3.0)])
    HookedCritics(list(learners), 1.0, adjacency="exact")
    other = copy.deepcopy(learners)
    with torch.no_grad():
        other[1].scale.fill_(5.0)
    assert (other[0](torch.ones(1, 1), NOTHING).item(), learners[0](torch.ones(1, 1), NOTHING).item()) == (5.0, 3.0)


# the contract


class Inline:
    """Learners that compute their targets one after the other, where nobody can reach: ``critic(s, a)``, a minimum."""

    def __init__(self, kappa, seed):
        torch.manual_seed(seed)
        self.critics = [Twins(k) for k in (0.5, 1.0, 2.0)]
        self.next_state, self.action, self.reward = torch.randn(3, 16, 4), torch.randn(3, 16, 1), torch.randn(3, 16, 1)
        if kappa is not None:
            HookedCritics(self.critics, kappa, graph="nearest", neighbours=1)

    def targets(self, terminated):
        with torch.no_grad():
            batches = zip(self.critics, self.next_state, self.action, self.reward, strict=True)
            return torch.stack(
                [r + 0.9 * (not terminated) * torch.cat(q(s, a), 1).amin(1, True) for q, s, a, r in batches]
            )

    def answer(self, values):
        for critic, value in zip(self.critics, values, strict=True):
            answering(critic, value)


def test_a_host_that_is_hooked_keeps_the_promises():
    check_reciprocity(Inline)


def test_a_blend_of_the_minimum_is_not_a_blend_of_the_twins():
    """Twins say (0, 2) and (2, 0): each minimum is 0, and so is their blend; blended twins say (1, 1)."""

    def critic(first, second):
        return Odd(lambda pair: (torch.full_like(pair[0], first), torch.full_like(pair[0], second)))

    critics = [critic(0.0, 2.0), critic(2.0, 0.0)]
    HookedCritics(critics, 0.5)
    blended = torch.cat(critics[0](STATES[0], NOTHING.expand(8, 1)), 1).amin(1)
    minima = torch.zeros(2, 8)
    assert blended.tolist() == [1.0] * 8 and reciprocate(minima, minima.expand(2, 2, 8), 0.5).abs().max() == 0


@pytest.mark.parametrize("adjacency", ["mask", "resample"])
@pytest.mark.parametrize("graph", ["complete", "random"])
def test_compiled_twins_hear_what_twins_hear(adjacency, graph):
    heard = []
    for compiles in (False, True):
        torch.manual_seed(0)
        pairs = [(nn.Linear(5, 1), nn.Linear(5, 1)) for _ in range(3)]
        HookedCritics(pairs, 0.5, graph, adjacency, neighbours=1, generator=seeded())
        calls = [torch.compile(critic, backend="eager") if compiles else critic for pair in pairs for critic in pair]
        states = torch.randn(8, 5)
        heard.append([call(states).tolist() for _ in range(3) for call in calls])
    assert heard[0] == heard[1]


def test_a_hooked_critic_compiles_in_one_piece_where_nothing_is_drawn():
    critics = [torch.nn.Linear(2, 1) for _ in range(2)]
    states = torch.randn(4, 2)
    HookedCritics(critics, 0.5, adjacency="exact")
    compiled = torch.compile(critics[0], backend="eager", fullgraph=True)
    for _ in range(3):  # in the first call a thread meets the hooks for the first time
        torch.testing.assert_close(compiled(states), critics[0](states))


def test_gaussian_noise_of_each_critic_is_measured_by_its_own_states_which_are_saved():
    """Critic 0 sees -1 and 1, critic 1 sees 999 and 1001: deviation 1 each, of all together 500."""
    seen, critics = {}, [Single(), Single()]
    hooks = HookedCritics(critics, 0.5, "ring", "gaussian", sigma=0.02, rho=(2,), generator=seeded())
    critics[0].register_forward_pre_hook(lambda _, given: seen.setdefault("asked", []).append(given[0]))
    wide = torch.tensor([-1.0, 1.0]).repeat(500)[:, None].expand(-1, 2)
    for states in (wide, wide + 1000, wide, wide + 1000):
        for critic in critics[:1] if states is wide else critics[1:]:
            critic(states, torch.zeros(1000, 1))
    moved = seen["asked"][-1] - (wide + 1000)  # critic 0, asked about critic 1's states
    assert abs(moved.std().item() - 0.02) < 0.002
    other = HookedCritics([Single(), Single()], 0.5, "ring", "gaussian")
    other.load_state_dict(hooks.state_dict())
    assert [round(space.moments.mean[0, 0, 0].item(), 6) for space in other.spaces] == [0.0, 1000.0]
    with pytest.raises(UserError, match="adjacency: expected what 0 critics' states were like, got that of 2"):
        HookedCritics([Single(), Single()], 0.5, "ring").load_state_dict(hooks.state_dict())
