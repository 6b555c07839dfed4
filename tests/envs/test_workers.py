"""Worker processes: equal to the bit to copies in this process, and no loss but one transition when one dies."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from toy_copies import DIE, FAIL, HANG, KILL, OVER, Duel, Lone, Toy, only_once, stillborn

from marl.envs import Step, make_env
from marl.envs.copies import CopiesEnv
from marl.envs.workers import WorkerPool, make_copies
from marl.evaluation import Evaluator
from marl.types import Acted, UserError, View


def toy(workers: int, timeout: float = 60.0, seeds: tuple[int, ...] = (0, 1), exact: bool = True) -> CopiesEnv:
    build = functools.partial(Toy, exact=exact)
    return make_copies(build, seeds=seeds, copies=3, workers=workers, timeout=timeout)


def quiet(env: CopiesEnv) -> torch.Tensor:
    return torch.zeros(env.members, env.spec.n_agents, env.copies, 1)


def equal(a: Step, b: Step) -> bool:
    return all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))


def flat(state: dict) -> dict:
    """A state with its tensors as lists, to be compared by ==."""
    return {k: flat(v) if isinstance(v, dict) else v.tolist() if torch.is_tensor(v) else v for k, v in state.items()}


def test_workers_answer_what_this_process_answers_and_states_are_interchangeable() -> None:
    local, remote, more = toy(0), toy(2), toy(5)
    try:
        assert torch.equal(local.reset(), remote.reset())
        for _ in range(6):
            assert equal(local.step(quiet(local)), remote.step(quiet(local)))
        assert flat(local.state_dict()) == flat(remote.state_dict())
        more.load_state_dict(remote.state_dict())
        for _ in range(6):
            assert equal(local.step(quiet(local)), more.step(quiet(local)))
        assert (remote.render(1, 2) == 2).all()  # 6 steps: the second episode is at its step 2
        assert remote.events() == more.events() == []
    finally:
        for env in (local, remote, more):
            env.close()


def test_a_step_that_is_asked_for_and_fetched_later_is_the_same_step() -> None:
    local, whole, halves = toy(0), toy(2), toy(2)
    try:
        assert torch.equal(whole.reset(), halves.reset())
        local.reset()
        for env in (local, halves):
            for _ in range(6):
                env.step_async(quiet(env))
                seen = env.step_wait()
            assert flat(env.state_dict()) != flat(whole.state_dict())
        for _ in range(5):
            whole.step(quiet(whole))
        assert equal(whole.step(quiet(whole)), seen)
        assert flat(local.state_dict()) == flat(halves.state_dict()) == flat(whole.state_dict())
    finally:
        for env in (local, whole, halves):
            env.close()


@pytest.mark.parametrize(("harm", "word"), [(DIE, "died"), (HANG, "gave no answer in time")])
def test_a_worker_that_dies_or_hangs_costs_one_lost_transition(harm: float, word: str) -> None:
    """6 copies on 2 workers: member 1 lives on the second, which is harmed."""

    def play() -> tuple[list[Step], torch.Tensor, list[str]]:
        env = toy(2, timeout=2.0)
        try:
            env.reset()
            before = env.step(quiet(env)).obs
            action = quiet(env)
            action[1, 0, 1] = harm
            steps = [env.step(action), *(env.step(quiet(env)) for _ in range(5))]
            return steps, before, env.events()
        finally:
            env.close()

    steps, before, events = play()
    hurt = steps[0]
    assert hurt.lost is not None
    assert hurt.lost[1].all() and not hurt.lost[0].any()
    assert hurt.done[1].all() and not hurt.done[0].any()
    assert not hurt.terminated[1].any() and not hurt.reward[1].any() and hurt.reward[0].all()
    assert torch.equal(hurt.next_obs[1], before[1])
    assert (hurt.obs[1, 0, :, 0] == 0).all() and (hurt.obs[0, 0, :, 0] == 2).all()
    assert steps[1].lost is None and (steps[1].obs[1, 0, :, 0] == 1).all()
    assert events == [f"worker 1 of 2 {word}: started again, 3 copies begin new episodes"]
    again, _, _ = play()
    assert all(equal(a, b) for a, b in zip(steps, again, strict=True))


def test_masks_states_and_outcomes_come_through_workers_to_the_bit() -> None:
    local, remote = (make_copies(Duel, seeds=[0, 1], copies=3, workers=w) for w in (0, 4))
    try:
        assert torch.equal(local.reset(), remote.reset())
        for _ in range(9):
            assert torch.equal(local.avail(), remote.avail()) and torch.equal(local.state(), remote.state())
            action = torch.zeros(2, 2, 3, dtype=torch.int64)
            step = local.step(action)
            assert equal(step, remote.step(action)) and all(x is not None for x in step._replace(lost=step.done))
        assert flat(local.state_dict()) == flat(remote.state_dict())
    finally:
        remote.close()


@pytest.mark.parametrize("harm", [KILL, OVER])
def test_a_copy_that_dies_loses_one_transition_masks_and_state_included(harm: int) -> None:
    """``OVER``: the copy itself says that its game is dead. Two workers, one member each."""
    env = make_copies(Duel, seeds=[0, 1], copies=1, workers=2)
    try:
        env.reset()
        action = torch.zeros(2, 2, 1, dtype=torch.int64)
        before = env.step(action)
        action[1, 0] = harm
        step = env.step(action)
        assert step.lost[1].all() and not step.lost[0].any() and step.done[1].all()
        assert torch.equal(step.next_avail[1], before.avail[1]) and torch.equal(step.next_state[1], before.state[1])
        assert step.state[:, 0, 0].tolist() == [2, 0] and not step.outcome.any()
        assert env.events() == ["worker 1 of 2 died: started again, 1 copy begins a new episode"]
    finally:
        env.close()


def test_a_second_loss_brings_other_numbers_also_after_a_resume() -> None:
    def die(env: CopiesEnv) -> torch.Tensor:
        return env.step(quiet(env) + DIE).obs[0, 1, :, 0]  # the drawn numbers

    env = make_copies(Toy, seeds=[0], copies=1, workers=1)
    resumed = make_copies(Toy, seeds=[0], copies=1, workers=1)
    try:
        first = env.reset()[0, 1, :, 0]
        second = die(env)
        state = env.state_dict()
        assert state["restarts"].tolist() == [1]
        third = die(env)
        assert len({x.item() for x in (first, second, third)}) == 3
        resumed.load_state_dict(state)
        assert torch.equal(die(resumed), third)
    finally:
        env.close()
        resumed.close()


def test_a_worker_that_died_between_steps_is_noticed_by_a_save_and_the_next_step_is_lost() -> None:
    env, other = toy(2), toy(0)
    try:
        env.reset()
        env.step(quiet(env))
        pool = env.pool
        assert isinstance(pool, WorkerPool)
        os.kill(pool.workers[0].process.pid, signal.SIGKILL)
        state = env.state_dict()
        other.load_state_dict(state)
        here, there = env.step(quiet(env)), other.step(quiet(env))
        assert here.lost is not None and here.lost[0].all() and not here.lost[1].any()
        assert equal(here._replace(obs=there.obs), there)  # the copies of the new worker have seeds of their own
        assert (here.next_obs[1, 0, :, 0] == 2).all()
    finally:
        env.close()


def test_what_an_environment_raises_is_raised_here() -> None:
    env = toy(1)
    try:
        env.reset()
        with pytest.raises(RuntimeError, match="toy is broken"):
            env.step(quiet(env) + FAIL)
    finally:
        env.close()


def test_a_worker_that_cannot_even_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="died while it built"):
        make_copies(stillborn, seeds=[0], copies=1, workers=1)


def test_workers_ignore_stop_requests_and_end_with_a_killed_parent() -> None:
    """One worker is idle and one hangs when the parent is killed; both must be gone soon after."""
    script = textwrap.dedent(
        f"""
        import os, sys, signal, torch
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from toy_copies import HANG, Toy
        from marl.envs.workers import make_copies
        if __name__ == "__main__":
            env = make_copies(Toy, seeds=[0, 1], copies=1, workers=2)
            env.reset()
            for worker in env.pool.workers:
                os.kill(worker.process.pid, signal.SIGINT)
                os.kill(worker.process.pid, signal.SIGTERM)  # as Slurm and systemd send it, to all of a job
            env.step(torch.zeros(2, 2, 1, 1))
            assert env.events() == []
            print(*(worker.process.pid for worker in env.pool.workers), flush=True)
            action = torch.zeros(2, 2, 1, 1)
            action[1, 0] = HANG
            env.step(action)
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_a_users_mistake_in_a_worker_stays_one_line() -> None:
    with pytest.raises(UserError, match="does not take these keywords"):
        make_env("gym/CartPole-v1", workers=1, options={"wheels": 3})


def test_a_parent_that_blocks_sigterm_and_forgets_to_close_ends_all_the_same() -> None:
    """At its end multiprocessing asks workers to stop by SIGTERM, which they ignore, and waits for them."""
    script = textwrap.dedent(
        f"""
        import signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from toy_copies import Toy
        from multiprocessing import resource_tracker
        from marl.envs.workers import make_copies
        if __name__ == "__main__":
            resource_tracker.ensure_running()  # which would unblock signals later
            signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})
            env = make_copies(Toy, seeds=[0], copies=1, workers=1)
            env.reset()
            print("open", flush=True)
        """
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "open\n"), ended.stderr


@pytest.mark.parametrize("worker", [1, 2])
def test_ctrl_c_while_a_worker_starts_ends_the_process_and_not_only_its_script(worker: int) -> None:
    script = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from toy_copies import Toy
        from marl.envs import workers

        def pipe(made=workers._CONTEXT.Pipe):
            pipes.append(made())
            return pipes[-1]

        def start(process, begin=workers._CONTEXT.Process.start):
            begin(process)
            assert pipes[-1][0].poll(60)  # it has built its copies, and waits for what there is to do
            if len(pipes) == {worker}:
                raise KeyboardInterrupt

        if __name__ == "__main__":
            pipes, workers._CONTEXT.Pipe, workers._CONTEXT.Process.start = [], pipe, start
            workers.make_copies(Toy, seeds=[0, 1], copies=1, workers=2)
        """
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.stderr.endswith("KeyboardInterrupt\n")


def test_an_episode_of_an_evaluation_whose_worker_dies_is_played_anew_to_its_end() -> None:
    class Murderer:
        """At the second step of the first copy's first episode."""

        memory_size, calls = 0, 0

        def act(self, view: View, explore: bool) -> Acted:
            action = torch.zeros(*view.obs.shape[:3], 1)
            self.calls += 1
            action[0, 0, 0] = DIE if self.calls == 2 else 0.0
            return Acted(action)

    evaluator = Evaluator(lambda: make_copies(Toy, seeds=(0,), copies=2, workers=2))
    try:
        played = evaluator(Murderer())  # type: ignore[arg-type]
    finally:
        evaluator.close()
    assert played.returns[0, 0].tolist() == [4, 4]  # agent 0 earns 1 a step
    assert played.lengths[0].tolist() == [[4, 4], [4, 4]]
    (event,) = played.events
    assert event.startswith("worker 0 of 2")


def test_a_replacement_that_dies_as_it_is_built_is_told_by_the_workers_number(tmp_path) -> None:
    env = make_copies(functools.partial(only_once, marker=str(tmp_path / "built")), seeds=(0,), copies=1, workers=1)
    try:
        env.reset()
        with pytest.raises(RuntimeError, match="worker 0 died, and its replacement did too"):
            env.step(torch.full((1, 2, 1, 1), DIE))
    finally:
        env.close()


def test_an_episode_that_was_over_when_its_worker_died_is_not_played_again() -> None:
    class Murderer:
        """Learner 0 ends its episode at the second step and its process at the third, where learner 1 ends its own."""

        memory_size, calls = 0, 0

        def act(self, view: View, explore: bool) -> Acted:
            self.calls += 1
            first = {2: 0.5, 3: DIE, 9: 0.5}.get(self.calls, 0.0)
            return Acted(torch.tensor([first, 0.5 if self.calls >= 3 else 0.0]).view(1, 2, 1, 1))

    evaluator = Evaluator(lambda: make_copies(Lone, seeds=(0,), copies=1, learners=2, workers=2))
    try:
        played = evaluator(Murderer())  # type: ignore[arg-type]
    finally:
        evaluator.close()
    assert played.returns.flatten().tolist() == played.lengths.flatten().tolist() == [2, 3]


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs a fork server")
def test_ctrl_c_while_the_first_worker_starts_does_not_end_the_server_that_it_is_forked_from() -> None:
    """The server is interrupted 0.3 s after its start, while it imports torch."""
    code = """
        import os, signal, time
        from multiprocessing import util
        from marl.envs.workers import WorkerPool
        from toy_copies import Toy

        start = util.spawnv_passfds

        def interrupted(path, arguments, descriptors):
            pid = start(path, arguments, descriptors)
            if "forkserver" in " ".join(map(str, arguments)):
                time.sleep(0.3)
                os.kill(pid, signal.SIGINT)
            return pid

        util.spawnv_passfds = interrupted
        WorkerPool(Toy, [0], 1).close()
    """
    place = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    ended = subprocess.run(command, env=place, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, "")
