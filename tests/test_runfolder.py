"""A run's folder: never overwritten, never shared by two writers."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from marl.runfolder import lock, new_run, read_config, size, write_atomically, write_config
from marl.types import UserError


def python(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_default_folder_says_algorithm_environment_and_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20260102-030405")
    first, second = (new_run("maddpg", "mpe/simple_spread_v3") for _ in range(2))
    assert str(first) == "runs/maddpg-mpe-simple_spread_v3-20260102-030405"
    assert str(second) == "runs/maddpg-mpe-simple_spread_v3-20260102-030405-2"
    assert first.is_dir() and second.is_dir()


def test_a_run_is_never_overwritten_and_the_message_names_resume(tmp_path):
    folder = new_run("td3", "gym/x", tmp_path / "run")
    write_config(folder, {"algorithm": "td3"})
    with pytest.raises(UserError, match=f"already holds a run; to go on with it: marl resume {folder}"):
        new_run("td3", "gym/x", folder)
    assert read_config(folder) == {"algorithm": "td3"}


def test_a_folder_with_other_files_is_refused_and_an_empty_one_is_not(tmp_path):
    assert new_run("td3", "gym/x", tmp_path) == tmp_path
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        new_run("td3", "gym/x", tmp_path)
    with pytest.raises(UserError, match="is a file"):
        new_run("td3", "gym/x", tmp_path / "thesis.tex")
    with pytest.raises(UserError, match="Not a directory"):
        new_run("td3", "gym/x", tmp_path / "thesis.tex" / "run")


@pytest.mark.parametrize("kept", ["checkpoints/000000000035.json", "tensorboard/seed=0/events.out.1", "notes.csv"])
def test_what_a_killed_run_left_is_deleted_only_if_it_never_made_a_step(tmp_path, kept):
    paths = [tmp_path / name for name in (".lock", "metrics.csv", "checkpoints/000000000000.json", kept)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with pytest.raises(UserError, match="is not empty and holds no run"):
        new_run("td3", "gym/x", tmp_path)
    assert all(path.exists() for path in paths)
    (tmp_path / kept).unlink()
    (tmp_path / ".lock").rename(tmp_path / "lock")  # without it this may be anybody's
    with pytest.raises(UserError, match="is not empty and holds no run"):
        new_run("td3", "gym/x", tmp_path)
    (tmp_path / "lock").rename(tmp_path / ".lock")
    assert new_run("td3", "gym/x", tmp_path) == tmp_path
    assert not (tmp_path / "metrics.csv").exists() and not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("name", ["metrics.csv", "tensorboard/events.out.1"])
def test_numbers_are_never_deleted_though_the_config_is_gone(name, tmp_path):
    kept = tmp_path / name
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("step,metric,unit,member,agent,value\n100,eval/return_mean,reward per episode,seed=0,,1.5\n")
    (tmp_path / ".lock").touch()
    with pytest.raises(UserError, match="is not empty and holds no run"):
        new_run("td3", "gym/x", tmp_path)
    assert "1.5" in kept.read_text()


def test_a_run_that_begins_as_another_process_looks_what_an_earlier_one_left_is_not_cleared(tmp_path, monkeypatch):
    (tmp_path / ".lock").touch()
    (tmp_path / "metrics.csv").touch()

    def late(folder):  # meanwhile a run has begun and ended
        write_config(folder, {})
        return lock(folder)

    monkeypatch.setattr("marl.runfolder.lock", late)
    with pytest.raises(UserError, match="holds a run by now; to go on with it: marl resume"):
        new_run("td3", "gym/x", tmp_path)
    assert (tmp_path / "metrics.csv").exists()


def test_a_folder_of_other_files_is_not_searched(tmp_path, monkeypatch):
    (tmp_path / "thesis.tex").touch()
    monkeypatch.setattr(Path, "rglob", lambda *_: pytest.fail("searched"))
    with pytest.raises(UserError, match="is not empty and holds no run"):
        new_run("td3", "gym/x", tmp_path)


def test_a_link_that_leads_nowhere_is_one_line(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("link", "loop"):
        with pytest.raises(UserError, match=f"{name} is a link to nothing; --run expects"):
            new_run("td3", "gym/x", tmp_path / name)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs a file system that takes no folders")
def test_a_place_where_no_folder_can_be_is_one_line():
    with pytest.raises(UserError, match=r"^/proc/foo: No such file or directory: the run was not started$"):
        new_run("td3", "gym/x", Path("/proc/foo"))


def test_a_folder_without_a_run_is_said_with_the_newest_run_near_it(tmp_path):
    write_config(new_run("td3", "gym/x", tmp_path / "mine"), {})
    with pytest.raises(UserError, match=rf"typo holds no run: .*; the newest run there is {tmp_path / 'mine'}"):
        read_config(tmp_path / "typo")


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_a_damaged_configuration_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is damaged") as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_configuration_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=r"config\.json cannot be read: Is a directory$"):
        read_config(tmp_path)


def test_a_failed_write_leaves_the_old_content_and_no_temporary_file(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_atomically(path, b"old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


HOLD = """
    import sys, time
    from pathlib import Path
    from marl.runfolder import lock
    with lock(Path(sys.argv[1])):
        {inside}
        print("held", flush=True)
        time.sleep(60)
"""


def test_a_second_process_is_told_who_uses_the_folder_until_that_one_dies(tmp_path):
    other = python(HOLD.format(inside=""), tmp_path)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"run folder {tmp_path} is in use by process {other.pid}$"), lock(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
    with lock(tmp_path):  # a killed process holds nothing
        pass


def test_a_worker_that_outlives_its_killed_trainer_does_not_hold_the_lock(tmp_path):
    worker = "import os; os.fork() or print(os.getpid(), flush=True); time.sleep(60)"
    trainer = python(HOLD.format(inside=worker), tmp_path)
    child = int(trainer.stdout.readline())
    try:
        trainer.kill()
        trainer.wait()
        os.kill(child, 0)  # still alive
        with lock(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
def test_a_lock_for_which_there_is_no_room_or_handle_is_one_line(number, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(UserError, match=rf"{os.strerror(number)}.*: the run was not locked$"), lock(tmp_path):
        pass
    monkeypatch.undo()
    with lock(tmp_path):  # nobody holds it
        pass


def test_the_lock_holds_within_one_process_as_well_and_ends_with_its_block(tmp_path):
    with lock(tmp_path), pytest.raises(UserError, match=f"in use by process {os.getpid()}"), lock(tmp_path):
        pass
    with lock(tmp_path):
        pass


@pytest.mark.parametrize(
    "count, text",
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2.5e6, "2.5 MB"), (3e9, "3.0 GB"), (4e12, "4.0 TB")],
)
def test_sizes_are_decimal(count, text):
    assert size(count) == text
