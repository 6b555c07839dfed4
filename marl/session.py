"""A training in this process: begun from a recipe or reopened from its folder, ready to advance."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from marl import teaching, transfer
from marl.algos.common import Learner
from marl.checkpoint import Checkpoints
from marl.config import LoopConfig, checked
from marl.doctor import versions
from marl.envs.base import EnvSpec, VectorEnv
from marl.evaluation import Evaluator
from marl.log import Recorder
from marl.loop import Training, first_view
from marl.recipe import Recipe, explain, recipe_of
from marl.runfolder import lock, read_config, write_config
from marl.types import UserError, View


class Session(NamedTuple):
    """What ``marl.loop`` needs; it keeps the run's lock until the ``with`` block of its maker ends."""

    folder: Path
    training: Training
    checkpoints: Checkpoints
    evaluator: Evaluator | None


@contextlib.contextmanager
def begin(
    recipe: Recipe, make_folder: Callable[[], Path], command: str, note: Callable[[str], None]
) -> Iterator[Session]:
    """Begin a run; once its ``config.json`` is written, it can be resumed.

    Args:
        recipe: what to train.
        make_folder: called when environment and learner could be made.
        command: for ``config.json``.
        note: called with a line that the user should know.

    Raises:
        UserError: for anything that only the caller can mend.
    """
    with contextlib.ExitStack() as stack:
        set_threads(recipe.loop)
        env = stack.enter_context(contextlib.closing(recipe.make_env(recipe.loop.copies, recipe.loop.workers)))
        learner = recipe.make_learner(env.spec)
        tables = {
            transfer.TABLE: transfer.start(recipe, learner, env.spec),
            teaching.TABLE: teaching.start(recipe, learner, env.spec),
        }
        view = first_view(env, learner)
        folder = make_folder()
        stack.enter_context(lock(folder))
        for name, table in tables.items():
            if table:
                transfer.write(folder, table, name)
                for line in transfer.lines(table):
                    note(line)
        if not env.spec.exact_state:
            note(f"note: the state of {recipe.environment} cannot be saved; a resumed run starts new episodes")
        training = _assemble(stack, recipe, folder, env, learner, view)
        if not training.buffer.schedule.due(recipe.loop.steps):
            note(f"note: nothing will be learnt: {recipe.loop.steps} steps end before the first update is due")
        checkpoints = Checkpoints.of(folder)
        checkpoints.save(0, training.state_dict(), training.buffer)
        write_config(folder, recipe.to_json() | about(command, env.spec))
        yield _ready(stack, recipe, folder, training, checkpoints)


@contextlib.contextmanager
def reopen(folder: Path, steps: int | None, note: Callable[[str], None]) -> Iterator[Session]:
    """Go back to a run's newest checkpoint that can be used.

    Args:
        folder: the run's.
        steps: a new end; None: the one it has.
        note: as in ``begin``.

    Raises:
        UserError: no run there, in use by another process, no usable checkpoint, ``steps`` before that.
    """
    recipe = read_recipe(folder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock(folder))
        checkpoints = Checkpoints.of(folder)
        loaded = checkpoints.load()
        if steps is not None:
            recipe = extended(recipe, steps, loaded.step)
        env = _again(stack, recipe, loaded.step)
        learner = recipe.make_learner(env.spec)
        with explain(f"{folder}: the checkpoint of step {loaded.step} is not of this run"):
            training = _assemble(stack, recipe, folder, env, learner, first_view(env, learner))
            training.load_state_dict(loaded.state)
            training.buffer.restore(loaded.chunks)
        if steps is not None:
            write_config(folder, {**read_config(folder), **recipe.to_json()})
        if not env.spec.exact_state:
            env.events()  # says the same
            note(f"note: the state of {env.spec.id} could not be saved; new episodes start")
            training.restart_episodes()
        yield _ready(stack, recipe, folder, training, checkpoints)


def read_recipe(folder: Path) -> Recipe:
    """What a run was made from; torch computes with as many threads as it did then."""
    recipe = recipe_of(folder)
    with explain(f"{folder / 'config.json'} is damaged"):
        torch.set_num_threads(read_config(folder)["threads"])
    return recipe


def extended(recipe: Recipe, steps: int, reached: int) -> Recipe:
    """The recipe with a new end; raises ``UserError`` for no whole number, and where the run is beyond it already."""
    steps = checked("steps", int, steps)
    if steps < max(reached, 1):
        raise UserError(f"steps: expected {max(reached, 1)} or more, where the run is now, got {steps}")
    return dataclasses.replace(recipe, loop=dataclasses.replace(recipe.loop, steps=steps))


def about(command: str, spec: EnvSpec) -> dict[str, object]:
    """What ``config.json`` holds besides the recipe."""
    return {"command": command, "versions": versions(), "threads": torch.get_num_threads(), "rules": spec.rules}


def set_threads(loop: LoopConfig) -> None:
    """Use the number of CPU threads asked for; sums of floats, and so a run's bits, depend on it."""
    if loop.threads is not None:
        torch.set_num_threads(loop.threads)


def _again(stack: contextlib.ExitStack, recipe: Recipe, step: int) -> VectorEnv:
    """The environment of a run that goes on from that step.

    One whose state cannot be restored gets other seeds, else it would play its first episodes again.
    """
    env = recipe.make_env(recipe.loop.copies, recipe.loop.workers)
    if not env.spec.exact_state:
        env.close()
        env = recipe.make_env(recipe.loop.copies, recipe.loop.workers, purpose=f"train from {step}")
    return stack.enter_context(contextlib.closing(env))


def _assemble(
    stack: contextlib.ExitStack, recipe: Recipe, folder: Path, env: VectorEnv, learner: Learner, view: View
) -> Training:
    buffer = learner.Buffer.of(recipe.config, env.spec, env.copies, recipe.seeds, learner.memory_size)
    recorder = Recorder(folder, [member.name for member in recipe.members], env.spec.agents)
    stack.callback(recorder.close)
    return Training(recipe.loop, recipe.seeds, env, learner, buffer, recorder, view)


def _ready(
    stack: contextlib.ExitStack, recipe: Recipe, folder: Path, training: Training, checkpoints: Checkpoints
) -> Session:
    evaluator = None
    if recipe.loop.eval_every:
        evaluator = Evaluator(lambda: recipe.make_env(recipe.loop.eval_episodes, purpose="eval"))
        stack.callback(evaluator.close)
    if training.steps == 0:
        training.recorder.describe(read_config(folder))
    return Session(folder, training, checkpoints, evaluator)
