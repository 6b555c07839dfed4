"""Recorded numbers: what the files say, and that a resumed run's say the same as an uninterrupted one's."""

import csv
import subprocess
import sys

import pytest
import torch
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from marl.log import METRICS, Recorder, member_settings, tag
from marl.types import UserError

CONFIG = {
    "algorithm": "maddpg",
    "environment": "mpe/simple_spread_v3",
    "members": [
        {"name": "seed=0,kappa=0.2", "seed": 0, "sweep": {"reciprocity.kappa": 0.2}},
        {"name": "seed=1,kappa=0.5", "seed": 1, "sweep": {"reciprocity.kappa": 0.5}},
    ],
    "env": {"local_ratio": 0.5},
    "config": {"gamma": 0.95, "hidden": [64, 64], "reciprocity": {"kappa": 0.0}},
    "command": "marl train maddpg mpe/simple_spread_v3",
}
MEMBERS = [member["name"] for member in CONFIG["members"]]
AGENTS = ["agent_0", "agent_1"]


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def events(folder, member=MEMBERS[0]):
    return EventAccumulator(str(folder / "tensorboard" / member), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def series(folder, name, agent="", member=MEMBERS[0]):
    return [(e.step, e.value) for e in events(folder, member).Scalars(tag(name, agent))]


def test_a_value_per_agent_gives_each_agents_row_and_their_mean_with_units(tmp_path):
    recorder = Recorder(tmp_path, MEMBERS, AGENTS)
    recorder.write(50, {"eval/return_mean": torch.tensor([[1.0, 3.0], [-2.0, -4.0]])})
    recorder.close()
    mean_unit = "reward per episode, mean over agents"
    assert [(r["member"], r["agent"], r["unit"], r["value"]) for r in rows(tmp_path)] == [
        (MEMBERS[0], "", mean_unit, "2.0"),  # (1 + 3) / 2
        (MEMBERS[0], "agent_0", "reward per episode", "1.0"),
        (MEMBERS[0], "agent_1", "reward per episode", "3.0"),
        (MEMBERS[1], "", mean_unit, "-3.0"),
        (MEMBERS[1], "agent_0", "reward per episode", "-2.0"),
        (MEMBERS[1], "agent_1", "reward per episode", "-4.0"),
    ]
    assert {r["step"] for r in rows(tmp_path)} == {"50"}


def test_tensorboard_has_one_run_per_member_and_the_unit_in_every_tag(tmp_path):
    recorder = Recorder(tmp_path, MEMBERS, AGENTS)
    recorder.write(
        50, {"eval/return_mean": torch.tensor([[1.0, 3.0], [-2.0, -4.0]]), "replay/size": torch.tensor([7, 7])}
    )
    recorder.close()
    assert events(tmp_path).Tags()["scalars"] == [
        "eval/return_mean [reward per episode, mean over agents]",
        "eval/return_mean/agent_0 [reward per episode]",
        "eval/return_mean/agent_1 [reward per episode]",
        "replay/size [transitions]",
    ]
    assert series(tmp_path, "eval/return_mean", member=MEMBERS[1]) == [(50, -3.0)]
    assert series(tmp_path, "eval/return_mean", "agent_1") == [(50, 3.0)]


@pytest.mark.parametrize("value", [torch.tensor([1.0, 2.0]), torch.tensor([[1.0], [2.0]])])
def test_a_value_per_member_or_of_one_shared_network_gives_one_row(tmp_path, value):
    recorder = Recorder(tmp_path, MEMBERS, AGENTS)
    recorder.write(1, {"loss/critic": value})
    recorder.close()
    assert [(r["member"], r["agent"], r["value"]) for r in rows(tmp_path)] == [
        (MEMBERS[0], "", "1.0"),
        (MEMBERS[1], "", "2.0"),
    ]


def test_the_text_of_a_number_gives_its_bits_back(tmp_path):
    value = torch.tensor([0.1, 1 / 3], dtype=torch.float32)
    recorder = Recorder(tmp_path, MEMBERS, AGENTS)
    recorder.write(1, {"loss/critic": value})
    recorder.close()
    assert torch.equal(torch.tensor([float(r["value"]) for r in rows(tmp_path)], dtype=torch.float32), value)


def test_a_metric_without_a_unit_is_named_with_the_table_to_register_it_in_and_nothing_is_written(tmp_path):
    recorder = Recorder(tmp_path, MEMBERS, AGENTS)
    with pytest.raises(UserError, match=r"^no metric 'mine/x': register it in marl\.log\.METRICS, with its unit$"):
        recorder.write(1, {"replay/size": torch.zeros(2), "mine/x": torch.zeros(2)})
    recorder.close()
    assert rows(tmp_path) == [] and not (tmp_path / "tensorboard").exists()


def test_a_wrong_shape_is_a_programming_error(tmp_path):
    recorder = Recorder(tmp_path, MEMBERS, AGENTS)
    with pytest.raises(ValueError, match=r"loss/critic: expected the shape \[2\] or \[2, 2\], got \[2, 3\]"):
        recorder.write(1, {"loss/critic": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"replay/size: expected the shape \[2\], got \[2, 2\]"):
        recorder.write(1, {"replay/size": torch.zeros(2, 2)})
    recorder.close()


def test_returns_say_whether_they_are_a_sum_or_a_mean_over_agents():
    for name in METRICS:
        if "return" in name:
            assert ("sum over agents" if name.endswith("sum") else "mean over agents") in tag(name)
        assert tag(name).count("/") == 1  # TensorBoard makes folders of slashes


# ---- resume -----------------------------------------------------------------------------------------------------


def write_steps(recorder, steps):
    for step in steps:
        recorder.write(
            step, {"eval/return_mean": torch.tensor([[step / 3, 1.0], [step / 7, 2.0]]), "replay/size": torch.ones(2)}
        )


@pytest.mark.parametrize("killed", [True, False])
def test_the_files_of_a_resumed_run_say_what_those_of_an_uninterrupted_run_say(tmp_path, killed):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
        recorder = Recorder(folder, MEMBERS, AGENTS)
        recorder.describe(CONFIG)
        write_steps(recorder, [10, 20, 30])
        saved = recorder.state_dict()
        write_steps(recorder, [40, 50])  # lost by the broken run
        recorder.flush()
        if folder is broken and killed:
            with (folder / "metrics.csv").open("ab") as file:
                file.write(b'60,"seed=0,ka')
            with next((folder / "tensorboard").rglob("*tfevents*")).open("ab") as file:
                file.write(b"half a record")
        if folder is broken:
            recorder = Recorder(folder, MEMBERS, AGENTS)
            recorder.load_state_dict(saved)
            write_steps(recorder, [40, 50])
        write_steps(recorder, [60])
        recorder.close()
    assert (whole / "metrics.csv").read_bytes() == (broken / "metrics.csv").read_bytes()
    for name, agent in [("eval/return_mean", ""), ("eval/return_mean", "agent_1"), ("replay/size", "")]:
        assert series(whole, name, agent) == series(broken, name, agent)
    assert [step for step, _ in series(broken, "replay/size")] == [10, 20, 30, 40, 50, 60]
    assert events(broken).Tags()["tensors"] == events(whole).Tags()["tensors"] == ["configuration/text_summary"]


def test_steps_beyond_the_checkpoint_leave_tensorboard_even_before_they_are_reached_again(tmp_path):
    recorder = Recorder(tmp_path, MEMBERS, AGENTS)
    write_steps(recorder, [10])
    saved = recorder.state_dict()
    write_steps(recorder, [20, 30])
    recorder.close()
    resumed = Recorder(tmp_path, MEMBERS, AGENTS)
    resumed.load_state_dict(saved)
    write_steps(resumed, [15])
    resumed.close()
    assert [step for step, _ in series(tmp_path, "replay/size")] == [10, 15]
    # What `tensorboard` itself reads with where its data server has no binary, on ARM for one.
    reader = plugin_event_accumulator.EventAccumulator(str(tmp_path / "tensorboard" / MEMBERS[0])).Reload()
    assert [event.step for event in reader.Tensors(tag("replay/size"))] == [10, 15]


def test_a_run_that_died_before_its_first_rows_were_saved_has_them_once(tmp_path):
    died = Recorder(tmp_path, MEMBERS, AGENTS)
    saved = died.state_dict()
    died.describe(CONFIG)
    write_steps(died, [0, 5])
    died.close()
    resumed = Recorder(tmp_path, MEMBERS, AGENTS)
    resumed.load_state_dict(saved)
    resumed.describe(CONFIG)
    write_steps(resumed, [0, 10])
    resumed.close()
    assert series(tmp_path, "replay/size") == [(0, 1.0), (10, 1.0)]
    assert events(tmp_path).Tags()["tensors"] == ["configuration/text_summary"]


def test_a_run_goes_on_where_somebody_deleted_its_older_event_files(tmp_path):
    for step in (10, 20, 30, 40):
        recorder = Recorder(tmp_path, MEMBERS, AGENTS)
        write_steps(recorder, [step])
        recorder.close()
        if step == 30:
            for path in sorted((tmp_path / "tensorboard" / MEMBERS[0]).iterdir())[:2]:
                path.unlink()
    assert [step for step, _ in series(tmp_path, "replay/size")] == [30, 40]
    assert [step for step, _ in series(tmp_path, "replay/size", member=MEMBERS[1])] == [10, 20, 30, 40]


def test_a_metrics_file_that_lost_its_past_is_said_and_does_not_stop_the_run(tmp_path, caplog):
    recorder = Recorder(tmp_path, MEMBERS, AGENTS)
    write_steps(recorder, [10])
    saved = recorder.state_dict()
    recorder.close()
    (tmp_path / "metrics.csv").unlink()
    resumed = Recorder(tmp_path, MEMBERS, AGENTS)
    resumed.load_state_dict(saved)
    write_steps(resumed, [20])
    resumed.close()
    assert len(caplog.messages) == 1 and "metrics.csv lacks" in caplog.messages[0]
    assert {row["step"] for row in rows(tmp_path)} == {"20"}


@pytest.mark.parametrize("whole", [15, 9, 0])  # lines; 0: the file ends in the middle of its head
def test_a_row_that_was_cut_in_the_middle_is_dropped_and_the_next_one_stands_alone(whole, tmp_path, caplog):
    recorder = Recorder(tmp_path, MEMBERS, AGENTS)
    write_steps(recorder, [10, 20])  # 8 rows each, after the head
    saved = recorder.state_dict()
    recorder.close()
    path = tmp_path / "metrics.csv"
    head, *lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([head, *lines][:whole]) + [head, *lines][whole][:9])
    resumed = Recorder(tmp_path, MEMBERS, AGENTS)
    resumed.load_state_dict(saved)
    write_steps(resumed, [30])
    resumed.close()
    found = path.read_bytes().splitlines(keepends=True)
    left = max(whole, 1)
    assert found[:left] == [head, *lines][:left] and len(found) == left + 8
    assert [row["step"] for row in rows(tmp_path)][left - 1 :] == ["30"] * 8
    assert len(caplog.messages) == 1 and "metrics.csv lacks" in caplog.messages[0]


# ---- configuration ----------------------------------------------------------------------------------------------


def test_a_members_settings_are_the_common_ones_with_its_own_sweep():
    assert member_settings(CONFIG, MEMBERS[1]) == {
        "algorithm": "maddpg",
        "environment": "mpe/simple_spread_v3",
        "env.local_ratio": 0.5,
        "gamma": 0.95,
        "hidden": [64, 64],
        "reciprocity.kappa": 0.5,
        "seed": 1,
    }


def test_a_command_that_is_no_unicode_is_described_nevertheless(tmp_path):
    recorder = Recorder(tmp_path, MEMBERS, AGENTS)
    old = "runs/caf\udce9"  # a folder's name in Latin-1
    recorder.describe({**CONFIG, "command": f"marl train --run {old}", "init": {"given": old}})
    recorder.close()
    (page,) = events(tmp_path).Tensors("configuration/text_summary")
    assert b"--run runs/caf\\udce9" in page.tensor_proto.string_val[0]


def test_describe_writes_a_text_page_and_hyper_parameters_for_each_member(tmp_path):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    recorder = Recorder(tmp_path, MEMBERS, AGENTS)
    recorder.describe(CONFIG)
    recorder.close()
    found = events(tmp_path, MEMBERS[1])
    (text,) = found.Tensors("configuration/text_summary")
    page = text.tensor_proto.string_val[0].decode()
    assert "| reciprocity.kappa | 0.5 |" in page and "`marl train maddpg mpe/simple_spread_v3`" in page
    start = HParamsPluginData.FromString(found.PluginTagToContent("hparams")["_hparams_/session_start_info"])
    assert start.session_start_info.hparams["reciprocity.kappa"].number_value == 0.5
    experiment = HParamsPluginData.FromString(found.PluginTagToContent("hparams")["_hparams_/experiment"]).experiment
    assert tag("eval/return_mean") in [info.name.tag for info in experiment.metric_infos]


# ---- cost and trouble -------------------------------------------------------------------------------------------


def test_importing_the_log_loads_neither_tensorboard_nor_tensorflow():
    code = "import sys, marl.log; print([m for m in sys.modules if m.startswith('tensor')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_a_full_disk_is_one_line_for_the_user(tmp_path):
    code = """
import resource, sys, torch
from pathlib import Path
from marl.log import Recorder
from marl.types import UserError
recorder = Recorder(Path(sys.argv[1]), ["a"], ["x"])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    for step in range(2000):
        recorder.write(step, {"loss/critic": torch.ones(1)})
        recorder.flush()
except UserError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    (line,) = result.stdout.splitlines()
    assert "File too large" in line and "checkpoints are kept" in line and result.returncode == 0
