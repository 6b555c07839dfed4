"""Final weights on the disk, and ``marl evaluate`` with them."""

import json

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from lifelong_tools import made_up_run, same

from marl import cli
from marl.algos.dqn import DQN, DQNConfig
from marl.envs import VectorEnv, make_env
from marl.lifelong import play
from marl.lifelong.evaluate import evaluate
from marl.lifelong.play import mean_returns
from marl.lifelong.weights import FILE, load_agents, save_agents, team_folder
from marl.streams import derive
from marl.types import UserError, View

CONFIG = DQNConfig(hidden=(8,))
PLAYS = ([0.0, 500.0, 1000.0], [0.0, 4.0, 10.0])
SPEC = make_env("small/catch", seeds=[0]).spec


def test_what_befell_an_environment_in_an_evaluation_is_said_with_the_task(short_episodes, monkeypatch, caplog):
    monkeypatch.setattr(VectorEnv, "events", lambda env: ["worker 0 of 1 died"])
    mean_returns(DQN(SPEC, [CONFIG], [0]), ["small/catch"], [0], 1, {})
    assert caplog.messages == ["evaluation: small/catch: worker 0 of 1 died"]


@pytest.fixture
def short_episodes(monkeypatch):
    monkeypatch.setattr(play, "make_env", lambda id, **more: make_env(id, **more | {"options": {"max_steps": 12}}))


@pytest.fixture
def run(tmp_path, short_episodes):
    """Two agents with a hub, and one without; what they earned is made up, their weights are random."""
    after = [[1.0, 0.0], [1.0, 1.0]]
    teams = {"isolated": {0: after, 1: after}, "shared": {0: after, 1: after}}
    options = same(dqn=CONFIG)
    folder = made_up_run(
        tmp_path / "run", teams, {name: dict.fromkeys((0, 1), PLAYS) for name in teams}, options, seeds=(0, 1)
    )
    for seed in (0, 1):
        for team, agents in (("isolated", 1), ("shared", 2)):
            learner = DQN(SPEC, [CONFIG] * agents, [10 * seed + i for i in range(agents)])
            save_agents(team_folder(folder / "seeds" / str(seed), team), [learner.critic.state_dict()])
    return folder


def test_agents_come_back_to_the_bit_and_those_of_several_stacks_in_their_order(tmp_path):
    stacks = [DQN(SPEC, [CONFIG] * 2, [0, 1]), DQN(SPEC, [CONFIG], [2])]
    save_agents(tmp_path / "team", [stack.critic.state_dict() for stack in stacks])
    loaded = load_agents(tmp_path / "team", SPEC, CONFIG)
    obs = torch.rand(3, 1, 50, SPEC.obs_size)
    view = View(obs, None, None, None)
    wanted = torch.cat([stacks[0].act(view._replace(obs=obs[:2]), False).action, stacks[1].act(
        view._replace(obs=obs[2:]), False).action])  # fmt: skip
    assert torch.equal(loaded.act(view, explore=False).action, wanted)
    assert torch.equal(loaded.critic(obs)[2:], stacks[1].critic(obs[2:]))
    assert [path.name for path in (tmp_path / "team").iterdir()] == [FILE]


def test_weights_that_are_not_the_run_s_are_refused_in_one_line(tmp_path):
    save_agents(tmp_path, [DQN(SPEC, [CONFIG], [0]).critic.state_dict()])
    with pytest.raises(UserError, match="holds other networks"):
        load_agents(tmp_path, SPEC, DQNConfig(hidden=(9,)))
    with pytest.raises(UserError, match="the run is not finished, or older"):
        load_agents(tmp_path / "none", SPEC, CONFIG)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-9])
    with pytest.raises(UserError, match="cannot be read"):
        load_agents(tmp_path, SPEC, CONFIG)


def test_every_agent_of_every_seed_plays_every_task_on_the_episodes_of_the_run(run):
    result = evaluate(run, episodes=3)
    found = {score[:4]: score.mean for score in result.scores}
    assert len(found) == 2 * (1 + 2) * 2  # seeds, agents, tasks
    player = DQN(SPEC, [CONFIG] * 2, [10, 11])  # those of seed 1
    seeds = [derive(1, "agent", i) for i in range(2)]
    wanted = mean_returns(player, ["small/gather"] * 2, seeds, 3, {}).tolist()
    assert [found["shared", 1, i, "small/gather"] for i in range(2)] == wanted


def test_the_table_has_a_line_for_each_agent_and_each_team_s_mean_over_seeds(run):
    result = evaluate(run, episodes=2, task="small/catch")
    lines = result.lines()
    assert lines[0].split() == ["return", "per", "episode", "small/catch"] and len(set(map(len, lines))) == 1
    agents = [score.mean for score in result.scores if score.team == "shared"]
    assert lines[-1].startswith("shared, mean") and f" {np.mean(agents):.2f} [" in lines[-1]
    assert [line.split("  ")[0] for line in lines[1:3]] == ["isolated, seed 0, agent 0", "isolated, seed 1, agent 0"]


def test_the_film_shows_agent_0_on_each_task_that_it_was_given_in_that_order(run, tmp_path, monkeypatch):
    path = tmp_path / "film" / "x.mp4"
    result = evaluate(run, episodes=2, video=path)
    assert result.filmed == "shared, seed 0, agent 0: small/catch, small/gather"
    pictures = iio.imread(path)
    assert len(pictures) == 2 * 2 * 12  # tasks, episodes, steps


def test_smaller_pictures_are_framed_where_games_differ_in_size(tmp_path):
    from marl.evaluation import Film
    from marl.lifelong.evaluate import _write

    films = [Film(), Film()]
    films[0].frames = [[np.full((32, 48, 3), 255, np.uint8)] * 2]
    films[1].frames = [[np.full((64, 48, 3), 255, np.uint8)]]
    _write(films, tmp_path / "x.mp4")
    pictures = iio.imread(tmp_path / "x.mp4")
    assert pictures.shape == (3, 64, 48, 3)
    assert pictures[0, :12].max() < 40 and pictures[0, 20:44].min() > 215 and pictures[2].min() > 215


def test_the_command_prints_the_table_or_json_and_says_what_it_filmed(run, capsys):
    assert cli.main(["evaluate", str(run), "--episodes", "1", "--video", "--task", "small/gather"]) == 0
    said = capsys.readouterr().out
    assert f"video: {run / 'video.mp4'} (shared, seed 0, agent 0: small/gather)" in said
    assert cli.main(["evaluate", str(run), "--episodes", "1", "--json"]) == 0
    agents = json.loads(capsys.readouterr().out)["agents"]
    assert len(agents) == 12 and set(agents[0]) == {"team", "seed", "agent", "task", "mean"}


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_film_that_cannot_be_written_costs_no_number(run, form, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError("no room")

    monkeypatch.setattr("imageio.v3.imwrite", full)
    assert cli.main(["evaluate", str(run), "--episodes", "1", "--video", *form]) == 2
    said = capsys.readouterr()
    assert said.err == f"marl: {run / 'video.mp4'} was not written: no room\n"
    if form:
        assert len(json.loads(said.out)["agents"]) == 12
    else:
        assert "shared, mean" in said.out and "video" not in said.out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--task", "small/gathr"], "did you mean 'small/gather'"),
        (["--episodes", "0"], "episodes: expected 1 or more"),
        (["--member", "1"], "--member: lifelong agents are no members"),
    ],
)
def test_bad_input_is_one_clear_line(run, arguments, message, capsys):
    assert cli.main(["evaluate", str(run), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_run_that_is_not_finished_is_refused_in_one_line(run, capsys):
    (run / "results.csv").unlink()
    assert cli.main(["evaluate", str(run)]) == 2
    assert capsys.readouterr().err == f"marl: {run} is no finished run of marl lifelong: marl resume {run}\n"
