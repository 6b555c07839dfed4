"""What a user does wrong is answered with one line and exit code 2, and nothing that was there is lost."""

import importlib.util
import json
import sys

import pytest
from run_tools import content, refused

import marl.api
from marl import registry
from marl.cli import main
from marl.runfolder import lock
from marl.types import UserError

SPREAD = ("train", "maddpg", "mpe/simple_spread_v3")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No run of this file may land in the source tree."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("entry", ["no_such_module:X", "marl.api:Nope", "marl.api", ""])
def test_an_entry_of_the_registry_that_points_to_nothing_is_one_line_that_names_it(entry, monkeypatch):
    monkeypatch.setitem(registry.ALGORITHMS, "mine", entry)
    with pytest.raises(UserError, match=rf"^registry: expected 'module:name' .*, got {entry!r} \(.*\)$"):
        marl.api.train("mine", "probe/team")


# ---- words that do not exist --------------------------------------------------------------------------------------

WRONG_WORDS = [
    (["trian"], "no command 'trian'; did you mean 'train'?"),
    (["train", "madpg", "probe/team"], "no algorithm 'madpg'; did you mean 'maddpg'?"),
    (["train", "maddpg", "mp/simple_spread_v3"], "no environment family 'mp'; did you mean 'mpe'?"),
    (["train", "maddpg", "simple_spread_v3"], "expected FAMILY/NAME; did you mean 'mpe/simple_spread_v3'?"),
    (["train", "qmix", "3m"], "did you mean 'smax/3m'?"),
    (
        ["train", "maddpg", "Pong"],
        "families are atari, gym, mamujoco, minatar, mpe, mujoco, pettingzoo, probe, smac, small, smax",
    ),
    (["train", "maddpg", "mpe/simple_spred_v3"], "did you mean 'simple_spread_v3'?"),
    (["train", "td3", "mujoco/Hoper-v5"], "did you mean 'Hopper-v5'?"),
    (["train", "maddpg", "gym/CartPol-v1"], "did you mean 'CartPole-v1'?"),
    (["train", "maddpg", "pettingzoo/nosuch.module_v1"], "cannot import 'nosuch.module_v1'"),
    (["train", "maddpg", "probe/tem"], "no environment 'probe/tem'; did you mean 'team'?"),
    ([*SPREAD, "--stepps", "1"], "unknown argument '--stepps'; did you mean '--steps'?"),
    ([*SPREAD, "--kapa", "1"], "unknown argument '--kapa'; did you mean '--reciprocity.kappa'?"),
    ([*SPREAD, "--reciprocity.kapa=1"], "did you mean '--reciprocity.kappa'?"),
    ([*SPREAD, "--xyzzy"], "unknown argument '--xyzzy'; see marl train --help"),
    ([*SPREAD, "more"], "unknown argument 'more'"),
    ([*SPREAD, "--hidden", "16", "16"], "unknown argument '16'; a list is one word, as 64,64"),
    ([*SPREAD, "--env.local_ration", ".5"], "did you mean '--env.local-ratio'?"),
    ([*SPREAD, "--sweep", "reciprocity.kapa=.5"], "did you mean 'reciprocity.kappa'?"),
    ([*SPREAD, "--sweep", "hidden=3"], "choose from action_l2, actor_lr, critic_lr, epsilon, gamma, noise,"),
    ([*SPREAD, "--reciprocity.graph", "rong"], "--reciprocity.graph: 'rong' is not a choice; did you mean 'ring'?"),
    (["train", "maddpg", "mpe/simple_push_v3", "--env.local_ratio", ".5"], "has no option 'local_ratio'"),
    (["train", "ddpg", "gym/Pendulum-v1", "--env.gg", "3"], "unexpected keyword argument 'gg'"),
    (["train", "--steps", "5", *SPREAD[1:]], "expected: marl train ALGO ENV [options]"),
    (["train", "maddpg"], "expected: marl train ALGO ENV [options]"),
    (["resume"], "RUN"),
    (["list", "--jsn"], "did you mean '--json'?"),
]


@pytest.mark.parametrize("arguments, answer", WRONG_WORDS, ids=lambda v: " ".join(v)[-40:] if type(v) is list else "")
def test_a_word_that_does_not_exist_is_answered_with_the_nearest_that_does(arguments, answer, capsys, tmp_path):
    assert answer in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


WRONG_VALUES = [
    ("--steps x", "--steps: expected int, got 'x'"),
    ("--steps 0", "steps: expected 1 or more, got 0"),
    ("--steps", "--steps: expected one argument"),
    ("--seeds a", "--seeds: expected int, got 'a'"),
    ("--seeds 1 1", "seeds: expected one or more different values, got [1, 1]"),
    ("--batch-size 0", "batch_size: expected 1 or more, got 0"),
    ("--hidden 64,x", "--hidden: expected int,..., got '64,x'"),
    ("--hidden 64,,64", "--hidden: expected int,..., got '64,,64'"),
    ("--hidden 64,0", "hidden: expected 1 or more, got 64,0"),
    ("--actor-lr -1", "actor_lr: expected 0 or more, got -1.0"),
    ("--critic-lr inf", "critic_lr: expected a finite number, 0 or more, got inf"),
    ("--gamma 1.1", "gamma: expected a number from 0 to 1, got 1.1"),
    ("--tau nan", "tau: expected a number from 0 to 1, got nan"),
    ("--shared maybe", "--shared: expected bool, got 'maybe'"),
    ("--max-grad-norm big", "--max-grad-norm: expected float or none, got 'big'"),
    ("--agents 0", "agents: expected 1 or more, got 0"),
    ("--reciprocity.kappa 1.5", "reciprocity.kappa: expected a number from 0 to 1, got 1.5"),
    ("--reciprocity.rho 0", "reciprocity.rho: expected 1 or more, got 0"),
    ("--sweep reciprocity.kappa=", "got no values; reciprocity.kappa=V1,V2 for example"),
    ("--sweep reciprocity.kappa=0,,.5", "--sweep reciprocity.kappa: expected float, got ''"),
    ("--sweep reciprocity.kappa=.5,1.5", "reciprocity.kappa: expected a number from 0 to 1, got 1.5"),
    ("--sweep reciprocity.kappa=.5,x", "--sweep reciprocity.kappa: expected float, got 'x'"),
    ("--sweep gamma=.9,-1", "gamma: expected a number from 0 to 1, got -1.0"),
    ("--sweep gamma", "--sweep gamma: expected FIELD=V,V,..., got no values; gamma=V1,V2 for example"),
    ("--sweep kapa", "expected FIELD=V,V,... of a field that may be swept; "),
    ("--run=", "run: expected a folder to make, got ''"),
    (f"--run {'x' * 300}", "File name too long: the run was not started"),
    ("--copies 100000000000000", "out of memory: asked for "),
    ("--env.local_ratio x", "--env.local-ratio: expected float or none, got 'x'"),
    ("--env.local_ratio 7", "local_ratio: expected a number from 0 to 1, got 7.0"),
]


@pytest.mark.parametrize("options, answer", WRONG_VALUES)
def test_a_value_that_makes_no_sense_is_repeated_with_what_was_expected(options, answer, capsys, tmp_path):
    assert answer in refused(capsys, *SPREAD, *options.split())
    assert list(tmp_path.iterdir()) == []


def test_an_option_of_a_foreign_environment_needs_its_value(capsys):
    line = refused(capsys, "train", "ddpg", "gym/Pendulum-v1", "--env.g", "--steps", "5")
    assert line == "--env.g: expected a value"


MISFITS = [
    (
        "qmix mujoco/Hopper-v5",
        "qmix needs discrete actions, those of mujoco/Hopper-v5 are continuous; mappo and maddpg",
    ),
    ("qmix gym/CartPole-v1 --hidden=", "qmix: a recurrent network needs a width, hidden is empty"),
    ("qmix gym/CartPole-v1 --mixer qmx", "--mixer: 'qmx' is not a choice; did you mean 'qmix'?"),
    ("qmix gym/CartPole-v1 --epsilon-start 2", "epsilon_start: expected a number from 0 to 1, got 2.0"),
    ("qmix gym/CartPole-v1 --target-interval -1", "target_interval: expected 0 or more, got -1"),
    ("qmix gym/CartPole-v1 --n-step 3 --td-lambda .5", "n_step: 3 does not go with td_lambda; choose n_step 1 or"),
    ("mappo gym/CartPole-v1 --critic centrl", "--critic: 'centrl' is not a choice; did you mean 'central'?"),
    ("mappo gym/CartPole-v1 --rollout 0", "rollout: expected 1 or more, got 0"),
    ("mappo gym/CartPole-v1 --recurrent yes --rollout 15", "a rollout of 15 steps is no whole number of chunks of 10"),
    ("mappo gym/CartPole-v1 --sweep rollout=5,10", "expected FIELD=V,V,... of a field that may be swept"),
    ("maptf mpe/simple_spread_v3 --shared yes", "maptf needs networks of each agent's own, got shared=true; choose"),
    ("maptf mpe/simple_spread_v3 --options.fad 1", "did you mean '--options.fade'?"),
    ("maptf mpe/simple_spread_v3 --options.fade -1", "options.fade: expected 0 or more, got -1.0"),
    ("maptf-mappo mpe/simple_spread_v3 --recurrent yes", "maptf-mappo cannot imitate with recurrent=true; choose"),
    ("dvm mpe/simple_speaker_listener_v4", "dvm needs agents of equal sizes, mpe/simple_speaker_listener_v4 has"),
    ("dvm mpe/simple_spread_v3 --shared yes", "dvm needs networks of each agent's own, got shared=true; choose"),
    ("dvm mpe/simple_spread_v3 --cycle-train 0", "cycle_train: expected 1 or more, got 0"),
    ("qmix smax/3n", "no environment 'smax/3n'; did you mean '3m'?"),
    ("qmix smax/3m --env.max_step 9", "unknown argument '--env.max-step'; did you mean '--env.max-steps'?"),
    ("qmix smax/3m --env.max_steps 0", "max_steps: expected 1 or more, got 0"),
    ("maddpg mamujoco/Hoper-3x1", "no environment 'mamujoco/Hoper-3x1'; did you mean 'Hopper-3x1'?"),
    ("maddpg mamujoco/Hopper-2x1", "no environment 'mamujoco/Hopper-2x1'; did you mean 'Hopper-3x1'?"),
    ("maddpg mamujoco/Hopper-3x1 --agents 2", "mamujoco/Hopper-3x1 has 3 agents, not 2; the partition decides"),
    ("maddpg mamujoco/Hopper-3x1 --env.wings 2", "mamujoco/Hopper-3x1 does not take wings=2: "),
    ("maddpg mamujoco/Hopper-3x1 --env.agent_obsk -1", "mamujoco/Hopper-3x1 does not take agent_obsk=-1: "),
    ("--preset pr-fig6-spread-n3-mapo", "did you mean 'pr-fig6-spread-n3-mappo'?"),
    ("--preset pr-fig6-spread-n3-mappo qmix smax/3m", "says what to train; got 'qmix' as well"),
    ("--preset pr-fig6-spread-n3-mappo --td-lambda 1", "unknown argument '--td-lambda'"),
]


@pytest.mark.parametrize("words, answer", MISFITS)
def test_what_does_not_fit_an_algorithm_or_an_environment_is_one_line(words, answer, capsys, tmp_path):
    package = {"smax": "jaxmarl", "mamujoco": "gymnasium_robotics"}.get(words.split()[1].partition("/")[0])
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    assert answer in refused(capsys, "train", *words.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "module, environment, answer",
    [
        ("jax", "smax/3m", "smax/* needs JaxMARL"),
        ("gymnasium_robotics", "mamujoco/Ant-2x4", "mamujoco/Ant-2x4: cannot import 'gymnasium_robotics'"),
    ],
)
def test_an_optional_package_that_is_not_there_is_named_with_its_command(
    module, environment, answer, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)  # an import of it fails
    line = refused(capsys, "train", "mappo", environment)
    assert line.startswith(answer) and "pip install -c constraints.txt -e '.[" in line


def test_the_original_starcraft_that_is_not_there_says_where_it_comes_from(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SC2PATH", str(tmp_path))
    line = refused(capsys, "train", "qmix", "smac/3m")
    assert line.startswith("smac/3m: ") and "(marl doctor shows every step)" in line


@pytest.mark.parametrize("algorithm", ["ddpg", "td3"])
def test_an_algorithm_that_does_not_fit_the_actions_names_one_that_does(algorithm, capsys, tmp_path):
    line = refused(capsys, "train", algorithm, "gym/CartPole-v1")
    assert line == (f"{algorithm} needs continuous actions, gym/CartPole-v1 has 2 discrete ones; maddpg handles both")
    assert list(tmp_path.iterdir()) == []


def test_from_python_the_same_mistakes_raise_the_same_lines():
    for arguments, answer in (
        ({"steps": "10"}, "steps: expected int, got '10'"),
        ({"reciprocity.kapa": 0.5}, "no setting 'kapa'; did you mean 'kappa'?"),
        ({"gamma.x": 0.5}, "no setting 'gamma.x'"),
        ({"hidden": 64}, r"hidden: expected int,..., got 64"),
        ({"shared": 1}, "shared: expected bool, got 1"),
        ({"env": {"local_ratio": "x"}}, "local_ratio: expected float or none, got 'x'"),
        ({"env": {"local_ration": 1}}, "no option 'local_ration' of mpe/simple_spread_v3; did you mean 'local_ratio'?"),
        ({"sweep": {"gamma": ["x"]}}, "gamma: expected float, got 'x'"),
    ):
        with pytest.raises(UserError) as caught:
            marl.api.train("maddpg", "mpe/simple_spread_v3", **arguments)
        assert answer in str(caught.value)


def edit(**changes):
    def change(values):
        for name, value in changes.items():
            *parents, last = name.split("__")
            node = values
            for parent in parents:
                node = node[parent]
            if value is None:
                del node[last]
            else:
                node[last] = value

    return change


DAMAGED_CONFIGS = {
    "no algorithm": (edit(algorithm=None), "config.json is damaged: no 'algorithm'"),
    "other algorithm": (edit(algorithm="madpg"), "no algorithm 'madpg'; did you mean 'maddpg'?"),
    "other format": (edit(format=2), "config.json: expected format 1, got 2"),
    "text for a number": (edit(loop__steps="100"), "steps: expected int, got '100'"),
    "a number for a list": (edit(config__hidden=16), "hidden: expected int,..., got 16"),
    "an unknown field": (edit(config__gama=0.9), "no setting 'gama' in MADDPGConfig; did you mean 'gamma'?"),
    "a bad number": (edit(config__gamma=7.0), "gamma: expected a number from 0 to 1, got 7.0"),
    "no members": (edit(members=[{"name": "x"}]), "config.json is damaged: "),
    "no threads": (edit(threads=None), "config.json is damaged: no 'threads'"),
}


@pytest.mark.parametrize("change, answer", DAMAGED_CONFIGS.values(), ids=DAMAGED_CONFIGS.keys())
def test_a_damaged_configuration_is_one_line_that_says_where(change, answer, run, capsys):
    values = json.loads((run / "config.json").read_text())
    change(values)
    (run / "config.json").write_text(json.dumps(values))
    before = content(run)
    for command in ("resume", "evaluate"):
        assert answer in refused(capsys, command, run)
    assert content(run) == before


@pytest.mark.parametrize("text", ["", "{", "[1]", "\0"])
def test_so_is_one_that_is_no_json(text, run, capsys):
    (run / "config.json").write_text(text)
    for command in ("resume", "evaluate", "plot"):
        assert refused(capsys, command, run).startswith(f"{run / 'config.json'} is damaged: ")


# ---- folders ------------------------------------------------------------------------------------------------------


def test_a_run_in_use_by_another_process_is_left_alone(run, capsys):
    before = content(run)
    with lock(run):
        assert f"run folder {run} is in use by process " in refused(capsys, "resume", run)
    assert content(run) == before


def test_an_existing_run_is_not_overwritten(run, capsys):
    before = content(run)
    assert "already holds a run; to go on with it: marl resume" in refused(capsys, *SPREAD, "--run", run)
    assert content(run) == before


@pytest.mark.parametrize("inside", ["checkpoints", "config.json", "tensorboard/seed=0"])
def test_a_place_inside_a_run_is_answered_with_that_run(inside, run, capsys, tmp_path):
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / "config.json").write_text("{}")
    line = refused(capsys, "resume", run / inside)
    assert line == f"{run / inside} holds no run: it has no config.json; it is inside the run {run}"


@pytest.mark.parametrize("command", ["resume", "evaluate", "plot"])
def test_a_folder_without_a_run_is_answered_with_the_nearest_that_is_one(command, run, capsys, tmp_path):
    assert f"holds no run: it has no config.json; the newest run there is {run}" in refused(
        capsys, command, tmp_path / "rum"
    )


def test_a_new_end_before_the_present_step_is_refused(run, capsys):
    before = content(run)
    assert "steps: expected 100 or more, where the run is now, got 60" in refused(
        capsys, "resume", run, "--steps", "60"
    )
    assert content(run) == before


def test_a_video_of_what_cannot_be_drawn_is_one_line(run, capsys, tmp_path):
    line = refused(capsys, "evaluate", run, "--episodes", "1", "--video", tmp_path / "film.mp4")
    assert line == "probe/team cannot be drawn"
    assert not (tmp_path / "film.mp4").exists()


@pytest.mark.parametrize("command, ending", [("evaluate --video", "mp4"), ("plot --out", "png")])
def test_a_picture_that_cannot_be_written_is_one_line_before_anything_is_played(
    command, ending, run, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(marl.api, "_evaluate", None)  # plays
    (tmp_path / f"folder.{ending}").mkdir()
    wanted, (command, option) = f"expected a file whose name ends in .{ending}", command.split()
    for name, answer in (
        ("x.gif", f"x.gif: {wanted}"),
        ("x", f"x: {wanted}"),
        (f"folder.{ending}", f"folder.{ending} is a folder, {wanted}"),
        (f"run/config.json/x.{ending}", f"{run / 'config.json'}: Not a directory: x.{ending} cannot be written"),
    ):
        assert refused(capsys, command, run, option, name) == answer
    assert wanted in refused(capsys, command, run, option, "")
    assert {path.name for path in tmp_path.iterdir()} == {"run", f"folder.{ending}"}


def test_the_numbers_are_told_where_the_film_cannot_be_written(run, capsys, tmp_path, monkeypatch):
    class Film:
        def __init__(self, member, copies):
            pass

        def __call__(self, env, running):
            pass

        def write(self, path):
            raise UserError("the disk is full")

    monkeypatch.setattr(marl.api, "Film", Film)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--episodes", "2", "--video", "x.mp4"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("seed=0: ") and out.count("\n") == 1 and err == "marl: the disk is full\n"


def test_episodes_for_which_there_is_no_memory_are_one_line(run, capsys):
    # 2 agents, 10^14 episodes: a float32 each is 800 TB or more.
    line = refused(capsys, "evaluate", run, "--episodes", "100000000000000")
    assert line.startswith("out of memory: asked for ") and line.endswith("--buffer-size or --episodes needs less")


@pytest.mark.parametrize(
    "arguments, answer",
    [
        (["evaluate", "--episodes", "0"], "episodes: expected 1 or more, got 0"),
        (["evaluate", "--episodes", "x"], "--episodes: expected int, got 'x'"),
        (["evaluate", "--member", "1"], "member: expected 0 to 0, got 1"),
        (["plot", "--metric", "eval/retrun_mean"], "did you mean 'eval/return_mean'?"),
        (["plot", "--metric", "value/target_gap"], "has not recorded value/target_gap yet"),
        (["resume", "--steps", "x"], "--steps: expected int, got 'x'"),
    ],
)
def test_a_bad_value_for_a_run_is_one_line(arguments, answer, run, capsys):
    assert answer in refused(capsys, arguments[0], run, *arguments[1:])
