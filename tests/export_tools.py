"""What the tests of exported policies share: learners of every kind, and how they play."""

import dataclasses
import hashlib
import json

import torch

from marl import registry
from marl.algos.common import with_nothing_noted
from marl.config import replace
from marl.envs.base import EnvSpec
from marl.export import FORMATS, describe
from marl.networks import acting, networks
from marl.types import View

SMALL = {"hidden": (16, 16), "batch_size": 8, "buffer_size": 200, "threads": 1, "eval_every": 0, "warmup": 10}
ROWS, STEPS = 64, 3

VECTORS = EnvSpec("test/vectors", ("a", "b", "c"), (5, 3, 4), (2, 3, 1), False, max_steps=4)
INDICES = dataclasses.replace(VECTORS, discrete=True)
MASKED = dataclasses.replace(INDICES, masked=True, state_size=6)
ALIKE = EnvSpec("test/alike", ("a", "b"), (4, 4), (3, 3), True)
PICTURES = EnvSpec("test/pictures", ("a",), (4 * 7 * 5,), (4,), True, pixels=(4, 7, 5), bytes=True)
BYTES = dataclasses.replace(MASKED, bytes=True)
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
    "maddpg-bytes": ("maddpg", BYTES, {}),
    "mappo-bytes": ("mappo", BYTES, {"shared": False}),
    "mappo-bytes-vectors": ("mappo", dataclasses.replace(VECTORS, bytes=True), {}),
    "qmix-bytes": ("qmix", BYTES, {"recurrent": False}),
    "qmix-bytes-recurrent": ("qmix", BYTES, {}),
    "dqn": ("dqn", INDICES, {}),
    "dqn-bytes": ("dqn", BYTES, {}),
    "dqn-duelling": ("dqn", MASKED, {"duelling": True}),
    "dqn-pictures": ("dqn", PICTURES, {"duelling": True}),
    "dqn-large-pictures": ("dqn", LARGE, {}),
    "maptf": ("maptf", VECTORS, {}),
    "maptf-mappo": ("maptf-mappo", INDICES, {}),
    "dvm": ("dvm", ALIKE, {}),
    "one-layer": ("ddpg", VECTORS, {"hidden": ()}),
}
SOME = ("ddpg", "mappo-recurrent", "mappo-recurrent-vectors", "dqn-pictures", "maddpg-shared")


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
            obs = torch.randint(256, obs.shape, generator=chance) * spec.obs_mask[:, None].float()
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


def with_policy_json(form, policy, folder):
    """As ``write``, and the checksum beside."""
    path = write(form, policy, folder / FORMATS[form].file)
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    (folder / "policy.json").write_text(json.dumps(describe(policy, {}) | {"sha256": sums}))
    return path


def without_checksums(folder):
    """Make an export as the version before wrote it."""
    about = json.loads((folder / "policy.json").read_text())
    del about["sha256"]
    (folder / "policy.json").write_text(json.dumps(about))
