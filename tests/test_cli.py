"""The command line: what it prints, in words and in JSON, and that its pages list everything."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from run_tools import SMALL, run_marl

from marl import config as cfg
from marl import registry
from marl.cli import COMMANDS, main
from marl.envs.mpe.options import MpeOptions
from marl.loop import LoopConfig
from marl.plot import read_metrics
from marl.runfolder import read_config
from marl.terminal import Interrupted, say_how_to_go_on

TEAM = ("train", "maddpg", "probe/team", *SMALL, "--steps", "60")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No run of this file may land in the source tree."""
    monkeypatch.chdir(tmp_path)


def out(capsys, *arguments):
    """What ``marl ARGUMENTS`` prints on stdout; nothing may come on stderr."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    return printed


def one_json(text):
    """The one JSON object on the one line of ``text``; ``NaN`` and ``Infinity`` are no JSON."""

    def refuse(name):
        raise ValueError(name)

    (line,) = text.splitlines()
    return json.loads(line, parse_constant=refuse)


def test_train_says_before_and_after_and_ends_with_the_folder(capsys, tmp_path):
    lines = out(capsys, *TEAM, "--run", "here", "--eval-every", "30").splitlines()
    assert len(lines) == 3 and lines[-1] == "run: here"
    assert lines[0].startswith("seed=0: ") and "before training" in lines[0] and "after 60 steps (reward" in lines[0]
    assert lines[1] == "watch: tensorboard --logdir here/tensorboard"
    assert sorted(p.name for p in (tmp_path / "here").iterdir() if p.name != ".lock") == [
        *("checkpoints", "config.json", "metrics.csv", "tensorboard")
    ]


def test_lines_to_copy_are_quoted_for_the_shell(capsys):
    lines = out(capsys, *TEAM, "--eval-every", "0", "--run", "a run").splitlines()
    assert lines == ["watch: tensorboard --logdir 'a run/tensorboard'", "run: a run"]
    assert main([*TEAM, "--run", "a run"]) == 2
    assert capsys.readouterr().err.endswith("to go on with it: marl resume 'a run'\n")
    with (
        pytest.raises(Interrupted, match=r"^stopped; go on with: marl resume 'a run'$"),
        say_how_to_go_on(Path("a run")),
    ):
        raise Interrupted("stopped")


def test_a_run_that_is_finished_says_so_and_how_it_gets_a_later_end(run, capsys):
    assert main(["resume", str(run)]) == 0
    assert "finished at step 100; --steps gives it a later end" in capsys.readouterr().err
    assert main(["resume", str(run), "--steps", "110"]) == 0
    assert "going on from step 100\n" in capsys.readouterr().err


def test_without_a_folder_the_run_is_named_by_algorithm_environment_and_time(capsys, tmp_path):
    last = out(capsys, *TEAM, "--eval-every", "0").splitlines()[-1]
    assert last.startswith("run: runs/maddpg-probe-team-") and (tmp_path / last[5:] / "config.json").exists()


def test_every_option_reaches_the_run(capsys):
    options = {
        **{"hidden": (8, 4), "gamma": 0.9, "shared": True, "batch_size": 3, "warmup": 5, "max_grad_norm": 0.5},
        **{"reciprocity.kappa": 0.25, "reciprocity.graph": "ring", "reciprocity.rho": (1, 2)},
        **{"steps": 12, "copies": 2, "eval_every": 6, "log_every": 4, "checkpoint_every": 0, "threads": 1},
    }
    words = []
    for i, (name, value) in enumerate(options.items()):
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
        name = name if i % 2 else name.replace("_", "-")  # both spellings
        words += [f"--{name}={text}"] if i % 3 else [f"--{name}", text]
    words += ["--env.local_ratio", ".25", "--env.max-cycles=7", "--seeds", "3", "1", "--sweep", "tau=.1,.2"]
    out(capsys, "train", "maddpg", "mpe/simple_spread_v3", *words, "--run", "r", "--quiet")
    written = read_config(Path("r"))
    for name, value in options.items():
        node = {**written["config"], **written["loop"]}
        for part in name.split("."):
            node = node[part]
        assert node == (list(value) if isinstance(value, tuple) else value), name
    given = {"local_ratio": 0.25, "max_cycles": 7}
    assert written["env"] == {**dataclasses.asdict(MpeOptions()), **given}  # and all that has a default
    assert [m["name"] for m in written["members"]] == [
        *("tau=0.1,seed=3", "tau=0.1,seed=1", "tau=0.2,seed=3", "tau=0.2,seed=1")
    ]
    assert written["versions"]["torch"] and written["threads"] == 1 and written["rules"] == "mpe2 rules"


def test_values_of_an_option_that_is_given_twice_add_up_and_those_of_a_sweep_are_asked_for_at_once(capsys):
    out(capsys, *TEAM, "--eval-every", "0", "--seeds", "0", "1", "--seeds", "2", "--run", "here")
    assert [member["name"] for member in read_config(Path("here"))["members"]] == ["seed=0", "seed=1", "seed=2"]
    assert main([*TEAM, "--sweep", "actor_lr=1,2", "--sweep", "actor-lr=3", "--run", "there"]) == 2
    assert "--sweep actor_lr: given twice, expected all its values at once" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_folder_whose_configuration_is_somebody_elses_is_named(command, capsys, tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"architectures": ["BertModel"]}')
    assert main([command, "bert"]) == 2
    assert capsys.readouterr().err == "marl: bert: config.json: expected format 1, got None\n"


def test_options_of_a_foreign_environment_are_read_as_json(capsys):
    out(capsys, "train", "ddpg", "gym/Pendulum-v1", *SMALL, "--steps", "60", "--env.g", "9.5", "--run", "r")
    assert read_config(Path("r"))["env"] == {"g": 9.5}


def test_train_and_resume_in_json_are_one_object(capsys):
    result = one_json(out(capsys, *TEAM, "--run", "r", "--json", "--seeds", "0", "1"))
    assert result["run"] == "r" and [m["member"] for m in result["members"]] == ["seed=0", "seed=1"]
    member = result["members"][0]
    assert member["step"] == 60 and member["unit"] == "reward per episode, mean over agents"
    logged = [float(r["value"]) for r in read_metrics(Path("r")) if _is_mean(r, "seed=0")]
    assert (member["before"], member["after"]) == (logged[0], logged[-1])
    more = one_json(out(capsys, "resume", "r", "--steps", "80", "--quiet", "--json"))
    assert more["members"][0]["step"] == 80 and more["members"][0]["before"] == member["before"]


def _is_mean(row, member):
    return (row["member"], row["metric"], row["agent"]) == (member, "eval/return_mean", "")


def test_what_is_not_known_is_null_in_json_and_left_out_in_words(capsys):
    one = one_json(out(capsys, *TEAM, "--eval-episodes", "1", "--run", "r", "--json"))
    assert one["members"][0]["before_margin"] is None and isinstance(one["members"][0]["before"], float)
    assert "nan" not in out(capsys, "resume", "r", "--quiet")
    assert one_json(out(capsys, "evaluate", "r", "--episodes", "1", "--json"))["members"][0]["standard_error"] is None
    table = one_json(out(capsys, "plot", "r", "--json"))["groups"]
    assert table[0]["n"] == 1 and table[0]["low"] is None


def test_the_margin_is_that_of_student(capsys):
    member = one_json(out(capsys, *TEAM, "--eval-episodes", "5", "--run", "r", "--json"))["members"][0]
    errors = [float(row["value"]) for row in read_metrics(Path("r")) if row["metric"] == "eval/return_stderr"]
    # Student's t with 4 degrees of freedom: 97.5 % lie below 2.776.
    assert member["before_margin"] == pytest.approx(2.776 * errors[0], rel=1e-3) and errors[0] > 0


def test_a_run_without_evaluation_still_ends_with_its_folder(capsys):
    assert one_json(out(capsys, *TEAM, "--eval-every", "0", "--run", "r", "--json")) == {"run": "r", "members": []}


def test_evaluation_repeats_itself_and_depends_on_the_weights_alone(run, capsys, tmp_path):
    first = out(capsys, "evaluate", run, "--episodes", "7", "--json")
    result = one_json(first)
    assert out(capsys, "evaluate", run, "--episodes", "7", "--json") == first
    (member,) = result["members"]
    assert result["episodes"] == 7 and result["step"] == 100 and result["run"] == str(run)
    assert member["name"] == "seed=0" and member["unit"] == "reward per episode, mean over agents"
    assert math.isfinite(member["mean"]) and member["standard_error"] > 0
    assert run_marl("evaluate", run, "--episodes", "7", "--json", log=tmp_path / "log") == first
    assert one_json(out(capsys, "evaluate", run, "--episodes", "8", "--json"))["members"] != result["members"]
    words = out(capsys, "evaluate", run, "--episodes", "7")
    assert words.startswith(
        f"seed=0: {member['mean']:.3f} +- {2.4469 * member['standard_error']:.3f} (95 % interval) reward"
    )


def test_equal_weights_evaluate_equally_wherever_they_are_saved(run, capsys):
    """A run resumed for no further update has other checkpoints, another step, and the same policies."""
    before = one_json(out(capsys, "evaluate", run, "--episodes", "5", "--json"))
    config = json.loads((run / "config.json").read_text())
    config["config"]["update_every"] = 10_000
    (run / "config.json").write_text(json.dumps(config))
    out(capsys, "resume", run, "--steps", "130", "--quiet")
    after = one_json(out(capsys, "evaluate", run, "--episodes", "5", "--json"))
    assert after["step"] == 130 and after["members"] == before["members"]


def test_list_names_every_algorithm_and_environment(capsys):
    found = one_json(out(capsys, "list", "--json"))
    assert {"algorithms", "environments"} <= found.keys() and found["algorithms"] == sorted(registry.ALGORITHMS)
    wanted = {"mpe/simple_spread_v3", "mpe/simple_tag_v3", "mujoco/Hopper-v5", "gym/Pendulum-v1", "probe/team"}
    assert wanted <= set(found["environments"])
    words = out(capsys, "list")
    assert all(f"  {name}\n" in words for name in [*found["algorithms"], *found["environments"]])


def test_plot_writes_a_picture_beside_the_run_or_where_it_is_told(run, capsys, tmp_path):
    result = one_json(out(capsys, "plot", run, "--json"))
    assert result["picture"] == str(run / "curves.png") and result["groups"][0]["group"] == "MADDPG"
    out(capsys, "plot", run, "--out", tmp_path / "new" / "a.png", "--metric", "loss/critic")
    for path in (run / "curves.png", tmp_path / "new" / "a.png"):
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_doctor_says_versions_in_words_and_in_json(capsys):
    import torch

    found = one_json(out(capsys, "doctor", "--json"))
    release = torch.__version__.partition("+")[0]  # without the name of a build, such as cu130
    assert release in json.dumps(found)
    assert release in out(capsys, "doctor")


# ---- help ---------------------------------------------------------------------------------------------------------


def page(capsys, *arguments):
    """A page of help: argparse ends the process with code 0 after printing it."""
    try:
        assert main([*arguments]) == 0
    except SystemExit as end:
        assert end.code == 0
    return capsys.readouterr().out


def test_the_front_page_names_every_command(capsys):
    assert all(f"  {name} " in page(capsys, "--help") for name in COMMANDS)
    assert main([]) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_page_that_names_its_options(command, capsys):
    text = page(capsys, command, "--help")
    assert f"usage: marl {command}" in text
    assert command == "train" or "--json" in text


@pytest.mark.parametrize("algorithm", registry.ALGORITHMS)
def test_the_page_of_a_training_lists_every_setting_with_its_sentence_and_default(algorithm, capsys):
    text = page(capsys, "train", algorithm, "mpe/simple_spread_v3", "--help")
    flat = " ".join(text.split())
    config = registry.algorithm(algorithm).Config
    for prefix, group in (("", LoopConfig), ("", config), ("env.", MpeOptions)):
        for setting in cfg.settings(group):
            assert f"--{prefix}{setting.name}".replace("_", "-") in text
            assert " ".join(setting.help.split())[:60] in flat, setting.name
    assert "May be swept." in text and "--sweep" in text and "--seeds" in text and "--run" in text
    assert max(map(len, text.splitlines())) <= 200


def test_the_package_runs_as_a_module_too(capsys):
    done = subprocess.run([sys.executable, "-m", "marl", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout == out(capsys, "--help")
    assert subprocess.run([sys.executable, "-m", "marl", "trian"], capture_output=True, check=False).returncode == 2


def test_help_needs_no_torch(tmp_path):
    """The front page and the page of train come at once: they import nothing heavy."""
    code = "import sys, marl.cli; marl.cli.main(['train', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
