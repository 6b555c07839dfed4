"""P members x E copies of one particle game as a single tensor program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from marl.envs.base import EnvSpec, Step, VectorEnv
from marl.envs.mpe.actions import Decoder
from marl.envs.mpe.draw import draw
from marl.envs.mpe.games import GAMES, Tag
from marl.envs.mpe.options import MpeOptions
from marl.envs.mpe.prey import Prey
from marl.envs.mpe.world import World
from marl.streams import Streams
from marl.types import State


class BatchedMpe(VectorEnv):
    """One of ``GAMES`` for M = P * E copies side by side.

    Every tensor that ``step`` returns is its own: it is never written again.

    Args:
        name: of the game.
        seeds: one per member (P).
        copies: E.
        agents: N, None for mpe2's default.
        options: see ``MpeOptions``.

    Raises:
        UserError: for a number of agents or a prey's policy that does not fit.
    """

    def __init__(
        self, name: str, *, seeds: Sequence[int], copies: int, agents: int | None, options: MpeOptions
    ) -> None:
        self.members, self.copies, self.options = len(seeds), copies, options
        self.game = game = GAMES[name](agents, options)
        dtype = torch.float64 if options.dtype == "float64" else torch.float32
        original = options.dynamics == "openai"
        width = self.members * copies
        self.world = World(game.bodies, game.landmarks, width, dtype, game.channels, game.goals, original)
        moves = [body.accel > 0 for body in game.bodies[: game.learners]]
        self.decode = Decoder(
            moves, game.speaks, game.channels, not options.continuous, -1.0 if original else 1.0, dtype
        )
        self.prey = Prey(game, options, seeds, copies) if isinstance(game, Tag) else None
        self.streams = Streams(seeds, "mpe/reset")
        self.time = torch.zeros(width, dtype=torch.int64)
        self.camera = torch.ones(width, dtype=dtype)
        self.spec = EnvSpec(
            id=f"mpe/{name}",
            agents=game.names[: game.learners],
            obs_sizes=game.obs_sizes,
            action_sizes=self.decode.sizes,
            discrete=not options.continuous,
            max_steps=options.max_cycles,
            rules=rules(name, options),
        )

    def reset(self) -> Tensor:
        self._begin(torch.ones_like(self.time, dtype=torch.bool))
        return self._fold(self.game.observe(self.world))

    def step(self, action: Tensor) -> Step:
        with one_thread():
            return self._step(action)

    def _step(self, action: Tensor) -> Step:
        thrust, words = self.decode(action)
        if self.prey is not None:
            thrust = torch.cat((thrust, self.prey(self.world)))
            words = self.world.words
        self.world.advance(thrust, words)
        self.time += 1
        reward = self.game.reward(self.world)
        done = self.time >= self.options.max_cycles
        success = self.game.success(self.world)
        won = torch.zeros_like(done) if success is None else success & ~done
        done = done | won
        next_obs = obs = self._fold(self.game.observe(self.world))
        if bool(done.any()):
            self._begin(done)
            obs = self._fold(self.game.observe(self.world))
        agents = (self.spec.n_agents, -1)
        return Step(obs, next_obs, self._fold(reward), self._fold(won.expand(agents)), self._fold(done.expand(agents)))

    def _begin(self, which: Tensor) -> None:
        """Start the copies ``which [M]`` afresh; a member draws for all its copies if any of them starts."""
        world, game = self.world, self.game
        rows = 2 * len(world.pos)
        draws = torch.zeros(rows + game.goals, self.members, self.copies, dtype=world.pos.dtype)
        starting = which.view(self.members, self.copies).any(1).nonzero()[:, 0].tolist()
        for p in starting:  # members that start, not all of them at every step: their generators are separate
            shape = (len(draws), self.copies)
            draws[:, p] = torch.rand(shape, generator=self.streams.generators[p], dtype=draws.dtype)
        draws = draws.flatten(1)
        pos = draws[:rows].view_as(world.pos) * 2 - 1
        pos[: world.agents] *= game.spawn
        pos[world.agents :] *= game.spawn_landmarks
        goal = (draws[rows:] * world.landmarks).long().clamp_(max=world.landmarks - 1)
        world.pos = torch.where(which, pos, world.pos)
        world.goal = torch.where(which, goal, world.goal)
        world.vel.masked_fill_(which, 0)
        world.words = world.words.masked_fill(which, 0)
        self.time.masked_fill_(which, 0)
        self.camera = torch.where(which, pos.abs().amax((0, 1)), self.camera)
        world.look()

    def _fold(self, rows: Tensor) -> Tensor:
        """``[N, ..., M]`` to ``[P, N, E, ...]``, float32 unless bool."""
        rows = rows if rows.dtype == torch.bool else rows.float()
        split = rows.unflatten(-1, (self.members, self.copies))
        if rows.dim() == 3:
            return split.permute(2, 0, 3, 1)
        return split.transpose(0, 1).contiguous()

    def state_dict(self) -> State:
        return {
            "world": self.world.state_dict(),
            "time": self.time.clone(),
            "camera": self.camera.clone(),
            "streams": self.streams.state_dict(),
            "prey": self.prey.state_dict() if self.prey is not None else {},
        }

    def load_state_dict(self, state: State) -> None:
        self.world.load_state_dict(state["world"])
        self.time.copy_(state["time"])
        self.camera.copy_(state["camera"])
        self.streams.load_state_dict(state["streams"])
        if self.prey is not None:
            self.prey.load_state_dict(state["prey"])

    def render(self, member: int = 0, copy: int = 0) -> np.ndarray:
        at = member * self.copies + copy
        return draw(
            [*self.game.bodies, *self.game.landmarks],
            self.world.landmarks,
            self.world.pos[:, :, at].numpy(),
            float(self.camera[at]),
            self.options.dynamic_rescaling,
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Kernels this small gain a third at most from a second thread, and lose all when it has to be waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def rules(name: str, options: MpeOptions) -> str:
    """One line that names the game: its rules, whose reward is returned, and who the prey is."""
    line = "original MPE rules (openai)" if options.dynamics == "openai" else "mpe2 rules"
    if options.dynamics == "openai" and name in (
        "simple_spread_v3",
        "simple_speaker_listener_v4",
        "simple_reference_v3",
    ):
        line += ", every agent earns the sum over agents"
    return f"{line}, prey {options.prey}" if name == "simple_tag_v3" else line
