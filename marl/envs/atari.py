"""Atari 2600 games through ale-py: ``atari/Pong`` (pixels) and ``atari/Pong-ram`` (the machine's memory)."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from marl.config import check_ranges, option, suggestion
from marl.envs.base import EnvSpec, VectorEnv
from marl.envs.gym import learners
from marl.envs.packing import generator_state, load_generator
from marl.envs.workers import make_copies
from marl.types import State, UserError

GAMES = (
    *("RoadRunner", "Riverraid", "StarGunner", "Krull", "Robotank"),
    *("Jamesbond", "Alien", "Kangaroo", "Frostbite", "BattleZone"),
)
"""The ten games of the lifelong experiments, which ``marl list`` shows; every other ROM of ale-py works too."""

RAM = 128
"""Bytes of the machine's memory."""

SIDE, STACK = 84, 4
"""Rows and columns of a picture, and how many pictures an observation holds, the newest last."""

ACTIONS = 18
"""The joystick's nine directions, with and without the button; index 0 does nothing."""


@dataclass(frozen=True)
class AtariOptions:
    """Settings of every game; a frame is 1/60 of a second of the console."""

    frame_skip: int = option(4, "Frames that an action lasts.")
    noop_max: int = option(30, "An episode starts with 0 to so many frames of doing nothing.", least=0)
    repeat_action_probability: float = option(0.0, "At each frame, the chance that the last action goes on.", most=1)
    life_loss_ends: bool = option(False, "In training, a lost life ends the episode; the game goes on in the next.")
    clip_rewards: bool = option(True, "Learn from rewards cut to [-1, 1]; returns are the true scores all the same.")
    max_frames: int = option(108_000, "Frames of a game after which it is truncated: 30 minutes.")


class AtariCopy:
    """One console with one game.

    Chance (the number of idle frames, repeated actions) is drawn here and not by ale-py: what its own repeated actions
    depend on is not in the state that it saves.

    Args:
        seed: of its generator.
        id: the full name, with the family.
        rom: what ale-py calls the game.
        pixels: observe pictures; False: the memory.
        options: see there.

    Raises:
        UserError: ale-py has no such ROM, or it is missing.
    """

    def __init__(self, seed: int, id: str, rom: str, pixels: bool, options: AtariOptions) -> None:
        self.ale = _console(id, rom)
        self.buttons = [_ale().Action(k) for k in range(ACTIONS)]  # ale-py names fewer where a game has no use for fire
        self.options = options
        self.generator = np.random.default_rng(seed)
        self.stack = np.zeros((STACK, SIDE, SIDE), np.uint8) if pixels else None
        sticky = options.repeat_action_probability
        self.spec = EnvSpec(
            id=id,
            agents=("agent",),
            obs_sizes=(STACK * SIDE * SIDE if pixels else RAM,),
            action_sizes=(ACTIONS,),
            discrete=True,
            max_steps=-(-options.max_frames // options.frame_skip),
            rules=f"ALE {_ale().__version__}, frame skip {options.frame_skip}, actions repeated with chance {sticky:g}",
            bytes=True,
            pixels=(STACK, SIDE, SIDE) if pixels else None,
            stack=STACK if pixels else 1,
            clip_rewards=options.clip_rewards,
        )
        self.last = 0  # the action that goes on where actions are repeated
        self.frames = 0  # of this game, without the idle ones
        self.only_a_life = False  # the episode ended, but the game goes on
        self.undrawn = False  # the console was restored, but not its screen

    def reset(self) -> list[np.ndarray]:
        if self.only_a_life:
            self.only_a_life = False
            return self._seen()
        self.ale.reset_game()
        for _ in range(self.generator.integers(self.options.noop_max + 1)):
            self.ale.act(self.buttons[0])
            if self.ale.game_over():
                self.ale.reset_game()
        self.last = self.frames = 0
        self.undrawn = False
        if self.stack is not None:
            self.stack[:] = shrink(self.ale.getScreenGrayscale())
        return self._seen()

    def step(self, action: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, bool]:
        skip, lives, score, over = self.options.frame_skip, self.ale.lives(), 0, False
        screens = []
        for k in range(skip):
            score += self.ale.act(self.buttons[self._pressed(int(action[0]))])
            self.frames += 1
            over = self.ale.game_over()
            if self.stack is not None and (over or k >= skip - 2):
                screens.append(self.ale.getScreenGrayscale())
            if over:
                break
        self.undrawn = False
        if self.stack is not None:
            self.stack[:-1] = self.stack[1:]
            self.stack[-1] = shrink(np.maximum.reduce(screens))
        truncated = self.frames >= self.options.max_frames
        died = self.options.life_loss_ends and self.ale.lives() < lives
        self.only_a_life = died and not over and not truncated
        return self._seen(), np.asarray([score], np.float32), np.asarray([over or died], bool), truncated

    def state_dict(self) -> State:
        console = self.ale.cloneState(include_rng=True).serialize()
        return {
            "console": torch.frombuffer(bytearray(console), dtype=torch.uint8),
            "stack": None if self.stack is None else torch.from_numpy(self.stack.copy()),
            "generator": generator_state(self.generator),
            "last": self.last,
            "frames": self.frames,
        }

    def load_state_dict(self, state: State) -> None:
        self._set_back(_ale().ALEState(state["console"].numpy().tobytes()))
        if self.stack is not None:
            self.stack[:] = state["stack"].numpy()
        load_generator(self.generator, state["generator"])
        self.last, self.frames = state["last"], state["frames"]
        self.only_a_life, self.undrawn = False, True

    def render(self) -> np.ndarray:
        """The screen in colours, ``[210, 160, 3]`` in most games; right after restoring, that of one frame later."""
        if not self.undrawn:
            return np.asarray(self.ale.getScreenRGB())
        now = self.ale.cloneState(include_rng=True)
        self.ale.act(self.buttons[0])
        picture = np.asarray(self.ale.getScreenRGB())
        self._set_back(now)
        return picture

    def close(self) -> None:
        pass

    def _set_back(self, console: Any) -> None:
        """Restore the emulator, and what its state leaves out: whether a frame has passed since the game was reset."""
        self.ale.restoreState(console)
        if self.ale.getEpisodeFrameNumber() > 0:
            self.ale.act(self.buttons[0])
        else:
            self.ale.reset_game()
        self.ale.restoreState(console)

    def _pressed(self, wanted: int) -> int:
        """What the joystick does in this frame."""
        sticky = self.options.repeat_action_probability
        if not sticky or self.generator.random() >= sticky:
            self.last = wanted
        return self.last

    def _seen(self) -> list[np.ndarray]:
        return [self.ale.getRAM() if self.stack is None else self.stack.reshape(-1)]


@functools.cache
def overlaps(size: int, cells: int) -> np.ndarray:
    """``[cells, size]`` float32, whole numbers: how much of each pixel of a line lies in each of ``cells`` equal parts.

    The line is ``size * cells`` long, so that every row sums to ``size``.
    """
    pixel, cell = np.arange(size), np.arange(cells)[:, None]
    left = np.maximum(pixel * cells, cell * size)
    right = np.minimum((pixel + 1) * cells, (cell + 1) * size)
    return np.maximum(right - left, 0).astype(np.float32)


def shrink(screen: np.ndarray) -> np.ndarray:
    """A grey picture ``[height, width]`` uint8 as ``[SIDE, SIDE]``: the mean brightness of each part, rounded.

    All sums are whole numbers below 2**24, so float32 holds them exactly and their order does not matter.
    """
    height, width = screen.shape
    total = overlaps(height, SIDE) @ screen.astype(np.float32) @ overlaps(width, SIDE).T
    area = height * width
    return ((total.astype(np.int64) * 2 + area) // (2 * area)).astype(np.uint8)


def _ale() -> Any:
    try:
        import ale_py
    except ImportError:
        raise UserError("atari/* needs ale-py: pip install -c constraints.txt -e '.[atari]'") from None
    return ale_py


def _roms() -> dict[str, str]:
    """What ale-py calls a game, by the name that it has here: ``{"RoadRunner": "road_runner", ...}``."""
    _ale()
    from ale_py import roms

    return {rom.title().replace("_", ""): rom for rom in roms.get_all_rom_ids()}


def _console(id: str, rom: str) -> Any:
    """An emulator with the game in it."""
    ale_py = _ale()
    from ale_py import roms

    try:
        with contextlib.redirect_stdout(sys.stderr):  # it says which folder it looks into
            path = roms.get_rom_path(rom)
    except OSError as error:  # loadROM would end the process
        reason = " ".join(str(error).split())
        raise UserError(f"{id}: its ROM cannot be read ({reason}); pip install --force-reinstall ale-py") from None
    if ale_py.ALEInterface.isSupportedROM(path) is None:  # so would it here
        raise UserError(f"{id}: expected a game for one player, this ROM is for several; choose another one")
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.setInt("random_seed", 0)  # nothing draws from it, but its default is the time of day
    ale.loadROM(path)
    return ale


class Atari:
    """``atari/GAME`` and ``atari/GAME-ram``."""

    options: type | None = AtariOptions
    evaluation: Mapping[str, Any] = {"life_loss_ends": False}

    def names(self) -> Sequence[str]:
        return [f"{game}{kind}" for kind in ("-ram", "") for game in GAMES]

    def make(
        self, name: str, *, seeds: Sequence[int], copies: int, agents: int | None, workers: int, options: AtariOptions
    ) -> VectorEnv:
        game, known = name.removesuffix("-ram"), _roms()
        if game not in known:
            near = suggestion(name, [each + name.removeprefix(game) for each in known])
            raise UserError(f"no environment 'atari/{name}'{near}")
        check_ranges(options)
        id = f"atari/{name}"
        build = functools.partial(AtariCopy, id=id, rom=known[game], pixels=game == name, options=options)
        return make_copies(build, seeds=seeds, copies=copies, learners=learners(id, agents), workers=workers)


FAMILY = Atari()
