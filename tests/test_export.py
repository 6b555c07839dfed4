"""An exported policy does what the original does, in every format, and runs where there is no ``marl``."""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from export_tools import (
    CASES,
    SMALL,
    SOME,
    VECTORS,
    answered,
    make,
    require_equal,
    with_zeros,
    without_checksums,
    write,
)
from run_tools import content, refused

import marl
from marl import cli, exported, registry
from marl.envs.base import EnvSpec
from marl.export import FORMATS, export, policy_of, script
from marl.runfolder import write_atomically
from marl.types import UserError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("error::RuntimeWarning")  # numpy's, of numbers out of range
@pytest.mark.parametrize("case", CASES)
def test_every_policy_in_plain_layers_and_read_with_numpy_acts_as_the_original(case, tmp_path):
    learner, spec = make(case)
    for member, agent in ((0, min(1, spec.n_agents - 1)), (1, 0)):
        policy = policy_of(learner, spec, member, agent)

        def plain(inputs, memory, policy=policy):
            return answered(policy(**with_zeros(policy, inputs, memory)))

        require_equal(learner, spec, plain, member, agent)

        reader = exported.Policy(write("safetensors", policy, tmp_path / "policy.safetensors"))

        def numpy(inputs, memory, reader=reader):
            inputs = {name: x.numpy() for name, x in inputs.items()}
            return answered(reader(**inputs, **({} if memory is None else {"memory": memory})))

        require_equal(learner, spec, numpy, member, agent)


@pytest.mark.parametrize("case", SOME)
def test_a_torch_export_acts_as_the_original_for_any_number_of_rows(case, tmp_path):
    learner, spec = make(case)
    policy = policy_of(learner, spec, 1, 0)
    path = write("torch-export", policy, tmp_path / "policy.pt2")
    extra = {"policy.json": ""}
    act = torch.export.load(path, extra_files=extra).module()
    assert json.loads(extra["policy.json"])["inputs"].keys() == policy.inputs.keys()

    def call(inputs, memory):
        inputs = with_zeros(policy, inputs, memory)
        return answered(act(inputs.pop("obs"), **inputs))

    require_equal(learner, spec, call, 1, 0)
    one = policy.example(1)
    assert torch.equal(answered(act(one.pop("obs"), **one))[0], answered(policy(**policy.example(1)))[0])


@pytest.mark.parametrize("case", SOME)
def test_an_onnx_file_acts_as_the_original_for_any_number_of_rows(case, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    learner, spec = make(case)
    policy = policy_of(learner, spec, 1, 0)
    session = onnxruntime.InferenceSession(write("onnx", policy, tmp_path / "policy.onnx"))
    about = json.loads(session.get_modelmeta().custom_metadata_map["policy"])
    assert [i.name for i in session.get_inputs()] == list(policy.inputs) == list(about["inputs"])
    assert session.get_outputs()[0].name == "action"

    def call(inputs, memory):
        feed = {name: x.numpy() for name, x in with_zeros(policy, inputs, memory).items()}
        return answered((*session.run(None, feed), None)[:2])

    require_equal(learner, spec, call, 1, 0)
    one = session.run(None, {name: x.numpy() for name, x in policy.example(1).items()})
    assert len(one[0]) == 1


def test_the_next_agents_weights_are_not_the_same_policy():
    """The usual bug: agent 0's network for everybody."""
    learner, spec = make("ddpg")
    other = policy_of(learner, spec, 0, 1)
    with pytest.raises(AssertionError):
        require_equal(learner, spec, lambda inputs, _: (other(inputs["obs"][:, :3]), None), 0, 0)


# ---- the command --------------------------------------------------------------------------------------------------

NO_MARL = "import sys\nsys.modules['marl'] = None\n"


def run_without_marl(folder, text):
    """What a script prints in a new process of which ``marl`` is no part."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", NO_MARL + "sys.path.insert(0, '')\n" + text]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of agents with 1 and 3 observations and 2 and 3 actions, in two members; and one with a memory."""
    folder = tmp_path_factory.mktemp("trained")
    marl.train("ddpg", "probe/heterogeneous", run=folder / "ddpg", steps=12, seeds=(0, 1), **SMALL)
    settings = {"recurrent": True, "hidden": (8,), "rollout": 10, "threads": 1, "eval_every": 0}
    marl.train("mappo", "probe/heterogeneous", run=folder / "mappo", steps=10, env={"continuous": False}, **settings)
    return folder


@pytest.mark.parametrize("form", FORMATS)
def test_the_printed_script_runs_without_marl(form, trained, capsys, tmp_path):
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    assert cli.main(["export", str(trained / "mappo"), "--agent", "agent_1", "--out", "here", "--format", form]) == 0
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert (first, len(lines)) == ("# to run it, in here:", 3)
    assert last.startswith(f"exported: here/{FORMATS[form].file} here/policy.json")
    printed = run_without_marl(tmp_path / "here", "\n".join(lines))
    action = marl.load(trained / "mappo").act([[0.0], [0.0, 0.0, 0.0]])[1]
    assert re.search(r"\[(\d)", printed)[1] == str(action)


def test_the_file_says_what_its_numbers_mean(trained, tmp_path, capsys):
    arguments = ["export", str(trained / "ddpg"), "--agent", "1", "--member", "seed=1", "--json"]
    assert cli.main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(trained / "ddpg/export/seed=1-agent_1")
    assert told["files"] == ["policy.safetensors", "policy.json", "policy.py"]
    about = json.loads((trained / "ddpg/export/seed=1-agent_1/policy.json").read_text())
    assert (about["format"], about["step"], about["member"], about["agent"]) == (1, 12, "seed=1", "agent_1")
    assert about["inputs"]["obs"]["size"] == 3 and about["output"]["size"] == 2
    path = trained / "ddpg/export/seed=1-agent_1/policy.safetensors"
    policy = exported.Policy(path)
    checksum = {"policy.safetensors": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert policy.about | {"sha256": checksum} == about
    team = marl.load(trained / "ddpg", member=1)
    np.testing.assert_allclose(policy([[0.3, -1, 2]])[0], team.act([[0.0], [0.3, -1, 2]])[1], atol=1e-6)


def test_the_script_has_every_input():
    learner, spec = make("qmix-recurrent")
    lines = script(policy_of(learner, spec, 0, 0), FORMATS["onnx"]).splitlines()
    assert len(lines) == 3
    assert lines[-1] == (
        'print(act(numpy.zeros((1, 5), "float32"), avail=numpy.ones((1, 2), bool), '
        'memory=numpy.zeros((1, 16), "float32")))'
    )


def test_the_page_shows_the_same_scripts():
    page = (Path(__file__).parent.parent / "docs/howto/export.md").read_text()
    spec = EnvSpec("test/page", ("a",), (18,), (5,), True)
    algorithm = registry.algorithm("dqn")
    policy = policy_of(algorithm(spec, [algorithm.Config()], [0]), spec, 0, 0)
    assert all(f"```python\n{script(policy, form)}```" in page for form in FORMATS.values())


# ---- the folder ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["policy.safetensors", "policy.json", "policy.py"])
@pytest.mark.parametrize("text", ["mine", '{"format": 1}'])
def test_somebody_elses_file_stays_as_it_is_and_nothing_is_exported(name, text, trained, capsys, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / name).write_text(text)
    line = refused(capsys, "export", trained / "ddpg", "--agent", 0, "--out", "own")
    assert line == f"own/{name} exists and is no earlier export's; choose another folder with --out"
    assert content(tmp_path / "own") == {Path(name): text.encode()}


def test_an_earlier_export_is_replaced_whole_and_what_is_not_of_it_stays(trained, capsys, tmp_path):
    folder = tmp_path / "here"
    export(trained / "ddpg", "0", out=folder, form="torch-export")
    for name in ("notes.txt", "policy.onnx"):
        (folder / name).write_text("mine")
    line = refused(capsys, "export", trained / "ddpg", "--agent", 0, "--out", folder, "--format", "onnx")
    assert line == f"{folder}/policy.onnx exists and is no earlier export's; choose another folder with --out"
    for _ in range(2):
        export(trained / "ddpg", "1", out=folder)
        written = {path.name for path in folder.iterdir()}
        assert written == {"policy.safetensors", "policy.json", "policy.py", "notes.txt", "policy.onnx"}
        assert exported.Policy(folder / "policy.safetensors").about["agent"] == "agent_1"
    assert (folder / "policy.onnx").read_text() == "mine"


def test_an_export_of_the_version_before_is_replaced_whole(trained, tmp_path):
    """It told no checksums, so that any of the formats' files may be its own."""
    folder = tmp_path / "here"
    export(trained / "ddpg", "0", out=folder, form="torch-export")
    without_checksums(folder)
    export(trained / "ddpg", "0", out=folder)
    assert {path.name for path in folder.iterdir()} == {"policy.safetensors", "policy.json", "policy.py"}


def test_an_export_that_fails_leaves_the_earlier_one_as_it_was(trained, capsys, tmp_path, monkeypatch):
    export(trained / "ddpg", "0", out=tmp_path / "here")
    before = content(tmp_path / "here")
    for number, reason in ((errno.ENOSPC, "No space left on device ("), (errno.EIO, "Input/output error: ")):

        def fail(path, data, number=number):
            if path.name == "policy.json":
                raise OSError(number, os.strerror(number))
            write_atomically(path, data)

        monkeypatch.setattr("marl.export.write_atomically", fail)
        line = refused(capsys, "export", trained / "ddpg", "--agent", 1, "--out", "here", "--format", "torch-export")
        assert line.startswith(f"here: {reason}") and line.endswith(": nothing was exported")
        assert content(tmp_path / "here") == before and len(list((tmp_path / "here").iterdir())) == 3


def test_no_name_is_no_folder(trained, capsys):
    assert refused(capsys, "export", trained / "ddpg", "--agent", 0, "--out", "") == "--out: expected a folder, got ''"
    with pytest.raises(UserError, match=r"^--out: expected a folder, got ''$"):
        export(trained / "ddpg", "0", out="")


# ---- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, answer",
    [
        (["nowhere", "--agent", "0"], "nowhere holds no run: it has no config.json"),
        (["ddpg"], "--agent: expected one of agent_0, agent_1, or a number"),
        (["ddpg", "--agent", "agent_2"], "--agent agent_2: no such agent; did you mean 'agent_"),
        (["ddpg", "--agent", "2"], "--agent 2: no such agent; choose from agent_0, agent_1"),
        (["ddpg", "--agent", "\u00b2"], "--agent \u00b2: no such agent; choose from agent_0, agent_1"),
        (["ddpg", "--agent", "0", "--member", "sed=1"], "--member sed=1: no such member; did you mean 'seed=1'?"),
        (["ddpg", "--agent", "0", "--member", "2"], "member: expected 0 to 1, got 2"),
        (["ddpg", "--agent", "0", "--format", "onx"], "--format: 'onx' is not a choice; did you mean 'onnx'?"),
        (["ddpg", "--agent", "0", "--out", "file"], "--out file is a file, expected a folder"),
        (["ddpg", "--agent", "0", "--out", "link"], "--out link is a link that leads nowhere, expected a folder"),
        (["ddpg", "--agent", "0", "--out", "link/x"], "link: File exists: nothing was exported"),
        (["ddpg", "--agent", "0", "--out", "x" * 300], f"{'x' * 300}: File name too long: nothing was exported"),
        (
            ["ddpg", "--agent", "0", "--out", "full"],
            "full/policy.json is a folder, expected none: nothing was exported",
        ),
    ],
)
def test_bad_input_is_answered_with_one_line(arguments, answer, trained, capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "full/policy.json").mkdir(parents=True)
    path = arguments[0] if arguments[0] == "nowhere" else str(trained / arguments[0])
    assert refused(capsys, "export", path, *arguments[1:]).startswith(answer)


def test_a_missing_package_is_named_with_the_command_that_installs_it(trained, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = refused(capsys, "export", trained / "ddpg", "--agent", 0, "--format", "onnx")
    assert line == "--format onnx needs onnx, onnxscript: pip install -c constraints.txt -e '.[export]'"


def test_a_learner_of_somebody_elses_is_refused():
    class Foreign:
        pass

    with pytest.raises(UserError, match="export does not know where Foreign keeps its policies"):
        policy_of(Foreign(), VECTORS, 0, 0)
