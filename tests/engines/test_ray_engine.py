"""The Ray engine: what it adds to the contract, and what a user may do wrong."""

import contextlib
import os
import pickle
import signal
import socket
import sys
import threading
import time

import pytest
from engine_tools import Diary, Ledger, alive, until

from marl.engines import Gone, make_engine
from marl.engines import ray as ray_engine
from marl.engines.ray_address import check_address
from marl.types import UserError


@pytest.fixture
def engine(ray_instance):
    with contextlib.closing(make_engine("ray")) as engine:
        yield engine


@pytest.mark.ray
def test_a_served_object_that_is_killed_comes_back_with_what_it_had_on_disk(engine, tmp_path, capfd):
    ledger = engine.serve(Ledger, tmp_path / "ledger.txt")
    worker = engine.place(Diary)
    ledger.add("before")
    pid = ledger.pid()
    os.kill(pid, signal.SIGKILL)
    assert ledger.add("here") == ["before", "here"]
    assert worker.call("meet_and_kill", ledger, "there").result() == ["before", "here", "there"]
    assert not alive(pid) and ledger.pid() != pid
    time.sleep(0.5)
    assert capfd.readouterr().out == ""  # stdout is for results


@pytest.mark.ray
def test_a_served_object_has_its_own_public_methods_only_and_ends_with_the_engine(engine, tmp_path):
    ledger = engine.serve(Ledger, tmp_path / "ledger.txt")
    with pytest.raises(AttributeError, match="no method 'ad'; it has add, pid, refuse"):
        ledger.ad("word")
    pid, again = ledger.pid(), pickle.loads(pickle.dumps(ledger))
    assert again.add("word") == ["word"]
    engine.close()
    assert until(lambda: not alive(pid))
    with pytest.raises(Gone):
        again.add("word")


@pytest.mark.ray
def test_more_workers_than_cpus_are_refused(engine):
    for _ in range(engine.capacity):
        last = engine.place(Diary)
    expected = f"the Ray cluster has {engine.capacity}, got {engine.capacity + 1} workers; --workers {engine.capacity}"
    with pytest.raises(UserError, match=expected):
        engine.place(Diary)
    last.kill()
    assert engine.place(Diary).call("add", 1).result() == [1]


@pytest.mark.ray
def test_workers_that_wait_for_others_cpus_are_said_once(engine, caplog, monkeypatch):
    with contextlib.closing(make_engine("ray")) as other:
        for worker in [other.place(Diary) for _ in range(other.capacity)]:
            worker.call("pid").result()
        monkeypatch.setattr(ray_engine, "PATIENCE", 0.2)
        call = engine.place(Diary).call("add", 1)
        for _ in range(3):
            assert engine.wait([call], 0.2) == []
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"workers wait for a CPU of the Ray cluster: others use its {engine.capacity}"]
    assert call.result() == [1]  # the others have gone


@pytest.mark.ray
def test_a_class_of_a_script_or_notebook_can_be_placed(engine):
    class Here:
        def word(self):
            return "here"

    assert engine.place(Here).call("word").result() == "here"


@pytest.mark.ray
def test_only_those_who_have_the_token_join_a_cluster(ray_instance, monkeypatch):
    import ray

    address = ray.get_runtime_context().gcs_address
    check_address(address)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    start = time.monotonic()
    with pytest.raises(UserError, match=f"^the Ray address {address} wants its token: export RAY_AUTH_MODE=token"):
        check_address(address)
    assert time.monotonic() - start < 15


@pytest.mark.ray
def test_another_server_is_no_cluster(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_gcs_rpc_server_connect_timeout_s", "1")  # instead of 5
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_hang_up, args=(server,), daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=f"^the Ray address {address} does not answer as the head node"):
            check_address(address)
        server.shutdown(socket.SHUT_RDWR)


def _hang_up(server):
    with contextlib.suppress(OSError):
        while True:
            server.accept()[0].close()


# ---- without Ray ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:six", "auto"])
def test_an_address_has_a_host_and_a_port(address):
    with pytest.raises(UserError, match=f"^Ray address: expected HOST:PORT, such as 10.0.0.1:6379, got '{address}'$"):
        check_address(address)


def test_a_client_address_is_refused():
    with pytest.raises(UserError, match=r"^Ray address ray://head:10001: a Ray client keeps no files"):
        check_address("ray://head:10001")


def test_where_nobody_listens_one_line_says_so_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(UserError, match=f"^nobody answers at the Ray address 127.0.0.1:{port} .*refused") as error:
        check_address(f"127.0.0.1:{port}")
    assert time.monotonic() - start < 10 and "\n" not in str(error.value)


def test_without_ray_the_engine_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"^the engine 'ray' needs Ray: pip install -c constraints.txt -e '\.\[ray\]'$"):
        make_engine("ray")
