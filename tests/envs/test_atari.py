"""Atari: the contract, what each option does frame by frame, exact restore, and what is said where something lacks."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from marl.envs import evaluation_options, list_environments, make_env
from marl.envs.atari import ACTIONS, GAMES, AtariCopy, AtariOptions, overlaps, shrink
from marl.envs.base import EnvSpec, Step
from marl.envs.check import check_env
from marl.envs.copies import CopiesEnv, LocalPool
from marl.replay import Replay
from marl.types import Acted, UserError

needs_ale = pytest.mark.skipif(find_spec("ale_py") is None, reason="the extra `atari` is not installed")
NOOP, FIRE, RIGHT = 0, 1, 3


def copy(rom: str = "frostbite", pixels: bool = False, seed: int = 0, **options: Any) -> AtariCopy:
    return AtariCopy(seed, f"atari/{rom}", rom, pixels, AtariOptions(**options))


def act(console: AtariCopy, action: int) -> tuple[np.ndarray, float, bool, bool]:
    obs, reward, terminated, truncated = console.step(np.array([action]))
    return obs[0].copy(), float(reward[0]), bool(terminated[0]), truncated


def presses(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(ACTIONS, size=count).tolist()


# Without an emulator.


def test_the_ten_games_are_listed_in_both_kinds_whether_or_not_ale_is_there() -> None:
    listed = [id for id in list_environments() if id.startswith("atari/")]
    assert len(listed) == 20 and len(set(GAMES)) == 10
    assert "atari/RoadRunner" in listed and "atari/BattleZone-ram" in listed


def test_without_ale_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(UserError, match=r"atari/\* needs ale-py: pip install .*\[atari\]"):
        make_env("atari/Pong-ram")


def test_a_learner_is_taught_clipped_rewards_and_the_step_keeps_the_score() -> None:
    nothing = torch.zeros(1, 1, 3, dtype=torch.bool)
    step = Step(torch.zeros(1), torch.zeros(1), torch.tensor([[[200.0, -30.0, 0.5]]]), nothing, nothing)
    spec = EnvSpec("atari/x", ("agent",), (1,), (1,), True, clip_rewards=True)
    assert spec.taught(step).reward.tolist() == [[[1.0, -1.0, 0.5]]]
    assert step.reward.tolist() == [[[200.0, -30.0, 0.5]]]
    assert EnvSpec("atari/x", ("agent",), (1,), (1,), True).taught(step) is step


def test_evaluations_play_whole_games_whatever_training_does() -> None:
    assert evaluation_options("atari/Pong", {"life_loss_ends": True, "noop_max": 5}) == {
        "life_loss_ends": False,
        "noop_max": 5,
    }
    assert evaluation_options("small/snake", {"max_steps": 5}) == {"max_steps": 5}


def test_a_line_of_five_pixels_in_two_parts() -> None:
    # In tenths of the line: pixels of 2, parts of 5. The middle pixel lies half in each.
    assert overlaps(5, 2).tolist() == [[2, 2, 1, 0, 0], [0, 0, 1, 2, 2]]
    assert overlaps(4, 2).tolist() == [[2, 2, 0, 0], [0, 0, 2, 2]]


def test_a_screen_shrinks_to_the_mean_brightness_of_each_part() -> None:
    # 210 rows make 84 parts of 2.5 rows, 160 columns 84 parts of 40/21: the first one holds column 0 and 19/21 of
    # column 1. With 210 in row 0 alone, a first part is 1 / 2.5 of it: 84. Half of row 2 belongs to the first part.
    screen = np.zeros((210, 160), np.uint8)
    screen[0] = 210
    assert shrink(screen)[:2].tolist() == [[84] * 84, [0] * 84]
    screen[0], screen[2] = 0, 210
    assert shrink(screen)[:3, 0].tolist() == [42, 42, 0]
    screen[2], screen[:, 0] = 0, 200
    assert shrink(screen)[5, :2].tolist() == [105, 0]  # 200 * 21 / 40


@settings(max_examples=20)
@given(screen=arrays(np.uint8, (210, 160)))
def test_shrinking_is_the_area_mean_of_a_picture_blown_up_to_whole_parts(screen: np.ndarray) -> None:
    fine = screen.astype(np.int64).repeat(2, 0).repeat(21, 1)  # 420 x 3360 pixels: parts of 5 x 40
    means = fine.reshape(84, 5, 84, 40).mean((1, 3))
    assert np.abs(shrink(screen) - means).max() <= 0.5 + 1e-9
    assert np.array_equal(shrink(np.full_like(screen, screen[0, 0])), np.full((84, 84), screen[0, 0]))


# With one.


@needs_ale
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Frostbite-ram", {"repeat_action_probability": 0.5, "noop_max": 3}),
        ("Alien", {"noop_max": 1}),
        ("StarGunner-ram", {"life_loss_ends": True, "noop_max": 0, "frame_skip": 2}),
    ],
)
def test_a_game_keeps_the_contract(name: str, options: dict[str, Any]) -> None:
    env_options = {"max_frames": 20, **options}
    check_env(lambda seeds: make_env(f"atari/{name}", seeds=seeds, options=env_options), steps=12)


@needs_ale
def test_spaces_are_those_of_the_console_and_equal_among_games() -> None:
    for name in ("Pong-ram", "Riverraid-ram"):
        spec = make_env(f"atari/{name}", agents=2).spec
        assert (spec.obs_sizes, spec.action_sizes) == ((128, 128), (18, 18))
        assert spec.independent and spec.bytes and spec.clip_rewards and spec.pixels is None
        assert spec.max_steps == 27_000, "108 000 frames, four a step"
        assert "ALE" in spec.rules and "frame skip 4" in spec.rules
    spec = make_env("atari/Pong", options={"clip_rewards": False}).spec
    assert spec.pixels == (4, 84, 84) and spec.obs_size == 28_224 and not spec.clip_rewards


@needs_ale
@pytest.mark.parametrize("game", (*GAMES, "LostLuggage", "Skiing"))
def test_games_take_all_eighteen_actions_the_ten_and_those_with_no_use_for_the_button(game: str) -> None:
    """Nine directions, with and without the button; each is pressed once, and the game goes on."""
    env = make_env(f"atari/{game}-ram", options={"noop_max": 0})
    assert isinstance(env, CopiesEnv) and isinstance(env.pool, LocalPool)
    console = env.pool.copies[0]
    assert isinstance(console, AtariCopy) and [button.value for button in console.buttons] == list(range(18))
    env.reset()
    seen = {env.step(torch.full((1, 1, 1), action)).obs.numpy().tobytes() for action in range(18)}
    assert len(seen) > 1


@needs_ale
@pytest.mark.parametrize("life_loss_ends", [False, True])
def test_replays_of_single_frames_draw_the_stacks_that_were_seen(life_loss_ends: bool) -> None:
    """Lives are lost in the water."""
    options = {"life_loss_ends": life_loss_ends, "noop_max": 3, "max_frames": 400}
    env = make_env("atari/Frostbite", copies=2, options=options)
    once = Replay(2 * 150, env.spec, 1, 2, [0], n_step=2)
    whole = Replay(2 * 150, dataclasses.replace(env.spec, stack=1), 1, 2, [0], n_step=2)
    view, ends = env.start(), 0
    for action in presses(0, 400):
        step = env.step(torch.full((1, 1, 2), action))
        for replay in (once, whole):
            replay.add(view, Acted(torch.full((1, 1, 2), action)), env.spec.taught(step))
        view, ends = step.view, ends + int(step.done.sum())
    assert ends >= 3
    for ours, theirs in zip(once.sample(100), whole.sample(100), strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


@needs_ale
@settings(max_examples=4)
@given(seed=st.integers(0, 1000), moment=st.integers(0, 30), sticky=st.sampled_from([0.0, 0.25, 0.9]))
@pytest.mark.parametrize("pixels", [False, True])
def test_a_restored_console_goes_on_in_equal_bits(pixels: bool, seed: int, moment: int, sticky: float) -> None:
    options = {"repeat_action_probability": sticky, "noop_max": 5, "max_frames": 160}
    first, other = copy(pixels=pixels, seed=seed, **options), copy(pixels=pixels, seed=seed + 1, **options)
    for console in (first, other):
        console.reset()
    for action in presses(seed, moment):
        act(first, action)
        act(other, FIRE)
    state = first.state_dict()
    other.load_state_dict(state)
    picture = other.render()  # must not move the console
    assert picture.shape == (210, 160, 3)
    for action in presses(seed + 2, 15):
        ours, theirs = act(first, action), act(other, action)
        assert np.array_equal(ours[0], theirs[0]) and ours[1:] == theirs[1:]
        assert np.array_equal(first.render(), other.render())
        if ours[3]:
            assert np.array_equal(first.reset()[0], other.reset()[0])


@needs_ale
@pytest.mark.parametrize("rom", ["qbert", "tetris"])
@pytest.mark.parametrize(("moment", "drawn"), [(0, True), (3, False)])
def test_a_new_console_goes_on_in_equal_bits_although_a_reset_leaves_more_than_the_emulator_saves(
    rom: str, moment: int, drawn: bool
) -> None:
    """In these games the first frame after a reset depends on it: a new console must not begin with such a frame."""
    first = copy(rom, noop_max=0)
    first.reset()
    for action in presses(0, moment):
        act(first, action)
    state, wanted = first.state_dict(), [act(first, action) for action in presses(1, 15)]
    for console in (copy(rom, noop_max=0), first):
        console.load_state_dict(state)
        if drawn:
            console.render()  # winds a frame on and back
        for action, ours in zip(presses(1, 15), wanted, strict=True):
            theirs = act(console, action)
            assert np.array_equal(ours[0], theirs[0]) and ours[1:] == theirs[1:]


@needs_ale
def test_the_emulators_own_sticky_actions_would_not_be_restored() -> None:
    """Why the dice are thrown here: ``clone_state`` lacks the action that goes on."""
    first, other = copy("pong", noop_max=0), copy("pong", noop_max=0)
    for console in (first, other):
        console.ale.setFloat("repeat_action_probability", 0.9)
        console.ale.loadROM(_rom("pong"))
        console.reset()
    different = 0
    for moment in range(10):
        for action in presses(moment, 20):
            act(first, action)
        state = first.state_dict()
        act(other, NOOP)  # something else is pressed as the state is loaded
        other.load_state_dict(state)
        different += any(not np.array_equal(act(first, a)[0], act(other, a)[0]) for a in presses(99 - moment, 5))
    assert different > 0


def _rom(name: str) -> Path:
    from ale_py import roms

    path = roms.get_rom_path(name)
    assert path is not None
    return path


@needs_ale
def test_a_step_is_four_frames_and_its_score_their_sum() -> None:
    """The same buttons at a frame skip of 1 earn the same in total, and end in the same memory."""
    slow, fast = copy("alien", noop_max=0), copy("alien", noop_max=0, frame_skip=1)
    assert np.array_equal(slow.reset()[0], fast.reset()[0])
    earned = 0.0
    for action in presses(3, 120):
        obs, reward, over, _ = act(slow, action)
        parts = [act(fast, action) for _ in range(4)]
        assert reward == sum(part[1] for part in parts)
        assert np.array_equal(obs, parts[-1][0]) and not over
        earned += reward
    assert earned >= 50, "the score itself, not its sign"


@needs_ale
def test_a_picture_is_the_brighter_of_the_last_two_frames_and_the_stack_moves_on() -> None:
    console, single = copy("pong", True, noop_max=0), copy("pong", True, noop_max=0, frame_skip=1)
    first = console.reset()[0].reshape(4, 84, 84)
    assert all(np.array_equal(first[0], picture) for picture in first)
    single.reset()
    before = first.copy()
    for action in presses(1, 20):
        screens = []
        for _ in range(4):
            act(single, action)
            screens.append(single.ale.getScreenGrayscale())
        after = act(console, action)[0].reshape(4, 84, 84)
        assert np.array_equal(after[3], shrink(np.maximum(screens[2], screens[3])))
        assert np.array_equal(after[:3], before[1:])
        before = after


@needs_ale
def test_the_frame_limit_truncates_and_does_not_terminate() -> None:
    console = copy(max_frames=10, noop_max=0)
    console.reset()
    assert console.spec.max_steps == 3
    # 4, 8 and 12 frames: the third step passes 10.
    assert [act(console, NOOP)[2:] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    console.reset()
    assert act(console, NOOP)[2:] == (False, False)


@needs_ale
def test_an_episode_starts_after_0_to_noop_max_frames_of_nothing() -> None:
    console = copy(noop_max=3)
    idle = set()
    for _ in range(40):
        before = console.ale.getFrameNumber()
        console.reset()
        idle.add(console.ale.getEpisodeFrameNumber())
        assert console.frames == 0 and before >= 0
    start = copy(noop_max=0)
    start.reset()
    assert idle == {start.ale.getEpisodeFrameNumber() + k for k in range(4)}


@needs_ale
def test_an_action_that_always_goes_on_leaves_the_first_one_pressed_for_ever() -> None:
    """With a chance of 1 nothing but the idle start is ever pressed; with one of .25 a quarter of the frames."""
    stuck, idle = (copy(noop_max=0, repeat_action_probability=p) for p in (1.0, 0.0))
    stuck.reset(), idle.reset()
    for action in presses(0, 30):
        assert np.array_equal(act(stuck, action)[0], act(idle, NOOP)[0])
    sticky = copy(repeat_action_probability=0.25)
    pressed = [sticky._pressed(k) for k in range(4000)]
    repeated = np.mean([pressed[k] == pressed[k - 1] for k in range(1, 4000)])
    assert abs(repeated - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5


def _until_a_life_is_lost(console: AtariCopy) -> tuple[np.ndarray, float, bool, bool]:
    """In Frostbite one freezes: the temperature falls to 0 after some 45 seconds of standing still."""
    lives = console.ale.lives()
    while console.ale.lives() == lives:
        answer = act(console, NOOP)
    return answer


@needs_ale
def test_a_lost_life_ends_the_episode_only_where_asked_and_the_game_goes_on() -> None:
    whole, single = copy(noop_max=0), copy(noop_max=0, life_loss_ends=True)
    whole.reset(), single.reset()
    assert _until_a_life_is_lost(whole)[2:] == (False, False)
    last, _, over, truncated = _until_a_life_is_lost(single)
    assert (over, truncated) == (True, False)
    frames, lives = single.frames, single.ale.lives()
    assert np.array_equal(single.reset()[0], last), "the next episode begins where the life was lost"
    assert (single.frames, single.ale.lives()) == (frames, lives) and lives > 0
    single.reset()
    assert single.frames == 0 and single.ale.lives() == lives + 1, "a reset that was asked for is a new game"


@needs_ale
@pytest.mark.parametrize("workers", [0, 1])
def test_a_game_for_several_players_is_one_line_and_not_the_end_of_the_process(workers: int) -> None:
    with pytest.raises(UserError, match="atari/Combat: expected a game for one player"):
        make_env("atari/Combat", workers=workers)


@needs_ale
def test_an_unknown_game_names_the_nearest() -> None:
    with pytest.raises(UserError, match="no environment 'atari/RoadRuner-ram'; did you mean 'RoadRunner-ram'"):
        make_env("atari/RoadRuner-ram")


@needs_ale
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("frame_skip", 0, "frame_skip: expected 1 or more, got 0"),
        ("noop_max", -1, "noop_max: expected 0 or more, got -1"),
        ("repeat_action_probability", 1.5, "repeat_action_probability: expected a number from 0 to 1, got 1.5"),
        ("sticky", 0.5, "no option 'sticky' of atari/Pong"),
    ],
)
def test_options_that_make_no_sense_are_refused(key: str, value: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_env("atari/Pong", options={key: value})


@pytest.fixture
def own_roms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of ROMs with Pong alone, which ale-py takes instead of its own."""
    shutil.copy(_rom("pong"), tmp_path)
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    yield tmp_path


@needs_ale
def test_a_missing_or_damaged_rom_is_one_line(own_roms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_env("atari/Pong-ram")
    with pytest.raises(UserError, match=r"atari/Alien: its ROM cannot be read .*; pip install") as missing:
        make_env("atari/Alien")
    (own_roms / "pong.bin").write_bytes(b"not a game")
    with pytest.raises(UserError, match=r"atari/Pong: its ROM cannot be read .*hash") as damaged:
        make_env("atari/Pong")
    assert "\n" not in str(missing.value) + str(damaged.value)
    assert capsys.readouterr().out == "", "nothing mixes with --json"
