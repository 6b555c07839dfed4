"""``marl plot`` of lifelong runs, on made-up runs whose AR and AT can be computed in the head."""

import json

import numpy as np
import pytest
from lifelong_tools import made_up_run, same

from marl import cli
from marl.classic.results import read_results, shared, summarise
from marl.lifelong.experiment import Lifelong
from marl.lifelong.figures import plot
from marl.lifelong.findings import Reference, times_of, transfer_of, whole_time_of
from marl.runfolder import write_config
from marl.types import UserError

PLAYS = ([0.0, 500.0, 1000.0], [0.0, 4.0, 10.0])
BORROWS = ([0.0, 0.0, 0.0], [10.0, 10.0, 10.0])
LOSES = ([0.0, 500.0, 1000.0], [0.0, 4.0, 6.0])
ALONE = [[10.0, 0.0], [10.0, 10.0]]
"""The isolated agent earns 10 on each task in the end, so that a return of 10 is an AR of 1."""


def run_of(folder, agents, ends, learning=PLAYS, seeds=(0, 1), **changes):
    """A run whose agents with a hub earn ``ends[seed]`` on both tasks in the end."""
    rewards = {"isolated": dict.fromkeys(seeds, ALONE), "shared": {s: [[5.0, 5.0], [ends[s]] * 2] for s in seeds}}
    learnt = {"isolated": dict.fromkeys(seeds, PLAYS), "shared": dict.fromkeys(seeds, learning)}
    if changes.get("without_ewc"):
        rewards |= {name + ", no EWC": value for name, value in rewards.items()}
        learnt |= {name + ", no EWC": value for name, value in learnt.items()}
    return made_up_run(folder, rewards, learnt, same(agents=agents, **changes), seeds, traffic=100.0 * agents)


def rows_of(runs, out):
    return {(row.group, row.quantity): row for row in plot(runs, out).table}


def test_ar_is_the_mean_over_seeds_and_its_slope_that_of_each_seed_s_line(tmp_path):
    runs = [run_of(tmp_path / "3", 3, (20.0, 40.0)), run_of(tmp_path / "5", 5, (30.0, 70.0))]
    rows = rows_of(runs, tmp_path / "out" / "f.png")
    assert rows["isolated", "AR"][2:6] == (2, 1.0, 1.0, 1.0)
    assert rows["N = 3", "AR"].estimate == 3.0 and rows["N = 5", "AR"].estimate == 5.0
    # Seed 0: AR 1, 2, 3 at N = 1, 3, 5, half an AR an agent; seed 1: 1, 4, 7, one and a half.
    slope = rows["all N", "slope of AR"]
    assert slope.estimate == pytest.approx(1.0) and slope.n == 2
    # Student's t at one degree of freedom is 12.706, the standard error of (0.5, 1.5) is 0.5.
    assert (slope.low, slope.high) == pytest.approx((1 - 12.706 / 2, 1 + 12.706 / 2), abs=1e-3)
    assert (tmp_path / "out" / "f.png").read_bytes().startswith(b"\x89PNG")


def test_where_a_team_has_one_agent_it_and_not_the_isolated_one_is_in_the_slope(tmp_path):
    runs = [run_of(tmp_path / "1", 1, (20.0, 20.0)), run_of(tmp_path / "3", 3, (60.0, 60.0))]
    # 2 at N = 1 and 6 at N = 3; with the isolated agent's 1 at N = 1 as well it would be more than 2 an agent.
    assert rows_of(runs, tmp_path / "f.png")["all N", "slope of AR"].estimate == pytest.approx(2.0)


def test_the_best_of_five_seeds_stands_beside_the_mean_and_is_called_so(tmp_path):
    seeds = (0, 1, 2, 3, 4)
    rows = rows_of([run_of(tmp_path / "3", 3, (10.0, 10.0, 10.0, 10.0, 60.0), seeds=seeds)], tmp_path / "f.png")
    assert rows["N = 3", "AR"].estimate == pytest.approx(2.0)
    assert rows["N = 3", "AR, best of 5 seeds"].estimate == pytest.approx(6.0)


def test_frames_to_a_level_are_read_at_the_first_evaluation_there_and_borrowers_need_none(tmp_path):
    runs = [run_of(tmp_path / "3", 3, (10.0, 10.0)), run_of(tmp_path / "5", 5, (10.0, 10.0), BORROWS)]
    rows = rows_of(runs, tmp_path / "f.png")
    # 4 of 10 after 500 frames, 10 after 1000: 20 and 40 % take 500, the others 1000.
    found = [rows["N = 3", f"frames to {level} %"].estimate for level in (20, 40, 60, 80, 99)]
    assert found == [500, 500, 1000, 1000, 1000]
    assert [rows["N = 5", f"frames to {level} %"].estimate for level in (20, 99)] == [0, 0]


def test_what_never_arrives_is_a_lower_bound_without_an_interval(tmp_path):
    rows = rows_of([run_of(tmp_path / "3", 3, (10.0, 10.0), LOSES)], tmp_path / "f.png")
    assert rows["N = 3", "frames to 60 %"].estimate == 1000  # 6 of 10 in the end
    bound = rows["N = 3", "frames to 80 % (lower bound)"]
    assert bound.estimate == 1000 and np.isnan(bound.low)
    assert rows["N = 3", "frames to 80 % never reached"].estimate == 1.0


def test_at_of_the_whole_sequence_counts_each_agent_s_own_frames_until_the_mean_over_tasks_is_there(tmp_path):
    quick = {"isolated": {0: ALONE}, "shared": {0: [[9.0, 9.0], [3.0, 3.0]]}}
    learning = {"isolated": {0: PLAYS}, "shared": {0: ([0.0, 100.0, 200.0], [0.0, 0.0, 9.0])}}
    folder = made_up_run(tmp_path / "r", quick, learning)
    table, options = shared(read_results(folder), [0]), same()
    reference = Reference(table, options)
    # 90 % of 10 on both tasks after the first round, in which it played 200 of the 2 * 1000 frames.
    team = whole_time_of("shared", table, options, reference)
    assert team.time.tolist() == [[[0.1], [0.1]]] and not team.censored.any()
    # The isolated agent has 5 on average after the first round, 10 after the second.
    assert whole_time_of("isolated", table, options, reference).time.tolist() == [[[1.0]]]
    rows = rows_of([folder], tmp_path / "f.png")
    assert rows["N = 2", "AT 90 % of the mean over tasks"].estimate == pytest.approx(0.1)


def test_the_clock_of_a_task_goes_on_when_it_is_met_once_more(tmp_path):
    four = {"isolated": {0: ALONE * 2}, "shared": {0: [[6.0, 6.0]] * 4}}
    folder = made_up_run(tmp_path / "r", four, {"isolated": {0: PLAYS}, "shared": {0: LOSES}}, same(rounds=4))
    table, options = shared(read_results(folder), [0]), same(rounds=4)
    table["shared: catch, agent 1", "learning_return"][1][0, 4] = 9.0  # 500 frames into its second visit
    never, late = times_of("shared", table, options, Reference(table, options))["small/catch"].time[0, :, 3]
    assert (never, late) == (2.0, 1.5)  # of 1000 frames: 80 % never in two visits; after one and a half


def test_forward_transfer_is_measured_against_isolated_agents_that_began_with_the_task(tmp_path):
    alone, ends = dict.fromkeys((0, 1), ALONE), {0: ALONE, 1: ALONE}
    learning = {"isolated": dict.fromkeys((0, 1), PLAYS), "shared": {0: LOSES, 1: BORROWS}}
    folder = made_up_run(tmp_path / "r", {"isolated": alone, "shared": ends}, learning, seeds=(0, 1))
    curves, options = read_results(folder), same()
    reference = Reference(shared(curves, [0, 1]), options)
    # All begin with catch: nobody tells what a fresh agent does on gather.
    assert np.isnan(transfer_of("shared", curves, options, reference)).all()
    assert not [row for row in plot([folder], tmp_path / "f.png").table if row.quantity == "forward transfer"]
    curves["isolated, agent 0", "task"][1][1][:] = [1, 0]  # but the isolated agent of seed 1 begins with gather
    # Mean scores: 0 .4 1 is .45, what it lacks .55; 0 .4 .6 is .35, a tenth less; 1 1 1 lacks nothing.
    assert transfer_of("shared", curves, options, reference) == pytest.approx([-0.1 / 0.55, 1.0])
    assert transfer_of("isolated", curves, options, reference) == pytest.approx([0.0, 0.0])


def test_forward_transfer_counts_first_visits_also_of_tasks_that_not_all_seeds_meet_as_often(tmp_path):
    """Seed 0 meets catch, gather, gather, and seed 1 gather, catch, catch: no task has curves that both seeds share."""
    orders, later = {0: [0, 1, 1], 1: [1, 0, 0]}, {0: LOSES, 1: BORROWS}
    options, folder = same(agents=1, rounds=3, draws="uniform"), tmp_path / "r"
    rewards = {team: dict.fromkeys((0, 1), [[10.0, 10.0]] * 3) for team in ("isolated", "shared")}
    learning = {"isolated": dict.fromkeys((0, 1), PLAYS), "shared": later}
    made_up_run(folder, rewards, learning, options, (0, 1), orders=orders)
    curves = read_results(folder)
    assert ("shared: gather, agent 0", "learning_return") not in shared(curves, [0, 1])
    found = {each.name: each for each in summarise(Lifelong, options, curves, [0, 1], folder)}
    # As above: what seed 0 scores is a tenth less than .45, the fresh agent's, which lacks .55; seed 1 lacks nothing.
    expected = [-0.1 / 0.55, 1.0]
    assert transfer_of("shared", curves, options, Reference(shared(curves, [0, 1]), options)) == pytest.approx(expected)
    assert found["shared: forward transfer"].mean == pytest.approx(np.mean(expected))
    assert rows_of([folder], tmp_path / "f.png")["N = 1", "forward transfer"].estimate == pytest.approx(
        np.mean(expected)
    )


def test_forgetting_frames_and_bytes_are_in_the_table_with_and_without_ewc(tmp_path):
    rows = rows_of([run_of(tmp_path / "3", 3, (2.0, 2.0), without_ewc=True)], tmp_path / "f.png")
    # The team has 5 of task 0 after it learnt it and 2 in the end, on a scale of 10; task 1 was the last.
    assert rows["N = 3", "forgetting"].estimate == rows["N = 3, no EWC", "forgetting"].estimate == pytest.approx(0.3)
    assert rows["isolated, no EWC", "forgetting"].estimate == 0.0
    assert rows["N = 3", "frames"].estimate == 6000 and rows["isolated", "frames"].estimate == 2000
    assert rows["N = 3", "traffic"].estimate == 600


def test_a_task_that_the_isolated_agent_does_not_learn_is_left_out_and_the_picture_says_so(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        "marl.lifelong.figures.write_caption", lambda figure, text, command: said.append((text, command))
    )
    rewards = {"isolated": {0: [[10.0, -1.0]] * 2}, "shared": {0: [[20.0, 50.0]] * 2}}
    run = made_up_run(tmp_path / "r", rewards, {"isolated": {0: PLAYS}, "shared": {0: PLAYS}})
    assert rows_of([run], tmp_path / "f.png")["N = 2", "AR"].estimate == 2.0  # catch alone
    assert "left out" in said[0][0] and said[0][0].endswith("small/gather") and said[0][1] == f"marl plot {run}"


def test_uniform_draws_have_no_agent_time(tmp_path):
    rows = rows_of([run_of(tmp_path / "3", 3, (10.0, 10.0), draws="uniform")], tmp_path / "f.png")
    assert ("N = 3", "AR") in rows and not [key for key in rows if "frames to" in key[1]]


def test_rounds_that_are_no_multiple_of_the_tasks_have_no_figure_2(tmp_path):
    """Three rounds of two tasks: catch is met twice, gather once."""
    ends = {team: {0: ALONE[:1] * 2 + ALONE[1:]} for team in ("isolated", "shared")}
    run = made_up_run(tmp_path / "r", ends, {team: {0: PLAYS} for team in ends}, same(rounds=3))
    rows = rows_of([run], tmp_path / "f.png")
    assert ("N = 2", "AR") in rows and not [key for key in rows if "frames to" in key[1]]


def test_the_command_prints_the_table_or_json(tmp_path, capsys):
    runs = [str(run_of(tmp_path / "3", 3, (20.0, 40.0)))]
    assert cli.main(["plot", *runs]) == 0
    said = capsys.readouterr().out
    assert "N = 3: AR: 3 [" in said and (tmp_path / "3" / "curves.png").exists()
    assert cli.main(["plot", *runs, "--json", "--out", str(tmp_path / "x.png")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["picture"] == str(tmp_path / "x.png")
    assert {"group": "N = 3", "quantity": "AR", "n": 2}.items() <= result["groups"][1].items()


def test_runs_that_do_not_belong_together_are_one_clear_line(tmp_path):
    run = run_of(tmp_path / "3", 3, (10.0, 10.0))
    others = {
        "frames of .*: 500, of .*: 1000": run_of(tmp_path / "f", 5, (10.0, 10.0), frames=500),
        "tasks of .*: small/catch,small/snake, of .*: small/catch,small/gather": run_of(
            tmp_path / "t", 5, (10.0, 10.0), tasks=("small/catch", "small/snake")
        ),
        "seeds of .*: 0, of .*: 0,1": run_of(tmp_path / "s", 5, (10.0,), seeds=(0,)),
        "both have 3 agents": run_of(tmp_path / "n", 3, (10.0, 10.0)),
    }
    for message, other in others.items():
        with pytest.raises(UserError, match=message):
            plot([run, other], tmp_path / "f.png")
    (run / "results.csv").unlink()
    with pytest.raises(UserError, match="is not finished: marl resume"):
        plot([run], tmp_path / "f.png")


def test_other_kinds_of_runs_beside_it_are_one_clear_line(tmp_path, capsys):
    run = run_of(tmp_path / "3", 3, (10.0, 10.0))
    (tmp_path / "t").mkdir()
    write_config(tmp_path / "t", {"algorithm": "dqn", "environment": "small/catch"})
    assert cli.main(["plot", str(run), str(tmp_path / "t")]) == 2
    assert capsys.readouterr().err == (
        f"marl: {run} is a run of marl lifelong, {tmp_path / 't'} is not: plot them apart\n"
    )
    assert cli.main(["plot", str(run), "--metric", "loss/critic"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_isolated_agent_that_is_another_is_noticed(tmp_path, caplog):
    runs = [run_of(tmp_path / "3", 3, (10.0, 10.0)), run_of(tmp_path / "5", 5, (10.0, 10.0))]
    text = (runs[1] / "results.csv").read_text()
    changed = text.replace(
        "isolated: gather,return,return per episode,2,10.0", "isolated: gather,return,return per episode,2,9.0"
    )
    assert changed != text
    (runs[1] / "results.csv").write_text(changed)
    plot(runs, tmp_path / "f.png")
    assert "the isolated agent of" in caplog.text
