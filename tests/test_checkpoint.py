"""Checkpoints: what is saved comes back bit for bit; what is damaged is passed over; what does not fit is said."""

import json
import logging
import os
import re
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.checkpoint import FORMAT, Checkpoints, flatten, unflatten
from marl.types import UserError


class Ring:
    """A replay buffer of one int64 a slot: slot s holds 10 * s."""

    def __init__(self, capacity, written=0):
        self.capacity, self.written = capacity, 0
        self.data = torch.zeros(capacity, dtype=torch.int64)
        self.reads = []
        self.fill(written)

    def fill(self, written):
        for slot in range(self.written, written):
            self.data[slot % self.capacity] = 10 * slot
        self.written = written

    def read(self, start, stop):
        assert max(self.written - self.capacity, 0) <= start < stop <= self.written
        self.reads.append((start, stop))
        return {"slot": self.data[torch.arange(start, stop) % self.capacity]}

    def restore(self, chunks):
        for start, chunk in chunks:
            for i, value in enumerate(chunk["slot"]):
                self.data[(start + i) % self.capacity] = value
            self.written = start + len(chunk["slot"])


def same(a, b):
    """Equal structure, key order, types, dtypes, shapes and bits."""
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and (a.dtype, a.shape) == (b.dtype, b.shape)
            and a.detach().contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
        )
    return type(a) is type(b) and repr(a) == repr(b)


def round_trip(state, folder):
    Checkpoints(folder).save(1, state)
    return Checkpoints(folder).load().state


DTYPES = [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64]
SHAPES = [(), (0,), (3, 0), (1,), (2, 3)]
tensors = st.builds(
    lambda dtype, shape, seed: torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.sampled_from(DTYPES),
    st.sampled_from(SHAPES),
    st.integers(0, 9),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)
)
keys = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("/~01"), max_size=4)
states = st.dictionaries(
    keys,
    st.recursive(tensors | json_values, lambda inner: st.dictionaries(keys, inner, max_size=3), max_leaves=8),
    max_size=4,
)


@settings(max_examples=80)
@given(states)
def test_any_state_comes_back_with_its_order_types_and_bits(tmp_path_factory, state):
    assert same(round_trip(state, tmp_path_factory.mktemp("c")), state)


def test_unusual_tensors_come_back_bit_for_bit(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    nan = torch.tensor([0x7FC01234, -1], dtype=torch.int32).view(torch.float32)  # two NaNs with payloads
    state = {
        "t": base.T,
        "view": base[1:],
        "base": base,
        "nan": nan,
        "grad": torch.ones(2, requires_grad=True).detach(),
    }
    assert same(round_trip(state, tmp_path), state)


def test_a_tensor_is_named_by_its_json_pointer():
    values, rest = flatten({"a/b": {"~": torch.tensor(1)}, "n": 3})
    assert list(values) == ["/a~1b/~0"] and rest == {"a/b": {"~": None}, "n": 3}
    assert same(unflatten(values, rest), {"a/b": {"~": torch.tensor(1)}, "n": 3})


@pytest.mark.parametrize("leaf", [(1, 2), object(), {1: "int key"}, [{"dict": "in a list"}], {"s": {1}}])
def test_a_leaf_that_json_would_not_give_back_is_refused(leaf):
    with pytest.raises(TypeError, match="state at"):
        flatten({"x": leaf})


def test_the_newest_checkpoint_is_loaded_and_only_two_are_kept(tmp_path):
    saver = Checkpoints(tmp_path)
    for step in (10, 20, 30):
        saver.save(step, {"x": torch.tensor(step)})
    loaded = Checkpoints(tmp_path).load()
    assert (loaded.step, loaded.state["x"].item()) == (30, 30)
    assert [p.name for p in sorted(tmp_path.glob("*.json"))] == ["000000000020.json", "000000000030.json"]
    assert len(list(tmp_path.iterdir())) == 4  # two manifests, two files of tensors


def test_equal_states_give_equal_files(tmp_path):
    for name in "ab":
        Checkpoints(tmp_path / name).save(1, {"x": torch.ones(3), "y": 0.1}, Ring(4, 3))
    a, b = ([(p.name, p.read_bytes()) for p in sorted((tmp_path / name).iterdir())] for name in "ab")
    assert a == b


# ---- damage -----------------------------------------------------------------------------------------------------


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def make_foreign(path):
    path.write_bytes(b"\x80\x04cos\nsystem\n")  # the head of a pickle


def remove(path):
    path.unlink()


def two_checkpoints(folder):
    saver = Checkpoints(folder)
    saver.save(100, {"x": torch.tensor(1.0), "y": "first"}, Ring(8, 5))
    saver.save(200, {"x": torch.tensor(2.0), "y": "second"}, Ring(8, 7))
    return {
        "manifest": folder / "000000000200.json",
        "tensors": next(folder.glob("000000000200-*")),
        "replay": next(folder.glob("replay-000000000005-000000000007-*")),
    }


@pytest.mark.parametrize("harm", [flip_a_bit, truncate, make_foreign, remove])
@pytest.mark.parametrize("part", ["manifest", "tensors", "replay"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_said_in_one_line(tmp_path, caplog, part, harm):
    harm(two_checkpoints(tmp_path)[part])
    with caplog.at_level(logging.WARNING):
        loaded = Checkpoints(tmp_path).load()
    assert (loaded.step, loaded.state["x"].item(), loaded.state["y"]) == (100, 1.0, "first")
    if part == "manifest" and harm is remove:  # never complete: nothing to say
        assert caplog.messages == []
    else:
        (message,) = caplog.messages
        assert "000000000200.json cannot be used" in message and "going on from the checkpoint of step 100" in message
        assert "\n" not in message


@settings(max_examples=60)
@given(st.data())
def test_a_flip_of_any_bit_is_noticed_or_harmless(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("c")
    path = two_checkpoints(folder)[data.draw(st.sampled_from(["manifest", "tensors", "replay"]))]
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    loaded = Checkpoints(folder).load()
    assert (loaded.step, loaded.state["x"].item(), loaded.state["y"]) in {(100, 1.0, "first"), (200, 2.0, "second")}
    assert loaded.step == 100 or path.name.endswith(".json")  # only the manifest's spelling may vary


def test_when_no_checkpoint_is_good_the_user_is_told_why_in_one_line(tmp_path):
    two_checkpoints(tmp_path)
    for path in tmp_path.glob("0*.safetensors"):
        truncate(path)
    with pytest.raises(UserError, match=r"200\.json cannot be used .* bytes instead of .*100\.json") as caught:
        Checkpoints(tmp_path).load()
    assert "\n" not in str(caught.value)


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no checkpoint was saved here"):
        Checkpoints(tmp_path / "missing").load()


def test_a_checkpoint_of_another_format_is_named_as_such(tmp_path):
    path = Checkpoints(tmp_path).save(5, {})
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": FORMAT + 1}))
    with pytest.raises(UserError, match=f"its format is {FORMAT + 1}, this version of marl reads format {FORMAT}"):
        Checkpoints(tmp_path).load()


def test_a_manifest_cannot_make_marl_read_outside_its_folder(tmp_path):
    path = Checkpoints(tmp_path / "c").save(5, {})
    (tmp_path / "secret").write_bytes(b"x")
    from marl.checkpoint import _digest

    content = json.loads(path.read_text())
    content["body"]["tensors"]["name"] = "../secret"
    content["digest"] = _digest(json.dumps(content["body"], separators=(",", ":")).encode())
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not a file name"):
        Checkpoints(tmp_path / "c").load()


def test_a_half_written_checkpoint_is_ignored_and_cleaned_up_by_the_next_save(tmp_path):
    saver = Checkpoints(tmp_path)
    saver.save(100, {"x": 1})
    # What a kill between the files of step 200 leaves behind: tensors without a manifest, and a temporary file.
    (tmp_path / "000000000200-abcdef01.safetensors").write_bytes(b"half")
    (tmp_path / "000000000200.json.tmp").write_bytes(b"{")
    resumed = Checkpoints(tmp_path)
    assert resumed.load().step == 100
    resumed.save(200, {"x": 2})
    assert not [p.name for p in tmp_path.iterdir() if "abcdef01" in p.name or p.suffix == ".tmp"]


def test_a_stranger_in_the_folder_is_neither_read_nor_deleted(tmp_path):
    (tmp_path / "notes.json").write_text("mine")
    saver = Checkpoints(tmp_path, keep=1)
    for step in (1, 2):
        saver.save(step, {})
    assert (tmp_path / "notes.json").read_text() == "mine" and Checkpoints(tmp_path).load().step == 2


def test_a_new_run_does_not_delete_the_checkpoints_of_another(tmp_path):
    Checkpoints(tmp_path).save(100, {})
    with pytest.raises(UserError, match="already holds checkpoints of another run"):
        Checkpoints(tmp_path).save(1, {})


# ---- the replay's journal ---------------------------------------------------------------------------------------


def test_each_checkpoint_reads_only_the_slots_since_the_last_one(tmp_path):
    saver, ring = Checkpoints(tmp_path), Ring(10)
    for step, written in enumerate([4, 6, 6, 9, 30]):
        ring.fill(written)
        saver.save(step, {}, ring)
    # 6 -> 6 is nothing new; 9 -> 30 is clipped to the last ten slots.
    assert ring.reads == [(0, 4), (4, 6), (6, 9), (20, 30)]


@settings(max_examples=40)
@given(st.integers(1, 12), st.lists(st.integers(0, 15), min_size=1, max_size=8))
def test_the_buffer_comes_back_whatever_the_rhythm_of_checkpoints(tmp_path_factory, capacity, growth):
    folder = tmp_path_factory.mktemp("c")
    saver, ring = Checkpoints(folder), Ring(capacity)
    for step, new in enumerate(growth):
        ring.fill(ring.written + new)
        saver.save(step, {}, ring)
        if step % 3 == 1:  # a new process goes on
            saver = Checkpoints(folder)
            saver.load()
    found = Ring(capacity)
    found.restore(Checkpoints(folder).load().chunks)
    assert found.written == ring.written and torch.equal(found.data, ring.data)


def test_the_bytes_of_a_checkpoint_follow_the_new_slots_and_not_the_buffer(tmp_path, monkeypatch):
    import marl.checkpoint as module

    written = []
    write = module.write_atomically
    monkeypatch.setattr(module, "write_atomically", lambda path, data: (written.append(len(data)), write(path, data)))

    def cost(new, held):
        written.clear()
        ring = Ring(100_000, held)
        saver = Checkpoints(tmp_path / f"{new}-{held}")
        saver.save(1, {}, ring)
        first = sum(written)
        ring.fill(held + new)
        saver.save(2, {}, ring)
        return sum(written) - first

    base = cost(1000, held=1000)
    # A slot has 8 bytes: 1000 more new slots cost 8000 bytes more, however many the buffer holds (digits aside).
    assert cost(2000, held=1000) - base == pytest.approx(8000, abs=32)
    assert cost(1000, held=50_000) - base == pytest.approx(0, abs=32)


def test_segments_that_the_buffer_has_overwritten_are_deleted(tmp_path):
    saver, ring = Checkpoints(tmp_path), Ring(10)
    for step in range(20):
        ring.fill(5 * step)
        saver.save(step, {}, ring)
    names = sorted(path.name[:32] for path in tmp_path.glob("replay-*"))
    # The last two checkpoints hold slots 80 .. 89 and 85 .. 94.
    assert names == [f"replay-{s:012d}-{s + 5:012d}" for s in (80, 85, 90)]


def test_after_a_fall_back_the_saver_goes_on_from_the_segments_of_the_loaded_checkpoint(tmp_path):
    truncate(two_checkpoints(tmp_path)["tensors"])
    saver, ring = Checkpoints(tmp_path), Ring(8)
    ring.restore(saver.load().chunks)
    assert ring.written == 5
    ring.fill(6)
    saver.save(150, {"x": "again"}, ring)
    assert ring.reads == [(5, 6)]
    assert Checkpoints(tmp_path).load().step == 150  # the damaged step 200 is gone
    assert [p.name[:32] for p in sorted(tmp_path.glob("replay-*"))] == [
        "replay-000000000000-000000000005",
        "replay-000000000005-000000000006",
    ]


# ---- a full disk ------------------------------------------------------------------------------------------------

FILL = """
    import resource, sys, torch
    from pathlib import Path
    from marl.checkpoint import Checkpoints
    from marl.types import UserError
    saver = Checkpoints(Path(sys.argv[1]))
    saver.save(100, {"x": torch.arange(1000)})
    if sys.argv[2] == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        saver.save(200, {"x": torch.zeros(200_000)})
    except UserError as error:
        print(error)
    saver.save(300, {"x": torch.arange(10)})
"""


def fill(folder, how):
    command = [sys.executable, "-c", textwrap.dedent(FILL), str(folder), how]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def check_that_nothing_was_lost(folder, result, reason):
    (line,) = result.stdout.splitlines()
    assert result.stderr == "" and reason in line and str(folder) in line
    # 200 000 floats and the manifest; the exact sum is not worth a test.
    assert re.search(
        r"\(.* free\): the checkpoint of step 200 needs 800\.\d kB; the checkpoint of step 100 is kept$", line
    )
    loaded = Checkpoints(folder).load()
    assert loaded.step == 300
    assert sorted(p.name[:12] for p in folder.glob("0*")) == ["000000000100"] * 2 + ["000000000300"] * 2


def test_a_file_too_large_leaves_the_last_checkpoint_and_no_rubbish(tmp_path):
    check_that_nothing_was_lost(tmp_path, fill(tmp_path, "limit"), "File too large")


def test_a_full_disk_leaves_the_last_checkpoint_and_no_rubbish(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        check_that_nothing_was_lost(tmp_path, fill(tmp_path, "disk"), "No space left on device")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
