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
from marl import parts
from marl.evaluation import Evaluator, Film, NotFilmed, OnStep, Progress
from marl.log import METRICS
from marl.loop import Training
from marl.loop import train as run_loop
from marl.recipe import load_learner, make_recipe, recipe_of
from marl.runfolder import check_target, new_run, to_make
from marl.session import Session, begin, read_recipe, reopen
from marl.sources import at_step, origin
from marl.sources import teachers as frozen
from marl.surroundings import plain_torch
from marl.terminal import progress_bar, say, say_how_to_go_on, say_where
from marl.types import UserError, View

RETURN_UNIT = METRICS["eval/return_mean"].member_unit


@plain_torch()
def train(
    algorithm: str,
    environment: str,
    *,
    seeds: Sequence[int] = (0,),
    sweep: Mapping[str, Sequence[Any]] | None = None,
    run: str | Path | None = None,
    env: Mapping[str, Any] | None = None,
    init_from: str | Path | Team | None = None,
    init_networks: Sequence[str] = (),
    teachers: str | Sequence[str] = (),
    progress: bool = False,
    command: str = "",
    **settings: Any,
) -> Path:
    """Train a population from scratch, or from what other runs have learnt.

    Args:
        algorithm: for example ``"maddpg"``.
        environment: for example ``"mpe/simple_spread_v3"``.
        seeds: one member for each.
        sweep: setting -> values; every combination with every seed is a member.
        run: the folder to make; None: ``runs/<algorithm>-<environment>-<time>``.
        env: the environment's options.
        init_from: ``RUN`` or ``RUN:agent``, whose networks to start from as far as they fit; the table of what became
            of each is said and written into the run's folder as ``init.csv``. Or a team that ``load`` returned, from
            which all members start.
        init_networks: which of them; (): all.
        teachers: ``RUN:agent`` each, frozen policies to learn from (``maptf``, ``maptf-mappo``, ``dvm``); what each
            reads and answers is said and written as ``teachers.csv``.
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
    names = [member.name for member in recipe.members]
    init_networks = [init_networks] if isinstance(init_networks, str) else init_networks
    if isinstance(init_from, Team):
        init = origin(str(init_from._place), names, init_networks, only=init_from.member)
        at_step(init["members"], init_from.step)
        recipe = dataclasses.replace(recipe, init=init | {"given": f"{init_from.run} {init_from.name}"})
    elif init_from is not None:
        recipe = dataclasses.replace(recipe, init=origin(str(init_from), names, init_networks))
    elif init_networks:
        raise UserError("init_networks: of which run? init_from names none")
    if teachers:
        named: Sequence[Any] = teachers if isinstance(teachers, list | tuple) else [teachers]
        for teacher in named:
            if not isinstance(teacher, str):
                raise UserError(f"teachers: expected 'RUN:agent', got a {type(teacher).__name__}")
        recipe = dataclasses.replace(recipe, teachers=frozen(named, names, algorithm))
    command, folder = command or shlex.join(sys.argv), None if run is None else to_make(run)
    if parts.wanted(recipe.loop):
        return parts.train(recipe, folder, command, progress)
    with begin(recipe, lambda: new_run(algorithm, environment, folder), command, say) as session:
        _run(session, progress)
    return session.folder


@plain_torch()
def resume(run: str | Path, *, steps: int | None = None, address: str | None = None, progress: bool = False) -> Path:
    """Go on with a run from its last checkpoint, to the same bits as if it had never stopped.

    Args:
        run: its folder.
        steps: a new end; None: the one it was started with.
        address: of the Ray cluster that its workers are on; None: the one it was started with.
        progress: show a bar on stderr.

    Raises:
        UserError: no run there, in use by another process, no usable checkpoint.
        Interrupted: as in ``train``.
    """
    folder = Path(run)
    if parts.names(folder):
        return parts.resume(folder, steps, progress, address)
    if address is not None:
        raise UserError(f"address {address}: {folder} has no workers on a Ray cluster")
    with reopen(folder, steps, say) as session:
        training = session.training
        if progress:
            say_where(f"step {training.steps}", training.steps >= training.config.steps)
        _run(session, progress)
    return folder


def _run(session: Session, progress: bool) -> None:
    with say_how_to_go_on(session.folder), _bar(session.training, progress) as show:
        run_loop(session.training, session.checkpoints, session.evaluator, show, say)


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


@plain_torch()
def evaluate(
    run: str | Path,
    episodes: int = 100,
    video: str | Path | None = None,
    member: int | str = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Play a run's newest policies without exploration; equal weights give equal numbers.

    Args:
        run: its folder.
        episodes: for each member.
        video: where to write an MP4 of the first episodes of one member; None: nowhere.
        member: which one to film, its number or name.
        progress: show a bar on stderr.

    Returns:
        ``{"run", "step", "episodes", "members": [{"name", "mean", "standard_error", "unit", "outcomes"}]}``;
        ``outcomes`` holds the means of what else the environment tells of an episode, such as ``win_rate``.

    Raises:
        UserError: no run or no usable checkpoint there, no such member, fewer than one episode, or a ``video`` that
            does not end in ``.mp4`` or cannot be written.
    """
    episodes = cfg.checked("episodes", int, episodes)
    if episodes < 1:
        raise UserError(f"episodes: expected 1 or more, got {episodes}")
    home, local = parts.home(Path(run), member_number(run, member))
    if video is not None:
        check_target(Path(video), ".mp4")
    film = Film(local, copies=min(episodes, 3)) if video is not None else None
    steps, rows = [], []
    members = len(recipe_of(Path(run)).members)
    with contextlib.closing(Progress(members * episodes, progress)) as bar:
        for folder in parts.folders(Path(run)):
            step, found = _evaluate(folder, episodes, bar.beside(film if folder == home else None))
            steps.append(step)
            rows += found
    result = {"run": str(Path(run)), "step": min(steps), "episodes": episodes, "members": rows}
    if film is not None and video is not None:
        try:
            film.write(Path(video))
        except UserError as error:
            raise NotFilmed(str(error), result) from error
    return result


def member_number(run: str | Path, member: int | str, what: str = "member") -> int:
    """The number of the member of a run that is called ``member``, or has that number.

    Raises:
        UserError: neither a name of the run's nor a number; ``what`` was given, in the words of the message.
    """
    member = cfg.checked(what, int | str, member)
    if isinstance(member, int):
        return member
    names = [each.name for each in recipe_of(Path(run)).members]
    if member not in names and not member.lstrip("-").isdecimal():
        raise UserError(f"{what} {member}: no such member{cfg.suggestion(member, names)}")
    return names.index(member) if member in names else int(member)


def _evaluate(folder: Path, episodes: int, on_step: OnStep) -> tuple[int, list[dict[str, Any]]]:
    """The step of the newest checkpoint and a row for each member that is in it."""
    recipe = read_recipe(folder)
    evaluator = Evaluator(lambda: recipe.make_env(episodes, purpose="eval"))
    with contextlib.closing(evaluator):
        step, learner = load_learner(folder, recipe, evaluator.env.spec)
        played = evaluator(learner, on_step)
    for event in played.events:
        say(f"evaluation: {event}")
    metrics = played.metrics()
    means = metrics["eval/return_mean"].mean(1).tolist()
    errors = [None if np.isnan(error) else error for error in metrics["eval/return_stderr"].tolist()]
    names = evaluator.env.spec.outcomes
    return step, [
        {"name": m.name, "mean": mean, "standard_error": error, "unit": RETURN_UNIT}
        | {"outcomes": {name: metrics[f"eval/{name}"][p].item() for name in names}}
        for p, (m, mean, error) in enumerate(zip(recipe.members, means, errors, strict=True))
    ]


class Team:
    """A trained team of one population member, ready to act.

    A team that notes something from step to step (a recurrent one) must be told where episodes begin: ``reset``.

    Attributes:
        run, member: the run's folder, and the member's number in it.
        step: of the checkpoint that it was loaded from.
        spec: of the environment it was trained in.
        name: the member's.
    """

    @plain_torch()
    def __init__(self, run: Path, member: int | str) -> None:
        """As ``load``."""
        self.run, self.member = run, member_number(run, member)
        self._place = run.absolute()
        home, self._member = parts.home(run, self.member)
        recipe = read_recipe(home)
        self.spec = recipe.spec()
        self.step, self._learner = load_learner(home, recipe, self.spec)
        self.name, self._members = recipe.members[self._member].name, len(recipe.members)
        self.reset()

    @plain_torch()
    def reset(self) -> None:
        """Forget the episode so far; to be called before a new one."""
        size = self._learner.memory_size
        self._memory = torch.zeros(self._members, self.spec.n_agents, 1, size) if size else None

    @plain_torch()
    def act(
        self, obs: Mapping[str, Any] | Sequence[Any], avail: Mapping[str, Any] | Sequence[Any] | None = None
    ) -> Any:
        """The team's actions, without exploration.

        Args:
            obs: one observation vector for each agent, in the order of ``spec.agents``; or by agent's name.
            avail: likewise, which of its discrete actions each agent may take, one flag each; None: all. Only where
                ``spec.masked``.

        Returns:
            One action for each agent, as a dictionary if ``obs`` was one: vectors in [-1, 1], or an index.

        Raises:
            UserError: an agent is missing, what it sees has another width than in training, or ``avail`` is given to
                a policy that has no such input.
        """
        seen = self._padded("obs", obs, self.spec.obs_sizes)
        may = self.spec.action_mask[:, None].expand(self._members, -1, -1, -1)
        if avail is not None:
            if not self.spec.masked:
                raise UserError(f"avail: this policy has no such input, in {self.spec.id} every action is allowed")
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


def load(run: str | Path, member: int | str = 0) -> Team:
    """The newest team of one member of a run, its number or name; raises ``UserError`` where there is none.

    From then on torch computes with the run's number of threads, on which the bits of actions depend.
    """
    return Team(Path(run), member)
