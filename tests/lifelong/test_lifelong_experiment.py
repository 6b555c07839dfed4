"""``marl lifelong`` as a user runs it, and the numbers that it reports, on tiny budgets."""

import dataclasses
import json

import numpy as np
import pytest
import round_tools
from lifelong_tools import TINY, made_up_run

from marl import classic_cli, cli
from marl.algos.dqn import DQN
from marl.classic.experiments import EXPERIMENTS, experiment
from marl.classic.runner import run_seed
from marl.lifelong import agent
from marl.lifelong.experiment import Lifelong, check, check_budget, teams
from marl.lifelong.findings import Reference, times_of, whole_time_of
from marl.types import UserError

ARGUMENTS = {
    "agents": 2,
    "frames": 96,
    "copies": 4,
    "identify": "told",
    "ewc-samples": 4,
    "evals": 1,
    "eval-episodes": 1,
    "dqn.hidden": 8,
    "dqn.warmup": 40,
    "dqn.batch-size": 8,
    "env.max-steps": 8,
    "seeds": 1,
}


def tiny_run(folder):
    options = [word for name, value in ARGUMENTS.items() for word in (f"--{name}", str(value))]
    return cli.main(["lifelong", "small/catch,small/gather", *options, "--run", str(folder), "--json", "--quiet"])


def test_the_command_makes_results_findings_and_a_picture_and_resumes_to_the_same(tmp_path, capsys):
    assert tiny_run(tmp_path / "run") == 0
    result = json.loads(capsys.readouterr().out)
    findings = {row["name"]: row for row in result["findings"]}
    assert findings["isolated: frames"]["mean"] == 2 * 96 and findings["isolated: traffic"]["mean"] == 0
    assert 2 * 96 <= findings["shared: frames"]["mean"] <= 4 * 96
    assert findings["shared: right"]["mean"] == 4 and findings["shared: wrong"]["mean"] == 0
    for name in ("results.csv", "findings.csv", "lifelong.png", "tensorboard/shared/seed=1", "seeds/1/shared/hub"):
        assert (tmp_path / "run" / name).exists(), name
    rows = (tmp_path / "run" / "results.csv").read_bytes()
    (tmp_path / "run" / "results.csv").unlink()
    assert cli.main(["resume", str(tmp_path / "run"), "--json", "--quiet"]) == 0
    assert (tmp_path / "run" / "results.csv").read_bytes() == rows


def test_stopped_after_every_piece_of_work_it_comes_to_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(agent, "SECONDS", 0.0)
    texts = []
    for name, stop in (("straight", False), ("stopped", True)):
        pieces, over = 0, False
        while not over:
            over = run_seed(
                Lifelong(TINY, 3), 3, tmp_path / name, 1e9, lambda done, total: None, lambda stop=stop: stop
            )
            pieces += 1
        texts.append((tmp_path / name / "seeds" / "3.csv").read_text())
    assert pieces > 15 and texts[0] == texts[1]


def test_with_a_spoilt_hub_copy_a_seed_goes_on_to_the_same_numbers_and_says_none_twice(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(agent, "SECONDS", 0.0)
    copied = tmp_path / "spoilt" / "seeds" / "3" / "shared" / "saved-9" / "index.sqlite"
    texts = []
    for name, stop in (("straight", False), ("spoilt", True)):
        while not run_seed(Lifelong(TINY, 3), 3, tmp_path / name, 1e9, lambda *_: None, lambda stop=stop: stop):
            if copied.is_file() and not caplog.messages:
                copied.write_bytes(b"no database " * 999)
        texts.append((tmp_path / name / "seeds" / "3.csv").read_text())
    assert texts[0] == texts[1]
    (said,) = caplog.messages
    assert said.startswith(str(copied)) and said.endswith("shared begins anew, to the same numbers")


def test_the_isolated_agent_and_the_team_begin_alike(tmp_path):
    run = Lifelong(TINY, 0)
    run.house(tmp_path)
    rows = []
    while run.done < run.total:
        rows += run.advance()
    first = {row.series: row.value for row in rows if row.metric == "learning_return" and row.x == 0}
    met = [next(row.value for row in rows if row.series == f"{team}, agent 0" and row.x == 1) for team in teams(TINY)]
    assert met[0] == met[1]
    task = ("catch", "gather")[int(met[0])]
    assert first[f"isolated: {task}, agent 0"] == first[f"shared: {task}, agent 0"]


def table_of(options, returns):
    """``returns``: team -> ``[S, N, T, M]``; each agent has task t for 100 frames in round t, scores 10 after 50."""
    table = {(f"random: {m}", "agent_return"): (np.zeros(1), np.zeros((2, 1))) for m in "ab"}
    for team, after in returns.items():
        seeds, agents, rounds, tasks = after.shape
        x = np.arange(1.0, rounds + 1)
        for name in ("updates", "traffic", "right", "wrong"):
            table[team, name] = x, np.full((seeds, rounds), 7.0)
        table[team, "frames"] = x, np.tile(100 * agents * x, (seeds, 1))
        for m in range(tasks):
            table[f"{team}: {'ab'[m]}", "return"] = x, after[..., m].mean(1)
            for i in range(agents):
                name = f"{team}: {'ab'[m]}, agent {i}"
                table[name, "agent_return"] = x, after[:, i, :, m]
                table[name, "learning_return"] = np.arange(2.0), np.tile([0.0, 10.0], (seeds, 1))
                table[name, "learning_frames"] = np.arange(2.0), np.tile([0.0, 50.0], (seeds, 1))
        for i in range(agents):
            table[f"{team}, agent {i}", "task"] = x, np.tile(np.arange(rounds) % tasks, (seeds, 1))
    return table


def test_the_findings_are_the_metrics_of_the_notes():
    options = dataclasses.replace(TINY, tasks=("f/a", "f/b"), agents=1, frames=100, evals=1)
    isolated = np.tile([[10.0, 0.0], [4.0, 10.0]], (2, 1, 1, 1))  # forgets 10 -> 4 of a
    shared = np.tile([[10.0, 0.0], [8.0, 5.0]], (2, 1, 1, 1))
    found = {f.name: f for f in Lifelong.findings(table_of(options, {"isolated": isolated, "shared": shared}), options)}
    # In the end the isolated agent has (4, 10): AR is the mean of 8 / 4 and 5 / 10.
    assert found["shared: AR"].values == pytest.approx([1.25, 1.25])
    # On that scale it had 10 / 4 of a and kept 4 / 4; the team kept 8 / 4.
    assert found["isolated: forgetting"].values == pytest.approx([1.5, 1.5])
    assert found["shared: forgetting"].values == pytest.approx([0.5, 0.5])
    assert found["shared: AT 99 %"].values == pytest.approx([0.5, 0.5])  # 50 of 100 frames
    assert found["shared: updates"].values.tolist() == [7.0, 7.0]


def findings_of(rounds=2, isolated=10.0, played=(50.0, 50.0), **changes):
    """Two seeds; agents without a hub end with ``isolated`` on both tasks, those with one with 5 on both."""
    options = dataclasses.replace(TINY, tasks=("f/a", "f/b"), agents=1, frames=100, evals=1, rounds=rounds, **changes)
    ends = {"isolated": isolated, "shared": 5.0}
    table = table_of(options, {team: np.full((2, 1, rounds, 2), end) for team, end in ends.items()})
    for m in "ab":
        table[f"shared: {m}, agent 0", "learning_frames"] = np.arange(2.0), np.array([[0.0, n] for n in played])
    return {f.name: f.values.tolist() for f in Lifelong.findings(table, options)}


def test_agent_time_is_left_out_where_agents_are_not_given_all_tasks_equally_often():
    assert findings_of()["shared: AT 80 %"] == [0.5, 0.5]
    for changes in ({"rounds": 1}, {"rounds": 3}, {"draws": "uniform"}):
        assert not [name for name in findings_of(**changes) if "AT" in name], changes


def test_agent_time_is_a_share_of_the_frames_that_the_isolated_agent_had():
    # 100 each; whole steps of all copies make them more than the 60 that were asked for.
    options = dataclasses.replace(TINY, tasks=("f/a", "f/b"), agents=1, frames=60, evals=1)
    after = np.full((2, 1, 2, 2), 10.0)
    table = table_of(options, {"isolated": after, "shared": after})
    reference = Reference(table, options)
    assert times_of("shared", table, options, reference)["f/a"].time[..., 3].tolist() == [[0.5], [0.5]]  # 50 of 100
    # After the first round all is there: 50 of the 200 of both rounds.
    assert whole_time_of("shared", table, options, reference).time[..., 0].tolist() == [[0.25], [0.25]]


def test_a_lower_bound_has_no_interval():
    """The isolated agent ends with 20, a score of 10 while a task is learnt is half of that."""
    found = findings_of(isolated=20.0, played=(20.0, 40.0))
    assert found["shared: AT 40 %"] == [0.2, 0.4]  # the runner gives an interval
    assert found["shared: AT 60 % (lower bound, mean of 2 seeds)"] == [pytest.approx(0.3)]  # and none to one number
    assert found["shared: AT 60 % never reached"] == [1.0, 1.0]


def test_what_is_not_defined_for_every_seed_is_no_finding():
    assert not [name for name in findings_of(rounds=1) if "forgetting" in name]  # nothing is learnt before the last
    nothing = findings_of(isolated=0.0)  # no better than the random policy
    assert not [name for name, values in nothing.items() if np.isnan(values).any()]
    assert "shared: AR" not in nothing and "shared: AR" in findings_of()


@pytest.mark.parametrize(("copies", "most"), [(4, 4), (3, 6), (10, 10), (1, 7)])
def test_a_budget_without_a_single_update_is_refused_and_a_frame_more_is_not(copies, most):
    """The first update comes after 8 environment steps, and not at the first step of all copies."""
    tasks = round_tools.TASKS
    for frames in (most, most + 1):
        options = dataclasses.replace(round_tools.OPTIONS, frames=frames, copies=copies, evals=1)
        now, learner = (
            round_tools.a_round(1, {}, [[]], frames=frames, copies=copies),
            DQN(tasks.spec, [options.dqn], [0]),
        )
        while now.done < tasks.steps(frames, copies):
            now.advance(learner)
        assert (now.updates > 0) == (frames > most)
        if frames > most:
            check_budget(options, tasks)
        else:
            with pytest.raises(UserError, match=rf"frames: expected more than {most} .*, got {most}$"):
                check_budget(options, tasks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": []}, "tasks: expected one or more, got none"),
        ({"tasks": ["small/catch", "small/snake"]}, "the results lack agent_return of random: snake"),
        ({"agents": 5}, "the results lack agent_return of shared: catch, agent 2 for all seeds"),
        ({}, "the results lack agent_return of random: catch for all seeds"),
    ],
)
def test_an_edited_config_of_a_finished_run_is_one_clear_line(changes, message, tmp_path, capsys):
    curve = ([0.0, 500.0, 1000.0], [0.0, 4.0, 10.0])
    both, ends = ("isolated", "shared"), [[9.0, 9.0], [9.0, 9.0]]
    folder = made_up_run(tmp_path / "r", {team: {0: ends} for team in both}, {team: {0: curve} for team in both})
    config = json.loads((folder / "config.json").read_text())
    config["options"] |= changes
    config["seeds"] = [0] if changes else [0, 1]
    (folder / "config.json").write_text(json.dumps(config))
    for command in ("plot", "resume"):
        assert cli.main([command, str(folder)]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1


def test_isolated_runs_no_hub_and_without_ewc_runs_everybody_twice():
    assert teams(TINY) == ["isolated", "shared"]
    assert teams(dataclasses.replace(TINY, isolated=True)) == ["isolated"]
    both = dataclasses.replace(TINY, without_ewc=True)
    assert teams(both) == ["isolated", "shared", "isolated, no EWC", "shared, no EWC"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["small/catch,gym/CartPole-v1"],
            "tasks need equal spaces: small/catch has a picture of 4 x 10 x 10 and 6 actions",
        ),
        (["small/catch,small/catch"], "tasks: expected one or more different ones"),
        (["small/cacth"], "did you mean 'catch'"),
        ([], "expected: marl lifelong TASKS"),
        (["small/catch", "--agents", "0"], "agents: expected 1 or more"),
        (["small/catch", "--engine", "processes", "--address", "10.0.0.1:6379"], "expected --engine ray with it"),
        (["small/catch", "--frames", "24", "--copies", "8"], "evals: expected 3 or fewer, the steps of a copy"),
        (["small/catch", "--tasks", "small/snake"], "unknown argument '--tasks'"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, capsys):
    assert cli.main(["lifelong", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_lifelong_is_found_but_is_no_experiment_of_marl_classic(capsys):
    assert experiment("lifelong") is Lifelong and "lifelong" not in EXPERIMENTS
    assert cli.main(["classic", "lifelong"]) == 2
    assert "marl lifelong --help" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, isolated",
    [(["--isolated"], True), (["--isolated", "yes"], True), (["--isolated", "no"], False), ([], False)],
)
def test_a_flag_may_have_a_value_or_stand_alone(words, isolated, monkeypatch, tmp_path):
    made = {}
    monkeypatch.setattr(classic_cli, "_make", lambda folder, command, name, config: made.update(config) or tmp_path)
    monkeypatch.setattr(classic_cli, "resume", lambda *_: None)
    assert cli.main(["lifelong", "small/catch", *words, "--without-ewc", "--agents", "2"]) == 0
    assert made["options"]["isolated"] is isolated and made["options"]["without_ewc"] is True


def test_other_steps_of_identification_without_a_threshold_are_said(caplog):
    check(dataclasses.replace(TINY, identify="simnet", identify_steps=2000))
    assert "give --threshold" in caplog.text
