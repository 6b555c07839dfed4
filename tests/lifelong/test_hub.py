"""The hub when nothing goes wrong: who is recognised, what is kept, what goes, and what it says about its traffic."""

import math
import pickle
import tempfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.lifelong.codec import pack
from marl.lifelong.hub import Hub, Match, Traffic
from marl.lifelong.store import Entry, Store
from marl.types import UserError


def fingerprint(w, b=(0.0,)):
    return {"w": torch.tensor(w).view(2, 1), "b": torch.tensor(b)}


def network(value):
    return {"0.weight": torch.full((2, 3), float(value))}


def replay(value, n=4):
    noise = torch.randint(256, (n, 100), generator=torch.Generator().manual_seed(value), dtype=torch.uint8)
    return {"obs": noise, "reward": torch.full((n,), float(value))}


ORIGIN = fingerprint([0.0, 0.0])


@pytest.fixture
def hub(tmp_path):
    with Hub(tmp_path / "hub", threshold=6.0) as hub:
        yield hub


# ---- who is recognised ---------------------------------------------------------------------------------------------


def test_a_hub_that_travels_to_another_process_is_one_on_the_same_folder(hub):
    hub.meet(ORIGIN, "a")
    with pickle.loads(pickle.dumps(hub)) as other:
        assert (other.threshold, other.limit_bytes, len(other)) == (6.0, None, 1)
        assert other.meet(ORIGIN, "b") == Match(task=1, distance=0.0, learnt=False)
        other.publish(1, network(1), replay(1), 1.0, "b")
    assert hub.query(ORIGIN).learnt


def test_the_distance_is_the_sum_of_the_tensors_norms(hub):
    hub.meet(ORIGIN, "a")
    # |(3, 4)| + |1| = 6. The norm of all three numbers together would be sqrt(26) = 5.1.
    match = hub.query(fingerprint([3.0, 4.0], [1.0]))
    assert match == Match(task=1, distance=6.0, learnt=False)


def test_a_task_is_recognised_up_to_the_threshold_and_no_further(hub):
    hub.meet(ORIGIN, "a")
    assert hub.query(fingerprint([6.0, 0.0])) is not None
    assert hub.query(fingerprint([math.nextafter(6.0, 7.0) + 1e-6, 0.0])) is None


def test_of_several_near_tasks_the_nearest_is_returned_and_of_equals_the_first(tmp_path):
    with Hub(tmp_path, threshold=6.0) as hub:
        hub.meet(ORIGIN, "a")
        hub.meet(fingerprint([10.0, 0.0]), "a")
        assert hub.query(fingerprint([5.5, 0.0])).task == 2
        assert hub.query(fingerprint([5.0, 0.0])).task == 1


def test_an_empty_hub_recognises_nothing_and_to_ask_registers_nothing(hub):
    assert hub.query(ORIGIN) is None
    assert len(hub) == 0


def test_a_new_task_is_registered_and_recognised_by_another_agent(hub, tmp_path):
    assert hub.meet(ORIGIN, "a") == Match(task=1, distance=0.0, learnt=False, new=True)
    with Hub(tmp_path / "hub", threshold=6.0) as other:
        assert other.meet(fingerprint([1.0, 0.0]), "b") == Match(task=1, distance=1.0, learnt=False)
        assert other.meet(fingerprint([9.0, 0.0]), "b").task == 2
    assert hub.query(fingerprint([8.0, 0.0])).task == 2, "what another one registered is seen at once"


def test_the_order_of_a_fingerprints_tensors_does_not_matter(hub):
    hub.meet(fingerprint([1.0, 2.0], [3.0]), "a")
    assert hub.query(dict(reversed(fingerprint([1.0, 2.0], [3.0]).items()))).distance == 0


def test_a_query_among_a_thousand_tasks_takes_less_than_10_ms(tmp_path):
    def simnet(seed):
        g = torch.Generator().manual_seed(seed)
        return {n: torch.randn(s, generator=g) for n, s in [("w", (128, 5)), ("b", 5), ("v", (5, 18)), ("c", 18)]}

    store = Store(tmp_path)
    with store.transaction():
        for k in range(1000):
            store.put(Entry(store.next_task(), "a", pack(simnet(k))))
    store.close()
    with Hub(tmp_path, threshold=1.0) as hub:
        assert hub.query(simnet(700)).task == 701  # reads the fingerprints, once
        seconds = []
        for _ in range(20):
            begin = time.perf_counter()
            hub.query(simnet(2000))
            seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 0.010


# ---- what is kept --------------------------------------------------------------------------------------------------


def test_what_was_published_is_fetched_to_the_bit_also_from_another_process_folder(hub, tmp_path):
    task = hub.meet(ORIGIN, "a").task
    assert hub.fetch(task, "b") is None
    assert hub.publish(task, network(1), replay(1), score=2.5, agent="a")
    with Hub(tmp_path / "hub", threshold=6.0) as other:
        got = other.fetch(task, "b")
        assert other.query(ORIGIN).learnt
    assert (got.score, got.agent) == (2.5, "a")
    assert torch.equal(got.network["0.weight"], network(1)["0.weight"])
    assert torch.equal(got.transitions["obs"], replay(1)["obs"])
    assert torch.equal(got.transitions["reward"], replay(1)["reward"])


def test_the_better_score_stays_and_the_first_of_equals(hub):
    task = hub.meet(ORIGIN, "a").task
    kept = [hub.publish(task, network(i), replay(i), score, f"{i}") for i, score in enumerate([-1.0, -2.0, 3.0, 3.0])]
    assert kept == [True, False, True, False]
    got = hub.fetch(task, "x")
    assert (got.score, got.agent) == (3.0, "2")
    assert got.network["0.weight"][0, 0] == 2 and got.transitions["reward"][0] == 2
    assert len(list((hub._store.tensors).iterdir())) == 2, "what was replaced is removed"


def test_a_publication_for_a_task_that_is_not_known_is_said_and_not_kept(hub, caplog):
    assert not hub.publish(7, network(1), replay(1), 1.0, "a")
    assert caplog.messages == [f"hub {hub._store.folder}: task 7 is not known; what a learnt of it is not kept"]
    assert list(hub._store.tensors.iterdir()) == []


# ---- limits --------------------------------------------------------------------------------------------------------


def four_tasks(folder, limit):
    hub = Hub(folder, threshold=0.5, limit_bytes=limit)
    for k in range(4):
        hub.publish(hub.meet(fingerprint([float(k), 0.0]), "a").task, network(k), replay(k), 1.0, "a")
    return hub


def holders(hub):
    """Tasks with a replay; looks past the clock that a fetch would advance."""
    with hub._store.transaction():
        return [e.task for e in hub._store.entries() if e.replay is not None]


def test_the_replay_used_longest_ago_goes_first_and_networks_stay(tmp_path):
    size = max(len(pack(replay(k))) for k in range(10))
    with four_tasks(tmp_path, 3 * size) as hub:
        assert holders(hub) == [2, 3, 4]
        hub.fetch(2, "b")
        task = hub.meet(fingerprint([50.0, 0.0]), "a").task
        hub.publish(task, network(9), replay(9), 1.0, "a")
        assert holders(hub) == [2, 4, 5], "2 was fetched after 3 was published"
        evicted = hub.fetch(3, "b")
        assert evicted.transitions is None and evicted.network["0.weight"][0, 0] == 2
        assert hub.query(fingerprint([2.0, 0.0])) == Match(3, 0.0, learnt=True)
        on_disk = sum(p.stat().st_size for p in hub._store.tensors.glob("*-replay-*"))
        assert on_disk <= 3 * size
        assert len(list(hub._store.tensors.iterdir())) == 5 + 3


def test_a_replay_larger_than_the_limit_is_not_kept_and_drives_out_no_other(tmp_path):
    size = max(len(pack(replay(k))) for k in range(10))
    with four_tasks(tmp_path, 4 * size) as hub:
        task = hub.meet(fingerprint([50.0, 0.0]), "a").task
        assert hub.publish(task, network(9), replay(9, n=40), 1.0, "a")
        assert holders(hub) == [1, 2, 3, 4]
        assert hub.fetch(task, "b").transitions is None


def test_without_a_limit_nothing_goes(tmp_path):
    with four_tasks(tmp_path, None) as hub:
        assert holders(hub) == [1, 2, 3, 4]


# ---- traffic -------------------------------------------------------------------------------------------------------


def test_traffic_counts_every_tensor_that_travels_compressed_and_raw(hub):
    fp, net, seen = len(pack(ORIGIN)), len(pack(network(1))), len(pack(replay(1)))
    hub.meet(ORIGIN, "a")  # 3 numbers of 4 bytes
    hub.query(ORIGIN)
    hub.publish(1, network(1), replay(1), 1.0, "a")  # 6 numbers; 4 rows of 100 bytes and a reward
    hub.publish(1, network(1), replay(1), 0.0, "a")  # not kept, but it has travelled
    hub.meet(ORIGIN, "b")
    hub.fetch(1, "b")
    raw = 24 + 4 * (100 + 4)
    assert hub.traffic() == {
        "a": Traffic(fp + 2 * (net + seen), 12 + 2 * raw, 0, 0),
        "b": Traffic(fp, 12, net + seen, raw),
    }


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [-1.0, float("nan"), float("inf")])
def test_a_threshold_that_makes_no_sense_is_refused(tmp_path, threshold):
    with pytest.raises(UserError, match="expected a finite number, 0 or more"):
        Hub(tmp_path, threshold)


def test_a_fingerprint_of_another_network_is_refused_with_both_shapes(hub):
    hub.meet(ORIGIN, "a")
    with pytest.raises(UserError) as error:
        hub.meet({"w": torch.zeros(3, 1), "b": torch.zeros(1)}, "b")
    assert str(error.value) == "fingerprint: expected b [1], w [2, 1], as the hub's tasks have, got b [1], w [3, 1]"
    assert hub.traffic().keys() == {"a"}, "nothing of a refused call remains"


def test_numbers_that_are_not_finite_are_refused(hub):
    with pytest.raises(UserError, match="expected finite numbers"):
        hub.meet(fingerprint([float("nan"), 0.0]), "a")
    assert len(hub) == 0, "no fingerprint is near NaN: each meeting would be a new task"
    hub.meet(ORIGIN, "a")
    with pytest.raises(UserError, match="expected a finite number, got nan"):
        hub.publish(1, network(1), replay(1), float("nan"), "a")


# ---- any order of calls --------------------------------------------------------------------------------------------

CALLS = st.one_of(
    st.tuples(st.just("meet"), st.integers(0, 2), st.integers(0, 3)),
    st.tuples(st.just("publish"), st.integers(0, 2), st.integers(0, 3), st.integers(0, 4)),
    st.tuples(st.just("fetch"), st.integers(0, 2), st.integers(0, 3)),
    st.tuples(st.just("reopen"), st.integers(0, 2)),
)


@settings(max_examples=30)
@given(st.lists(CALLS, max_size=25))
def test_three_agents_in_any_order_see_one_hub_that_equals_a_dictionary(calls):
    with tempfile.TemporaryDirectory() as folder:
        hubs = [Hub(Path(folder), threshold=0.5) for _ in range(3)]
        numbers: dict[int, int] = {}  # true task -> number
        best: dict[int, tuple[int, str]] = {}  # true task -> (score, agent)
        for kind, agent, *rest in calls:
            if kind == "reopen":
                hubs[agent].close()
                hubs[agent] = Hub(Path(folder), threshold=0.5)
                continue
            hub, truth = hubs[agent], rest[0]
            if kind == "meet":
                match = hub.meet(fingerprint([float(truth), 0.0]), f"{agent}")
                assert match.new == (truth not in numbers)
                assert match.task == numbers.setdefault(truth, len(numbers) + 1)
                assert match.learnt == (truth in best)
            elif truth in numbers and kind == "publish":
                score = rest[1]
                kept = hub.publish(numbers[truth], network(score), replay(score), score, f"{agent}")
                assert kept == (truth not in best or score > best[truth][0])
                if kept:
                    best[truth] = (score, f"{agent}")
            elif truth in numbers:
                got = hub.fetch(numbers[truth], f"{agent}")
                assert (got and (got.score, got.agent)) == best.get(truth)
                if got:
                    assert got.network["0.weight"][0, 0] == got.transitions["reward"][0] == got.score
        assert len(hubs[0]) == len(numbers)
        assert len(list(hubs[0]._store.tensors.iterdir())) == 2 * len(best)
        for hub in hubs:
            hub.close()
