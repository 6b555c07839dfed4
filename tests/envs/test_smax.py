"""SMAX: the contract, JaxMARL's own step as the reference, how battles end, and memory shared with JAX."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from marl.envs import VectorEnv, list_environments, make_env
from marl.envs.check import check_env
from marl.envs.smax import MAPS
from marl.types import State, UserError

pytestmark = pytest.mark.jax
needs_jaxmarl = pytest.mark.skipif(find_spec("jaxmarl") is None, reason="the extra `smax` is not installed")
STOP, LIMIT, COPIES = 4, 12, 4
HEALTH, ALIVE = "world.state.unit_health", "world.state.unit_alive"


def make(*seeds: int) -> VectorEnv:
    """Always the same map, options and copies, so that one compilation serves the whole file."""
    return make_env("smax/3m", seeds=seeds or (0,), copies=COPIES, options={"max_steps": LIMIT})


def stop(env: VectorEnv) -> Tensor:
    return torch.full((env.members, 3, COPIES), STOP)


def in_map_sizes(world_state: Any) -> np.ndarray:
    """The rows of JaxMARL's state as ours: 6 units of 10 numbers; 1 and 2 are the place on a map of 32 x 32."""
    state = np.array(world_state)
    units = state[..., :60].reshape(*state.shape[:-1], 6, 10)  # a view
    units[..., 1:3] /= 32
    units[..., 3] = units[..., 3].clip(min=0)
    return state


def fallen(state: State, dead: list[list[int]]) -> State:
    """The same moment with the units ``dead[copy]`` (0 to 2 allies, 3 to 5 enemies) without health."""
    for copy, units in enumerate(dead):
        state["moments"][HEALTH][:, copy, units] = 0
        state["moments"][ALIVE][:, copy, units] = False
    return state


def test_the_maps_are_listed_without_importing_jax() -> None:
    code = "import sys, marl.envs as e; assert 'smax/3m' in e.list_environments(); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [f"smax/{name}" for name in MAPS] == [id for id in list_environments() if id.startswith("smax/")]


def test_an_unknown_map_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean '5m_vs_6m'"):
        make_env("smax/5m_vs_6")


@pytest.mark.parametrize("module", ["jax", "jaxmarl.environments.smax"])
def test_without_jax_or_jaxmarl_one_line_says_what_to_install(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    expected = "smax/* needs JaxMARL, on Python 3.11 or newer: pip install -c constraints.txt -e '.[smax]'"
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        make_env("smax/3m", options={"max_steps": 99})  # no other test has made and kept this one


@needs_jaxmarl
def test_every_map_of_the_package_is_listed_and_importing_it_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    make()
    from jaxmarl.environments.smax.smax_env import MAP_NAME_TO_SCENARIO

    assert tuple(MAP_NAME_TO_SCENARIO) == MAPS
    assert capfd.readouterr().out == ""


@needs_jaxmarl
@pytest.mark.parametrize(("agents", "options"), [(4, {}), (None, {"max_steps": 0})])
def test_numbers_that_do_not_fit_are_refused(agents: int | None, options: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"3 agents, not 4|1 or more, got 0"):
        make_env("smax/3m", agents=agents, options=options)


@needs_jaxmarl
def test_sizes_are_those_of_the_map() -> None:
    spec = make_env("smax/3s_vs_5z").spec  # 13 features x (2 allies + 5 enemies) + 10 own = 101; 12 x 8 = 96
    assert (spec.n_agents, spec.obs_size, spec.state_size, spec.action_size) == (3, 101, 96, 10)
    assert spec.max_steps == 100


@needs_jaxmarl
def test_the_contract_holds_and_members_are_independent() -> None:
    check_env(lambda seeds: make(*seeds), steps=40)


@needs_jaxmarl
def test_a_step_is_that_of_jaxmarl() -> None:
    from marl.envs.smax.engine import game, jax_module
    from marl.envs.smax.options import SmaxOptions

    env, jax = make(3), jax_module()
    reference = game("3m", SmaxOptions(max_steps=LIMIT))
    theirs = jax.jit(jax.vmap(reference.step_env))
    generator = torch.Generator().manual_seed(0)
    env.reset()
    for _ in range(LIMIT):
        moment = env._moments[0]  # type: ignore[attr-defined]
        action = torch.randint(8, (1, 3, COPIES), generator=generator)
        keys = jax.vmap(jax.random.split)(moment.key)[:, 1]
        chosen = {f"ally_{i}": action[0, i].int().numpy() for i in range(3)}
        obs, _, reward, _, _ = theirs(keys, moment.world, chosen)
        step = env.step(action)
        for i in range(3):
            assert np.allclose(step.next_obs[0, i], obs[f"ally_{i}"], atol=1e-5)
            assert np.allclose(step.reward[0, i], reward[f"ally_{i}"], atol=1e-5)
        assert step.next_state is not None
        np.testing.assert_allclose(step.next_state[0], in_map_sizes(obs["world_state"]), rtol=0, atol=1e-5)


@needs_jaxmarl
def test_a_battle_is_truncated_after_exactly_max_steps() -> None:
    env = make()
    env.reset()
    for t in range(1, 2 * LIMIT + 1):  # standing still: the enemy needs longer than 12 steps to come and win
        step = env.step(stop(env))
        assert bool(step.done.all()) == (t % LIMIT == 0)
        assert not step.terminated.any()


@needs_jaxmarl
def test_outcomes_tell_victory_defeat_and_draw() -> None:
    env = make()
    env.reset()
    env.load_state_dict(fallen(env.state_dict(), [[3, 4, 5], [1, 3, 4, 5], [0, 1, 2], [0, 1, 2, 3, 4, 5]]))
    step = env.step(stop(env))
    assert step.terminated.all() and step.done.all() and step.outcome is not None
    assert step.outcome[0].tolist() == [[1, 0], [1, 1], [0, 3], [0, 3]]  # won, dead allies; both sides dead: not won
    assert step.reward[0, 0].tolist() == [1, 1, 0, 0]  # the bonus of a victory
    assert step.avail is not None and step.avail[..., :5].all(), "new battles began"


@needs_jaxmarl
def test_the_dead_see_zeros_may_only_stop_and_earn_with_their_team() -> None:
    env = make()
    env.reset()
    env.load_state_dict(fallen(env.state_dict(), [[0]] * COPIES))
    step = env.step(stop(env))
    assert step.avail is not None and not step.done.any() and not step.terminated.any()
    assert (step.obs[:, 0] == 0).all() and (step.obs[:, 1] != 0).any()
    assert step.avail[:, 0].sum(-1).eq(1).all() and step.avail[:, 0, :, STOP].all()
    assert torch.equal(step.reward[:, 0], step.reward[:, 1])


@needs_jaxmarl
def test_an_action_that_is_not_available_is_a_stop() -> None:
    env = make()
    avail = env.start().avail
    assert avail is not None and not avail[..., 5:].any(), "no enemy is in range at the start"
    saved = env.state_dict()
    shot = env.step(torch.full((1, 3, COPIES), 5))
    env.load_state_dict(saved)
    stood = env.step(stop(env))
    assert shot.next_state is not None and stood.next_state is not None
    assert torch.equal(shot.next_state, stood.next_state) and torch.equal(shot.reward, stood.reward)


@needs_jaxmarl
def test_what_a_step_returns_is_jaxs_memory_and_writing_there_does_not_change_the_game() -> None:
    import jax

    from marl.envs.smax.env import _join

    array = jax.numpy.arange(6.0)
    assert _join([array]).data_ptr() == array.unsafe_buffer_pointer()

    def play(spoil: bool) -> list[Tensor]:
        env, seen = make(), []
        env.reset()
        for _ in range(LIMIT + 3):
            step = env.step(stop(env))
            seen.append(step.obs.clone())
            if spoil:
                for x in (step.obs, step.next_obs, step.reward, step.state, step.outcome):
                    assert x is not None
                    x.fill_(7)
        return seen

    assert all(torch.equal(a, b) for a, b in zip(play(False), play(True), strict=True))


@needs_jaxmarl
def test_a_picture_shows_both_sides_and_not_the_dead() -> None:
    env = make()
    env.reset()
    whole = env.render(copy=1)
    env.load_state_dict(fallen(env.state_dict(), [[], [3, 4, 5], [], []]))
    ours = env.render(copy=1)
    blue, red = (
        (lambda image: (image == (40, 90, 200)).all(-1).sum()),
        (lambda image: (image == (200, 60, 40)).all(-1).sum()),
    )
    assert whole.shape == (400, 400, 3) and whole.dtype == np.uint8
    assert red(whole) > 0 and red(ours) == 0 and blue(ours) == blue(whole) > 0
