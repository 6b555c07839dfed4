"""Evaluation: the deterministic policy on environments of its own, the same episodes every time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from marl.algos.common import Player, following, with_nothing_noted
from marl.envs.base import VectorEnv
from marl.runfolder import check_target, explain_disk_errors, write_atomically
from marl.terminal import progress_bar
from marl.types import UserError

OnStep = Callable[[VectorEnv, Tensor], None]
"""Called with the environment and the episodes still running (``[P, N, E]`` bool), before each step of an evaluation
and when none is left."""


class Evaluation(NamedTuple):
    """What E episodes of each member brought.

    Attributes:
        returns: ``[P, N, E]``, the undiscounted sum of an agent's rewards over its episode.
        lengths: ``[P, N, E]``, steps.
        outcomes: by name ``[P, E]``, what else the environment tells of an episode.
        events: what happened to the environment that the user should know, a line each.
    """

    returns: Tensor
    lengths: Tensor
    outcomes: dict[str, Tensor]
    events: Sequence[str] = ()

    def metrics(self) -> dict[str, Tensor]:
        """Named as in ``marl.log.METRICS``."""
        team = self.returns.mean(1)  # [P, E], mean over agents
        episodes = team.shape[-1]
        error = team.std(-1, correction=1) / episodes**0.5 if episodes > 1 else torch.full_like(team[:, 0], torch.nan)
        return {
            "eval/return_mean": self.returns.mean(-1),
            "eval/return_sum": self.returns.sum(1).mean(-1),
            "eval/return_stderr": error,
            "eval/episode_length": self.lengths.mean((1, 2)),
            **{f"eval/{name}": value.mean(-1) for name, value in self.outcomes.items()},
        }


class Evaluator:
    """Plays one episode on each copy of an environment; every call plays the same ones.

    Args:
        make: builds the environment, with as many copies as there shall be episodes.
    """

    def __init__(self, make: Callable[[], VectorEnv]) -> None:
        self.make = make
        self.env = make()
        self.first_view = self.env.start()
        self.first_state = self.env.state_dict() if self.env.spec.exact_state else None
        self.fresh = True

    def __call__(self, player: Player, on_step: OnStep | None = None) -> Evaluation:
        """Play the episodes to their ends.

        Args:
            player: acts without exploration.
            on_step: sees every step, for example a ``Film``.
        """
        self._start_over()
        view, names = with_nothing_noted(self.first_view, player.memory_size), self.env.spec.outcomes
        running = torch.ones(view.obs.shape[:3], dtype=torch.bool)
        returns, lengths = torch.zeros(running.shape, dtype=torch.float64), torch.zeros(running.shape)
        outcomes = torch.zeros(len(running), running.shape[-1], len(names))
        while running.any():
            if on_step is not None:
                on_step(self.env, running)
            acted, playing = player.act(view, explore=False), running.clone()
            step = self.env.step(acted.action)
            returns += step.reward * running
            lengths += running
            if step.outcome is not None:
                ending = (step.done & running).all(1)
                outcomes = torch.where(ending.unsqueeze(-1), step.outcome, outcomes)
            running &= ~step.done
            if step.lost is not None:  # its process died: the episode that begins now counts instead
                again = step.lost & playing
                returns, lengths = returns.masked_fill(again, 0.0), lengths.masked_fill(again, 0.0)
                running |= again
            view = following(acted, step)
        if on_step is not None:
            on_step(self.env, running)
        named = {name: outcomes[..., k] for k, name in enumerate(names)}
        return Evaluation(returns, lengths, named, self.env.events())

    def _start_over(self) -> None:
        if self.fresh:
            self.fresh = False
        elif self.first_state is not None:
            self.env.load_state_dict(self.first_state)
        else:
            self.env.close()
            self.env = self.make()
            self.first_view = self.env.start()

    def close(self) -> None:
        self.env.close()


class Progress:
    """A bar on stderr for one evaluation or several: the steps of all episodes, and how many of these have ended.

    Args:
        episodes: of all evaluations together.
        visible: False: there is no bar.
    """

    def __init__(self, episodes: int, visible: bool) -> None:
        self.episodes, self.begun = episodes, 0
        self.bar = progress_bar(None, 0, "step", visible, late=True)

    def beside(self, film: Film | None) -> OnStep:
        """The ``on_step`` of one evaluation, which may be filmed."""
        before = self.begun

        def show(env: VectorEnv, running: Tensor) -> None:
            if film is not None:
                film(env, running)
            playing = running.any(1)
            self.begun = before + playing.numel()
            left = int(playing.sum())
            self.bar.set_postfix_str(f"{self.begun - left} of {self.episodes} episodes", refresh=False)
            self.bar.update(left)

        return show

    def close(self) -> None:
        """The bar stays as it is."""
        self.bar.close()


class NotFilmed(UserError):
    """The episodes were played and only their film could not be written; ``result`` is what else was asked for."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result


class Film:
    """Collects the pictures of one copy until its episode ends, and writes them as a video.

    Args:
        member: which population member to film.
        copies: how many episodes, one after the other.
    """

    def __init__(self, member: int = 0, copies: int = 1) -> None:
        self.member = member
        self.frames: list[list[np.ndarray]] = [[] for _ in range(copies)]

    def __call__(self, env: VectorEnv, running: Tensor) -> None:
        """Take one picture of each filmed episode that still runs; pass this as ``on_step``."""
        for copy, frames in enumerate(self.frames):
            if running[self.member, :, copy].any():
                frames.append(env.render(self.member, copy))

    def write(self, path: Path, frames_per_second: int = 15) -> Path:
        """Write an MP4 (H.264), whole or not at all.

        Its sides are cropped to even numbers of pixels, as the format wants.

        Raises:
            UserError: the name does not end in ``.mp4``, or the file cannot be made or written.
        """
        check_target(path, ".mp4")
        pictures = np.stack([frame for episode in self.frames for frame in episode])
        height, width = (side // 2 * 2 for side in pictures.shape[1:3])
        try:
            import imageio.v3 as iio

            with warnings.catch_warnings():
                # JAX warns of every new process; a new program (ffmpeg) takes none of its locks along.
                warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
                film = iio.imwrite(
                    "<bytes>",
                    pictures[:, :height, :width],
                    extension=".mp4",
                    fps=frames_per_second,
                    codec="libx264",
                    plugin="FFMPEG",
                    macro_block_size=2,
                )
        except (ImportError, OSError, RuntimeError) as error:
            raise UserError(f"{path} was not written: {' '.join(str(error).split())}") from error
        with explain_disk_errors(path.absolute().parent, f"{path.name} was not written"):
            write_atomically(path, film)
        return path
