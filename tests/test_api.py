"""The Python face: train, resume, evaluate, load; and what a population or reciprocity may not change."""

import contextlib
import os
import threading

import numpy as np
import pytest
import torch
from run_tools import state
from tqdm import tqdm

import marl
from marl.envs import all_options
from marl.evaluation import Progress
from marl.terminal import progress_bar, say
from marl.types import UserError

SMALL = {"hidden": (16, 16), "batch_size": 16, "buffer_size": 1000, "threads": 1, "eval_every": 0, "warmup": 30}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def train(folder, algorithm="maddpg", environment="mpe/simple_spread_v3", **settings):
    """The state in which a small run ends: tensors by path."""
    return state(marl.train(algorithm, environment, run=folder, **{**SMALL, "steps": 36, **settings}))[1]


# ---- the four words -----------------------------------------------------------------------------------------------


def test_train_resume_and_evaluate_hand_on_a_folder(tmp_path):
    folder = marl.train("maddpg", "probe/team", steps=40, **SMALL)
    assert folder.parent.name == "runs" and (tmp_path / folder / "config.json").exists()
    assert marl.resume(folder, steps=50) == folder
    result = marl.evaluate(folder, episodes=4)
    assert (result["run"], result["step"], result["episodes"]) == (str(folder), 50, 4)
    (member,) = result["members"]
    # Four episodes of one step in which both earn the same: at most 1.
    assert member["name"] == "seed=0" and member["mean"] <= 1 and member["standard_error"] >= 0


def test_a_run_that_ends_before_the_first_update_says_so_without_a_progress_bar_too(capsys):
    marl.train("maddpg", "probe/team", steps=20, **SMALL)
    assert "note: nothing will be learnt: 20 steps end before the first update is due" in capsys.readouterr().err
    marl.train("maddpg", "probe/team", steps=40, **SMALL)
    assert "nothing will be learnt" not in capsys.readouterr().err


def test_options_that_an_environment_does_not_declare_are_the_same_after_a_resume():
    settings = {"shape": (2, np.int64(3)), "rate": np.float32(0.5), "table": np.eye(2), "name": "x"}
    assert all_options("gym/CartPole-v1", settings) == {
        "shape": [2, 3],
        "rate": 0.5,
        "table": [[1.0, 0.0], [0.0, 1.0]],
        "name": "x",
    }
    with pytest.raises(UserError, match=r"^env.world: expected numbers, texts, lists or mappings of"):
        all_options("gym/CartPole-v1", {"world": object()})


def test_a_run_computes_with_the_threads_it_was_trained_with():
    """Sums of floats depend on their number, and so would an evaluation of equal weights."""
    folder = marl.train("maddpg", "probe/team", steps=2, **SMALL)
    for use in (marl.evaluate, marl.load, marl.resume):
        torch.set_num_threads(2)
        use(folder)
        assert torch.get_num_threads() == 1


def test_a_loaded_team_acts_like_the_trained_one_by_list_and_by_name():
    folder = marl.train("maddpg", "probe/heterogeneous", steps=40, seeds=(0, 1), **SMALL)
    teams = [marl.load(folder, member) for member in (0, 1)]
    assert [t.name for t in teams] == ["seed=0", "seed=1"]
    obs = [np.array([0.5], np.float32), [1.0, -0.5, 0.5]]  # agents of different widths
    actions = [team.act(obs) for team in teams]
    assert [a.shape for a in actions[0]] == [(1,), (2,)] and all(np.abs(a).max() <= 1 for a in actions[0])
    assert not np.array_equal(actions[0][1], actions[1][1])
    named = teams[0].act({"agent_1": obs[1], "agent_0": obs[0], "a bystander": 3})
    assert list(named) == ["agent_0", "agent_1"]
    assert all(np.array_equal(named[name], a) for name, a in zip(named, actions[0], strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(teams[0].act(obs), actions[0], strict=True))  # no noise

    # By hand: two hidden layers of ReLU and a tanh, with the saved weights of member 0, agent 0.
    weights = state(folder)[1]
    x = torch.tensor([0.5, 0.0, 0.0])  # padded
    for i in range(3):
        layer = [weights[f"/learner/actor/layers.{i}.{name}"][0, 0] for name in ("weight", "bias")]
        x = x @ layer[0] + layer[1][0]
        x = torch.relu(x) if i < 2 else torch.tanh(x)
    assert actions[0][0] == pytest.approx(x[:1].numpy(), abs=1e-6)


def test_a_team_with_discrete_actions_answers_with_indices():
    folder = marl.train("maddpg", "probe/heterogeneous", steps=40, env={"continuous": False}, **SMALL)
    actions = marl.load(folder).act([[0.5], [1.0, 0.5, 0.5]])
    assert [type(a) for a in actions] == [int, int] and actions[0] in range(2) and actions[1] in range(3)


def test_a_mask_is_refused_by_a_team_that_has_no_such_input():
    folder = marl.train("maddpg", "probe/heterogeneous", steps=2, env={"continuous": False}, **SMALL)
    with pytest.raises(UserError, match=r"^avail: this policy has no such input, in probe/heterogeneous every action"):
        marl.load(folder).act([[0.5], [1.0, 0.5, 0.5]], avail=[[1, 0], [0, 1, 1]])


def test_a_member_may_be_named_and_what_is_neither_name_nor_number_is_one_line():
    folder = marl.train("maddpg", "probe/team", steps=2, seeds=(5, 7), **SMALL)
    for member in ("seed=7", "1", 1):
        assert marl.load(folder, member).name == "seed=7"
        assert marl.evaluate(folder, 1, member=member)["episodes"] == 1
    for use, answer in (
        (lambda: marl.evaluate(folder, member="seed=77"), "member seed=77: no such member; did you mean 'seed=7'?"),
        (lambda: marl.load(folder, member=0.5), "member: expected int or str, got 0.5"),
        (lambda: marl.load(folder, member="2"), "member: expected 0 to 1, got 2"),
        (lambda: marl.evaluate(folder, episodes="2"), "episodes: expected int, got '2'"),
        (lambda: marl.resume(folder, steps="9"), "steps: expected int, got '9'"),
        (lambda: marl.train("maddpg", "probe/team", run=""), "run: expected a folder to make, got ''"),
    ):
        with pytest.raises(UserError) as caught:
            use()
        assert str(caught.value) == answer


def test_a_wrong_observation_is_named():
    team = marl.load(marl.train("ddpg", "probe/heterogeneous", steps=2, **SMALL))
    for obs, answer in (
        ([[0.5]], "obs: expected one vector for each of 2 agents, got 1"),
        ([[0.5], [1.0, 2.0]], "obs of agent_1: expected 3 numbers, got 2"),
        ({"agent_0": [0.5], "agent1": [1, 2, 3]}, "obs: agent 'agent_1' is missing; did you mean 'agent1'?"),
    ):
        with pytest.raises(UserError) as caught:
            team.act(obs)
        assert str(caught.value) == answer
    with pytest.raises(UserError, match="member: expected 0 to 0, got 1"):
        marl.load("runs/" + os.listdir("runs")[0], member=1)


def test_an_evaluation_is_the_mean_over_agents_and_its_standard_error_over_episodes():
    from marl.evaluation import Evaluation

    # One member, two agents, two episodes: team returns (1 + 3) / 2 = 2 and (5 + 7) / 2 = 6.
    metrics = Evaluation(torch.tensor([[[1.0, 5], [3, 7]]]), torch.tensor([[[10.0, 20], [10, 20]]]), {}).metrics()
    assert metrics["eval/return_mean"].tolist() == [[3.0, 5.0]]  # agents' own: (1 + 5) / 2 and (3 + 7) / 2
    assert metrics["eval/return_sum"].tolist() == [8.0]
    # Deviations of -2 and 2 around 4: variance 8 with n - 1, error sqrt(8 / 2).
    assert metrics["eval/return_stderr"].tolist() == [2.0]
    assert metrics["eval/episode_length"].tolist() == [15.0]
    assert torch.isnan(Evaluation(torch.ones(1, 2, 1), torch.ones(1, 2, 1), {}).metrics()["eval/return_stderr"]).all()


def test_every_evaluation_plays_the_same_episodes_and_none_of_the_training_ones(tmp_path):
    from marl.api import make_recipe
    from marl.evaluation import Evaluator

    recipe = make_recipe("ddpg", "gym/Pendulum-v1", [0], {}, {}, {"hidden": (4,)})
    evaluator = Evaluator(lambda: recipe.make_env(3, purpose="eval"))
    learner = recipe.make_learner(evaluator.env.spec)
    first, second = evaluator(learner), evaluator(learner)
    assert torch.equal(first.returns, second.returns) and first.lengths.unique().tolist() == [200.0]
    assert not torch.equal(evaluator.first_view.obs, recipe.make_env(3).reset())


def test_an_evaluation_tells_the_outcome_of_each_episode_as_it_ended():
    """Two copies that end at steps 2 and 3, won and lost; what a copy says in later episodes does not count."""
    from marl.envs.base import EnvSpec, Step, VectorEnv
    from marl.evaluation import Evaluator
    from marl.types import Acted

    class Battles(VectorEnv):
        spec = EnvSpec("test/battles", ("a",), (1,), (1,), False, outcomes=("win_rate",), exact_state=False)
        members, copies = 1, 2

        def reset(self):
            self.time = 0
            return torch.zeros(1, 1, 2, 1)

        def step(self, action):
            self.time += 1
            done = torch.tensor([[[self.time % 2 == 0, self.time % 3 == 0]]])
            won = torch.tensor([[[float(self.time == 2)], [0.0]]])
            obs = torch.zeros(1, 1, 2, 1)
            return Step(obs, obs, torch.ones(1, 1, 2), done, done, outcome=won)

        state_dict = load_state_dict = None

    class Idle:
        memory_size = 0

        def act(self, view, explore):
            return Acted(torch.zeros(1, 1, 2, 1))

    metrics = Evaluator(Battles)(Idle()).metrics()
    assert metrics["eval/win_rate"].tolist() == [0.5] and metrics["eval/episode_length"].tolist() == [2.5]


def test_an_end_that_is_no_whole_number_is_refused_and_the_run_stays_as_it_is(tmp_path):
    folder = marl.train("maddpg", "probe/team", steps=40, **SMALL)
    with pytest.raises(UserError, match=r"^steps: expected int, got 60\.0$"):
        marl.resume(folder, steps=60.0)
    marl.resume(folder, steps=np.int64(60))
    assert marl.evaluate(folder, episodes=1)["step"] == 60


def test_evaluations_show_the_steps_played_and_the_episodes_that_are_over(monkeypatch):
    """Two evaluations of two members with one episode each: 2 + 1 steps, then 2 more while the second runs."""
    progress = Progress(episodes=4, visible=True)
    both, one, none = (torch.tensor(running).view(2, 1, 1) for running in ([True, True], [True, False], [False, False]))
    shown = []
    for evaluation in ((both, one, none), (both,)):
        watch = progress.beside(None)
        for running in evaluation:
            watch(None, running)
            shown.append((progress.bar.n, progress.bar.postfix))
    progress.close()
    assert shown == [(2, "0 of 4 episodes"), (3, "1 of 4 episodes"), (3, "2 of 4 episodes"), (5, "2 of 4 episodes")]

    bars = []
    monkeypatch.setattr("marl.evaluation.progress_bar", lambda *a, **k: bars.append(progress_bar(*a, **k)) or bars[-1])
    folder = marl.train("maddpg", "probe/team", steps=40, seeds=(0, 1), **SMALL)
    marl.evaluate(folder, episodes=3, progress=True)
    assert [(bar.n, bar.postfix) for bar in bars] == [(6, "6 of 6 episodes")]  # episodes of one step


def test_what_is_said_of_a_short_evaluation_brings_no_bar_that_would_end_without_a_line(capfd):
    with contextlib.closing(Progress(episodes=1, visible=True)) as progress:
        progress.beside(None)(None, torch.ones(1, 1, 1, dtype=torch.bool))
        say("worker 0 of 2 died")
    assert capfd.readouterr().err.strip("\r") == "worker 0 of 2 died\n"


def test_a_bar_leaves_no_thread_that_would_make_a_later_fork_unsafe(tmp_path, monkeypatch):
    monkeypatch.setattr(tqdm, "monitor", None)  # that of somebody else's bar
    before = set(threading.enumerate())
    marl.train("maddpg", "probe/team", steps=40, progress=True, **SMALL)
    assert set(threading.enumerate()) == before


# ---- a population is several runs ---------------------------------------------------------------------------------

TASKS = [
    ("maddpg", "mpe/simple_spread_v3", {"reciprocity.adjacency": "gaussian", "reciprocity.graph": "random"}),
    ("ddpg", "mpe/simple_spread_v3", {"reciprocity.adjacency": "resample"}),
    ("td3", "gym/Pendulum-v1", {"agents": 2, "reciprocity.adjacency": "knn"}),
    ("maddpg", "mpe/simple_speaker_listener_v4", {"env": {"continuous": False}}),
]


@pytest.mark.parametrize("algorithm, environment, settings", TASKS)
def test_a_member_lives_as_it_would_alone(algorithm, environment, settings, tmp_path):
    """Six updates; while actions are random everything is equal to the bit, then up to rounding."""
    sweep = {"reciprocity.kappa": [0.3, 0.8], "actor_lr": [0.001, 0.002]}
    crowd = train(tmp_path / "crowd", algorithm, environment, seeds=(3, 5), sweep=sweep, **settings)
    own = {"reciprocity.kappa": 0.8, "actor_lr": 0.001}
    alone = train(tmp_path / "alone", algorithm, environment, seeds=(5,), **settings, **own)
    member = 5  # kappa .8, rate .001, seed 5: (0.3, .001, 3), (.3, .001, 5), (.3, .002, 3), ..., (.8, .001, 5)

    for name in ("obs", "action", "reward", "terminated", "ended"):
        ours, theirs = crowd[f"/slots/{name}"][:, member], alone[f"/slots/{name}"][:, 0]
        warm = 31 if name == "obs" else 30  # the first 30 steps were random
        assert torch.equal(ours[:warm], theirs[:warm]), name
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    generators = [name for name in alone if name.endswith("generators")]
    assert len(generators) >= 4
    for name in generators:  # exploration, replay, adjacency, environments, ...: drawn from alike
        assert torch.equal(crowd[name][member], alone[name][0]), name
    weights = [name for name in alone if "/layers." in name]
    assert weights
    for name in weights:
        torch.testing.assert_close(crowd[name][member], alone[name][0], rtol=1e-4, atol=1e-5)
    # And the six updates have moved what is compared: another member's weights are far away.
    first = next(name for name in weights if name.startswith("/learner/actor/layers.0.weight"))
    assert (crowd[first][member] - crowd[first][member - 1]).abs().max() > 1e-2


# ---- reciprocity that is off --------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["maddpg", "ddpg", "td3"])
def test_kappa_zero_is_no_reciprocity_bit_for_bit(algorithm, tmp_path):
    plain = train(tmp_path / "plain", algorithm)
    other = {"reciprocity.graph": "ring", "reciprocity.adjacency": "gaussian", "reciprocity.count": 3}
    off = train(tmp_path / "off", algorithm, **other, **{"reciprocity.kappa": 0.0})
    assert len(plain) > 30
    for name in (name for name in plain if "/reciprocity/" not in name):
        assert plain[name].numpy().tobytes() == off[name].numpy().tobytes(), name
    on = train(tmp_path / "on", algorithm, **other, **{"reciprocity.kappa": 0.5})
    weights = [name for name in plain if name.startswith("/learner/critic/layers.0")]
    assert any(not torch.equal(plain[name], on[name]) for name in weights)


@pytest.mark.parametrize("algorithm", ["maddpg", "ddpg", "td3"])
def test_listening_to_oneself_at_the_same_state_changes_nothing_but_rounding(algorithm, tmp_path):
    plain = train(tmp_path / "plain", algorithm)
    itself = {"reciprocity.graph": "self", "reciprocity.adjacency": "exact", "reciprocity.kappa": 0.7}
    same = train(tmp_path / "same", algorithm, **itself)
    for name in (name for name in plain if "/layers." in name):
        torch.testing.assert_close(plain[name], same[name], rtol=1e-4, atol=1e-5)


def test_one_member_with_kappa_zero_is_untouched_by_the_others_reciprocity(tmp_path):
    mixed = train(tmp_path / "mixed", sweep={"reciprocity.kappa": [0.0, 0.5]})
    twice = train(tmp_path / "twice", sweep={"reciprocity.kappa": [0.0], "noise": [0.1, 0.2]})
    for name in (name for name in mixed if "/layers." in name):
        assert torch.equal(mixed[name][0], twice[name][0]), name
