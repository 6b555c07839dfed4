"""What every engine promises, tried on each."""

import logging
import os
import pickle
import signal
import subprocess
import sys
import time

import engine_tools
import numpy as np
import pytest
import torch
from engine_tools import Broken, Diary, Ledger, Refused, alive, until

from marl.engines import Gone, make_engine
from marl.pickling import dumps
from marl.types import UserError

RAY = pytest.param("ray", marks=pytest.mark.ray)
ENGINES = ["local", "processes", RAY]
APART = ["processes", RAY]
"""Those whose workers are processes."""


@pytest.fixture(scope="module")
def engine(request):
    if request.param == "ray":
        request.getfixturevalue("ray_instance")
    engine = make_engine(request.param)
    assert engine.name == request.param
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def worker(engine):
    return engine.place(Diary)


@pytest.fixture
def place(engine):
    """Places workers for one test."""
    placed = []
    yield lambda *recipe: placed.append(engine.place(*recipe)) or placed[-1]
    for worker in placed:
        worker.kill()


every = pytest.mark.parametrize("engine", ENGINES, indirect=True)
apart = pytest.mark.parametrize("engine", APART, indirect=True)


@every
def test_calls_are_executed_in_their_order_and_can_be_asked_in_any(engine, place):
    worker = place(Diary, "a", "b")
    calls = [worker.call("add", k) for k in range(4)]
    assert calls[3].result() == ["a", "b", 0, 1, 2, 3]
    assert calls[0].result() == ["a", "b", 0]
    assert calls[0].result() == ["a", "b", 0]  # a second time too


@every
def test_tensors_and_arrays_arrive_as_they_were_and_can_be_written_to(engine, worker):
    sent = {
        "float": torch.tensor([[1.0, float("nan")]]),
        "bytes": torch.arange(300_000).to(torch.uint8),
        "scalar": torch.tensor(3),
        "bool": torch.tensor([True, False]),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "array": np.arange(100_000.0),
        "nothing": None,
    }
    got = worker.call("echo", sent).result()
    assert list(got) == list(sent) and got["nothing"] is None
    for name in ("float", "bytes", "scalar", "bool", "half"):
        assert got[name].dtype == sent[name].dtype and torch.equal(got[name].nan_to_num(), sent[name].nan_to_num())
        got[name].zero_()
    assert np.array_equal(got["array"], sent["array"])
    got["array"][0] = 1
    assert worker.call("change", np.zeros(100_000)).result().sum() == 100_000


@every
def test_a_user_error_arrives_in_the_same_words(engine, worker):
    with pytest.raises(UserError, match=r"^refused: got 3, expected 2$"):
        worker.call("refuse").result()
    assert worker.call("echo", 1).result() == 1  # and the worker lives on


@every
def test_an_error_of_the_construction_shows_in_the_first_call(engine, place):
    refused, broken = place(Refused, "no such thing"), place(Broken)
    with pytest.raises(UserError, match=r"^no such thing$"):
        refused.call("add", 1).result()
    with pytest.raises(RuntimeError, match=r"^ZeroDivisionError: as planned"):
        broken.call("add", 1).result()


@every
def test_another_exception_is_told_with_its_type_its_text_and_its_place(engine, worker):
    with pytest.raises(RuntimeError) as error:
        worker.call("stumble").result()
    assert str(error.value).startswith("KeyError: 'missing', raised in a worker")
    assert 'engine_tools.py"' in str(error.value) and "in stumble" in str(error.value)


@every
def test_a_worker_that_was_let_go_of_is_gone_and_another_can_be_placed(engine, place):
    for _ in range(engine.capacity):  # each gives its place free
        worker = place(Diary)
        worker.kill()
    call = worker.call("add", 1)
    assert engine.wait([call], 20.0) == [call]
    with pytest.raises(Gone):
        call.result()
    worker.kill()  # a second time does no harm
    assert place(Diary).call("add", 1).result() == [1]


@apart
def test_a_killed_worker_is_gone_and_another_can_be_placed(engine, place):
    worker = place(Diary)
    pid = worker.call("pid").result()
    assert pid != os.getpid()
    sleeping, behind = worker.call("nap", 100.0), worker.call("add", 1)
    os.kill(pid, signal.SIGKILL)
    while (over := engine.wait([sleeping], 20.0)) != [sleeping]:
        assert over
    for call in (sleeping, behind, worker.call("add", 2)):
        with pytest.raises(Gone, match="its process"):
            call.result()
    assert place(Diary).call("add", 3).result() == [3]


@every
def test_wait_returns_what_is_over(engine, worker, place):
    slow, fast = place(Diary), worker
    slow.call("add", 0).result()
    nap, quick = slow.call("nap", 1.0), fast.call("echo", 1)
    first = engine.wait([nap, quick], 20.0)
    assert first == ([nap, quick] if engine.name == "local" else [quick])
    assert quick.result() == 1
    assert engine.wait([nap], 20.0) == [nap] and nap.result() == 1.0
    assert engine.wait([], 20.0) == []


@apart
def test_wait_returns_nothing_when_the_time_is_over(engine, worker):
    worker.call("echo", 0).result()
    nap = worker.call("nap", 1.0)
    start = time.monotonic()
    assert engine.wait([nap], 0.2) == [] and 0.2 <= time.monotonic() - start < 0.9
    assert nap.result() == 1.0


@apart
def test_a_worker_computes_with_one_thread(place, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert place(Diary).call("threads").result() == (1, "1", "1")
    assert os.environ["OMP_NUM_THREADS"] == "2"


@apart
def test_large_questions_and_answers_do_not_wait_for_each_other(engine, worker):
    much = np.zeros(1 << 20)  # 8 MiB; a pipe holds 64 KiB
    calls = [worker.call("echo", much) for _ in range(4)]
    assert [call.result().nbytes for call in calls] == [8 << 20] * 4


@every
def test_what_is_served_is_reached_from_here_and_from_workers(engine, worker, tmp_path):
    ledger = engine.serve(Ledger, tmp_path / "ledger.txt")
    assert ledger.add("here") == ["here"]
    assert worker.call("meet", ledger, "there").result() == ["here", "there"]
    assert ledger.add("again") == ["here", "there", "again"]
    with pytest.raises(UserError, match=r"^the ledger refuses ink$"):
        ledger.refuse(what="ink")


@every
def test_an_error_of_what_is_served_shows_at_once(engine):
    with pytest.raises(UserError, match=r"^no such thing$"):
        engine.serve(Refused, "no such thing")


@apart
def test_a_warning_of_a_worker_is_said_here_and_once(engine, worker, place, caplog):
    with caplog.at_level(logging.WARNING, logger="marl"):
        for asked in [worker, place(Diary)] * 2:
            asked.call("warn").result()
    assert [record.getMessage() for record in caplog.records] == ["beware of the dog"]


@pytest.mark.parametrize("name", APART)
def test_stop_requests_are_the_drivers_and_workers_end_when_it_is_killed(name):
    if name == "ray":
        pytest.importorskip("ray")
    command = [sys.executable, engine_tools.__file__, name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as driver:
        try:
            pids = [int(pid) for pid in driver.stdout.readline().split()]
            assert len(pids) == (3 if name == "ray" else 2) and all(map(alive, pids))
            time.sleep(0.3)
            for number in (signal.SIGINT, signal.SIGTERM):  # as a terminal and a scheduler send them: to all
                os.killpg(driver.pid, number)
            os.kill(pids[0], signal.SIGINT) if name == "processes" else None
            assert driver.stdout.readline() == "[2.0, 2.0]\n"  # the calls under way
            assert driver.stdout.readline() == "[[1], [1]] 2\n"
            assert all(map(alive, pids))
        finally:
            driver.kill()
        assert until(lambda: not any(map(alive, pids)))


def test_a_worker_that_wrote_beside_a_progress_bar_leaves_no_warning_of_semaphores_behind():
    script = (
        "import engine_tools, marl.engines; engine = marl.engines.make_engine('processes'); "
        "engine.place(engine_tools.Diary).call('talk').result(); engine.close()"
    )
    place = os.path.dirname(engine_tools.__file__)
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, cwd=place, check=True)
    assert done.stderr == "hello\n"


# ---- the names, and how tensors travel ------------------------------------------------------------------------------


def test_an_unknown_engine_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"^no engine 'process'; did you mean 'processes'\?$"):
        make_engine("process")
    with pytest.raises(UserError, match="choose from local, processes, ray"):
        make_engine("xyzzy")


@pytest.mark.parametrize("name", ["local", "processes"])
def test_an_address_is_rays_alone(name):
    with pytest.raises(
        UserError, match=rf"^address head:6379: only the engine 'ray' has one, got the engine '{name}'$"
    ):
        make_engine(name, "head:6379")


def test_a_view_travels_without_what_it_is_a_view_of():
    row = torch.zeros(1000, 1000)[3]  # 4 kB of 4 MB, all of which torch would pickle
    assert len(pickle.dumps(row)) > 4_000_000 and len(dumps(row)) < 5000
    assert torch.equal(pickle.loads(dumps(row)), row)


def test_gradients_and_parameters_survive():
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    got = pickle.loads(dumps(parameter))
    assert isinstance(got, torch.nn.Parameter) and got.requires_grad and got.tolist() == [1.0, 2.0]
    assert pickle.loads(dumps(torch.ones(1, requires_grad=True))).requires_grad
