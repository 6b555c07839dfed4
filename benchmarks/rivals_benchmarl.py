"""BenchMARL's MAPPO on VMAS; lives in ``venvs.BORROWERS["benchmarl"]``."""

from __future__ import annotations

import tempfile
from threading import Semaphore, Thread
from typing import Any

from benchmarks.pair import Work
from benchmarks.terms import MAPPOTerms


def mappo_steps(**settings: Any) -> Work:
    """Environment steps of MAPPO on VMAS's simple_spread, learning included; one call is one of its iterations.

    Its own experiment runs in a thread and waits after each iteration. It logs, evaluates and saves nothing.
    """
    import torch
    from benchmarl.algorithms import MappoConfig
    from benchmarl.environments import VmasTask
    from benchmarl.experiment import Callback, Experiment, ExperimentConfig
    from benchmarl.models.mlp import MlpConfig

    terms = MAPPOTerms(**settings)
    frames = terms.copies * terms.steps
    config = ExperimentConfig.get_from_yaml()
    config.on_policy_n_envs_per_worker = terms.copies
    config.on_policy_collected_frames_per_batch = frames
    config.on_policy_minibatch_size = frames // terms.minibatches
    config.on_policy_n_minibatch_iters = terms.epochs
    config.max_n_iters, config.max_n_frames = 10**9, None
    config.lr, config.gamma, config.clip_grad_val = terms.lr, terms.gamma, terms.max_grad_norm
    config.prefer_continuous_actions = config.evaluation = config.render = config.create_json = False
    config.loggers, config.checkpoint_at_end, config.save_folder = [], False, tempfile.mkdtemp()
    algorithm = MappoConfig.get_from_yaml()
    algorithm.lmbda, algorithm.entropy_coef, algorithm.clip_epsilon = terms.lam, terms.entropy, terms.clip
    task = VmasTask.SIMPLE_SPREAD.get_from_yaml()
    task.config["max_steps"] = terms.steps
    layers = MlpConfig(num_cells=list(terms.hidden), layer_class=torch.nn.Linear, activation_class=torch.nn.Tanh)
    go, done, threads = Semaphore(0), Semaphore(0), torch.get_num_threads()

    class Turns(Callback):
        def on_train_end(self, training_td: Any, group: str) -> None:
            done.release()
            go.acquire()

        def __reduce__(self) -> Any:  # the experiment pickles its callbacks into a folder that nobody reads
            return Callback, ()

    experiment = Experiment(
        task, algorithm, layers, seed=0, config=config, critic_model_config=layers, callbacks=[Turns()]
    )
    faults: list[BaseException] = []

    def run() -> None:
        torch.set_num_threads(threads)  # each thread of Python has a number of its own
        go.acquire()
        try:
            experiment.run()
        except BaseException as fault:
            faults.append(fault)
            done.release()

    Thread(target=run, daemon=True).start()

    def work() -> float:
        go.release()
        done.acquire()
        if faults:
            raise faults[0]
        return float(frames)

    return work
