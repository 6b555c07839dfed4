"""The games of the batched engine: who is there, what each agent sees, what it earns.

Every function reads a ``World`` and returns fresh tensors with the long axis M last. ``observe`` gives ``[N, D, M]``
for the N learning agents, padded with zeros; ``reward`` gives ``[N, M]``; ``success`` gives ``[M]`` bool, or None where
the game has no aim that ends it. The layout of each observation is in ``docs/environments/mpe.md``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from marl.envs.mpe.options import MpeOptions
from marl.envs.mpe.world import Body, World, add_rows
from marl.types import UserError

Color = tuple[float, float, float]
RED: Color = (0.85, 0.35, 0.35)
GREEN: Color = (0.35, 0.85, 0.35)
BLUE: Color = (0.35, 0.35, 0.85)


class Game:
    """What the engine needs to know of a game.

    Attributes:
        names: all agents, the N learning ones first.
        learners: N.
        bodies: of all agents.
        landmarks: bodies that do not move.
        obs_sizes: of the learning agents.
        speaks: for each learning agent whether it talks.
        channels: C, the length of a message.
        goals: landmarks picked per episode.
        spawn: agents start in the square of this half-width.
        spawn_landmarks: the same for landmarks.
    """

    names: tuple[str, ...]
    learners: int
    bodies: list[Body]
    landmarks: list[Body]
    obs_sizes: tuple[int, ...]
    speaks: tuple[bool, ...]
    channels = 0
    goals = 0
    spawn = 1.0
    spawn_landmarks = 1.0

    def observe(self, world: World) -> Tensor:
        raise NotImplementedError

    def reward(self, world: World) -> Tensor:
        raise NotImplementedError

    def success(self, world: World) -> Tensor | None:
        return None


class Sight:
    """Which other bodies an agent sees: all of them in order, or the nearest few, nearest first, padded with zeros."""

    def __init__(self, options: MpeOptions, agents: int, landmarks: int) -> None:
        self.landmarks = landmarks
        self.near_landmarks = options.num_landmark_neighbors
        self.near_agents = options.num_agent_neighbors
        self.seen_landmarks = landmarks if self.near_landmarks is None else self.near_landmarks
        self.seen_agents = agents - 1 if self.near_agents is None else self.near_agents

    def positions(self, world: World) -> Tensor:
        """``[A, 2 * (seen_landmarks + seen_agents), M]``."""
        if self.near_landmarks is None and self.near_agents is None:
            return world.rel.flatten(1, 2)
        cut = self.landmarks
        landmarks = nearest(world.rel[:, :cut], world.dist[:, :cut], self.near_landmarks)
        others = nearest(world.rel[:, cut:], world.dist[:, cut:], self.near_agents)
        return torch.cat((landmarks, others), 1).flatten(1, 2)


def nearest(values: Tensor, dist: Tensor, count: int | None) -> Tensor:
    """The rows of ``values [A, S, d, M]`` with the least ``dist [A, S, M]``, nearest first, zeros up to ``count``."""
    if count is None:
        return values
    order = dist.argsort(dim=1, stable=True)[:, :count, None].expand(-1, -1, values.shape[2], -1)
    picked = values.gather(1, order)
    short = count - picked.shape[1]
    return torch.cat((picked, picked.new_zeros(len(picked), short, *picked.shape[2:])), 1) if short > 0 else picked


def at_goal(world: World, values: Tensor, goal: int = 0) -> Tensor:
    """``values [A, L, ..., M]`` of the landmark picked as that goal: ``[A, ..., M]``."""
    index = world.goal[goal].expand(len(values), 1, *values.shape[2:])
    return values[:, : world.landmarks].gather(1, index)[:, 0]


def pad(rows: Tensor, width: int) -> Tensor:
    """``[n, d, M]`` to ``[n, width, M]``."""
    return torch.cat((rows, rows.new_zeros(len(rows), width - rows.shape[1], rows.shape[2])), 1)


class Spread(Game):
    """simple_spread_v3: N agents cover N landmarks without touching each other."""

    capture = 0.1

    def __init__(self, agents: int | None, options: MpeOptions) -> None:
        n = self.learners = agents or 3
        self.names = tuple(f"agent_{i}" for i in range(n))
        self.bodies = [Body(0.15, True, color=BLUE)] * n
        self.landmarks = [Body(0.05, False)] * n
        self.speaks = (False,) * n
        self.sight = Sight(options, n, n)
        self.obs_sizes = (4 + 2 * self.sight.seen_landmarks + 4 * self.sight.seen_agents,) * n
        self.ratio = 0.5 if options.local_ratio is None else options.local_ratio
        self.sum_over_agents = options.dynamics == "openai"
        self.touch_costs = not options.curriculum or options.curriculum_stage > 0
        self.ends = options.terminate_on_success

    def observe(self, world: World) -> Tensor:
        seen = self.sight.positions(world)
        silence = seen.new_zeros(self.learners, 2 * self.sight.seen_agents, seen.shape[2])
        return torch.cat((world.vel, world.pos[: self.learners], seen, silence), 1)

    def reward(self, world: World) -> Tensor:
        team = -add_rows(world.dist[:, : self.learners].amin(0))
        if self.touch_costs:
            own = -(world.dist[:, self.learners :] < 0.3).sum(1).to(team.dtype)
        else:
            own = team.new_zeros(self.learners, len(team))
        if self.sum_over_agents:
            if self.touch_costs:
                own -= 1.0  # the original counts each agent as touching itself
            return (team * self.learners + add_rows(own)).expand(self.learners, -1)
        return team * (1 - self.ratio) + own * self.ratio

    def success(self, world: World) -> Tensor | None:
        if not self.ends:
            return None
        return (world.dist[:, : self.learners].amin(0) < self.capture).all(0)


class SpreadAssigned(Spread):
    """spread_assigned: agent i earns minus its distance to landmark i, touching is free, all start within +-4."""

    spawn = 4.0
    spawn_landmarks = 4.0

    def reward(self, world: World) -> Tensor:
        return -world.dist[:, : self.learners].diagonal().T


class Tag(Game):
    """simple_tag_v3: N predators learn to touch the prey, which is faster; the prey acts by a rule of its own."""

    spawn_landmarks = 0.9

    def __init__(self, agents: int | None, options: MpeOptions) -> None:
        n = self.learners = agents or 3
        self.prey = options.num_good or 1
        obstacles = 2 if options.num_obstacles is None else options.num_obstacles
        pace = (0.5, 0.75, 1.0)[options.curriculum_stage] if options.curriculum else 1.0
        self.names = tuple(f"adversary_{i}" for i in range(n)) + tuple(f"agent_{i}" for i in range(self.prey))
        predator, prey = Body(0.075, True, 3.0, 1.0, RED), Body(0.05, True, 4.0 * pace, 1.3 * pace, GREEN)
        self.bodies = [predator] * n + [prey] * self.prey
        self.landmarks = [Body(0.2, True)] * obstacles
        self.speaks = (False,) * n
        self.sight = Sight(options, n + self.prey, obstacles)
        seen = self.sight.seen_landmarks + self.sight.seen_agents
        speeds = self.prey if self.sight.near_agents is None else self.sight.seen_agents
        self.obs_sizes = (4 + 2 * seen + 2 * speeds,) * n
        self.prey_obs_size = 4 + 2 * seen + 2 * (speeds - (self.sight.near_agents is None))
        self.ends = options.terminate_on_success

    def observe(self, world: World) -> Tensor:
        return self._view(world, slice(0, self.learners), self.prey)

    def observe_prey(self, world: World) -> Tensor:
        """``[G, prey_obs_size, M]``."""
        return self._view(world, slice(self.learners, world.agents), self.prey - 1)

    def _view(self, world: World, who: slice, prey: int) -> Tensor:
        """What the agents ``who`` observe; the last ``prey`` of the other agents of each are prey."""
        hidden = torch.zeros_like(world.vel[: self.learners])
        speeds = world.of_others(torch.cat((hidden, world.vel[self.learners :])))[who]
        if self.sight.near_agents is None:
            speeds = speeds[:, world.agents - 1 - prey :]
        else:
            speeds = nearest(speeds, world.dist[who, world.landmarks :], self.sight.near_agents)
        seen = self.sight.positions(world)[who]
        return torch.cat((world.vel[who], world.pos[: world.agents][who], seen, speeds.flatten(1, 2)), 1)

    def _caught(self, world: World) -> Tensor:
        """``[N, G, M]``: predator n touches prey g."""
        return world.dist[: self.learners, -self.prey :] < 0.125

    def reward(self, world: World) -> Tensor:
        touches = self._caught(world).flatten(0, 1).sum(0).to(world.pos.dtype)
        return (touches * 10.0).expand(self.learners, -1)

    def success(self, world: World) -> Tensor | None:
        return self._caught(world).any(0).all(0) if self.ends else None


class Adversary(Game):
    """simple_adversary_v3: good agents know the goal landmark and approach it; the adversary has to guess it."""

    goals = 1

    def __init__(self, agents: int | None, options: MpeOptions) -> None:
        n = self.learners = agents or 3
        if n < 2:
            raise UserError(f"mpe/simple_adversary_v3: expected at least 2 agents (one is the adversary), got {n}")
        self.names = ("adversary_0", *(f"agent_{i}" for i in range(n - 1)))
        self.bodies = [Body(0.15, False, color=RED)] + [Body(0.15, False, color=BLUE)] * (n - 1)
        self.landmarks = [Body(0.08, False)] * (n - 1)
        self.speaks = (False,) * n
        self.sight = Sight(options, n, n - 1)
        seen = 2 * (self.sight.seen_landmarks + self.sight.seen_agents)
        self.obs_sizes = (seen, *(seen + 2,) * (n - 1))

    def observe(self, world: World) -> Tensor:
        seen = self.sight.positions(world)
        good = torch.cat((at_goal(world, world.rel)[1:], seen[1:]), 1)
        return torch.cat((pad(seen[:1], good.shape[1]), good))

    def reward(self, world: World) -> Tensor:
        far = at_goal(world, world.dist)
        good = far[0] - far[1:].amin(0)
        return torch.cat((-far[:1], good.expand(self.learners - 1, -1)))


class Push(Game):
    """simple_push_v3: one agent goes to the goal, the other keeps it away by force."""

    goals = 1
    names = ("adversary_0", "agent_0")
    learners = 2
    obs_sizes = (8, 19)
    speaks = (False, False)
    own_colors = ((0.25, 0.75, 0.25), (0.25, 0.25, 0.75))

    def __init__(self, agents: int | None, options: MpeOptions) -> None:
        only("simple_push_v3", agents, 2)
        self.bodies = [Body(0.05, True, color=RED), Body(0.05, True, color=BLUE)]
        self.landmarks = [Body(0.05, False, color=(0.1, 0.9, 0.1)), Body(0.05, False, color=(0.1, 0.1, 0.9))]

    def observe(self, world: World) -> Tensor:
        width, dtype = world.pos.shape[2], world.pos.dtype
        seen = world.rel.flatten(1, 2)
        own = torch.tensor(self.own_colors, dtype=dtype)[world.goal[0]].T
        colors = torch.tensor([lm.color for lm in self.landmarks], dtype=dtype).reshape(-1, 1).expand(-1, width)
        agent = torch.cat((world.vel[1], at_goal(world, world.rel)[1], own, seen[1, :4], colors, seen[1, 4:]))
        adversary = torch.cat((world.vel[:1], seen[:1]), 1)
        return torch.cat((pad(adversary, len(agent)), agent[None]))

    def reward(self, world: World) -> Tensor:
        far = at_goal(world, world.dist)
        return torch.stack((far[1] - far[0], -far[1]))


class SpeakerListener(Game):
    """simple_speaker_listener_v4: the speaker sees the goal's colour, the listener hears the speaker and moves."""

    goals = 1
    channels = 3
    names = ("speaker_0", "listener_0")
    learners = 2
    obs_sizes = (3, 11)
    speaks = (True, False)
    colors = ((0.65, 0.15, 0.15), (0.15, 0.65, 0.15), (0.15, 0.15, 0.65))

    def __init__(self, agents: int | None, options: MpeOptions) -> None:
        only("simple_speaker_listener_v4", agents, 2)
        self.bodies = [Body(0.075, False, accel=0.0), Body(0.075, False, color=BLUE)]
        self.landmarks = [Body(0.04, False, color=color) for color in self.colors]
        self.scale = 2.0 if options.dynamics == "openai" else 1.0

    def observe(self, world: World) -> Tensor:
        color = torch.tensor(self.colors, dtype=world.pos.dtype)[world.goal[0]].T
        listener = torch.cat((world.vel[1], world.rel[1, :3].flatten(0, 1), world.words[0]))
        return torch.stack((pad(color[None], 11)[0], listener))

    def reward(self, world: World) -> Tensor:
        offset = at_goal(world, world.rel)[1]
        square = offset * offset
        return -((square[0] + square[1]) * self.scale).expand(2, -1)


class Reference(Game):
    """simple_reference_v3: each of two agents knows the other's goal and tells it."""

    goals = 2
    channels = 10
    names = ("agent_0", "agent_1")
    learners = 2
    obs_sizes = (21, 21)
    speaks = (True, True)
    colors = ((0.75, 0.25, 0.25), (0.25, 0.75, 0.25), (0.25, 0.25, 0.75))

    def __init__(self, agents: int | None, options: MpeOptions) -> None:
        only("simple_reference_v3", agents, 2)
        self.bodies = [Body(0.05, False)] * 2
        self.landmarks = [Body(0.05, False, color=color) for color in self.colors]
        self.ratio = 0.5 if options.local_ratio is None else options.local_ratio
        self.openai = options.dynamics == "openai"

    def observe(self, world: World) -> Tensor:
        color = torch.tensor(self.colors, dtype=world.pos.dtype)[world.goal].transpose(1, 2)
        return torch.cat((world.vel, world.rel[:, :3].flatten(1, 2), color, world.words.flip(0)), 1)

    def reward(self, world: World) -> Tensor:
        far = torch.stack((at_goal(world, world.dist, 0)[1], at_goal(world, world.dist, 1)[0]))
        if self.openai:
            square = far * far
            return -(square[0] + square[1]).expand(2, -1)
        return -((far[0] + far[1]) * (0.5 * (1 - self.ratio)) + far * self.ratio)


def only(name: str, agents: int | None, count: int) -> None:
    """Raise ``UserError`` unless ``agents`` is the one number that this game has."""
    if agents not in (None, count):
        raise UserError(f"mpe/{name} has {count} agents, got {agents}")


GAMES: dict[str, type[Spread | Tag | Adversary | Push | SpeakerListener | Reference]] = {
    "simple_spread_v3": Spread,
    "simple_tag_v3": Tag,
    "simple_adversary_v3": Adversary,
    "simple_push_v3": Push,
    "simple_speaker_listener_v4": SpeakerListener,
    "simple_reference_v3": Reference,
    "spread_assigned": SpreadAssigned,
}
