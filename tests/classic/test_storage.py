"""Saved states come back bit for bit, are never half written, and never run code."""

import os
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from marl.classic.storage import load_state, save_state
from marl.types import UserError

numbers = st.one_of(st.integers(-(2**200), 2**200), st.floats(allow_nan=False))
arrays = hnp.arrays(
    st.sampled_from(["f8", "f4", "i8", "u8", "i1", "?", "U3"]), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)
)
leaves = st.one_of(st.none(), st.booleans(), numbers, st.text(), arrays)
trees = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


def same(one, other):
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and (one.dtype, one.shape, one.tobytes()) == (
            *(other.dtype, other.shape, other.tobytes()),
        )
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and repr(one) == repr(other)  # by repr, 0.0 is not -0.0


@settings(max_examples=150)
@given(state=st.dictionaries(st.text(), trees, max_size=4))
def test_a_state_comes_back_with_its_types_shapes_order_and_bits(state, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "state.npz"
    save_state(path, state)
    assert same(load_state(path), state)


def test_numbers_that_are_none_and_integers_of_any_size_come_back(tmp_path):
    state = {
        "nan": float("nan"),
        "inf": -np.inf,
        "zero": -0.0,
        "huge": 7**9000,
        "least": -(2**63),
        "less": -(2**63) - 1,
    }
    save_state(tmp_path / "s.npz", state)
    found = load_state(tmp_path / "s.npz")
    assert np.isnan(found.pop("nan")) and state.pop("nan")
    assert found == state and str(found["zero"]) == "-0.0"  # 7 ** 9000 has 7606 digits, more than Python reads


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937, np.random.SFC64, np.random.Philox])
def test_a_generator_goes_on_where_it_was(kind, tmp_path):
    one, other = (np.random.Generator(kind(seed)) for seed in (1, 2))
    one.normal(size=7)
    save_state(tmp_path / "s.npz", {"generator": one.bit_generator.state})
    other.bit_generator.state = load_state(tmp_path / "s.npz")["generator"]
    assert other.normal(size=9).tobytes() == one.normal(size=9).tobytes()


def test_keys_that_look_like_the_files_own_marks_are_ordinary_keys(tmp_path):
    state = {"array": "a0", "dict": {"int": "0x1"}, "json": np.arange(2), "a/b": [{"array": np.ones(1)}]}
    save_state(tmp_path / "s.npz", state)
    assert same(load_state(tmp_path / "s.npz"), state)


@pytest.mark.parametrize(
    "state, said",
    [
        ({"a": {"b": np.int64(1)}}, "state at /a/b: int64 is neither a NumPy array nor a JSON value"),
        ({"a": [1, (2,)]}, "state at /a/1: tuple is neither"),
        ({"a": np.array([None])}, "state at /a: ndarray is neither"),
        ({"a": {1: 2}}, "state at /a: key 1 is not a string"),
        ({"a": {2.5}}, "state at /a: set is neither"),
    ],
)
def test_what_would_come_back_otherwise_is_refused_by_its_path(state, said, tmp_path):
    with pytest.raises(TypeError, match=said):
        save_state(tmp_path / "s.npz", state)
    assert list(tmp_path.iterdir()) == []


def test_every_flipped_byte_and_every_shorter_file_is_noticed(tmp_path):
    path = tmp_path / "s.npz"
    save_state(path, {"a": np.arange(3), "b": {"c": 1.5}})
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with pytest.raises(UserError, match=r"s\.npz fails its checksum"):
            load_state(path)
    for size in [0, 1, 17, 18, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"s\.npz fails its checksum"):
            load_state(path)
    path.unlink()
    with pytest.raises(UserError, match=r"s\.npz: No such file"):
        load_state(path)


def test_a_file_of_somebody_else_is_refused_even_if_it_is_an_archive(tmp_path):
    np.savez(tmp_path / "s.npz", json=np.arange(3))
    with pytest.raises(UserError, match="fails its checksum"):
        load_state(tmp_path / "s.npz")


def test_equal_states_make_equal_files_that_numpy_and_zip_can_open(tmp_path):
    for name in ("one.npz", "other.npz"):
        save_state(tmp_path / name, {"q": np.arange(6.0).reshape(2, 3), "n": 2**70})
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()
    assert zipfile.ZipFile(tmp_path / "one.npz").testzip() is None
    with np.load(tmp_path / "one.npz", allow_pickle=False) as archive:
        assert archive["a0"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert archive["json"].tobytes() == b'{"dict":{"q":{"array":"a0"},"n":{"int":"0x400000000000000000"}}}'


def test_a_failed_write_keeps_the_last_state(tmp_path, monkeypatch):
    path = tmp_path / "s.npz"
    save_state(path, {"n": 1})

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        save_state(path, {"n": 2})
    monkeypatch.undo()
    assert load_state(path) == {"n": 1} and list(tmp_path.iterdir()) == [path]
