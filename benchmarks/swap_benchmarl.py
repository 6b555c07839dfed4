"""BenchMARL with and without this project's reciprocity in it; lives in ``venvs.BORROWERS["benchmarl"]``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.pair import Work

RECIPE = Path(__file__).parent.parent / "examples" / "swap_in" / "benchmarl"


def updates(algorithm: str = "maddpg", **reciprocity: Any) -> Work:
    """Updates of three agents' networks by BenchMARL's MADDPG or QMIX; {}: without reciprocity.

    Batch and networks are BenchMARL's defaults, but for every agent having networks of its own. An update draws from
    the replay, computes the losses, moves networks and targets.
    """
    sys.path.insert(0, str(RECIPE))
    import reciprocal_algorithms as ours
    from benchmarl.algorithms import algorithm_config_registry
    from benchmarl.environments import VmasTask
    from benchmarl.experiment import Experiment, ExperimentConfig
    from benchmarl.models.mlp import MlpConfig

    assert ours
    config = ExperimentConfig.get_from_yaml()
    config.prefer_continuous_actions, config.share_policy_params = algorithm == "maddpg", False
    config.off_policy_collected_frames_per_batch, config.off_policy_memory_size = 1000, 1000
    config.evaluation = config.render = config.create_json = False
    config.loggers, config.save_folder = [], tempfile.mkdtemp()
    chosen = algorithm_config_registry[f"reciprocal_{algorithm}" if reciprocity else algorithm].get_from_yaml()
    if algorithm == "maddpg":
        chosen.share_param_critic = False
    for name, value in reciprocity.items():
        setattr(chosen, name, value)
    task = VmasTask.SIMPLE_SPREAD.get_from_yaml()
    experiment = Experiment(task, chosen, MlpConfig.get_from_yaml(), seed=0, config=config)
    (group,) = experiment.group_map
    batch = next(iter(experiment.collector))
    experiment.replay_buffers[group].extend(experiment.algorithm.process_batch(group, batch).reshape(-1))

    def work() -> float:
        experiment._optimizer_loop(group)
        return 1.0

    for _ in range(20):
        work()
    return work
