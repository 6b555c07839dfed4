"""What a run measures: one table of metrics with their units, written to ``metrics.csv`` and to TensorBoard."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from marl.events import EventFile, csv_text
from marl.runfolder import explain_disk_errors
from marl.types import State, UserError

COLUMNS = ("step", "member", "metric", "agent", "unit", "value")
"""The columns of ``metrics.csv``; ``agent`` is empty where the value belongs to the member as a whole."""

CSV = "metrics.csv"
TENSORBOARD = "tensorboard"


class Metric(NamedTuple):
    """A name's meaning.

    Attributes:
        unit: of one value; a mean over agents adds ", mean over agents".
        help: one sentence.
        per_agent: each agent has its own value, and the member's value is their mean.
    """

    unit: str
    help: str
    per_agent: bool = False

    @property
    def member_unit(self) -> str:
        """The unit of the member's value."""
        return f"{self.unit}, mean over agents" if self.per_agent else self.unit


METRICS: dict[str, Metric] = {
    "train/return_mean": Metric("reward per episode", "Return of the episodes that ended since the last row.", True),
    "train/return_sum": Metric("reward per episode, sum over agents", "The same as the team's return."),
    "train/episode_length": Metric("steps", "Length of the episodes that ended since the last row, mean."),
    "eval/return_mean": Metric("reward per episode", "Return without exploration, mean over the episodes.", True),
    "eval/return_sum": Metric("reward per episode, sum over agents", "The same as the team's return."),
    "eval/return_stderr": Metric("reward per episode, mean over agents", "Standard error of eval/return_mean."),
    "eval/episode_length": Metric("steps", "Length of the evaluation episodes, mean."),
    "train/win_rate": Metric("fraction of episodes", "Battles won among the episodes that ended since the last row."),
    "train/dead_agents": Metric("agents per episode", "Own agents that were dead at the end of those episodes, mean."),
    "eval/win_rate": Metric("fraction of episodes", "Battles won without exploration."),
    "eval/dead_agents": Metric("agents per episode", "Own agents that were dead at the end, mean."),
    "loss/critic": Metric(
        "squared return",
        "Error that the critic minimises, batch mean (Huber for DQN and MAPPO, there of normalised values).",
        True,
    ),
    "loss/actor": Metric("return", "What the actor minimises: the critic's value, negated; or PPO's surrogate.", True),
    "value/q_mean": Metric("discounted return", "The critic's value of the batch, mean over the batch.", True),
    "value/target_mean": Metric("discounted return", "What the critic is trained towards, mean over the batch.", True),
    "value/target_gap": Metric("discounted return", "|Z* - Z|: how far reciprocity moves the target value.", True),
    "value/explained_variance": Metric(
        "fraction of variance", "1 - Var(target - value) / Var(target) in the batch.", True
    ),
    "policy/entropy": Metric("nats", "Entropy of the policy, mean over the batch.", True),
    "policy/kl": Metric("nats", "Divergence from the policy that acted to the one that learnt, estimated.", True),
    "policy/clip_fraction": Metric("fraction of actions", "Actions whose probability ratio was out of bounds.", True),
    "grad/critic_norm": Metric("L2 norm", "Gradient of one critic before clipping.", True),
    "grad/actor_norm": Metric("L2 norm", "Gradient of one actor before clipping.", True),
    "explore/epsilon": Metric("probability", "Chance of a random action in training.", True),
    "loss/imitation": Metric("return", "What imitating the chosen agent adds to the actor's loss, batch mean.", True),
    "loss/option": Metric("squared features", "What the option module minimises, mean over the batch.", True),
    "option/value": Metric("discounted return", "Worth of the option in use, one step later.", True),
    "option/beta": Metric("probability", "Chance that the option in use ends, one step later.", True),
    "option/own": Metric("fraction of steps", "Steps on which nobody else was to be imitated.", True),
    "option/teacher": Metric("fraction of steps", "Steps on which a frozen teacher was to be imitated.", True),
    "distil/policy": Metric("nats", "Divergence of the distilled policy from the agent's own, batch mean.", True),
    "distil/value": Metric("squared return", "Squared error of the distilled critic to the agent's own.", True),
    "distil/teachers": Metric("nats", "Divergence of the distilled policy from the frozen teachers, their sum.", True),
    "speed/env_steps_per_second": Metric("environment steps per second", "Training steps, summed over members."),
    "speed/updates_per_second": Metric("updates per second", "Updates of the whole population."),
    "speed/eval_steps_per_second": Metric("environment steps per second", "Evaluation steps, summed over members."),
    "replay/size": Metric("transitions", "Transitions that the buffer holds for one member."),
    "events/worker_restarts": Metric("events so far", "Environment workers that died or hung and were restarted."),
    "events/lost_transitions": Metric("transitions so far", "Transitions that never happened, by a worker's death."),
}
"""Every metric that a run may write, in the order of its documentation."""


def tag(name: str, agent: str = "") -> str:
    """A metric's name in TensorBoard, its unit in brackets: ``eval/episode_length [steps]``."""
    metric = METRICS[name]
    return f"{name}/{agent} [{metric.unit}]" if agent else f"{name} [{metric.member_unit}]"


class Recorder:
    """Writes a run's numbers; both files of an interrupted and resumed run say what an uninterrupted one says.

    Args:
        folder: the run's.
        members: names of the P population members; each is a TensorBoard run of its own.
        agents: names of the N agents.

    Raises:
        UserError: (every method) the disk is full or cannot be written to.
    """

    def __init__(self, folder: Path, members: Sequence[str], agents: Sequence[str]) -> None:
        self.folder = folder.absolute()  # of now, wherever the process goes later
        self.members = list(members)
        self.agents = list(agents)
        self._step = -1
        self._purge: int | None = None
        self._events: list[EventFile] = []
        with self._disk():
            self._csv = (folder / CSV).open("a+b")
            self._csv.truncate(_whole_lines(self._csv))
            if os.fstat(self._csv.fileno()).st_size == 0:
                self._csv.write(csv_text([COLUMNS]))

    def write(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Record one value for each member, or for each agent of each member.

        Args:
            step: environment steps per member so far.
            values: metric's name -> ``[P]`` or ``[P, N]``. ``[P, N]`` gives N values and their mean; ``[P, 1]`` is
                ``[P]`` (one agent, or one network that all agents share).

        Raises:
            UserError: a name is not in ``METRICS``.
            ValueError: a value has another shape.
        """
        for name in values:
            if name not in METRICS:
                raise UserError(f"no metric {name!r}: register it in marl.log.METRICS, with its unit")
        self._step = step
        rows: list[tuple[Any, ...]] = []
        with self._disk():
            writers = self._writers()
            for name, value in values.items():
                metric = METRICS[name]
                for p, (mean, each) in enumerate(self._numbers(name, value)):
                    rows.append((step, self.members[p], name, "", metric.member_unit, mean))
                    writers[p].scalar(step, tag(name), mean)
                    for agent, number in zip(self.agents, each, strict=False):
                        rows.append((step, self.members[p], name, agent, metric.unit, number))
                        writers[p].scalar(step, tag(name, agent), number)
            self._csv.write(csv_text(rows))

    def describe(self, config: Mapping[str, Any]) -> None:
        """Show the run's configuration in TensorBoard: a text page and a row of hyper-parameters for each member.

        Args:
            config: what ``config.json`` holds. Call it once, when the run starts.
        """
        with self._disk():
            for name, writer in zip(self.members, self._writers(), strict=True):
                table = member_settings(config, name)
                rows = "".join(f"| {key} | {value} |\n" for key, value in table.items())
                command = config.get("command", "")
                writer.text("configuration", f"`{command}`\n\n| setting | value |\n|---|---|\n{rows}")
                writer.hyper_parameters(table, [tag("eval/return_mean"), tag("eval/return_sum")])

    def flush(self) -> None:
        """Let readers see everything written so far."""
        with self._disk():
            self._csv.flush()
            for file in self._events:
                file.flush()

    def close(self) -> None:
        """Write what is left and let go of the files."""
        with self._disk():
            self._csv.close()
            for file in self._events:
                file.close()

    def state_dict(self) -> State:
        """How far the files reach. Record everything of a step before the checkpoint of that step."""
        self.flush()
        with self._disk():
            os.fsync(self._csv.fileno())
            return {"step": self._step, "csv_bytes": os.fstat(self._csv.fileno()).st_size}

    def load_state_dict(self, state: State) -> None:
        """Forget what was written after ``state_dict``; call it before the first ``write``."""
        with self._disk():
            self._csv.flush()
            found = os.fstat(self._csv.fileno()).st_size
            if found < state["csv_bytes"]:
                missing = state["csv_bytes"] - found
                logging.getLogger("marl").warning("%s lacks %d bytes of its past", self.folder / CSV, missing)
            else:
                self._csv.truncate(state["csv_bytes"])
        self._step = state["step"]
        self._purge = self._step + 1

    def _numbers(self, name: str, value: Tensor) -> list[tuple[float, list[float]]]:
        """For each member its value, and the agents' where there are several."""
        members, agents = len(self.members), len(self.agents)
        numbers = value.detach().to("cpu", torch.float64)
        if numbers.shape in ((members,), (members, 1)):
            return [(number, []) for number in numbers.flatten().tolist()]
        if METRICS[name].per_agent and numbers.shape == (members, agents):
            return list(zip(numbers.mean(1).tolist(), numbers.tolist(), strict=True))
        expected = f"[{members}] or [{members}, {agents}]" if METRICS[name].per_agent else f"[{members}]"
        raise ValueError(f"{name}: expected the shape {expected}, got {list(value.shape)}")

    def _writers(self) -> list[EventFile]:
        """Opened at the first use, since a resumed recorder learns only then from which step on it writes."""
        if not self._events:
            self._events = [EventFile(self.folder / TENSORBOARD / member, self._purge) for member in self.members]
        return self._events

    def _disk(self) -> Any:
        return explain_disk_errors(self.folder, "the last rows were not recorded; checkpoints are kept")


def _whole_lines(file: IO[bytes]) -> int:
    """How many bytes a file has up to the end of its last whole line."""
    file.seek(0)
    return sum(len(line) for line in file if line.endswith(b"\n"))


def member_settings(config: Mapping[str, Any], member: str) -> dict[str, Any]:
    """One member's settings by dotted name, from ``config.json``: algorithm, environment, ``env.*``, agents and
    copies, seed and the rest.

    The values that the population sweeps replace the common ones.
    """
    settings = {key: config[key] for key in ("algorithm", "environment") if key in config}
    settings |= {"init_from": config["init"]["given"]} if config.get("init") else {}
    taught = [record["given"] for record in config.get("teachers", [])]
    settings |= {"teachers": " ".join(taught)} if taught else {}
    settings |= _dotted({"env": config.get("env", {})})
    settings |= {name: config["loop"][name] for name in ("agents", "copies") if name in config.get("loop", {})}
    settings |= _dotted(config.get("config", {}))
    for entry in config.get("members", []):
        if entry["name"] == member:
            settings |= {"seed": entry["seed"], **entry.get("sweep", {})}
    return settings


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
