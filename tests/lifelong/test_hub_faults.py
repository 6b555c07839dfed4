"""The hub among threads and processes that write at once, get killed, or find its files damaged or the disk full."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import sqlite3
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.lifelong.hub import Hub, Match
from marl.lifelong.store import Entry, Store
from marl.types import UserError

FORK = multiprocessing.get_context("fork")


def fingerprint(truth):
    return {"w": torch.full((4,), 10.0 * truth)}


def knowledge(score):
    """Network and transitions that tell the score, so that a mixture of two publications would be seen."""
    noise = torch.randint(256, (50, 128), generator=torch.Generator().manual_seed(score), dtype=torch.uint8)
    return {"w": torch.full((3,), float(score))}, {"obs": noise, "reward": torch.full((50,), float(score))}


def publish(hub, task, score, agent):
    return hub.publish(task, *knowledge(score), score, agent)


def assert_whole(got):
    """One publication, and no mixture of two."""
    network, transitions = knowledge(int(got.score))
    assert torch.equal(got.network["w"], network["w"])
    assert torch.equal(got.transitions["obs"], transitions["obs"])
    assert torch.equal(got.transitions["reward"], transitions["reward"])


def assert_sound(folder, best):
    """The hub has exactly the tasks of ``best`` (truth -> highest score shared, None: unlearnt), and no stray file."""
    with Hub(folder, threshold=0.5) as hub:
        assert len(hub) == len(best)
        for truth, score in best.items():
            match = hub.query(fingerprint(truth))
            got = hub.fetch(match.task, "judge")
            assert (got and got.score) == score
            if got:
                assert_whole(got)
    learnt = sum(score is not None for score in best.values())
    assert len(list((folder / "tensors").iterdir())) == 2 * learnt


# ---- many at once --------------------------------------------------------------------------------------------------

ROUNDS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=4)


def in_threads(jobs):
    """Run them at once; the first error is raised here."""
    errors = []

    def guarded(job):
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def hesitate(hub, seed):
    """Make a hub pause for a moment before some of its SQL statements, so that others come in between."""
    draw = random.Random(seed)
    hub._store._db.set_trace_callback(lambda _: time.sleep(draw.choice([0, 0, 0, 0.001])))


@settings(max_examples=12)
@given(st.lists(ROUNDS, min_size=2, max_size=4), st.booleans(), st.integers(0, 2**20))
def test_agents_at_once_lose_nothing_and_double_nothing(agents, one_hub, seed):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shared = [Hub(folder, threshold=0.5)]
        hubs = shared * len(agents) if one_hub else shared + [Hub(folder, threshold=0.5) for _ in agents[1:]]
        for i, hub in enumerate(hubs):
            hesitate(hub, seed + i)
        news = []
        start = threading.Barrier(len(agents))

        def life(hub, rounds, agent):
            start.wait()
            for truth, score in rounds:
                match = hub.meet(fingerprint(truth), agent)
                news.extend([truth] if match.new else [])
                publish(hub, match.task, score, agent)
                got = hub.fetch(match.task, agent)
                assert_whole(got)
                assert got.score >= score

        lives = enumerate(zip(hubs, agents, strict=True))
        in_threads([lambda h=hub, r=rounds, i=i: life(h, r, f"{i}") for i, (hub, rounds) in lives])
        sent = {agent: t.sent_raw for agent, t in hubs[0].traffic().items()}
        for hub in set(hubs):
            hub.close()
        met = {truth for rounds in agents for truth, _ in rounds}
        assert sorted(news) == sorted(met), "each task is new to exactly one"
        assert_sound(folder, {t: max(s for r in agents for truth, s in r if truth == t) for t in met})
        each = 16 + 12 + 50 * (128 + 4)  # fingerprint, network, transitions
        assert sent == {f"{i}": each * len(rounds) for i, rounds in enumerate(agents)}


def test_the_usual_bug_to_ask_first_and_register_later_doubles_the_task(tmp_path):
    class Hasty(Hub):
        def meet(self, fingerprint, agent):
            match = self.query(fingerprint)
            both_asked.wait()
            return match or super().meet({"w": fingerprint["w"] + (100.0 if agent == "b" else 0.0)}, agent)

    both_asked = threading.Barrier(2)
    hubs = [Hasty(tmp_path / "hasty", threshold=0.5) for _ in range(2)]
    in_threads([lambda h=h, a=a: h.meet(fingerprint(1), a) for h, a in zip(hubs, "ab", strict=True)])
    assert len(hubs[0]) == 2
    hubs = [Hub(tmp_path / "hub", threshold=0.5) for _ in range(2)]
    in_threads([lambda h=h, a=a: h.meet(fingerprint(1), a) for h, a in zip(hubs, "ab", strict=True)])
    assert len(hubs[0]) == 1


def worker(folder, agent, rounds, told):
    """Meet and publish; a line is written to ``told`` once each has returned."""
    torch.set_num_threads(1)
    with Hub(folder, threshold=0.5) as hub:
        for i in range(rounds):
            truth, score = (i * (agent + 1)) % 5, agent + 4 * i
            match = hub.meet(fingerprint(truth), f"{agent}")
            os.write(told, f"met {truth} {match.task}\n".encode())
            publish(hub, match.task, score, f"{agent}")
            os.write(told, f"published {truth} {score}\n".encode())


def started(folder, agent, rounds, log):
    told = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    process = FORK.Process(target=worker, args=(folder, agent, rounds, told))
    process.start()
    os.close(told)
    return process


def told(log):
    """Truth -> its task numbers, truth -> the highest score of which publication was reported."""
    numbers, best = {}, {}
    for line in log.read_text().splitlines():
        kind, truth, value = line.split()
        if kind == "met":
            numbers.setdefault(int(truth), set()).add(int(value))
        else:
            best[int(truth)] = max(int(value), best.get(int(truth), 0))
    return numbers, best


def test_four_processes_at_once_lose_nothing_and_double_nothing(tmp_path):
    processes = [started(tmp_path / "hub", agent, 8, tmp_path / "log") for agent in range(4)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    numbers, best = told(tmp_path / "log")
    assert all(len(n) == 1 for n in numbers.values()), "one task has one number"
    assert_sound(tmp_path / "hub", best)


def test_a_killed_writer_loses_nothing_that_it_shared_and_leaves_nothing_behind(tmp_path):
    random.seed(0)
    folder, log = tmp_path / "hub", tmp_path / "log"
    killed = 0
    for attempt in range(10):
        process = started(folder, attempt, 10_000, log)
        time.sleep(random.uniform(0.05, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        killed += process.exitcode == -signal.SIGKILL
        if not log.exists() or not log.read_text():
            continue
        numbers, best = told(log)
        assert all(len(n) == 1 for n in numbers.values())
        with Hub(folder, threshold=0.5) as hub:
            assert len(hub) - len(numbers) in (0, 1), "at most one meeting was on the disk and not yet reported"
            referenced = 0
            for truth in range(5):
                match = hub.query(fingerprint(truth))
                got = match and hub.fetch(match.task, "judge")
                referenced += 2 * bool(got)
                if truth in numbers:
                    assert match.task in numbers[truth]
                if truth in best:
                    assert_whole(got)
                    assert got.score >= best[truth]
            assert len(list((folder / "tensors").iterdir())) == referenced
    assert killed == 10 and len(best) == 5


# ---- damage --------------------------------------------------------------------------------------------------------


@pytest.fixture
def learnt(tmp_path):
    """A closed hub of three tasks, all learnt."""
    folder = tmp_path / "hub"
    with Hub(folder, threshold=0.5) as hub:
        for truth in range(3):
            publish(hub, hub.meet(fingerprint(truth), "a").task, truth + 1, "a")
    return folder


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["network", "replay"])
@pytest.mark.parametrize("harm", ["first bit", "last bit", "short", "gone", "empty"])
def test_a_damaged_file_is_refused_said_and_learnt_anew(learnt, caplog, kind, harm):
    path = next((learnt / "tensors").glob(f"000002-{kind}-*"))
    bits = 8 * path.stat().st_size
    {
        "first bit": lambda: flip(path, 0),
        "last bit": lambda: flip(path, bits - 1),
        "short": lambda: path.write_bytes(path.read_bytes()[:-1]),
        "gone": path.unlink,
        "empty": lambda: path.write_bytes(b""),
    }[harm]()
    with Hub(learnt, threshold=0.5) as hub:
        assert hub.fetch(2, "b") is None
        what = "what a learnt is dropped, to be learnt anew"
        assert caplog.messages == [f"hub {learnt}: task 2: {path.name} is damaged or gone; {what}"]
        assert hub.meet(fingerprint(1), "b") == Match(task=2, distance=0.0, learnt=False), "the task is still known"
        assert hub.fetch(2, "b") is None and len(caplog.messages) == 1, "said once"
        assert publish(hub, 2, 1, "b"), "a lower score than the dropped one is welcome"
    assert_sound(learnt, {0: 1, 1: 1, 2: 3})


@pytest.mark.parametrize("column, value", [("score", 7.0), ("learner", "z"), ("fingerprint", b"xx"), ("network", None)])
def test_a_damaged_row_of_the_index_is_forgotten_said_and_learnt_anew(learnt, caplog, column, value):
    db = sqlite3.connect(learnt / "index.sqlite")
    db.execute(f"UPDATE task SET {column} = ? WHERE task = 2", (value,))
    db.commit()
    db.close()
    with Hub(learnt, threshold=0.5) as hub:
        assert caplog.messages == [
            f"hub {learnt}: task 2: its row in the index is damaged; forgotten, to be learnt anew"
        ]
        assert hub.query(fingerprint(1)) is None and hub.fetch(2, "b") is None
        assert hub.meet(fingerprint(1), "b").task == 4, "a number is never used twice"
    assert_sound(learnt, {0: 1, 1: None, 2: 3})
    assert len(caplog.messages) == 1, "said once, also when the hub is opened again"


def test_a_row_that_is_damaged_while_the_hub_is_open_is_forgotten_as_well(learnt, caplog):
    with Hub(learnt, threshold=0.5) as hub:
        assert hub.query(fingerprint(1)).task == 2
        with hub._store.transaction():
            hub._store._db.execute("UPDATE task SET learner = 'z' WHERE task = 2")
        assert hub.query(fingerprint(1)) is None
        assert len(caplog.messages) == 1
        assert hub.query(fingerprint(2)).task == 3


def test_any_flipped_bit_of_the_index_never_gives_wrong_knowledge(learnt):
    draw, size = random.Random(0), (learnt / "index.sqlite").stat().st_size
    for i in range(25):
        folder = shutil.copytree(learnt, learnt.with_name(f"hub-{i}"))
        flip(folder / "index.sqlite", draw.randrange(800, 8 * size))  # not in SQLite's header of 100 bytes
        with Hub(folder, threshold=0.5) as hub:
            for truth in range(3):
                match = hub.query(fingerprint(truth))
                got = match and hub.fetch(match.task, "b")
                if got:
                    assert got.score == truth + 1
                    assert_whole(got)


def test_a_ruined_index_is_moved_aside_said_and_all_is_learnt_anew(learnt, caplog):
    (learnt / "index.sqlite").write_bytes(b"no database" * 1000)
    with Hub(learnt, threshold=0.5) as hub:
        assert len(hub) == 0
        moved = "moved to index.sqlite.damaged, all tasks are to be learnt anew"
        assert caplog.messages == [f"hub {learnt}: index.sqlite (file is not a database); {moved}"]
        assert (learnt / "index.sqlite.damaged").exists() and list((learnt / "tensors").iterdir()) == []
        assert hub.meet(fingerprint(1), "b").new


def test_a_ruined_index_that_another_hub_has_open_is_not_moved(learnt):
    with Hub(learnt, threshold=0.5):
        (learnt / "index.sqlite").write_bytes(b"no database" * 1000)
        with pytest.raises(UserError, match="another process uses it; end that first"):
            Hub(learnt, threshold=0.5)


# ---- files without an owner ----------------------------------------------------------------------------------------


def test_what_a_killed_process_left_is_removed_at_opening(learnt):
    for name in ("000001-network-0-abc", "000009-replay-0-abc.tmp"):
        (learnt / "tensors" / name).write_bytes(b"left behind")
    assert_sound(learnt, {0: 1, 1: 2, 2: 3})


def test_a_hub_that_opens_does_not_take_a_live_writers_file_for_an_orphan(learnt):
    with Hub(learnt, threshold=0.5) as hub:
        store = hub._store
        opener = threading.Thread(target=lambda: Hub(learnt, threshold=0.5).close())
        with store.transaction():
            name = store.write(1, "network", b"data")  # on the disk, and in no row yet
            opener.start()
            opener.join(0.3)
            assert opener.is_alive(), "it waits for the writer"
            store.put(Entry(1, "a", store.entry(1).fingerprint, network=name))
        opener.join(30)
        assert store.read(name) == b"data"


def test_a_failed_transaction_leaves_neither_row_nor_file(learnt):
    store = Store(learnt)
    before = sorted(p.name for p in (learnt / "tensors").iterdir())
    with pytest.raises(KeyboardInterrupt), store.transaction():
        store.put(Entry(1, "a", b"", network=store.write(1, "network", b"data")))
        raise KeyboardInterrupt
    assert sorted(p.name for p in (learnt / "tensors").iterdir()) == before
    store.close()
    assert_sound(learnt, {0: 1, 1: 2, 2: 3})


# ---- a full disk, a fork -------------------------------------------------------------------------------------------


def small_files(folder, limit, report):
    """Publish where no file may grow beyond ``limit`` bytes; the message goes to ``report``."""
    with Hub(folder, threshold=0.5) as hub:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            hub.publish(1, {"w": torch.zeros(3)}, {"obs": torch.rand(100_000)}, 9.0, "b")
        except UserError as error:
            report.write_text(str(error))


def test_a_full_disk_is_one_line_and_the_hub_keeps_what_it_had(learnt, tmp_path):
    report = tmp_path / "report"
    process = FORK.Process(target=small_files, args=(learnt, 200_000, report))
    process.start()
    process.join(60)
    message = report.read_text()
    assert message.startswith(f"{learnt}: File too large (") and message.endswith("the hub keeps what it had")
    assert "\n" not in message
    assert_sound(learnt, {0: 1, 1: 2, 2: 3})


def test_a_full_index_is_one_line_and_the_hub_keeps_what_it_had(learnt):
    with Hub(learnt, threshold=0.5) as hub:
        hub._store._db.execute("PRAGMA max_page_count = 1")
        with pytest.raises(UserError, match=r"index\.sqlite: database or disk is full \(.* free\): the hub keeps"):
            for truth in range(3, 300):
                hub.meet({"w": 10.0 * truth + torch.rand(4) / 100}, "a")
        known = len(hub)
    assert_sound(learnt, {0: 1, 1: 2, 2: 3} | {truth: None for truth in range(3, known)})


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "hub").write_text("")
    with pytest.raises(UserError, match="the hub was not opened"):
        Hub(tmp_path / "hub", threshold=0.5)


def test_a_forked_child_is_told_to_open_its_own(learnt):
    with Hub(learnt, threshold=0.5) as hub:
        child = os.fork()
        if child == 0:
            try:
                hub.query(fingerprint(0))
                os._exit(0)
            except RuntimeError as error:
                os._exit(7 if "fork" in str(error) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert hub.query(fingerprint(0)).task == 1
