"""Checkpoints of which a part is gone: replay files that are not needed or can be written again, the whole folder."""

import shutil

import pytest
import torch
from test_checkpoint import Ring, flip_a_bit, remove, truncate, two_checkpoints

from marl.checkpoint import Checkpoints
from marl.types import UserError


@pytest.mark.parametrize("harm", [flip_a_bit, truncate, remove])
def test_who_needs_no_replay_is_not_disturbed_by_a_damaged_one(tmp_path, caplog, harm):
    two_checkpoints(tmp_path)
    for path in tmp_path.glob("replay-*"):
        harm(path)
    loaded = Checkpoints(tmp_path).load(replay=False)
    assert (loaded.step, loaded.state["x"].item(), list(loaded.chunks)) == (200, 2.0, [])
    assert caplog.messages == []
    with pytest.raises(UserError, match=r"200\.json cannot be used"):
        Checkpoints(tmp_path).load()


def test_nobody_saves_after_looking_at_the_state_alone(tmp_path):
    two_checkpoints(tmp_path)
    saver = Checkpoints(tmp_path)
    saver.load(replay=False)
    with pytest.raises(UserError, match="already holds checkpoints of another run"):
        saver.save(300, {}, Ring(8, 7))


def test_a_segment_that_somebody_deleted_is_written_again(tmp_path):
    saver, ring = Checkpoints(tmp_path), Ring(8, 5)
    saver.save(100, {}, ring)
    for path in tmp_path.glob("replay-*"):
        path.unlink()
    ring.fill(11)
    saver.save(200, {}, ring)
    again = Ring(8)
    again.restore(Checkpoints(tmp_path).load().chunks)
    assert (again.written, again.data.tolist()) == (11, ring.data.tolist())


@pytest.mark.parametrize("fate", ["moved", "deleted", "emptied", "replaced"])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_folder_that_is_gone_is_said_in_one_line_and_not_made_again(tmp_path, fate, resumed):
    home = tmp_path / "run"
    saver, ring = Checkpoints(home / "checkpoints"), Ring(8, 5)
    saver.save(100, {"x": torch.tensor(1)}, ring)
    if resumed:
        saver = Checkpoints(home / "checkpoints")
        saver.load()
    home.rename(tmp_path / "elsewhere")
    if fate == "deleted":
        shutil.rmtree(tmp_path / "elsewhere")
    elif fate == "emptied":
        home.mkdir()
    elif fate == "replaced":
        Checkpoints(home / "checkpoints").save(100, {"x": torch.tensor(2)}, ring)
    before = sorted(tmp_path.rglob("*"))
    ring.fill(7)
    with pytest.raises(UserError) as caught:
        saver.save(200, {}, ring)
    assert str(caught.value) == (
        f"{home}: the checkpoint of step 100 is gone from where it was; its folder was moved, deleted or emptied, and "
        "the run can go on where it is now"
    )
    assert sorted(tmp_path.rglob("*")) == before
