"""What every registered algorithm owes the loop, on agents that are one, three alike, or three of different sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from marl import registry
from marl.algos.common import following
from marl.config import replace, settings
from marl.envs.base import EnvSpec, Step
from marl.log import METRICS
from marl.loop import random_actions
from marl.streams import Streams
from marl.types import Acted, State, UserError, View

SEEDS = [21, 22, 23]
P, COPIES = len(SEEDS), 5
SIZES = {"one": ((3,), (2,)), "three": ((4, 4, 4), (2, 2, 2)), "different": ((5, 3, 4), (2, 3, 1))}
SMALL = {
    **{"hidden": (16, 16), "batch_size": 8, "buffer_size": 200, "warmup": 20, "update_every": COPIES},
    **{"rollout": 6, "epochs": 2, "minibatches": 2, "target_interval": 2},
    **{"options.batch": 6, "options.target_interval": 2, "cycle_train": 2, "cycle_distil": 1},
}
GRAPHS = ("complete", "ring", "nearest", "random", "self")
ADJACENCIES = ("resample", "mask", "gaussian", "knn", "peer", "exact")


def make_spec(kind: str, discrete: bool) -> EnvSpec:
    """Episodes end by termination after at most four steps; where actions are discrete, some are not available."""
    obs, action = SIZES[kind]
    names = tuple("abc"[: len(obs)])
    return EnvSpec("test/any", names, obs, action, discrete, max_steps=4, state_size=6, masked=discrete)


@dataclasses.dataclass(frozen=True)
class Case:
    algorithm: str
    kind: str
    discrete: bool
    shared: bool = False  # one network for all agents, where the algorithm offers it

    @property
    def spec(self) -> EnvSpec:
        return make_spec(self.kind, self.discrete)

    def __str__(self) -> str:
        parts = [self.algorithm, self.kind, "discrete" if self.discrete else "continuous"]
        return "-".join([*parts, "shared"] if self.shared else parts)

    def fits(self) -> bool:
        if self.shared and not self.offers("shared"):
            return False
        try:
            make(self, seeds=[0])
        except UserError:
            return False
        return True

    def offers(self, setting: str) -> bool:
        return any(s.name == setting for s in settings(registry.algorithm(self.algorithm).Config))

    def reciprocal(self) -> bool:
        return self.offers("reciprocity.kappa")


def make(case: Case, seeds: Sequence[int] = SEEDS, each: dict[str, Sequence[Any]] | None = None, **options: Any) -> Any:
    """A small learner; ``each`` gives a setting for every member."""
    learner = registry.algorithm(case.algorithm)
    names = {s.name for s in settings(learner.Config)}
    config = learner.Config()
    for name, value in {
        **SMALL,
        "shared": case.shared,
        **{k.replace("__", "."): v for k, v in options.items()},
    }.items():
        if name in names:
            config = replace(config, name, value)
    configs = [config] * len(seeds)
    for name, values in (each or {}).items():
        if name in names:
            configs = [replace(c, name, v) for c, v in zip(configs, values, strict=True)]
    return learner(case.spec, configs, seeds)


CASES = [
    case
    for a in registry.ALGORITHMS
    for kind in SIZES
    for discrete in (False, True)
    for shared in (False, True)
    if (case := Case(a, kind, discrete, shared)).fits()
]
EVERY = pytest.mark.parametrize("case", CASES, ids=str)
RECIPROCAL = pytest.mark.parametrize("case", [c for c in CASES if c.reciprocal()], ids=str)
TEAMS = pytest.mark.parametrize("case", [c for c in CASES if c.reciprocal() and c.kind != "one"], ids=str)


def look(spec: EnvSpec, streams: Streams, scale: float, memory: Tensor | None = None) -> View:
    """Something to see; member p's depends on its seed alone. Padding is zero, as environments give it."""
    avail = None
    if spec.masked:
        avail = (streams.uniform(spec.n_agents, COPIES, spec.action_size) < 0.7) & spec.action_mask[:, None]
        avail[..., 0] |= ~avail.any(-1)
    obs = streams.normal(spec.n_agents, COPIES, spec.obs_size) * spec.obs_mask[:, None] * scale
    return View(obs, avail, streams.normal(COPIES, spec.state_size) * scale, memory)


def batches(learner: Any, spec: EnvSpec, seeds: Sequence[int] = SEEDS, count: int = 3, scale: float = 1.0) -> Any:
    """What the learner's own buffer makes of random episodes: mostly of three steps, some terminated earlier."""
    streams, size = Streams(seeds, "batch"), learner.memory_size
    buffer = type(learner).Buffer.of(learner.config, spec, COPIES, seeds, size)
    blank = torch.zeros(len(seeds), spec.n_agents, COPIES, size) if size else None
    view = look(spec, streams, scale, blank)
    drawn = time = 0
    while drawn < count:
        action = random_actions(streams, spec, COPIES, view.avail)
        memory = streams.normal(spec.n_agents, COPIES, size) if size else None
        time += 1
        over = (streams.uniform(1, COPIES) < 0.3).expand(-1, spec.n_agents, -1)
        done = over | (time % 3 == 0)
        after, last = look(spec, streams, scale), look(spec, streams, scale)
        true = {name: choose(done, getattr(last, name), getattr(after, name)) for name in ("obs", "avail", "state")}
        reward = streams.normal(spec.n_agents, COPIES) * scale
        step = Step(
            after.obs, true["obs"], reward, over, done, None, after.avail, true["avail"], after.state, true["state"]
        )
        buffer.add(view, Acted(action, memory), step)
        view = following(Acted(action, memory), step)
        if buffer.schedule.due(time * COPIES) > drawn:
            drawn += 1
            yield buffer.draw()


def choose(done: Tensor, last: Tensor | None, after: Tensor | None) -> Tensor | None:
    """Where an episode ended, what was seen last; ``[P, N, E, *]``, or the state's ``[P, E, *]``."""
    if last is None or after is None:
        return None
    mask = done if last.dim() == 4 else done[:, 0]
    return torch.where(mask.unsqueeze(-1), last, after)


def observations(learner: Any, spec: EnvSpec, seeds: Sequence[int] = SEEDS) -> View:
    size = learner.memory_size
    blank = torch.zeros(len(seeds), spec.n_agents, COPIES, size) if size else None
    return look(spec, Streams(seeds, "obs"), 1.0, blank)


def leaves(state: Any, path: str = "") -> dict[str, Any]:
    """A nested state as dotted name -> leaf, tensors by value."""
    if isinstance(state, dict):
        assert all(isinstance(key, str) for key in state), f"{path}: keys of a state are strings"
        return {k: v for name, part in state.items() for k, v in leaves(part, f"{path}.{name}").items()}
    assert state is None or isinstance(state, (Tensor, bool, int, float, str, list)), f"{path}: {type(state)}"
    return {path: state.clone() if isinstance(state, Tensor) else state}


def copied(state: State) -> State:
    return {
        k: copied(v) if isinstance(v, dict) else v.clone() if isinstance(v, Tensor) else v for k, v in state.items()
    }


def assert_same(a: Any, b: Any) -> None:
    """Two states (or metrics) are equal bit for bit."""
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    different = [k for k in a if not (torch.equal(a[k], b[k]) if isinstance(a[k], Tensor) else a[k] == b[k])]
    assert not different


def trained(learner: Any, case: Case, seeds: Sequence[int] = SEEDS, count: int = 3) -> Any:
    for batch in batches(learner, case.spec, seeds, count):
        learner.update(batch)
    return learner


def weights(learner: Any) -> dict[str, Tensor]:
    """Everything learnt: networks, targets, optimiser moments."""
    parts = {k: v for k, v in learner.state_dict().items() if k != "reciprocity"}
    return {k: v for k, v in leaves(parts).items() if isinstance(v, Tensor) and v.is_floating_point()}


def test_every_algorithm_fits_something_and_is_named_in_what_it_refuses():
    assert {c.algorithm for c in CASES} == set(registry.ALGORITHMS)
    for algorithm in registry.ALGORITHMS:
        for kind in SIZES:
            for discrete in (False, True):
                case = Case(algorithm, kind, discrete)
                if case not in CASES:
                    with pytest.raises(UserError, match=algorithm):
                        make(case)


@pytest.mark.parametrize("algorithm", registry.ALGORITHMS)
def test_the_config_is_frozen_and_has_a_sentence_for_every_setting(algorithm):
    config = registry.algorithm(algorithm).Config
    assert dataclasses.is_dataclass(config)
    for setting in settings(config):
        assert setting.help.endswith("."), setting.name
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().gamma = 1


@EVERY
@pytest.mark.parametrize("explore", [False, True], ids=["greedy", "explore"])
def test_actions_have_the_contracts_shape_type_and_range(case, explore):
    learner, spec = make(case), case.spec
    view = observations(learner, spec)
    for _ in range(20):
        action, memory = learner.act(view, explore)
        assert not action.requires_grad
        if learner.memory_size:
            assert memory.shape == (P, spec.n_agents, COPIES, learner.memory_size) and not memory.requires_grad
            view = view._replace(memory=memory)
        else:
            assert memory is None
        own = spec.action_mask[:, None]
        if spec.discrete:
            assert action.shape == (P, spec.n_agents, COPIES) and action.dtype == torch.int64
            assert view.avail.gather(-1, action.unsqueeze(-1)).all()
        else:
            assert action.shape == (P, spec.n_agents, COPIES, spec.action_size) and action.dtype == torch.float32
            assert (action.abs() <= 1).all() and (action * ~own == 0).all()


@EVERY
def test_a_deterministic_action_draws_no_number_and_repeats_itself(case):
    learner = make(case)
    view = observations(learner, case.spec)
    before = copied(learner.state_dict())
    first = learner.act(view._replace(state=None), explore=False)
    again = learner.act(view._replace(state=None), explore=False)
    assert torch.equal(first.action, again.action)
    assert first.memory is None or torch.equal(first.memory, again.memory)
    assert_same(before, learner.state_dict())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        explored = [learner.act(view, explore=True).action for _ in range(10)]
        torch.manual_seed(1)  # torch's global generator has no say
        again = make(case)
        assert all(torch.equal(e, again.act(view, explore=True).action) for e in explored)
    assert any(not torch.equal(explored[0], e) for e in explored[1:])


@EVERY
def test_metrics_are_known_to_the_log_finite_and_one_for_each_agent(case):
    learner = make(case, reciprocity__kappa=0.5)
    for batch in batches(learner, case.spec, scale=100.0):
        for name, value in learner.update(batch).items():
            assert name in METRICS
            assert value.shape == (P, case.spec.n_agents) and value.isfinite().all() and not value.requires_grad
    assert all(w.isfinite().all() for w in weights(learner).values())


@EVERY
def test_an_update_leaves_its_batch_alone_and_moves_what_it_learns(case):
    learner = make(case, reciprocity__kappa=0.5)
    before = weights(learner)
    for batch in batches(learner, case.spec):
        kept = [x if x is None else x.clone() for x in batch]
        learner.update(batch)
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(kept, batch, strict=True))
    after = weights(learner)
    still = [k for k in before if torch.equal(before[k], after[k])]
    assert not still


@EVERY
@pytest.mark.parametrize("updates", [0, 1, 3])
def test_a_restored_learner_goes_on_in_the_same_bits(case, updates):
    learner = make(case, reciprocity__kappa=0.5, reciprocity__adjacency="gaussian")
    view = observations(learner, case.spec)
    trained(learner, case, count=updates)
    learner.act(view, explore=True)
    saved = copied(learner.state_dict())
    other = make(case, seeds=[1, 2, 3], reciprocity__kappa=0.5, reciprocity__adjacency="gaussian")
    trained(other, case, count=2)
    other.load_state_dict(saved)
    assert_same(learner.state_dict(), other.state_dict())
    for batch in batches(learner, case.spec, seeds=[4, 5, 6]):
        assert_same(learner.update(batch), other.update(batch))
        assert torch.equal(learner.act(view, explore=True).action, other.act(view, explore=True).action)
    assert_same(learner.state_dict(), other.state_dict())
    with pytest.raises(AssertionError):
        assert_same(saved, learner.state_dict())


@EVERY
@pytest.mark.parametrize("adjacency", ["resample", "peer"])
def test_a_member_alone_is_the_same_as_in_a_population(case, adjacency):
    """Streams exactly; weights up to the rounding of batched products. Gamma differs from member to member."""
    each = {"gamma": [0.9, 0.95, 0.5], "reciprocity.kappa": [0.5, 0.2, 0.8]}
    options = {"reciprocity__adjacency": adjacency, "reciprocity__graph": "random", "reciprocity__neighbours": 1}
    together = trained(make(case, each=each, **options), case)
    view = observations(together, case.spec)
    actions = together.act(view, explore=True).action
    state = leaves(together.state_dict())
    for p, seed in enumerate(SEEDS):
        alone = make(case, seeds=[seed], each={k: [v[p]] for k, v in each.items()}, **options)
        trained(alone, case, seeds=[seed])
        seen = View(*(x if x is None else x[p : p + 1] for x in view))
        acted = alone.act(seen, explore=True).action
        torch.testing.assert_close(acted, actions[p : p + 1], rtol=0, atol=1e-5)
        for name, value in leaves(alone.state_dict()).items():
            whole = state[name]
            if isinstance(value, Tensor) and value.dim() and whole.shape[0] == P:
                whole = whole[p : p + 1]
            if isinstance(value, Tensor) and value.is_floating_point():
                torch.testing.assert_close(value, whole, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
            else:
                assert torch.equal(value, whole) if isinstance(value, Tensor) else value == whole, name


def core(learner: Any) -> Any:
    """The learner that another one holds as a part; else itself."""
    return getattr(learner, "base", learner)


class Off:
    """No reciprocity at all."""

    def __call__(self, values: Any, states: Tensor, real: Tensor | None = None) -> Tensor:
        return values.own(states)

    def metrics(self, real: Tensor | None = None) -> dict[str, Tensor]:
        return {}

    def state_dict(self) -> State:
        return {}


@RECIPROCAL
def test_kappa_zero_is_no_reciprocity_bit_for_bit_whatever_graph_and_adjacency_say(case):
    without = make(case)
    core(without).reciprocity = Off()
    expected = weights(trained(without, case))
    for graph, adjacency in [*((g, "resample") for g in GRAPHS), *(("complete", a) for a in ADJACENCIES)]:
        learner = make(case, reciprocity__graph=graph, reciprocity__adjacency=adjacency, reciprocity__neighbours=1)
        before = copied(core(learner).reciprocity.state_dict())
        assert_same(expected, weights(trained(learner, case)))
        assert_same(before, core(learner).reciprocity.state_dict())  # no number drawn, no state counted


@RECIPROCAL
def test_a_member_with_kappa_zero_is_untouched_by_its_neighbours_in_the_population(case):
    base = weights(trained(make(case), case))
    mixed = weights(trained(make(case, each={"reciprocity.kappa": [0.5, 0.0, 0.5]}), case))
    assert all(torch.equal(base[k][1], mixed[k][1]) for k in base if base[k].dim())
    assert any(not torch.equal(base[k][0], mixed[k][0]) for k in base if base[k].dim())


@RECIPROCAL
def test_exact_adjacency_without_neighbours_is_the_base_algorithm_up_to_rounding(case):
    options = {"reciprocity__kappa": 0.5, "reciprocity__graph": "self", "reciprocity__adjacency": "exact"}
    base, same = (weights(trained(make(case, **o), case)) for o in ({}, options))
    for name, value in base.items():
        torch.testing.assert_close(same[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@TEAMS
@pytest.mark.parametrize("adjacency", ADJACENCIES)
def test_kappa_one_half_changes_the_target(case, adjacency):
    base, blended = make(case), make(case, reciprocity__kappa=0.5, reciprocity__adjacency=adjacency)
    batch = next(iter(batches(base, case.spec)))
    plain, metrics = base.update(batch), blended.update(batch)
    assert (plain["value/target_mean"] != metrics["value/target_mean"]).all()
    assert (metrics["value/target_gap"] > 0).all() and "value/target_gap" not in plain
    assert torch.equal(plain["value/q_mean"], metrics["value/q_mean"])  # the value itself is not blended


def first_layer(learner: Any) -> Tensor:
    """Of what reciprocity asks: ``[P, networks, in, out]``."""
    network = learner.utilities.network if hasattr(learner, "utilities") else core(learner).critic
    return (network.enter if hasattr(network, "enter") else network.layers[0]).weight


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.reciprocal() and c.kind == "different" and not c.shared], ids=str
)
def test_a_neighbour_of_other_sizes_is_asked_without_reading_what_it_was_never_taught(case):
    """A network has no weight on coordinates that its agent does not have, before and after training."""
    spec = case.spec
    learner = make(case, reciprocity__kappa=0.5, critic="own", shared=False)
    before = first_layer(learner).clone()
    after = first_layer(trained(learner, case))
    width, alone = after.shape[2], after.shape[1] // spec.n_agents
    parts = {
        spec.obs_size: [spec.obs_mask],
        spec.obs_size + spec.action_size: [spec.obs_mask, spec.action_mask],
        spec.n_agents * (spec.obs_size + spec.action_size): [spec.obs_mask.view(1, -1), spec.action_mask.view(1, -1)],
    }
    real = torch.cat(parts[width], -1).repeat_interleave(alone, 0).expand(after.shape[1], -1)
    for weight in (before, after):
        assert not real.all() and (weight[:, ~real] == 0).all() and (weight[:, real] != 0).any(-1).all()
