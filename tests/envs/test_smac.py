"""``smac/*`` against a stand-in with SMAC's interface (tests/envs/standin): the game itself is not to be had here."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from marl.envs import Step, VectorEnv, list_environments, make_env
from marl.envs.check import check_env
from marl.envs.smac import MAPS, game_version
from marl.types import UserError

STANDIN = Path(__file__).parent / "standin"
STOP, AWAY, UP, SHOOT = 1, 2, 4, 6


@pytest.fixture
def game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder like the game's, and the stand-in in place of SMAC, in worker processes too."""
    (tmp_path / "Versions" / "Base69232").mkdir(parents=True)
    (tmp_path / "Versions" / "Base75689").mkdir()
    (tmp_path / "Maps" / "SMAC_Maps").mkdir(parents=True)
    monkeypatch.setenv("SC2PATH", str(tmp_path))
    forget()
    monkeypatch.syspath_prepend(STANDIN)
    yield tmp_path
    forget()


def forget() -> None:
    """Let the next ``import smac`` look for it anew."""
    for name in [name for name in sys.modules if name.split(".")[0] == "smac"]:
        del sys.modules[name]


@pytest.fixture
def made(game: Path):
    """``make_env`` whose worker processes end with the test."""
    envs: list[VectorEnv] = []

    def make(id: str = "smac/3m", **keywords) -> VectorEnv:
        envs.append(make_env(id, **keywords))
        return envs[-1]

    yield make
    for env in envs:
        env.close()


def every(env: VectorEnv, action: int) -> torch.Tensor:
    return torch.full((env.members, env.spec.n_agents, env.copies), action)


def best(avail: torch.Tensor) -> torch.Tensor:
    """Shoot the first enemy within reach, else walk up, else whatever there is: the last action but movement away."""
    order = torch.tensor([0, 1, 0, 0, 2, 0, 9, 8, 7][: avail.shape[-1]])
    return (avail * (order + 1)).argmax(-1)


def test_the_contract_is_kept(made) -> None:
    check_env(lambda seeds: made(seeds=seeds, copies=2, workers=1, options={"limit": 7}), steps=20)


def test_the_spec_says_what_the_map_says(made) -> None:
    env = made("smac/3m")
    spec = env.spec
    assert (spec.n_agents, spec.obs_sizes, spec.action_sizes) == (3, (5, 5, 5), (9, 9, 9))
    assert spec.discrete and spec.masked and spec.state_size == 9 and spec.max_steps == 60
    assert spec.outcomes == ("win_rate", "dead_agents") and not spec.exact_state
    assert spec.rules == "StarCraft II 4.10 via smac"  # the newest of the two builds in the folder
    assert len(MAPS) == 23 and {f"smac/{name}" for name in MAPS} <= set(list_environments())


def test_masks_states_and_outcomes_of_whole_battles(made) -> None:
    env = made(seeds=[1, 2], copies=2)
    view = env.start()
    ended: list[tuple[bool, float, float]] = []
    died = False
    for _ in range(60):
        assert view.avail is not None and view.state is not None
        assert view.avail.shape == (2, 3, 2, 9) and view.state.shape == (2, 2, 9)
        health = view.state[..., :3].transpose(1, 2)  # the state begins with the health of the three
        assert torch.equal(view.obs[..., 0], health)
        dead = health == 0
        assert torch.equal(view.avail[..., 0], dead)  # action 0: all of the dead and none of the living
        assert (view.avail.sum(-1)[dead] == 1).all() and (view.obs[dead] == 0).all()
        died |= bool(dead.any())
        step = env.step(best(view.avail))
        assert step.next_state is not None and step.outcome is not None and step.next_avail is not None
        for p, e in itertools.product(range(2), range(2)):
            if step.done[p, 0, e]:
                last = step.next_state[p, e]
                won = bool((last[6:] == 0).all())
                assert step.terminated[p, :, e].all()
                assert step.outcome[p, e].tolist() == [float(won), float((last[:3] == 0).sum())]
                assert torch.equal(step.next_avail[p, :, e, 0], last[:3] == 0)
                assert step.state is not None and (step.state[p, e, :3] == 2).all()  # the next episode's
                ended.append((won, *step.outcome[p, e].tolist()))
        view = step.view
    assert died and {won for won, _, _ in ended} == {True, False}


def test_the_time_limit_truncates_and_is_no_victory(made) -> None:
    env = made("smac/2m_vs_1z", options={"limit": 1})
    for _ in range(5):
        env.reset()
        step = env.step(every(env, STOP))  # one enemy shoots once: two points of health each, so nobody falls
        assert step.done.all() and not step.terminated.any()
        assert step.outcome is not None and step.outcome.tolist() == [[[0.0, 0.0]]]
    from smac.env import StarCraft2Env

    bare = StarCraft2Env("2m_vs_1z", seed=0, limit=1)  # as SMAC is by default: nothing tells the limit from an end
    bare.reset()
    _, terminated, info = bare.step([STOP, STOP])
    assert terminated and "episode_limit" not in info
    bare.close()


def test_an_unavailable_action_becomes_the_first_available_one(made) -> None:
    """SMAC asserts instead: the same actions stop the stand-in itself."""
    one, two = made(seeds=[5]), made(seeds=[5])
    one.reset(), two.reset()
    for _ in range(8):
        a, b = one.step(every(one, 5)), two.step(two.avail().long().argmax(-1))  # 5 is never available
        assert all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))
    from smac.env import StarCraft2Env

    env = StarCraft2Env("3m", seed=5)
    env.reset()
    with pytest.raises(AssertionError, match="Agent 0 cannot perform action 5"):
        env.step([5, 5, 5])
    env.close()


def test_every_copy_has_a_process_of_its_own_unless_workers_are_said_and_the_numbers_are_the_same(made) -> None:
    alone, shared = made(seeds=[3, 4], copies=2), made(seeds=[3, 4], copies=2, workers=1)
    assert len(alone.pool.workers) == 4 and len(shared.pool.workers) == 1
    assert torch.equal(alone.reset(), shared.reset())
    for _ in range(12):
        a, b = (env.step(best(env.avail())) for env in (alone, shared))
        assert all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))


def lost_step(env: VectorEnv, before: Step) -> None:
    """One step in which copy 0 of member 0 is lost and the other one is not."""
    step = env.step(best(env.avail()))  # type: ignore[arg-type]
    assert step.lost is not None and step.lost[0, :, 0].all() and not step.lost[0, :, 1].any()
    assert step.done[0, :, 0].all() and not step.terminated[0, :, 0].any() and not step.reward[0, :, 0].any()
    for after, then in ((step.next_obs, before.obs), (step.next_avail, before.avail)):
        assert torch.equal(after[0, :, 0], then[0, :, 0])  # type: ignore[index]
    assert torch.equal(step.next_state[0, 0], before.state[0, 0])  # type: ignore[index]
    assert (step.state[0, 0, :3] == 2).all()  # type: ignore[index]


def test_a_worker_killed_in_the_middle_costs_one_transition_and_takes_its_game_with_it(made) -> None:
    env = made(copies=2)
    env.reset()
    before = env.step(best(env.avail()))
    worker = env.pool.workers[0].process.pid
    games = children(worker)
    assert len(games) == 1
    os.kill(worker, signal.SIGKILL)
    lost_step(env, before)
    (line,) = env.events()
    assert line == "worker 0 of 2 died: started again, 1 copy begins a new episode"
    assert env.step(best(env.avail())).lost is None
    assert gone(games)
    left = [pid for w in env.pool.workers for pid in children(w.process.pid)]
    assert len(left) == 2
    env.close()
    assert gone(left)


def test_a_game_that_fails_costs_one_transition(made, game: Path) -> None:
    env = made(copies=2)
    env.reset()
    before = env.step(best(env.avail()))
    (game / "CRASH").touch()  # whichever of the two games sees it first fails
    step = env.step(best(env.avail()))
    assert step.lost is not None and not (game / "CRASH").exists()
    (hurt,) = step.lost[0, 0].nonzero().flatten().tolist()
    assert step.done[0, :, hurt].all() and not step.terminated[0, :, hurt].any()
    assert torch.equal(step.next_obs[0, :, hurt], before.obs[0, :, hurt])
    (line,) = env.events()
    assert line.startswith(f"worker {hurt} of 2 died: started again")
    assert env.step(best(env.avail())).lost is None


def test_a_resumed_run_begins_new_episodes_and_shows_what_was_seen_before(made) -> None:
    env, other = made(seeds=[1]), made(seeds=[1])
    env.reset()
    step = env.step(best(env.avail()))
    other.load_state_dict(env.state_dict())
    assert torch.equal(other.avail(), step.avail) and torch.equal(other.state(), step.state)
    after = other.step(best(other.avail()))
    assert after.lost is not None and after.lost.all() and torch.equal(after.next_state, step.state)


def test_what_is_missing_is_one_line_with_the_command(game: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def line(id: str = "smac/3m", **keywords) -> str:
        with pytest.raises(UserError) as caught:
            make_env(id, **keywords)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "did you mean '5m_vs_6m'" in line("smac/5m_vs_6")
    assert "does not take these keywords" in line(options={"wings": 2})
    assert "seed is set here already" in line(options={"seed": 2})
    assert "has 3 agents, not 4" in line(agents=4)
    (game / "Maps" / "SMAC_Maps").rmdir()
    assert "the maps are not in" in line() and "SMAC_Maps.zip" in line()
    shutil.rmtree(game / "Versions")
    assert "StarCraft II is not in" in line() and "SC2PATH says so" in line() and "export SC2PATH=" in line()
    monkeypatch.delenv("SC2PATH")
    monkeypatch.setenv("HOME", str(game))
    assert "SC2PATH is not set" in line()
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(STANDIN)])
    forget()
    assert "SMAC is not installed" in line() and "pip install git+https://github.com/oxwhirl/smac.git" in line()
    (game / "smac").mkdir()
    (game / "smac" / "__init__.py").touch()
    monkeypatch.syspath_prepend(game)
    assert "hyper-parameter optimiser" in line() and "pip uninstall smac" in line()


def test_a_package_that_cannot_be_imported_says_why(game: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = game / "broken"
    (broken / "smac" / "env" / "starcraft2").mkdir(parents=True)
    (broken / "smac" / "__init__.py").touch()
    (broken / "smac" / "env" / "__init__.py").write_text("import pysc2_that_is_not_there")
    monkeypatch.syspath_prepend(broken)
    with pytest.raises(UserError, match=r"cannot import smac.env.StarCraft2Env .*pysc2_that_is_not_there"):
        make_env("smac/3m")


def test_the_version_is_the_newest_build_of_the_folder(game: Path) -> None:
    assert game_version() == "4.10"
    shutil.rmtree(game / "Versions" / "Base75689")
    assert game_version() == "4.6.2"
    (game / "Versions" / "Base99999").mkdir()
    assert game_version() == "build 99999"


def test_listing_and_asking_for_options_imports_no_game() -> None:
    code = (
        "import sys; from marl.envs import list_environments as l; l(); print([m for m in sys.modules if m == 'smac'])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def children(pid: int) -> list[int]:
    """The processes that a process started and that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def gone(pids: list[int], seconds: float = 5.0) -> bool:
    """Whether all these processes end soon."""

    def alive(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    end = time.monotonic() + seconds
    while any(map(alive, pids)):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
