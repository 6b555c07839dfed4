"""The paper's runs by name: their numbers are the printed ones, they can be started, and options overrule them."""

import dataclasses
import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_tools import refused

import marl
from marl import api, cli, registry
from marl import config as cfg
from marl.presets import KAPPA, PRESETS, find
from marl.recipe import make_recipe
from marl.runfolder import read_config

MUJOCO = {
    **{"buffer_size": 1e6, "gamma": 0.99, "actor_lr": 3e-4, "critic_lr": 3e-4, "noise": 0.1, "batch_size": 256},
    "tau": 0.005,
}
ANT = MUJOCO | {"tau": 0.008}
MADDPG = {"buffer_size": 5e5, "gamma": 0.95, "actor_lr": 1e-4, "critic_lr": 1e-3, "noise": 0.1, "tau": 0.01}
MAPPO = {"gamma": 0.99, "actor_lr": 1e-4, "critic_lr": 1e-4, "entropy": 0.01, "gae_lambda": 0.95}
QMIX = {"gamma": 0.99, "lr": 5e-4, "epsilon_start": 1.0, "epsilon_end": 0.05, "epsilon_steps": 50_000}

PAPER = {
    **{f"pr-fig5-{task}-ddpg": (MUJOCO, (0, 0.5)) for task in ("halfcheetah", "hopper")},
    **{f"pr-fig5-{task}-td3": (MUJOCO | {"policy_delay": 2}, (0, 0.5)) for task in ("halfcheetah", "hopper")},
    **{"pr-fig5-ant-ddpg": (ANT, (0, 0.3)), "pr-fig5-ant-td3": (ANT | {"policy_delay": 2}, (0, 0.3))},
    **{f"pr-fig6-{t}-n{n}-maddpg": (MADDPG | {"agents": n}, (0, 0.5)) for t in ("tag", "spread") for n in (3, 6)},
    **{f"pr-fig6-{t}-n{n}-mappo": (MAPPO | {"agents": n}, (0, 0.5)) for t in ("tag", "spread") for n in (3, 6)},
    **{f"pr-fig6-{p}3s_vs_5z-qmix": (QMIX | {"target_interval": 160}, (0, 0.5)) for p in ("", "smax-")},
    **{f"pr-fig6-{p}5m_vs_6m-qmix": (QMIX | {"target_interval": 180}, (0, 0.5)) for p in ("", "smax-")},
    "pr-fig7a-tag-n4-maddpg": (MADDPG | {"agents": 4}, (0, 0.5)),
    "pr-fig7b-tag-n4-kappa": (MADDPG | {"agents": 4}, (0, 0.2, 0.5, 0.8)),
    **{f"pr-fig7c-tag-n4-neighbours-{k}": (MADDPG | {"agents": 4}, None) for k in range(4)},
    **{f"pr-fig8-spread-n{n}-{a}": (MADDPG | {"agents": n}, (0, 0.5)) for n in (3, 6) for a in ("maptf", "dvm")},
    **{f"pr-fig8-spread-n{n}-maptf-mappo": (MAPPO | {"agents": n}, (0, 0.5)) for n in (3, 6)},
}
"""Section V.B by hand: what is printed for a run, and the kappas that are compared."""

TINY = {"steps": 24, "eval_every": 0, "checkpoint_every": 0, "log_every": 12, "threads": 1, "seeds": [3]}
SMALL = {"warmup": 20, "update_every": 2, "buffer_size": 100, "batch_size": 4, "hidden": (4, 4)}
RUNNABLE = ("pr-fig6-tag-n3-maddpg", "pr-fig7c-tag-n4-neighbours-2", "pr-fig8-spread-n3-dvm", "pr-fig8-spread-n3-maptf")


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What the command line asks ``marl.train`` for; nothing runs."""
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_finish", lambda *_: None)
    monkeypatch.setattr(api, "train", lambda **given: calls.append(given) or Path("r"))

    def ask(*words):
        assert cli.main(["train", *words]) == 0
        call = calls.pop()
        assert call.pop("progress") is True
        return call

    return ask


def recipe(arguments):
    given = dict(arguments)
    given.pop("run", None)
    names = ("algorithm", "environment", "seeds", "sweep", "env")
    return make_recipe(*(given.pop(name) for name in names), given)


def test_there_is_a_preset_for_every_run_of_figures_5_to_8_and_no_other():
    assert PRESETS.keys() == PAPER.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_valid_run_with_the_printed_settings(name):
    printed, kappas = PAPER[name]
    made = recipe(PRESETS[name].arguments())
    got = {key: cfg.get(made.loop if key == "agents" else made.config, key) for key in printed}
    assert got == printed == PRESETS[name].published
    assert [(m.seed, m.sweep.get(KAPPA)) for m in made.members] == [
        (seed, kappa) for kappa in kappas or (None,) for seed in range(5)
    ]
    assert not PRESETS[name].published.keys() & PRESETS[name].decided.keys()
    family, _, task = made.environment.partition("/")
    assert task in registry.family(family).names()


def test_figure_7c_counts_neighbours_and_none_is_no_reciprocity():
    made = [recipe(PRESETS[f"pr-fig7c-tag-n4-neighbours-{k}"].arguments()).config.reciprocity for k in range(4)]
    assert [m.kappa for m in made] == [0, 0.5, 0.5, 0.5]
    assert [(m.graph, m.neighbours) for m in made[1:]] == [("nearest", k) for k in (1, 2, 3)]


@pytest.mark.parametrize("name", PRESETS)
def test_the_command_that_is_listed_trains_the_same(name, asked):
    words = shlex.split(PRESETS[name].command())
    assert words[:2] == ["marl", "train"]
    in_full, by_name = asked(*words[2:]), asked("--preset", name)
    assert recipe(in_full) == recipe(by_name) == recipe(PRESETS[name].arguments())


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_preset_made_small_learns(name, tmp_path):
    folder = marl.train(**PRESETS[name].arguments(**TINY, **SMALL), run=tmp_path / "r")
    written = read_config(folder)
    assert written["env"]["dynamics"] == "openai" and written["env"]["max_cycles"] == 100
    assert len(written["members"]) == max(len(PRESETS[name].sweep.get(KAPPA, ())), 1)
    assert "loss/critic" in (folder / "metrics.csv").read_text()


@pytest.mark.parametrize("name", ["pr-fig6-spread-n3-mappo", "pr-fig8-spread-n3-maptf-mappo"])
def test_an_on_policy_preset_made_small_learns(name, tmp_path):
    small = {"copies": 1, "rollout": 12, "epochs": 1, "hidden": (4,)}
    folder = marl.train(**PRESETS[name].arguments(**TINY, **small), run=tmp_path / "r")
    assert "loss/critic" in (folder / "metrics.csv").read_text()


def test_options_stand_instead_of_the_presets(asked):
    words = ("--preset", "pr-fig6-tag-n3-maddpg", "--steps", "1e3", "--gamma=0.9", "--env.max-cycles", "25")
    call = asked(*words, "--seeds", "7", "--run", "here")
    whole = asked("--preset=pr-fig6-tag-n3-maddpg")
    changed = {
        "steps": 1000,
        "gamma": 0.9,
        "seeds": [7],
        "run": Path("here"),
        "env": {**whole["env"], "max_cycles": 25},
    }
    assert call == {**whole, **changed} and call["env"] != whole["env"]


def test_options_of_foreign_environments_reach_a_preset(asked):
    call = asked("--env.healthy-reward", "2", "--preset", "pr-fig5-hopper-td3")
    assert call["env"] == {"healthy_reward": 2} and call["environment"] == "mujoco/Hopper-v4"


def test_a_sweep_stands_instead_of_the_presets_and_a_setting_ends_it(asked):
    name = "pr-fig7a-tag-n4-maddpg"
    assert asked("--preset", name)["sweep"] == {KAPPA: (0.0, 0.5)}
    assert asked("--preset", name, "--sweep", "tau=.1,.2")["sweep"] == {"tau": [0.1, 0.2]}
    fixed = asked("--preset", name, f"--{KAPPA}", ".4")
    assert fixed["sweep"] == {} and fixed[KAPPA] == 0.4


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--preset", "pr-fig5-hoper-td3"], "no preset 'pr-fig5-hoper-td3'; did you mean 'pr-fig5-hopper-td3'?"),
        (["--preset", "???"], "no preset '???'; see marl list --presets"),
        (["--preset"], "argument --preset: expected one argument"),
        (["maddpg", "probe/team", "--preset", "pr-fig5-ant-td3"], "says what to train; got 'maddpg' as well"),
        (["--preset", "pr-fig5-ant-td3", "maddpg", "probe/team"], "says what to train; got 'maddpg' as well"),
        (["--preset", "pr-fig5-ant-td3", "--gama", ".9"], "unknown argument '--gama'; did you mean '--gamma'?"),
        (["--preset", "pr-fig6-tag-n3-maddpg", "--env.pray", "random"], "did you mean '--env.prey'?"),
    ],
)
def test_what_does_not_fit_is_one_line(words, answer, capsys):
    assert answer in refused(capsys, "train", *words)


def test_find_raises_for_python_too():
    assert find("pr-fig5-ant-td3") is PRESETS["pr-fig5-ant-td3"]
    with pytest.raises(marl.UserError, match="did you mean 'pr-fig5-ant-td3'"):
        find("pr-fig5-ant-td4")


def test_the_list_names_every_preset_with_its_command(capsys):
    assert cli.main(["list", "--presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == [f"{name}: {preset.about}" for name, preset in PRESETS.items()]
    assert lines[1::2] == [f"  {preset.command()}" for preset in PRESETS.values()]


def test_the_list_in_json_keeps_the_papers_values_apart(capsys):
    assert cli.main(["list", "--presets", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["presets"]
    assert list(found) == list(PRESETS)
    ant = found["pr-fig5-ant-td3"]
    assert ant["published"]["tau"] == 0.008 and ant["decided"] == {"agents": 3, "steps": 1_000_000}
    assert {f.name for f in dataclasses.fields(find("pr-fig5-ant-td3"))} <= ant.keys()


def test_the_page_of_a_preset_shows_its_values_and_their_origin(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--preset", "pr-fig6-spread-n6-mappo", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: marl train --preset NAME [options]" in text
    assert "positional arguments" not in text
    assert "published: agents 6, gamma 0.99" in text and "decided here: steps 1000000, copies 8" in text
    assert "none: its own default. Default: 6." in text and "(100 in the paper's code). Default: 100." in text
    assert "One member each. Default: 0 1 2 3 4." in text


def test_the_documentation_names_every_preset():
    page = (Path(__file__).parent.parent / "docs" / "presets.md").read_text()
    assert [name for name in PRESETS if f"`{name}`" not in page] == []


@pytest.mark.parametrize(("text", "value"), [("1e6", 10**6), ("1_000_000", 10**6), ("1.5e3", 1500), ("-2e1", -20)])
def test_whole_numbers_may_be_written_with_an_exponent(text, value):
    got = cfg.parse("steps", int, text)
    assert got == value and type(got) is int
    assert (
        cfg.parse("agents", int | None, text) == value and cfg.parse("hidden", tuple[int, ...], f"{text},3")[0] == value
    )


@pytest.mark.parametrize("text", ["1.5", "1e-3", "inf", "nan", "1e16", "1e400", "", "one"])
def test_what_is_no_whole_number_or_too_large_to_be_exact_is_refused(text):
    with pytest.raises(marl.UserError, match=r"^steps: expected int, got "):
        cfg.parse("steps", int, text)


def test_a_member_may_be_filmed_by_name_or_number(monkeypatch, capsys):
    members = [SimpleNamespace(name="kappa=0.0,seed=0"), SimpleNamespace(name="kappa=0.5,seed=0")]
    asked = []
    monkeypatch.setattr(api, "recipe_of", lambda folder: SimpleNamespace(members=members))
    monkeypatch.setattr("marl.lifelong_cli.is_lifelong", lambda folder: False)
    monkeypatch.setattr(
        api, "evaluate", lambda run, episodes, video, member, _: asked.append(member) or {"members": []}
    )
    for member in ("kappa=0.5,seed=0", "1", "0"):
        assert cli.main(["evaluate", "r", "--member", member]) == 0
    assert asked == [1, 1, 0]
    capsys.readouterr()
    near = "--member kappa=.5,seed=0: no such member; did you mean 'kappa=0.5,seed=0'?"
    assert refused(capsys, "evaluate", "r", "--member", "kappa=.5,seed=0") == near
