"""Tensors as few bytes: exact, small for a game's memory, and no way to run code."""

import pickle
import zlib
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from marl.lifelong.codec import pack, raw_size, unpack

TYPES = (torch.uint8, torch.bool, torch.int64, torch.float32, torch.float64, torch.bfloat16)
NAMES = st.sampled_from(["obs", "next_obs", "action", "reward", "0.weight"])
SHAPES = st.lists(st.integers(0, 4), max_size=3)


def made(shape, kind, seed):
    """Any bits there can be, NaN and minus zero included; booleans are 0 or 1."""
    size = torch.empty(shape, dtype=kind).numel() * torch.empty((), dtype=kind).element_size()
    high = 2 if kind == torch.bool else 256
    data = torch.randint(high, (size,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return data.view(kind).view(shape)


def bits(tensor):
    return tensor.dtype, tensor.shape, tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


@given(st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(TYPES), st.integers(0, 99))))
def test_what_was_packed_comes_back_to_the_bit(described):
    tensors = {name: made(*about) for name, about in described.items()}
    back = unpack(pack(tensors))
    assert {name: bits(t) for name, t in back.items()} == {name: bits(t) for name, t in tensors.items()}


@given(SHAPES.filter(len), st.sampled_from(TYPES), st.integers(0, 99))
def test_successors_come_back_to_the_bit_whether_or_not_they_follow(shape, kind, seed):
    obs = made(shape, kind, seed)
    for next_obs in (obs.roll(-1, 0), made(shape, kind, seed + 1)):
        back = unpack(pack({"obs": obs, "next_obs": next_obs}))
        assert bits(back["obs"]) == bits(obs) and bits(back["next_obs"]) == bits(next_obs)


def test_slices_and_transposes_are_packed_as_what_they_show():
    whole = torch.arange(24).view(4, 6)
    back = unpack(pack({"slice": whole[1:3, ::2], "transposed": whole.t()}))
    assert back["slice"].tolist() == [[6, 8, 10], [12, 14, 16]]
    assert back["transposed"].tolist() == whole.t().tolist()


def test_bytes_are_written_column_by_column():
    data = pack({"obs": torch.tensor([[1, 2], [3, 4], [5, 6]], dtype=torch.uint8)})
    assert safetensors.torch.load(zlib.decompress(data))["obs"].flatten().tolist() == [1, 3, 5, 2, 4, 6]


def test_a_successor_that_follows_is_written_as_zeros():
    # Rows 7, 8, 9; row 1 is followed by another episode's 50 instead of 9: 50 ^ 9 = 0b110010 ^ 0b001001 = 59. The last
    # row is compared with the first: 10 ^ 7 = 0b1010 ^ 0b0111 = 13.
    obs, next_obs = ([[7], [8], [9]], [[8], [50], [10]])
    tensors = {"obs": torch.tensor(obs).byte(), "next_obs": torch.tensor(next_obs).byte()}
    coded = safetensors.torch.load(zlib.decompress(pack(tensors)))
    assert coded["next_obs"].flatten().tolist() == [0, 59, 13]


def test_raw_size_is_what_the_tensors_take_in_memory():
    assert raw_size({"a": torch.zeros(3, 2), "b": torch.zeros(5, dtype=torch.uint8)}) == 3 * 2 * 4 + 5


def transitions(frames, action, reward):
    ends = torch.zeros(len(action), dtype=torch.bool)
    return {"obs": frames[:-1], "action": action, "reward": reward, "next_obs": frames[1:], "terminated": ends}


def test_a_synthetic_memory_compresses_four_times_counting_successors_once():
    # Of 128 bytes, 64 never change, 32 are positions that walk, 16 are timers, and 16 are noise: at least 1/8 stays.
    g = torch.Generator().manual_seed(0)
    n = 4000
    walk = torch.randint(-1, 2, (n + 1, 32), generator=g).cumsum(0) % 160
    timers = torch.arange(n + 1)[:, None] // torch.arange(1, 17) % 256
    noise = torch.randint(256, (n + 1, 16), generator=g)
    still = torch.randint(256, (64,), generator=g).expand(n + 1, 64)
    frames = torch.cat([walk, timers, noise, still], dim=1).byte()
    seen = transitions(frames, torch.randint(18, (n,), generator=g).byte(), torch.zeros(n))
    alone = {name: t for name, t in seen.items() if name != "next_obs"}
    assert raw_size(alone) >= 4 * len(pack(alone))
    assert len(pack(seen)) - len(pack(alone)) < n * 128 / 200, "the second copy of each frame must cost almost nothing"


@pytest.mark.parametrize("game", ["road_runner", "alien"])
def test_real_atari_memory_compresses_four_times_counting_successors_once(game):
    ale_py = pytest.importorskip("ale_py")
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.setInt("random_seed", 1)
    ale.loadROM(ale_py.roms.get_rom_path(game))
    choices = ale.getLegalActionSet()
    actions = torch.randint(len(choices), (2000,), generator=torch.Generator().manual_seed(0))
    frames, rewards = [torch.from_numpy(ale.getRAM().copy())], []
    for action in actions.tolist():
        rewards.append(float(sum(ale.act(choices[action]) for _ in range(4))))
        if ale.game_over():
            ale.reset_game()
        frames.append(torch.from_numpy(ale.getRAM().copy()))
    seen = transitions(torch.stack(frames), actions.byte(), torch.tensor(rewards))
    del seen["next_obs"]
    assert raw_size(seen) >= 4 * len(pack(seen))


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_in_disguise_is_not_run(tmp_path):
    disguised = pickle.dumps(Trap(tmp_path / "ran"))
    for data in (disguised, zlib.compress(disguised)):
        with pytest.raises((zlib.error, safetensors.SafetensorError)):
            unpack(data)
    assert not (tmp_path / "ran").exists()
    pickle.loads(disguised)
    assert (tmp_path / "ran").exists(), "the trap must work where it is let"
