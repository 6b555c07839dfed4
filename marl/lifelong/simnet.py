"""SimNet: a small DQN whose weights, after a few frames of learning, tell which task it was shown.

After DistMT's deep agent (Section 4 of the paper). Every SimNet begins with the same weights; what learning makes of
them is the task's fingerprint, and two fingerprints are compared by the distance of their weights.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from marl.algos.dqn import DQN, DQNConfig
from marl.envs import make_env
from marl.lifelong.abreast import Abreast
from marl.loop import interact, random_actions
from marl.replay import Replay
from marl.streams import Streams, derive
from marl.types import Acted

FRAMES = 10_000
COPIES = 8
SHARED_SEED = 0
SETTINGS = DQNConfig(hidden=(5,))

Fingerprint = dict[str, Tensor]


def fingerprints(tasks, seeds, frames=FRAMES, options=None, settings=SETTINGS, copies=COPIES):
    order = sorted(range(len(tasks)), key=lambda i: tasks.index(tasks[i]))
    kinds = list(dict.fromkeys(tasks))
    parts = []
    for kind in kinds:
        mine = [derive(seeds[i], "simnet") for i in order if tasks[i] == kind]
        parts.append(make_env(kind, seeds=mine, copies=copies, options=options))
    env = Abreast(parts)
    spec = dataclasses.replace(env.spec, pixels=None)
    s = [derive(seeds[i], "simnet") for i in order]
    learner = DQN(spec, [settings] * len(s), s)
    init = DQN(spec, [settings], [SHARED_SEED])
    import os; init.critic.layers[0].bias.data.fill_(float(os.environ.get("B1","1")))
    learner.critic.flat.data.copy_(init.critic.flat.data)
    learner.target_critic.flat.data.copy_(init.critic.flat.data)
    buffer = Replay.of(settings, spec, copies, s, 0)
    warm = Streams(s, "warmup")
    steps = updates = 0

    def act(view):
        if steps < settings.warmup:
            return Acted(random_actions(warm, spec, copies))
        return learner.act(view, explore=True)

    for view, acted, step in interact(env, env.start(), act):
        buffer.add(view, acted, spec.taught(step))
        steps += copies
        while updates < buffer.schedule.due(steps):
            learner.update(buffer.draw())
            updates += 1
        if steps >= frames:
            break
    env.close()
    out = [None] * len(s)
    for row, i in enumerate(order):
        out[i] = {n: p.detach()[row, 0].clone() for n, p in learner.critic.named_parameters()}
    return out


def distances(a, b):
    total = 0
    for name in a[0]:
        x = torch.stack([f[name].flatten() for f in a])
        y = torch.stack([f[name].flatten() for f in b])
        total = total + torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return total
