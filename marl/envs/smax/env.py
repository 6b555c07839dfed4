"""The torch side: JAX's arrays become tensors without a copy."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from marl.envs.base import EnvSpec, Step, VectorEnv
from marl.envs.smax.draw import draw
from marl.envs.smax.engine import Array, Moment, Programs, Seen, game, jax_module, max_steps, programs
from marl.envs.smax.options import SmaxOptions
from marl.streams import derive
from marl.types import State


class SmaxEnv(VectorEnv):
    """One map of SMAX, the E copies of a member in one program.

    With one member, the tensors that ``step`` returns share memory with arrays that JAX has let go of; with more they
    are stacked. No later step reads or writes them. Compilation waits for the first step: asking for ``spec`` is quick.

    Args:
        name: of the map.
        seeds: one per member (P).
        copies: E.
        options: see ``SmaxOptions``.

    Raises:
        UserError: JaxMARL is not installed.
    """

    def __init__(self, name: str, *, seeds: Sequence[int], copies: int, options: SmaxOptions) -> None:
        self.members, self.copies, self.name, self.options = len(seeds), copies, name, options
        self.game = game(name, options)
        self.spec = EnvSpec(
            id=f"smax/{name}",
            agents=tuple(self.game.agents),
            obs_sizes=(self.game.obs_size,) * self.game.num_allies,
            action_sizes=(self.game.num_ally_actions,) * self.game.num_allies,
            discrete=True,
            max_steps=max_steps(name, options),
            rules=f"JaxMARL SMAX {version('jaxmarl')}, HeuristicEnemySMAX",
            state_size=self.game.state_size,
            masked=True,
            outcomes=("win_rate", "dead_agents"),
        )
        self._moments: list[Moment] = []
        self._fresh = [_keys(seed, copies) for seed in seeds]
        self._avail = self._state = torch.empty(0)

    @property
    def _programs(self) -> Programs:
        return programs(self.name, self.options, self.copies)

    def _now(self) -> list[Moment]:
        """One per member; an environment that was never reset begins."""
        if not self._moments:
            self.reset()
        return self._moments

    def _show(self, seen: Sequence[Seen]) -> Tensor:
        obs, self._avail, self._state = map(_join, zip(*seen, strict=True))
        return obs

    def reset(self) -> Tensor:
        keys = [moment.key for moment in self._moments] or self._fresh
        began = [self._programs.begin(key) for key in keys]
        self._moments = [moment for moment, _ in began]
        return self._show([seen for _, seen in began])

    def avail(self) -> Tensor:
        self._now()
        return self._avail

    def state(self) -> Tensor:
        self._now()
        return self._state

    def step(self, action: Tensor) -> Step:
        """``[P, N, E]`` int64. An action that is not available does nothing: JaxMARL takes it as "stop"."""
        chosen = action.to(torch.int32, copy=True).numpy()  # a copy: JAX may still read it after this call
        went = [self._programs.advance(moment, own) for moment, own in zip(self._now(), chosen, strict=True)]
        self._moments = [moment for moment, _ in went]
        now, after, *rest = zip(*(outcome for _, outcome in went), strict=True)
        next_obs, next_avail, next_state = map(_join, zip(*after, strict=True))
        reward, terminated, done, outcome = map(_join, rest)
        obs = self._show(now)
        return Step(
            obs,
            next_obs,
            reward,
            terminated[:, None].expand(reward.shape),
            done[:, None].expand(reward.shape),
            avail=self._avail,
            next_avail=next_avail,
            state=self._state,
            next_state=next_state,
            outcome=outcome,
        )

    def state_dict(self) -> State:
        tree = jax_module().tree_util
        members = [tree.tree_flatten_with_path(moment)[0] for moment in self._now()]
        moments = {_path(rows[0][0]): _save([leaf for _, leaf in rows]) for rows in zip(*members, strict=True)}
        return {"moments": moments, "avail": self._avail.clone(), "state": self._state.clone()}

    def load_state_dict(self, state: State) -> None:
        jax, layout = jax_module(), self._programs.layout
        self._moments = [
            jax.tree_util.tree_map_with_path(
                lambda path, like: jax.device_put(_load(state["moments"][_path(path)][p], like.dtype)),  # noqa: B023
                layout,
            )
            for p in range(self.members)
        ]
        self._avail, self._state = state["avail"].clone(), state["state"].clone()

    def render(self, member: int = 0, copy: int = 0) -> np.ndarray:
        world, env = self._now()[member].world.state, self.game
        kinds = np.asarray(world.unit_types[copy])
        return draw(
            np.asarray(world.unit_positions[copy]) / (env.map_width, env.map_height),
            np.asarray(env.unit_type_radiuses)[kinds] / env.map_width,
            np.asarray(world.unit_health[copy]) / np.asarray(env.unit_type_health)[kinds],
            env.num_allies,
        )


def _keys(seed: int, copies: int) -> Array:
    """``[E, 2]`` uint32: a derived seed of 63 bits for each copy, as the two words of a JAX key."""
    return np.array([divmod(derive(seed, "smax", copy), 2**32) for copy in range(copies)], np.uint32)


def _join(members: Sequence[Array]) -> Tensor:
    """``[P, ...]``; a single member's memory is JAX's own, not copied."""
    tensors = [torch.from_dlpack(x) for x in members]
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


def _path(path: tuple[object, ...]) -> str:
    """The name of a leaf, such as ``world.state.unit_health``."""
    return "".join(map(str, path)).lstrip(".")


def _save(members: Sequence[Array]) -> Tensor:
    """A copy, ``[P, E, ...]``; torch can do little with uint32, so those bits are kept as int32."""
    array = np.stack([np.asarray(leaf) for leaf in members])
    return torch.from_numpy(array.view(np.int32) if array.dtype == np.uint32 else array)


def _load(saved: Tensor, dtype: np.dtype) -> np.ndarray:
    return np.array(saved.numpy()).view(dtype)
