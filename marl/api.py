"""Train, resume, evaluate and load runs from Python; the command line calls the same functions."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marl import config as cfg
from marl.algos.common import Learner
from marl.checkpoint import Checkpoints
from marl.doctor import versions
from marl.envs.base import EnvSpec, VectorEnv
from marl.evaluation import Evaluator, Film
from marl.log import METRICS, Recorder
from marl.loop import Training
from marl.loop import train as run_loop
from marl.recipe import Recipe, explain, make_recipe
from marl.runfolder import lock, new_run, read_config, read_training, write_config
from marl.terminal import progress_bar, say, say_how_to_go_on
from marl.types import UserError, View

RETURN_UNIT = METRICS["eval/return_mean"].member_unit


def train(
    algorithm: str,
    environment: str,
    *,
    seeds: Sequence[int] = (0,),
    sweep: Mapping[str, Sequence[Any]] | None = None,
    run: str | Path | None = None,
    env: Mapping[str, Any] | None = None,
    progress: bool = False,
    command: str = "",
    **settings: Any,
) -> Path:
    """Train a population from scratch.

    Args:
        algorithm: for example ``"maddpg"``.
        environment: for example ``"mpe/simple_spread_v3"``.
        seeds: one member for each.
        sweep: setting -> values; every combination with every seed is a member.
        run: the folder to make; None: ``runs/<algorithm>-<environment>-<time>``.
        env: the environment's options.
        progress: show a bar on stderr.
        command: what to write into ``config.json`` as the command; by default that of this process.
        settings: of the loop (``steps=100_000``) or the algorithm (``**{"reciprocity.kappa": 0.5}``).

    Returns:
        The run's folder.

    Raises:
        UserError: for anything that only the caller can mend.
        Interrupted: after SIGINT or SIGTERM, once everything is saved.
    """
    recipe = make_recipe(algorithm, environment, seeds, sweep or {}, env or {}, settings)
    with contextlib.ExitStack() as stack:
        set_threads(recipe.loop)
        training_env = stack.enter_context(contextlib.closing(recipe.make_env(recipe.loop.copies, recipe.loop.workers)))
        learner = recipe.make_learner(training_env.spec)
        folder = new_run(algorithm, environment, Path(run) if run else None)
        stack.enter_context(lock(folder))
        if not training_env.spec.exact_state:
            say(f"note: the state of {environment} cannot be saved; a resumed run starts new episodes")
        training, recorder = _assemble(recipe, folder, training_env, learner)
        stack.callback(recorder.close)
        if progress and not training.buffer.schedule.due(recipe.loop.steps):
            say(f"note: nothing will be learnt: {recipe.loop.steps} steps end before the first update is due")
        checkpoints = Checkpoints(folder / "checkpoints")
        checkpoints.save(0, training.state_dict(), training.buffer)
        about = {"command": command or shlex.join(sys.argv), "versions": versions(), "threads": torch.get_num_threads()}
        about["rules"] = training_env.spec.rules
        write_config(folder, {**recipe.to_json(), **about})  # from now on it is a run, and can be resumed
        _run(recipe, training, checkpoints, progress)
    return folder


def resume(run: str | Path, *, steps: int | None = None, progress: bool = False) -> Path:
    """Go on with a run from its last checkpoint, to the same bits as if it had never stopped.

    Args:
        run: its folder.
        steps: a new end; None: the one it was started with.
        progress: show a bar on stderr.

    Raises:
        UserError: no run there, in use by another process, no usable checkpoint.
        Interrupted: as in ``train``.
    """
    folder = Path(run)
    recipe = _read_recipe(folder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock(folder))
        checkpoints = Checkpoints(folder / "checkpoints")
        loaded = checkpoints.load()
        if steps is not None:
            if steps < max(loaded.step, 1):
                raise UserError(f"steps: expected {max(loaded.step, 1)} or more, where the run is now, got {steps}")
            recipe = dataclasses.replace(recipe, loop=dataclasses.replace(recipe.loop, steps=steps))
        env = stack.enter_context(contextlib.closing(recipe.make_env(recipe.loop.copies, recipe.loop.workers)))
        learner = recipe.make_learner(env.spec)
        with explain(f"{folder}: the checkpoint of step {loaded.step} is not of this run"):
            training, recorder = _assemble(recipe, folder, env, learner)
            stack.callback(recorder.close)
            training.load_state_dict(loaded.state)
            training.buffer.restore(loaded.chunks)
        if steps is not None:
            write_config(folder, {**read_config(folder), **recipe.to_json()})
        if not env.spec.exact_state:
            env.events()  # says the same
            say(f"note: the state of {env.spec.id} could not be saved; new episodes start")
            training.restart_episodes()
        if progress:
            say(f"going on from step {loaded.step}, the newest checkpoint")
        _run(recipe, training, checkpoints, progress)
    return folder


def _read_recipe(folder: Path) -> Recipe:
    """What a run was made from; torch computes with as many threads as it did then."""
    values = read_training(folder)
    recipe = Recipe.from_json(values)
    with explain(f"{folder / 'config.json'} is damaged"):
        torch.set_num_threads(values["threads"])
    return recipe


def _load_learner(folder: Path, recipe: Recipe, spec: EnvSpec) -> tuple[int, Learner]:
    """The step of the newest checkpoint and its population."""
    loaded = Checkpoints(folder / "checkpoints").load()
    learner = recipe.make_learner(spec)
    with explain(f"{folder}: the checkpoint of step {loaded.step} is not of this run"):
        learner.load_state_dict(loaded.state["learner"])
    return loaded.step, learner


def _assemble(recipe: Recipe, folder: Path, env: VectorEnv, learner: Learner) -> tuple[Training, Recorder]:
    buffer = learner.Buffer.of(recipe.config, env.spec, env.copies, recipe.seeds, learner.memory_size)
    recorder = Recorder(folder, [member.name for member in recipe.members], env.spec.agents)
    return Training(recipe.loop, recipe.seeds, env, learner, buffer, recorder), recorder


def _run(recipe: Recipe, training: Training, checkpoints: Checkpoints, progress: bool) -> None:
    with contextlib.ExitStack() as stack:
        evaluator = None
        if recipe.loop.eval_every:
            evaluator = Evaluator(lambda: recipe.make_env(recipe.loop.eval_episodes, purpose="eval"))
            stack.callback(evaluator.close)
        if training.steps == 0:
            training.recorder.describe(read_config(training.recorder.folder))
        stack.enter_context(say_how_to_go_on(training.recorder.folder))
        show = stack.enter_context(_bar(training, progress))
        run_loop(training, checkpoints, evaluator, show, say)


@contextlib.contextmanager
def _bar(training: Training, progress: bool) -> Iterator[Callable[..., None]]:
    """How the loop shows its progress."""
    copies = training.env.copies
    total = -(-training.config.steps // copies) * copies  # whole steps of all copies
    bar = progress_bar(total, training.steps, "step", progress)
    shown: dict[str, str] = {}

    def show(training: Training, rates: Mapping[str, float], news: Mapping[str, Tensor]) -> None:
        bar.update(training.steps - bar.n)
        shown.update({f"{kind}/s": f"{rate:.0f}" for kind, rate in rates.items()})
        shown.update({name.split("/")[0]: f"{news[name].mean():.2f}" for name in news if name.endswith("return_mean")})
        if rates or news:
            bar.set_postfix(shown, refresh=False)

    with contextlib.closing(bar):
        yield show


def set_threads(loop: cfg.LoopConfig) -> None:
    """Use the number of CPU threads asked for; sums of floats, and so a run's bits, depend on it."""
    if loop.threads is not None:
        torch.set_num_threads(loop.threads)


def evaluate(run: str | Path, episodes: int = 100, video: str | Path | None = None, member: int = 0) -> dict[str, Any]:
    """Play a run's newest policies without exploration; equal weights give equal numbers.

    Args:
        run: its folder.
        episodes: for each member.
        video: where to write an MP4 of the first episodes of one member; None: nowhere.
        member: which one to film.

    Returns:
        ``{"run", "step", "episodes", "members": [{"name", "mean", "standard_error", "unit", "outcomes"}]}``;
        ``outcomes`` holds the means of what else the environment tells of an episode, such as ``win_rate``.

    Raises:
        UserError: no run or no usable checkpoint there, or fewer than one episode.
    """
    if episodes < 1:
        raise UserError(f"episodes: expected 1 or more, got {episodes}")
    folder = Path(run)
    recipe = _read_recipe(folder)
    if not 0 <= member < len(recipe.members):
        raise UserError(f"member: expected 0 to {len(recipe.members) - 1}, got {member}")
    evaluator = Evaluator(lambda: recipe.make_env(episodes, purpose="eval"))
    with contextlib.closing(evaluator):
        step, learner = _load_learner(folder, recipe, evaluator.env.spec)
        film = Film(member, copies=min(episodes, 3)) if video is not None else None
        metrics = evaluator(learner, film).metrics()
        if film is not None and video is not None:
            film.write(Path(video))
    means = metrics["eval/return_mean"].mean(1).tolist()
    errors = [None if np.isnan(error) else error for error in metrics["eval/return_stderr"].tolist()]
    names = evaluator.env.spec.outcomes
    rows = [
        {"name": m.name, "mean": mean, "standard_error": error, "unit": RETURN_UNIT}
        | {"outcomes": {name: metrics[f"eval/{name}"][p].item() for name in names}}
        for p, (m, mean, error) in enumerate(zip(recipe.members, means, errors, strict=True))
    ]
    return {"run": str(folder), "step": step, "episodes": episodes, "members": rows}


class Team:
    """A trained team of one population member, ready to act.

    A team that notes something from step to step (a recurrent one) must be told where episodes begin: ``reset``.

    Attributes:
        spec: of the environment it was trained in.
        name: the member's.
    """

    def __init__(self, spec: EnvSpec, name: str, learner: Learner, member: int, members: int) -> None:
        self.spec, self.name = spec, name
        self._learner, self._member, self._members = learner, member, members
        self.reset()

    def reset(self) -> None:
        """Forget the episode so far; to be called before a new one."""
        size = self._learner.memory_size
        self._memory = torch.zeros(self._members, self.spec.n_agents, 1, size) if size else None

    def act(
        self, obs: Mapping[str, Any] | Sequence[Any], avail: Mapping[str, Any] | Sequence[Any] | None = None
    ) -> Any:
        """The team's actions, without exploration.

        Args:
            obs: one observation vector for each agent, in the order of ``spec.agents``; or by agent's name.
            avail: likewise, which of its discrete actions each agent may take, one flag each; None: all.

        Returns:
            One action for each agent, as a dictionary if ``obs`` was one: vectors in [-1, 1], or an index.

        Raises:
            UserError: an agent is missing, or what it sees has another width than in training.
        """
        seen = self._padded("obs", obs, self.spec.obs_sizes)
        may = self.spec.action_mask[:, None].expand(self._members, -1, -1, -1)
        if avail is not None:
            may = self._padded("avail", avail, self.spec.action_sizes).bool()
        view = View(seen, may if self.spec.masked else None, None, self._memory)
        acted = self._learner.act(view, explore=False)
        self._memory = acted.memory
        action = acted.action[self._member, :, 0]
        if self.spec.discrete:
            actions: list[Any] = action.tolist()
        else:
            actions = [a[:size].numpy() for a, size in zip(action, self.spec.action_sizes, strict=True)]
        return dict(zip(self.spec.agents, actions, strict=True)) if isinstance(obs, Mapping) else actions

    def _padded(self, what: str, given: Mapping[str, Any] | Sequence[Any], sizes: Sequence[int]) -> Tensor:
        """One vector for each agent as ``[P, N, 1, widest]``, the same for every member."""
        vectors = [given[agent] for agent in self._known(what, given)] if isinstance(given, Mapping) else list(given)
        if len(vectors) != self.spec.n_agents:
            raise UserError(f"{what}: expected one vector for each of {self.spec.n_agents} agents, got {len(vectors)}")
        padded = torch.zeros(self._members, self.spec.n_agents, 1, max(sizes))
        for i, (vector, size) in enumerate(zip(vectors, sizes, strict=True)):
            value = torch.as_tensor(vector, dtype=torch.float32).flatten()
            if len(value) != size:
                raise UserError(f"{what} of {self.spec.agents[i]}: expected {size} numbers, got {len(value)}")
            padded[:, i, 0, :size] = value
        return padded

    def _known(self, what: str, given: Mapping[str, Any]) -> Sequence[str]:
        for agent in self.spec.agents:
            if agent not in given:
                raise UserError(f"{what}: agent {agent!r} is missing{cfg.suggestion(agent, given)}")
        return self.spec.agents


def load(run: str | Path, member: int = 0) -> Team:
    """The newest team of one member of a run; raises ``UserError`` where there is none."""
    folder = Path(run)
    recipe = _read_recipe(folder)
    if not 0 <= member < len(recipe.members):
        raise UserError(f"member: expected 0 to {len(recipe.members) - 1}, got {member}")
    with contextlib.closing(recipe.make_env(copies=1)) as env:
        spec = env.spec
    _, learner = _load_learner(folder, recipe, spec)
    return Team(spec, recipe.members[member].name, learner, member, len(recipe.members))
