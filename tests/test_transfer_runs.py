"""Runs that start from another run: what they say of it, that they resume bit for bit, and what is refused."""

import csv
import json

import numpy as np
import pytest
import torch
from run_tools import differences, refused

import marl
from marl import cli
from marl.log import member_settings
from marl.sources import origin, split
from marl.types import UserError

SMALL = {"hidden": (16, 16), "batch_size": 8, "buffer_size": 200, "threads": 1, "eval_every": 0, "warmup": 10}


@pytest.fixture
def there(tmp_path, monkeypatch):
    """``there``: a run of three agents and two members."""
    monkeypatch.chdir(tmp_path)
    marl.train("maddpg", "mpe/simple_spread_v3", run="there", steps=20, seeds=(0, 1), **SMALL)
    return tmp_path / "there"


def test_a_run_from_another_environment_says_what_became_of_each_network_and_resumes_bit_for_bit(there, capsys):
    arguments = ["train", "maddpg", "mpe/simple_adversary_v3", "--init-from", "there", "--seeds", "1", "5", "7"]
    small = [
        "--hidden",
        "16,16",
        "--batch-size",
        "8",
        "--warmup",
        "10",
        "--threads",
        "1",
        "--eval-every",
        "0",
        "--quiet",
    ]
    capsys.readouterr()
    assert cli.main([*arguments, *small, "--steps", "30", "--run", "whole"]) == 0
    printed = capsys.readouterr().err.splitlines()
    with (there.parent / "whole/init.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["to"], row["from"]) for row in table[:3]] == [
        ("seed=1", "seed=1"),
        ("seed=5", "seed=0"),
        ("seed=7", "seed=0"),
    ]
    assert [(row["network"], row["to"], row["from"]) for row in table[3:6]] == [
        ("actor", "adversary_0", "agent_2"), ("actor", "agent_0", "agent_0"), ("actor", "agent_1", "agent_1")
    ]  # fmt: skip
    assert len(printed) == len(table) + 1 and printed[0].split() == ["network", "to", "from", "what"]
    assert printed[5].split(maxsplit=4) == list(table[4].values())

    assert cli.main([*arguments, *small, "--steps", "15", "--run", "parted"]) == 0
    there.rename(there.parent / "gone")  # a run that has begun needs its source no longer
    assert cli.main(["resume", "parted", "--steps", "30", "--quiet"]) == 0
    assert differences(there.parent / "whole", there.parent / "parted") == []


def test_the_first_checkpoint_holds_the_weights_of_the_source(there):
    start = marl.train("maddpg", "mpe/simple_spread_v3", init_from=there, seeds=(1, 3), run="here", steps=1, **SMALL)
    obs = np.random.default_rng(0).normal(size=(3, 18))
    teams = [marl.load(start, 0), marl.load(there, 1), marl.load(start, 1), marl.load(there, 0)]
    actions = [torch.tensor(np.array(team.act(obs))) for team in teams]
    assert torch.equal(actions[0], actions[1]) and torch.equal(actions[2], actions[3])  # there is no seed 3 there
    assert not torch.equal(actions[0], actions[2])
    config = json.loads((start / "config.json").read_text())
    assert config["init"]["members"]["seed=3"] == {"run": str(there), "member": 0, "name": "seed=0"}


def test_a_member_starts_as_it_would_alone(there):
    """Counted round and round, seed 6 would start from the second member here and from the first one alone."""
    both, alone = (
        marl.train("maddpg", "mpe/simple_spread_v3", init_from=there, seeds=seeds, run=name, steps=12, **SMALL)
        for seeds, name in (((5, 6), "both"), ((6,), "alone"))
    )
    entries = [json.loads((run / "config.json").read_text())["init"]["members"]["seed=6"] for run in (both, alone)]
    assert entries[0] == entries[1]
    obs = np.random.default_rng(0).normal(size=(3, 18))
    np.testing.assert_allclose(marl.load(both, 1).act(obs), marl.load(alone).act(obs), atol=1e-6)


def test_a_loaded_team_is_a_start_for_all_members_and_for_other_numbers_of_agents(there):
    team = marl.load("there", member=1)
    start = marl.train(
        "maddpg", "mpe/simple_spread_v3", init_from=team, init_networks=["actor"], agents=5, seeds=(0, 3), run="here",
        steps=1, **SMALL,
    )  # fmt: skip
    with (start / "init.csv").open() as file:
        table = list(csv.reader(file))[1:]
    assert table[:2] == [["member", f"seed={s}", "seed=1", "kept", "there seed=1, step 20"] for s in (0, 3)]
    found = {(network, to): (origin, what) for network, to, origin, what, _ in table}
    assert found["actor", "agent_4"] == ("agent_1", "padded") and found["critic", "agent_4"] == ("", "new")
    obs = np.random.default_rng(0).normal(size=(5, 30))
    new, old = marl.load(start, 1).act(obs), team.act(obs[:3, :18])  # what is padded is ignored at first
    np.testing.assert_allclose(new[:3], old, atol=1e-6)
    assert json.loads((start / "config.json").read_text())["init"]["members"]["seed=3"]["step"] == 20


def test_a_team_whose_run_has_gone_on_since_it_was_loaded_is_no_start(there):
    team = marl.load("there")
    marl.resume("there", steps=24)
    with pytest.raises(
        UserError, match=r"there: expected its checkpoint of step 20, as when it was named, got step 24"
    ):
        marl.train("maddpg", "mpe/simple_spread_v3", init_from=team, run="here", **SMALL)
    assert not (there.parent / "here").exists()


def test_curves_of_runs_with_another_start_are_not_pooled(there):
    start = marl.train("maddpg", "mpe/simple_spread_v3", init_from=there, run="here", steps=1, **SMALL)
    config = json.loads((start / "config.json").read_text())
    assert member_settings(config, "seed=0")["init_from"] == str(there)


def test_a_loaded_team_is_a_start_from_another_working_directory(there, tmp_path, monkeypatch):
    team = marl.load("there")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert marl.train("maddpg", "mpe/simple_spread_v3", steps=4, init_from=team, run="from-there").exists()


def test_a_folder_with_a_colon_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").mkdir()
    assert [(str(folder), agent) for folder, agent in map(split, ("a:b", "a:b:agent_0", "a", "a:1"))] == [
        ("a:b", None), ("a:b", "agent_0"), ("a", None), ("a", "1")
    ]  # fmt: skip


def test_bad_input_is_answered_with_one_line_and_no_folder(there, capsys):
    team = ["train", "maddpg", "mpe/simple_spread_v3", "--run", "here"]
    for arguments, answer in (
        (["--init-from", "nowhere"], "nowhere holds no run: it has no config.json"),
        (["--init-from", "there:agent_9"], "no agent 'agent_9' in there; did you mean 'agent_"),
        (["--init-from", "there:3"], "no agent '3' in there; choose from agent_0, agent_1, agent_2"),
        (
            ["--init-from", "there", "--init-networks", "actr"],
            "init_networks: no network 'actr'; did you mean 'actor'?",
        ),
        (["--init-networks", "actor"], "init_networks: of which run? init_from names none"),
        (["--init-from", ""], "expected a run to take something from, RUN or RUN:agent, got ''"),
        (["--init-from", "there:\u00b2"], "no agent '\u00b2' in there"),
        (
            ["--init-from", "there", "--init-networks", "actr", "--engine", "processes", "--workers", "2"],
            "init_networks: no network 'actr'; did you mean 'actor'?",
        ),
    ):
        assert refused(capsys, *team, *arguments).startswith(answer)
    (there / "checkpoints").rename(there / "elsewhere")
    assert refused(capsys, *team, "--init-from", "there") == "there has no checkpoint"
    assert not (there.parent / "here").exists()


def test_the_origin_names_each_member_whatever_part_of_the_run_trains_it(there):
    found = origin("there:agent_1", ["seed=1", "seed=9", "seed=0"], ["actor"])
    assert (found["agent"], found["networks"]) == (1, ["actor"])
    assert [entry["name"] for entry in found["members"].values()] == ["seed=1", "seed=0", "seed=0"]
