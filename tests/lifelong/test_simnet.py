"""SimNet: distances, thresholds and confusion in numbers one can check in the head; what training it promises."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from marl.envs import make_env
from marl.lifelong import simnet
from marl.lifelong.abreast import Abreast
from marl.lifelong.hub import Hub
from marl.lifelong.simnet import (
    Calibration,
    Fingerprint,
    confusion_matrix,
    distance,
    distances,
    fingerprint,
    fingerprints,
    initial_weights,
)
from marl.types import UserError

FEW = 1200
"""Steps: 50 updates after the warm-up."""


def at(place: float) -> Fingerprint:
    """A fingerprint of one number."""
    return {"w": torch.tensor([float(place)])}


# ---- by hand ------------------------------------------------------------------------------------------------------


def test_the_distance_is_the_sum_of_the_tensors_norms_and_not_the_norm_of_all():
    a = {"w": torch.tensor([[3.0, 0.0], [0.0, 4.0]]), "b": torch.tensor([1.0])}
    b = {"w": torch.zeros(2, 2), "b": torch.tensor([13.0])}
    assert distance(a, b) == 5 + 12  # the norm of all would be 13
    assert torch.equal(distances([a, b, a]), torch.tensor([[0.0, 17, 0], [17, 0, 17], [0, 17, 0]]))


def test_the_hub_measures_the_same_distance(tmp_path):
    a, b = ({"w": torch.randn(4, 3), "b": torch.randn(3)} for _ in range(2))
    with Hub(tmp_path, threshold=100.0) as hub:
        hub.meet(a, "one")
        match = hub.query(b)
    assert match is not None and match.distance == pytest.approx(distance(a, b), rel=1e-6)


def test_the_threshold_is_the_quantile_of_same_task_distances_alone():
    # "a" gives 1 - 0, 3 - 0 and 3 - 1, "b" gives 106 - 100.
    prints = {"a": [at(0), at(1), at(3)], "b": [at(100), at(106)]}
    made = Calibration.of(prints)
    assert made.same.tolist() == [1, 2, 3, 6]
    assert made.threshold == pytest.approx(3 + 0.85 * 3)  # place .95 * 3 = 2.85, between 3 and 6
    assert Calibration.of(prints, quantile=0.5).threshold == pytest.approx(2.5)
    assert made.other.tolist() == [97, 99, 100, 103, 105, 106]


def test_a_threshold_needs_two_seeds_of_some_task():
    with pytest.raises(UserError, match="two seeds or more"):
        Calibration.of({"a": [at(0)], "b": [at(1)]})


def test_confusion_counts_the_nearest_the_recognised_and_the_new():
    # Seed 0's hub holds a at 0 and b at 10; seed 1's a at 1 and b at 4. Threshold 2.
    confusion = confusion_matrix({"x/a": [at(0), at(1)], "x/b": [at(10), at(4)]}, threshold=2.0)
    # a: 0 asks (1, 4), 1 asks (0, 10): both right. b: 10 asks (1, 4): nearest b, 6 away: new. 4 asks (0, 10): nearest
    # a, 4 away: new.
    assert confusion.nearest.tolist() == [[2, 0], [1, 1]]
    assert confusion.known.tolist() == [[2, 0, 0], [0, 0, 2]]
    # Without the task itself: a at 0 asks b at 4, a at 1 asks b at 10; b at 10 asks a at 1, b at 4 asks a at 0.
    assert confusion.unknown.tolist() == [[0, 0, 2], [0, 0, 2]]
    assert confusion.accuracy == {"nearest": 0.75, "known": 0.5, "unknown": 1.0}
    assert confusion.table().splitlines() == [
        "| shown | a | b | new | new where it is not in the hub |",
        "| --- | --- | --- | --- | --- |",
        "| a | 2 | 0 | 0 | 2 of 2 |",
        "| b | 0 | 0 | 2 | 2 of 2 |",
    ]


def test_a_threshold_that_is_too_large_takes_new_tasks_for_known_ones():
    confusion = confusion_matrix({"a": [at(0), at(1)], "b": [at(10), at(4)]}, threshold=4.0)
    assert confusion.unknown.tolist() == [[0, 1, 1], [1, 0, 1]]  # 0 to 4 and back lie within it, 1 to 10 do not


# ---- training -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def four() -> list[Fingerprint]:
    """Two tasks, two seeds each, not in the order of the tasks."""
    return fingerprints(["small/catch", "small/gates", "small/catch", "small/gates"], [0, 0, 1, 1], FEW)


def test_the_sizes_are_those_of_one_hidden_layer_of_five(four):
    sizes = {name: tuple(x.shape) for name, x in four[0].items()}
    assert sizes == {
        "layers.0.weight": (400, 5),
        "layers.0.bias": (1, 5),
        "layers.1.weight": (5, 6),
        "layers.1.bias": (1, 6),
    }


def test_all_numbers_of_a_fingerprint_have_norm_one(four):
    for each in four:
        assert float(torch.cat([x.flatten() for x in each.values()]).norm()) == pytest.approx(1, abs=1e-5)


def test_every_simnet_starts_from_the_same_weights_whatever_its_seed_and_task(monkeypatch):
    seen: list[Tensor] = []

    class Spy(simnet.DQN):
        def update(self, batch):
            if not seen:
                seen.extend([self.critic.flat.data.clone(), self.target_critic.flat.data.clone()])
            return super().update(batch)

    monkeypatch.setattr(simnet, "DQN", Spy)
    fingerprints(["small/catch", "small/snake"], [3, 4], 1008)
    start = torch.cat([w.flatten() for w in initial_weights(make_env("small/paddle").spec).values()])
    for network in seen:
        assert torch.equal(network, start.expand(2, 1, -1))
    assert torch.equal(start[2000:2005], torch.ones(5))  # the hidden biases


def test_a_fingerprint_is_reproduced_and_another_seed_gives_another(four):
    again = fingerprint("small/gates", 1, FEW)
    assert distance(again, four[3]) < 1e-4
    assert distance(four[1], four[3]) > 0.01


def test_pixels_that_a_task_never_lights_do_not_move(four):
    third_channel = four[1]["layers.0.weight"][200:300]  # gates has two
    assert torch.equal(third_channel, torch.zeros(100, 5))
    assert bool((four[0]["layers.0.weight"][200:300] != 0).any())


def test_after_few_steps_already_the_seeds_of_a_task_are_nearest_to_each_other(four):
    table = distances(four).fill_diagonal_(torch.inf)
    assert table.argmin(1).tolist() == [2, 3, 0, 1]


@pytest.mark.parametrize(
    "environments, steps, message",
    [
        (["small/catch"], 1000, "expected more than the 1000"),
        (
            ["small/catch", "gym/CartPole-v1"],
            FEW,
            "tasks need equal spaces: small/catch has a picture of 4 x 10 x 10 and 6 actions, "
            "gym/CartPole-v1 has observations of 4 and 2 actions",
        ),
        (["small/none"], FEW, "no environment"),
        (["mpe/simple_spread_v3"], FEW, "SimNet needs tasks of one agent"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(environments, steps, message):
    with pytest.raises(UserError, match=message) as error:
        fingerprints(environments, [0] * len(environments), steps)
    assert "\n" not in str(error.value)


# ---- side by side -------------------------------------------------------------------------------------------------


def test_environments_side_by_side_do_what_each_does_alone_and_are_restored():
    def parts():
        return [make_env("small/catch", seeds=[0, 1], copies=2), make_env("small/snake", seeds=[2], copies=2)]

    together, alone = Abreast(parts()), parts()
    assert (together.members, together.copies, together.spec.obs_size) == (3, 2, 400)
    assert torch.equal(together.reset(), torch.cat([env.reset() for env in alone]))
    actions = torch.randint(6, (20, 3, 1, 2))
    for action in actions[:10]:
        step = together.step(action)
        each = [alone[0].step(action[:2]), alone[1].step(action[2:])]
        for name in ("obs", "next_obs", "reward", "terminated", "done"):
            assert torch.equal(getattr(step, name), torch.cat([getattr(e, name) for e in each]))
    saved = together.state_dict()
    first = [together.step(action).obs for action in actions[10:]]
    together.load_state_dict(saved)
    assert all(torch.equal(together.step(a).obs, seen) for a, seen in zip(actions[10:], first, strict=True))
    assert together.render(2).shape == (320, 320, 3)


def test_environments_of_unequal_spaces_are_refused_with_what_differs():
    with pytest.raises(UserError, match=r"copies of small/snake is 2, that of small/catch 1"):
        Abreast([make_env("small/catch"), make_env("small/snake", copies=2)])
    probe = make_env("small/catch")
    probe.spec = dataclasses.replace(probe.spec, clip_rewards=True)
    with pytest.raises(UserError, match="clip_rewards"):
        Abreast([make_env("small/catch"), probe])
