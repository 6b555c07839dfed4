"""The reader that is written beside an exported policy: the same in every format, and it refuses what is not ours."""

import json
import re
import struct
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from export_tools import ROWS, answered, make, with_policy_json, without_checksums, write

from marl import exported
from marl.export import FORMATS, describe, policy_of

NOT_OURS = "policy: expected a file that `marl export` wrote"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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
@pytest.mark.parametrize("case", ["ddpg", "mappo-recurrent", "dqn-pictures"])
def test_no_rows_are_answered_with_no_actions_in_every_format(case, form, tmp_path):
    reader(form)
    learner, spec = make(case)
    policy = policy_of(learner, spec, 0, 0)
    act = exported.Policy(write(form, policy, tmp_path / FORMATS[form].file))
    action, memory = answered(act(np.zeros((0, policy.inputs["obs"]), "float32")))
    assert tuple(action.shape) == ((0,) if spec.discrete else (0, policy.actions))
    assert (None if memory is None else tuple(memory.shape)) == ((0, 16) if case == "mappo-recurrent" else None)


@pytest.mark.parametrize("form", FORMATS)
def test_inputs_that_a_policy_has_not_or_of_another_shape_are_one_clear_error_in_every_format(form, tmp_path):
    path = tmp_path / FORMATS[form].file
    act = exported.Policy(write(form, reader(form), path))  # 5 observations, 2 actions, a memory of 16
    obs = np.zeros((3, 5), "float32")
    for inputs, answer in (
        ({"obs": "x"}, "obs: expected rows of 5 numbers, got "),
        ({"obs": None}, "obs: expected rows of 5 numbers, got "),
        ({"obs": obs[:, :4]}, r"obs: expected rows of 5 numbers, got an array of shape \(3, 4\)"),
        ({"obs": obs, "avail": [[True, True]]}, r"avail: expected 3 rows of 2 flags, got an array of shape \(1, 2\)"),
        ({"obs": obs, "memory": obs}, r"memory: expected 3 rows of 16 numbers, got an array of shape \(3, 5\)"),
    ):
        with pytest.raises(ValueError, match=answer):
            act(**inputs)
    learner, spec = make("ddpg")
    plain = exported.Policy(write(form, policy_of(learner, spec, 0, 0), path))
    for name in ("avail", "memory"):
        with pytest.raises(ValueError, match=f"{name}: this policy has no such input, it takes obs$"):
            plain(obs, **{name: np.ones((3, 2))})


@pytest.mark.parametrize("form", FORMATS)
def test_rows_of_an_array_turned_around_get_their_actions_turned_around(form, tmp_path):
    learner, spec = make("ddpg")
    act = exported.Policy(write(form, policy_of(learner, spec, 0, 0), tmp_path / FORMATS[form].file))
    obs = np.arange(3.0 * spec.obs_size, dtype="float32").reshape(3, -1)
    assert np.array_equal(np.asarray(act(obs[::-1])), np.asarray(act(obs[::-1].copy())))


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


@pytest.mark.parametrize("version", [1.0, True, "1", None])  # the first two equal 1
def test_a_version_is_the_whole_number_itself(version, tmp_path):
    policy, path = reader("safetensors"), tmp_path / FORMATS["safetensors"].file
    path.write_bytes(FORMATS["safetensors"].write(policy, json.dumps({**describe(policy, {}), "format": version})))
    with pytest.raises(ValueError, match=f"of format {version!r}, this reader expects format 1"):
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


def without(key):
    def remove(about, tensors):
        del about[key]

    return remove


@pytest.mark.parametrize(
    "harm",
    [
        without("layers"),
        without("inputs"),
        without("output"),
        lambda about, tensors: about["inputs"].pop("obs"),
        lambda about, tensors: about["layers"][0].pop("then"),
        lambda about, tensors: tensors.pop("layers.0.weight"),
        lambda about, tensors: tensors.update({"layers.0.bias": torch.zeros(7)}),
    ],
)
def test_a_safetensors_file_that_lacks_what_a_policy_needs_is_none_of_ours(harm, tmp_path):
    policy, path = reader("safetensors"), tmp_path / "policy.safetensors"
    about, tensors = describe(policy, {}), policy.state_dict()
    harm(about, tensors)
    safetensors.torch.save_file(tensors, path, {"policy": json.dumps(about)})
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is no exported {NOT_OURS}$"):
        exported.Policy(path)


# ---- damage -------------------------------------------------------------------------------------------------------


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_with_one_bit_changed_is_refused_where_its_checksum_is_told(form, tmp_path):
    path = with_policy_json(form, reader(form), tmp_path)
    data = path.read_bytes()
    exported.Policy(path)
    for at in [0, len(data) - 1, *np.random.default_rng(0).integers(len(data), size=20).tolist()]:
        path.write_bytes(flipped(data, at))
        with pytest.raises(ValueError) as caught:
            exported.Policy(path)
        assert str(caught.value) == f"{path} is damaged: its checksum differs from policy.json's"


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_without_a_checksum_is_read_all_the_same(form, tmp_path):
    path = with_policy_json(form, reader(form), tmp_path)
    without_checksums(tmp_path)
    for text in (None, "[]", '{"sha256": {"other.onnx": ""}}', '{"sha256": "?"}'):
        if text is not None:
            (tmp_path / "policy.json").write_text(text)  # another program's
        exported.Policy(path)
    (tmp_path / "policy.json").unlink()
    exported.Policy(path)
    (tmp_path / "policy.json").write_text('{"sha256": ')
    with pytest.raises(ValueError, match=r"policy\.json is damaged: expected JSON$"):
        exported.Policy(path)


def test_a_damaged_program_of_torch_is_called_so_even_alone(tmp_path):
    path = write("torch-export", reader("torch-export"), tmp_path / "policy.pt2")
    data = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        entries = [entry for entry in file.infolist() if entry.file_size]
    assert any(entry.filename.endswith("extra/policy.json") for entry in entries)
    for head in (entry.header_offset for entry in entries):
        name, extra = struct.unpack_from("<HH", data, head + 26)  # their lengths
        for at in (head, head + 30 + name + extra):
            path.write_bytes(flipped(data, at))
            with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is damaged: "):
                exported.Policy(path)
