"""An exported policy does what the original does, in every format, and runs where there is no ``marl``."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from run_tools import refused

import marl
from marl import cli, exported, registry
from marl.algos.common import with_nothing_noted
from marl.config import replace
from marl.envs.base import EnvSpec
from marl.export import FORMATS, describe, policy_of, script
from marl.networks import acting, networks
from marl.types import UserError, View

SMALL = {"hidden": (16, 16), "batch_size": 8, "buffer_size": 200, "threads": 1, "eval_every": 0, "warmup": 10}
ROWS, STEPS = 64, 3

VECTORS = EnvSpec("test/vectors", ("a", "b", "c"), (5, 3, 4), (2, 3, 1), False, max_steps=4)
INDICES = dataclasses.replace(VECTORS, discrete=True)
MASKED = dataclasses.replace(INDICES, masked=True, state_size=6)
ALIKE = EnvSpec("test/alike", ("a", "b"), (4, 4), (3, 3), True)
PICTURES = EnvSpec("test/pictures", ("a",), (4 * 7 * 5,), (4,), True, pixels=(4, 7, 5), bytes=True)
LARGE = EnvSpec("test/large", ("a",), (2 * 40 * 36,), (3,), True, pixels=(2, 40, 36))

CASES = {
    "ddpg": ("ddpg", VECTORS, {}),
    "td3": ("td3", VECTORS, {}),
    "maddpg-vectors": ("maddpg", VECTORS, {}),
    "maddpg-indices": ("maddpg", INDICES, {}),
    "maddpg-shared": ("maddpg", MASKED, {"shared": True}),
    "mappo-vectors": ("mappo", VECTORS, {"shared": False, "activation": "tanh"}),
    "mappo-shared": ("mappo", MASKED, {}),
    "mappo-recurrent": ("mappo", MASKED, {"recurrent": True}),
    "mappo-recurrent-vectors": ("mappo", VECTORS, {"recurrent": True, "shared": False}),
    "qmix-recurrent": ("qmix", MASKED, {}),
    "qmix": ("qmix", MASKED, {"recurrent": False, "shared": False, "mixer": "none"}),
    "dqn": ("dqn", INDICES, {}),
    "dqn-duelling": ("dqn", MASKED, {"duelling": True}),
    "dqn-pictures": ("dqn", PICTURES, {"duelling": True}),
    "dqn-large-pictures": ("dqn", LARGE, {}),
    "maptf": ("maptf", VECTORS, {}),
    "maptf-mappo": ("maptf-mappo", INDICES, {}),
    "dvm": ("dvm", ALIKE, {}),
    "one-layer": ("ddpg", VECTORS, {"hidden": ()}),
}
SOME = ("ddpg", "mappo-recurrent", "mappo-recurrent-vectors", "dqn-pictures", "maddpg-shared")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make(case):
    """A learner of two members whose every weight is random, those of padding included."""
    name, spec, settings = CASES[case]
    algorithm = registry.algorithm(name)
    config = algorithm.Config()
    for key, value in {"hidden": (16, 12), **settings}.items():
        config = replace(config, key, value)
    learner = algorithm(spec, [config] * 2, [3, 4])
    chance = torch.Generator().manual_seed(3)
    for name, x in acting(networks(learner, spec)).module.named_parameters():
        x.data.copy_(torch.randn(x.shape, generator=chance) * (0.1 if "bias" in name else 0.4))
    return learner, spec


def play(learner, spec):
    """Random observations of an episode, and what the original does about them: lists of ``[P, N, B, *]``."""
    chance = torch.Generator().manual_seed(2)
    memory = with_nothing_noted(View(torch.zeros(2, spec.n_agents, ROWS, 1)), learner.memory_size).memory
    seen, done = [], []
    for _ in range(STEPS):
        obs = torch.randn(2, spec.n_agents, ROWS, spec.obs_size, generator=chance) * spec.obs_mask[:, None]
        if spec.bytes:
            obs = torch.randint(256, obs.shape, generator=chance).float()
        may = (torch.rand(2, spec.n_agents, ROWS, spec.action_size, generator=chance) < 0.6) & spec.action_mask[:, None]
        avail = torch.where(may.any(-1, keepdim=True), may, spec.action_mask[:, None])
        view = View(obs, avail if spec.masked else None, None, memory)
        acted = learner.act(view, explore=False)
        memory = acted.memory
        seen.append((obs, avail))
        done.append(acted.action)
    return seen, done


def require_equal(learner, spec, call, member, agent):
    """``call(inputs)`` answers each step of an episode as the original does; vectors to 1e-5."""
    seen, done = play(learner, spec)
    memory = None
    for (obs, avail), original in zip(seen, done, strict=True):
        inputs = {"obs": obs[member, agent, :, : spec.obs_sizes[agent]]}
        if spec.masked:
            inputs["avail"] = avail[member, agent, :, : spec.action_sizes[agent]]
        action, memory = call(inputs, memory)
        action, original = torch.as_tensor(action), original[member, agent]
        if spec.discrete:
            assert action.dtype == torch.int64 and torch.equal(action, original)
            assert len(original.unique()) > 1 or spec.action_sizes[agent] < 3, "equal to a constant: shows little"
        else:
            own = original[:, : spec.action_sizes[agent]]
            assert action.shape == own.shape and (action - own).abs().max() < 1e-5 and own.std() > 0.1


def answered(answer):
    return answer if isinstance(answer, tuple | list) else (answer, None)


def with_zeros(policy, inputs, memory):
    """The inputs, and the memory where the policy has one."""
    if "memory" not in policy.inputs:
        return inputs
    return inputs | {
        "memory": torch.zeros(ROWS, policy.inputs["memory"]) if memory is None else torch.as_tensor(memory)
    }


def write(form, policy, path):
    path.write_bytes(FORMATS[form].write(policy, json.dumps(describe(policy, {}))))
    return path


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
    policy = exported.Policy(trained / "ddpg/export/seed=1-agent_1/policy.safetensors")
    assert policy.about == about
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


# ---- bad input ----------------------------------------------------------------------------------------------------


NOT_OURS = "policy: expected a file that `marl export` wrote"


def reader(form):
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    learner, spec = make("mappo-recurrent")
    return policy_of(learner, spec, 0, 0)


@pytest.mark.parametrize("form", FORMATS)
def test_the_reader_does_in_every_format_what_the_policy_does_and_knows_what_is_left_out(form, tmp_path):
    policy = reader(form)
    act = exported.Policy(write(form, policy, tmp_path / FORMATS[form].file))
    assert act.about["format"] == exported.FORMAT and act.about["torch"] == torch.__version__
    obs = np.random.default_rng(0).normal(size=(ROWS, policy.inputs["obs"]))
    rows = torch.tensor(obs, dtype=torch.float32)
    may = torch.ones(ROWS, policy.actions, dtype=torch.bool)
    expected, memory = policy(rows, may, torch.zeros(ROWS, policy.inputs["memory"]))
    action, remembered = act(obs)  # everything may be done, nothing is remembered
    assert torch.equal(torch.as_tensor(action), expected) and len(expected.unique()) > 1
    np.testing.assert_allclose(remembered, memory, atol=1e-5)
    forbidden = may.clone()
    forbidden[:, expected[0]] = False
    expected, _ = policy(rows, forbidden, memory)
    assert torch.equal(torch.as_tensor(act(obs, forbidden.numpy(), remembered)[0]), expected)
    with pytest.raises(ValueError, match=r"obs: expected rows of 5 numbers, got an array of shape \(5,\)"):
        act(np.zeros(5))


@pytest.mark.parametrize("form", FORMATS)
def test_an_exported_file_of_another_version_is_one_clear_error(form, tmp_path):
    policy, path = reader(form), tmp_path / FORMATS[form].file
    path.write_bytes(FORMATS[form].write(policy, json.dumps({**describe(policy, {}), "format": 7})))
    with pytest.raises(ValueError) as caught:
        exported.Policy(path)
    assert str(caught.value) == f"{path} is an exported policy of format 7, this reader expects format 1"
    path.write_bytes(FORMATS[form].write(policy, "{}"))
    with pytest.raises(ValueError, match=NOT_OURS):
        exported.Policy(path)


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_no_exported_policy_is_one_clear_error(form, tmp_path):
    reader(form)
    path = tmp_path / FORMATS[form].file
    with pytest.raises(FileNotFoundError, match="no such file"):
        exported.Policy(path)
    path.write_bytes(b"some other file")
    with pytest.raises(ValueError, match="onnxruntime .* cannot read it: .*Protobuf" if form == "onnx" else NOT_OURS):
        exported.Policy(path)
    with pytest.raises(ValueError, match=r"policy\.txt: expected a file that ends in \.safetensors, \.pt2, \.onnx"):
        exported.Policy(tmp_path / "policy.txt")


def test_a_program_that_this_torch_cannot_read_is_named_with_both_versions(tmp_path, monkeypatch):
    path = write("torch-export", reader("torch-export"), tmp_path / "policy.pt2")

    def refuse(*_):
        raise RuntimeError("serialized version 9\nis newer")

    monkeypatch.setattr(torch.export, "load", refuse)
    version = re.escape(torch.__version__)
    with pytest.raises(ValueError, match=f"written with torch {version}, torch {version} cannot read it: serialized v"):
        exported.Policy(path)


@pytest.mark.parametrize("metadata", [None, {"policy": "[]"}, {"policy": "nothing"}, {"other": "{}"}])
def test_a_safetensors_file_without_a_description_is_none_of_ours(metadata, tmp_path):
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "policy.safetensors", metadata)
    with pytest.raises(ValueError, match=NOT_OURS):
        exported.Policy(tmp_path / "policy.safetensors")


@pytest.mark.parametrize(
    "arguments, answer",
    [
        (["nowhere", "--agent", "0"], "nowhere holds no run: it has no config.json"),
        (["ddpg"], "--agent: expected one of agent_0, agent_1, or a number"),
        (["ddpg", "--agent", "agent_2"], "--agent agent_2: no such agent; did you mean 'agent_"),
        (["ddpg", "--agent", "2"], "--agent 2: no such agent; choose from agent_0, agent_1"),
        (["ddpg", "--agent", "0", "--member", "sed=1"], "--member sed=1: no such member; did you mean 'seed=1'?"),
        (["ddpg", "--agent", "0", "--member", "2"], "member: expected 0 to 1, got 2"),
        (["ddpg", "--agent", "0", "--format", "onx"], "--format: 'onx' is not a choice; did you mean 'onnx'?"),
        (["ddpg", "--agent", "0", "--out", "file"], "--out file is a file, expected a folder"),
    ],
)
def test_bad_input_is_answered_with_one_line(arguments, answer, trained, capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    path = arguments[0] if arguments[0] == "nowhere" else str(trained / arguments[0])
    assert refused(capsys, "export", path, *arguments[1:]).startswith(answer)


def test_a_missing_package_is_named_with_the_command_that_installs_it(trained, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = refused(capsys, "export", trained / "ddpg", "--agent", 0, "--format", "onnx")
    assert line == "--format onnx needs onnx, onnxscript: pip install 'marl-reciprocity[export]'"


def test_a_learner_of_somebody_elses_is_refused():
    class Foreign:
        pass

    with pytest.raises(UserError, match="export does not know where Foreign keeps its policies"):
        policy_of(Foreign(), VECTORS, 0, 0)
