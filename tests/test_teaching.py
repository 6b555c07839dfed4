"""Runs that learn from frozen policies of other runs: what they say of these, and that they need them no longer."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from run_tools import differences, refused, state

import marl
from marl import cli
from marl.log import METRICS, member_settings
from marl.modules.teachers import Teacher
from marl.networks import acting, networks
from marl.plot import read_metrics
from marl.policies import policy_of
from marl.recipe import Recipe
from marl.runfolder import read_config
from marl.sources import teachers
from marl.teaching import described, start
from marl.transfer import load_source
from marl.types import UserError

SMALL = {"hidden": (8, 8), "batch_size": 8, "buffer_size": 200, "threads": 1, "eval_every": 0, "warmup": 6}
ON_MAPPO = {"hidden": (8, 8), "rollout": 5, "threads": 1, "eval_every": 0}
LEARNERS = {"maptf": SMALL, "maptf-mappo": ON_MAPPO, "dvm": {**SMALL, "cycle_train": 5, "cycle_distil": 4}}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """``there``: three agents, two members; ``values``: of indices; ``memory``: a recurrent team."""
    folder = tmp_path_factory.mktemp("sources")
    marl.train("maddpg", "mpe/simple_spread_v3", run=folder / "there", steps=12, seeds=(0, 1), **SMALL)
    indices = {"env": {"continuous": False}, "steps": 12}
    marl.train("dqn", "mpe/simple_spread_v3", run=folder / "values", **indices, **SMALL, duelling=True)
    marl.train("mappo", "mpe/simple_spread_v3", run=folder / "memory", recurrent=True, chunk=5, **indices, **ON_MAPPO)
    return folder


@pytest.fixture
def here(sources, tmp_path, monkeypatch):
    """A folder with copies of the sources, to do harm to."""
    shutil.copytree(sources, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(folder):
    """The teachers' weights in the newest checkpoint, by path."""
    return {name: x for name, x in state(folder)[1].items() if name.startswith("/learner/teachers/")}


@pytest.mark.parametrize("algorithm", LEARNERS)
def test_teachers_stay_as_they_were_and_a_resume_without_their_run_is_bit_for_bit(algorithm, here):
    given = {"teachers": ["there:agent_1", "there:2"], "seeds": (1, 5), **LEARNERS[algorithm]}
    marl.train(algorithm, "mpe/simple_spread_v3", agents=2, run="whole", steps=30, log_every=5, **given)
    marl.train(algorithm, "mpe/simple_spread_v3", agents=2, run="parted", steps=15, log_every=5, **given)
    before = weights("parted")
    (here / "there").rename(here / "gone")
    marl.resume("parted", steps=30)
    assert differences("whole", "parted") == []
    after = weights("parted")
    assert before.keys() == after.keys() and len(before) == 2 * 6  # two teachers of three layers
    assert all(torch.equal(before[name], after[name]) for name in before)

    original = state("gone")[1]  # seed 1 has a member of its name, seed 5 learns from the first
    for k, agent in ((0, 1), (1, 2)):
        for name in ("layers.0.weight", "layers.2.bias"):
            mine, theirs = after[f"/learner/teachers/{k}/{name}"], original[f"/learner/actor/{name}"]
            assert torch.equal(mine[:, 0], theirs[[1, 0], agent])
    logged = {row["metric"] for row in read_metrics(here / "whole")}
    assert {"dvm": "distil/teachers"}.get(algorithm, "option/teacher") in logged & METRICS.keys()
    marl.evaluate("parted", episodes=1)


def test_a_run_says_who_teaches_it_and_what_teachers_are_shown(here, capsys):
    small = ["--hidden", "8,8", "--batch-size", "8", "--warmup", "6", "--threads", "1", "--eval-every", "0", "--quiet"]
    command = ["train", "maptf", "mpe/simple_adversary_v3", "--teachers", "there:agent_1", "there:0", "--steps", "8"]
    assert cli.main([*command, "--run", "taught", *small]) == 0
    printed = capsys.readouterr().err.splitlines()
    with (here / "taught/teachers.csv").open() as file:
        table = list(csv.reader(file))
    assert table[:4] == [
        ["network", "to", "from", "what", "details"],
        ["teacher 1", "seed=0", "seed=0", "frozen", "there:agent_1, step 12"],
        ["teacher 1", "adversary_0", "agent_1", "padded", "10 of its 18 inputs are 0"],
        ["teacher 1", "agent_0", "agent_1", "padded", "8 of its 18 inputs are 0"],
    ]
    assert [line.split()[:2] for line in printed[1:]] == [row[0].split() for row in table[1:]]
    config = read_config(here / "taught")
    record = config["teachers"][1]
    assert (record["given"], record["agent"], record["name"], record["algorithm"]) == (
        "there:0",
        0,
        "agent_0",
        "maddpg",
    )
    assert record["members"]["seed=0"] == {"run": str(here / "there"), "member": 0, "name": "seed=0", "step": 12}
    assert (record["sizes"], record["activation"], record["gives"]) == ([18, 8, 8, 5], "relu", "tanh")
    assert member_settings(config, "seed=0")["teachers"] == "there:agent_1 there:0"  # curves are not pooled


def test_the_table_counts_what_a_teacher_misses():
    spec = marl.envs.base.EnvSpec("test/any", ("a", "b"), (3, 5), (2, 4), True)
    teacher = Teacher("there:x", (4, 8, 3), "relu", "logits")
    assert described("teacher 1", teacher, spec, "x", 0)[3:] == (
        "padded, cut", "1 of its 4 inputs are 0; 1 of its 3 actions are left out"
    )  # fmt: skip
    assert described("teacher 1", teacher, spec, "x", 1)[3:] == (
        "cut, partial", "1 of 5 observations are not shown to it; 1 of 4 actions are not taught"
    )  # fmt: skip
    alike = Teacher("there:x", (3, 2), "relu", "logits")
    assert described("teacher 1", alike, spec, "x", 0)[3:] == ("kept", "")


@pytest.mark.parametrize("text, algorithm, discrete", [("there:1", "maddpg", False), ("values:1", "dqn", True)])
def test_a_teacher_answers_what_the_team_it_comes_from_does(text, algorithm, discrete, here):
    recipe = Recipe.from_json(read_config(here / text[:-2]))
    options = {} if not discrete else {"env": {"continuous": False}}
    taught = marl.train("maptf", "mpe/simple_spread_v3", teachers=[text], run="taught", steps=1, **options, **SMALL)
    source, learner = load_source(here / text[:-2]), load_source(taught).learner
    obs = torch.randn(1, 3, 40, 18, generator=torch.Generator().manual_seed(1))
    answers, _ = learner.teachers.answers(obs, None)
    policy = policy_of(source.learner, source.spec, 0, 1)
    for i in range(3):
        said = answers[0, i, 0].argmax(-1) if discrete else answers[0, i, 0]
        torch.testing.assert_close(said, policy(obs[0, i]))
    team = marl.load(text[:-2])
    done = np.array(team.act(list(obs[0, :, 0].numpy())))[1]
    np.testing.assert_allclose(answers[0, 1, 0, 0].argmax() if discrete else answers[0, 1, 0, 0], done, atol=1e-6)
    assert recipe.algorithm == algorithm


@pytest.mark.parametrize("source", ["maddpg", "mappo", "dqn"])
@pytest.mark.parametrize("algorithm", LEARNERS)
def test_a_teacher_sees_bytes_as_its_network_did_in_its_own_run(algorithm, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"maddpg": SMALL, "mappo": ON_MAPPO, "dqn": {**SMALL, "conv": "none"}}[source]
    marl.train(source, "small/catch", run="there", steps=10, **settings)
    marl.train(algorithm, "small/catch", teachers=["there"], run="taught", steps=1, **LEARNERS[algorithm])
    there, taught = load_source(tmp_path / "there"), load_source(tmp_path / "taught").learner
    assert there.spec.bytes
    obs = torch.randint(256, (1, 1, 40, there.spec.obs_size), generator=torch.Generator().manual_seed(1)).float()
    reads = obs if source == "dqn" else obs / 255  # dqn's networks divide themselves
    original = acting(networks(there.learner, there.spec)).module(reads)[0, 0]
    answer = taught.teachers.answers(obs, None)[0][0, 0, 0]
    assert torch.equal(answer.argmax(-1), original.argmax(-1))
    if source != "dqn":  # of values only the best one counts
        torch.testing.assert_close(answer, original, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("algorithm", LEARNERS)
def test_a_member_lives_as_it_would_alone(algorithm, here):
    given = {"teachers": ["there:0"], "steps": 20, **LEARNERS[algorithm]}
    crowd = marl.train(algorithm, "mpe/simple_spread_v3", run="crowd", seeds=(1, 5), **given)
    alone = marl.train(algorithm, "mpe/simple_spread_v3", run="alone", seeds=(5,), **given)
    (_, crowd, _), (_, alone, _) = state(crowd), state(alone)
    names = [name for name in alone if "/layers." in name]
    assert any("teachers" in name for name in names)
    for name in names:
        torch.testing.assert_close(crowd[name][1], alone[name][0], rtol=1e-4, atol=1e-5)
    assert torch.equal(crowd["/learner/teachers/0/layers.0.weight"][1], alone["/learner/teachers/0/layers.0.weight"][0])
    assert not torch.equal(*crowd["/learner/teachers/0/layers.0.weight"])


def test_workers_of_an_engine_have_the_same_teachers(here):
    given = {"teachers": ["there:0"], "steps": 12, "seeds": (1, 5), **SMALL}
    marl.train("maptf", "mpe/simple_spread_v3", run="alone", **given)
    marl.train("maptf", "mpe/simple_spread_v3", run="shared", engine="processes", workers=2, **given)
    whole = weights("alone")
    for p in (0, 1):
        part = weights(here / f"shared/parts/{p}")
        assert part.keys() == whole.keys() and all(torch.equal(part[name][0], whole[name][p]) for name in whole)
    assert (here / "shared/parts/1/teachers.csv").exists()
    (here / "there").rename(here / "gone")
    marl.resume("shared", steps=16)


def test_bad_input_is_answered_with_one_line_and_no_folder(here, capsys):
    for algorithm, env, names, answer in (
        ("maddpg", [], ["there:0"], "teachers: maddpg takes none; choose maptf, maptf-mappo or dvm"),
        ("maptf", [], ["nowhere:0"], "nowhere holds no run: it has no config.json"),
        (
            "maptf",
            [],
            ["there:0", "there"],
            "teachers: there has 3 agents, expected RUN:agent, one of agent_0, agent_1,",
        ),
        ("dvm", [], ["there:agent_7"], "no agent 'agent_7' in there; did you mean 'agent_"),
        ("dvm", [], ["there:3"], "no agent '3' in there; choose from agent_0, agent_1, agent_2"),
        (
            "maptf-mappo",
            ["--env.continuous", "false"],
            ["memory:0"],
            "teachers: memory:0 has a memory, expected a policy of linear layers that sees one vector",
        ),
        (
            "maptf",
            [],
            ["values:agent_0"],
            "teachers: values:agent_0 has discrete actions (indices), mpe/simple_spread_v3 has continuous actions "
            "(vectors); choose a teacher with actions of the same kind",
        ),
    ):
        command = ["train", algorithm, "mpe/simple_spread_v3", "--run", "bad", *env, "--teachers", *names]
        assert refused(capsys, *command).startswith(answer)
    shutil.rmtree(here / "there/checkpoints")
    team = ["train", "maptf", "mpe/simple_spread_v3", "--run", "bad"]
    assert refused(capsys, *team, "--teachers", "there:0") == "there has no checkpoint"
    assert not (here / "bad").exists()


def test_a_teacher_whose_run_has_gone_on_since_it_was_named_is_refused(here):
    records = teachers(["there:0"], ["seed=0"], "maptf")
    marl.resume("there", steps=20)
    recipe = Recipe.from_json({**read_config(here / "there"), "algorithm": "maptf", "config": {}, "teachers": records})
    recipe = Recipe(**{**recipe.__dict__, "members": recipe.members[:1]})
    with pytest.raises(
        UserError, match=r"there: expected its checkpoint of step 12, as when it was named, got step 20"
    ):
        start(recipe, recipe.make_learner(load_source(here / "there").spec), load_source(here / "there").spec)


def test_a_teacher_whose_newest_checkpoint_is_damaged_teaches_from_the_one_before(here):
    marl.resume("there", steps=20)
    checkpoints = here / "there/checkpoints"
    before, newest = (int(path.stem) for path in sorted(checkpoints.glob("0*.json"))[-2:])
    (damaged,) = checkpoints.glob(f"{newest:012}*.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    run = marl.train("maptf", "mpe/simple_spread_v3", teachers="there:0", run="taught", steps=1, **SMALL)
    assert f"there:0, step {before}" in (run / "teachers.csv").read_text()


def test_teachers_may_come_from_a_run_whose_members_are_in_several_parts(here):
    marl.train(
        "maddpg", "mpe/simple_spread_v3", run="parts", seeds=(0, 1), steps=8, engine="processes", workers=2, **SMALL
    )
    (record,) = teachers(["parts:0"], ["seed=0", "seed=1"], "maptf")
    found = {name: (Path(entry["run"]).name, entry["step"]) for name, entry in record["members"].items()}
    assert found == {"seed=0": ("0", 8), "seed=1": ("1", 8)}


def test_without_teachers_nothing_is_said_of_any(here):
    marl.train("maptf", "mpe/simple_spread_v3", run="plain", steps=1, **SMALL)
    assert "teachers" not in json.loads((here / "plain/config.json").read_text())
    assert not (here / "plain/teachers.csv").exists() and weights("plain") == {}


def test_a_team_in_place_of_its_name_is_refused_in_words(here):
    with pytest.raises(UserError, match=r"^teachers: expected 'RUN:agent', got a Team$"):
        marl.train("maptf", "mpe/simple_spread_v3", teachers=[marl.load("there")], steps=20, run="two")
    assert not (here / "two").exists()
