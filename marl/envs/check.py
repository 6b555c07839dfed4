"""The contract of ``marl.envs.base`` as a program: ``check_env`` runs an environment through it, ours or yours."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from marl.envs.base import EnvSpec, Step, VectorEnv
from marl.types import State


class ContractError(AssertionError):
    """An environment does not do what ``marl.envs.base`` asks; the message is one line."""


def check_env(make: Callable[[Sequence[int]], VectorEnv], *, steps: int = 60) -> None:
    """Run an environment through its contract.

    Args:
        make: builds it for members of the given seeds, anew at each call, for example
            ``lambda seeds: make_env("probe/policy", seeds=seeds, copies=3)``.
        steps: how far each trial goes. Episodes should end several times within it, or resets stay unchecked.

    Raises:
        ContractError: naming the first promise that is broken.
    """
    seeds = [3, 14]
    envs: list[VectorEnv] = []

    def build(some: Sequence[int]) -> VectorEnv:
        envs.append(make(some))
        return envs[-1]

    try:
        env = build(seeds)
        _check_spec(env, len(seeds))
        actions = _actions(env, steps)
        first = env.reset()
        tape = _check_steps(env, first, actions)
        _check_ends(env.spec, first, tape)
        _check_equal(_play(build(seeds), actions), (first, tape), "two environments of equal seeds")
        if torch.any(~env.spec.action_mask) and not env.spec.discrete:
            noise = [torch.where(env.spec.action_mask[:, None], a, -a + 0.5) for a in actions]
            _check_equal(_play(build(seeds), noise), (first, tape), "actions that differ only in padding")
        for p, seed in enumerate(seeds):
            alone = _play(build([seed]), [a[p : p + 1] for a in actions])
            member = (first[p : p + 1], [_member(step, p) for step in tape])
            _check_equal(alone, member, f"member {p} alone and in the population")
        if env.spec.exact_state:
            _check_restore(build, seeds, actions)
        else:
            _check_restart(build, seeds, actions)
    finally:
        for env in envs:
            env.close()


def _require(holds: bool | Tensor, message: str) -> None:
    if not bool(holds):
        raise ContractError(message)


def _check_spec(env: VectorEnv, members: int) -> None:
    spec = env.spec
    n = spec.n_agents
    _require(env.members == members, f"members is {env.members} for {members} seeds")
    _require(env.copies >= 1, f"copies is {env.copies}")
    _require(n >= 1 and len(set(spec.agents)) == n, f"agents must have {n} different names, got {spec.agents}")
    for name in ("obs_sizes", "action_sizes"):
        sizes = getattr(spec, name)
        _require(len(sizes) == n, f"{name} has {len(sizes)} entries for {n} agents")
        _require(all(size >= 1 for size in sizes), f"{name} must be positive, got {sizes}")
    limit = spec.max_steps
    _require(limit is None or limit >= 1, f"max_steps is {limit}")
    sizes = sorted({*spec.obs_sizes})
    if spec.pixels is not None:
        numbers = math.prod(spec.pixels)
        _require(sizes == [numbers], f"pixels are {spec.pixels}, {numbers} numbers, and observations have {sizes}")
    if spec.stack != 1:
        whole = spec.stack > 1 and len(sizes) == 1 and sizes[0] % spec.stack == 0
        _require(whole, f"stack is {spec.stack}, and observations of {sizes} numbers are not so many equal frames")


def _actions(env: VectorEnv, steps: int) -> list[Tensor]:
    """Random actions for every step; those of discrete agents stay within the agent's own number."""
    spec, generator = env.spec, torch.Generator().manual_seed(0)
    shape = (env.members, spec.n_agents, env.copies)
    if spec.discrete:
        counts = torch.tensor(spec.action_sizes)[:, None]
        return [(torch.rand(shape, generator=generator) * counts).long() for _ in range(steps)]
    return [torch.rand((*shape, spec.action_size), generator=generator) * 2 - 1 for _ in range(steps)]


def _allowed(env: VectorEnv, action: Tensor) -> Tensor:
    """The action, its agents' first available one in the place of those that may not be taken now."""
    avail = env.avail()
    if avail is None:
        return action
    able = avail.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    return torch.where(able, action, avail.int().argmax(-1))


def _advance(env: VectorEnv, actions: Sequence[Tensor]) -> list[Step]:
    return [env.step(_allowed(env, action)) for action in actions]


def _play(env: VectorEnv, actions: Sequence[Tensor]) -> tuple[Tensor, list[Step]]:
    return env.reset(), _advance(env, actions)


def _member(step: Step, p: int) -> Step:
    return Step(*(None if x is None else x[p : p + 1] for x in step))  # type: ignore[arg-type]


def _check_obs(env: VectorEnv, obs: Tensor, where: str) -> None:
    spec = env.spec
    shape = (env.members, spec.n_agents, env.copies, spec.obs_size)
    _require(tuple(obs.shape) == shape, f"{where} must have shape {shape}, got {tuple(obs.shape)}")
    _require(obs.dtype == torch.float32, f"{where} must be float32, got {obs.dtype}")
    _require(obs.isfinite().all(), f"{where} is not finite")
    _require((obs[~spec.obs_mask[:, None].expand(obs.shape)] == 0).all(), f"{where} has padding that is not zero")
    if spec.bytes:
        whole = (obs == obs.round()) & (obs >= 0) & (obs <= 255)
        odd = "" if whole.all() else f", got {obs[~whole][0].item():g}"
        _require(whole.all(), f"{where} must be whole numbers from 0 to 255, since its spec says bytes{odd}")


def _check_kind(x: Tensor | None, name: str, shape: tuple[int, ...] | None, kind: torch.dtype) -> None:
    """Of a tensor that the spec asks for, or (``shape`` None) does not."""
    _require(x is not None or shape is None, f"{name} is None, though its spec says that there is one")
    _require(x is None or shape is not None, f"{name} is there, though its spec says that it is not")
    if x is None:
        return
    _require(tuple(x.shape) == shape, f"{name} must have shape {shape}, got {tuple(x.shape)}")
    _require(x.dtype == kind, f"{name} must be {kind}, got {x.dtype}")


def _check_more(env: VectorEnv, avail: Tensor | None, state: Tensor | None, where: str, prefix: str = "") -> None:
    """The masks and the global state of one moment; their names begin with ``prefix``."""
    spec, p, e = env.spec, env.members, env.copies
    masks = (p, spec.n_agents, e, spec.action_size) if spec.masked else None
    _check_kind(avail, f"{prefix}avail of {where}", masks, torch.bool)
    _check_kind(state, f"{prefix}state of {where}", (p, e, spec.state_size) if spec.state_size else None, torch.float32)
    if avail is not None:
        _require(avail.any(-1).all(), f"{prefix}avail of {where} leaves an agent no action")
        more = (avail & ~spec.action_mask[:, None]).any()
        _require(not more, f"{prefix}avail of {where} has actions beyond an agent's own")
    if state is not None:
        _require(state.isfinite().all(), f"{prefix}state of {where} is not finite")


def _check_steps(env: VectorEnv, first: Tensor, actions: Sequence[Tensor]) -> list[Step]:
    """Step through, looking at each answer by itself; returns the answers."""
    _check_obs(env, first, "the observation of reset")
    _check_more(env, env.avail(), env.state(), "reset")
    ends = (env.members, env.copies, len(env.spec.outcomes)) if env.spec.outcomes else None
    shape = (env.members, env.spec.n_agents, env.copies)
    tape: list[Step] = []
    kept: Sequence[Tensor] = (first,)
    for t, wanted in enumerate(actions):
        action = _allowed(env, wanted)
        given, before = action.clone(), [x.clone() for x in kept]
        step = env.step(action)
        _require(torch.equal(action, given), f"step {t} changed the action tensor that it was given")
        for old, x in zip(before, kept, strict=True):
            _require(torch.equal(old, x), f"step {t} wrote into a tensor that was returned earlier")
        _check_obs(env, step.obs, f"obs of step {t}")
        _check_obs(env, step.next_obs, f"next_obs of step {t}")
        _check_more(env, step.avail, step.state, f"step {t}")
        _check_more(env, step.next_avail, step.next_state, f"step {t}", "next_")
        kinds = {"reward": torch.float32, "terminated": torch.bool, "done": torch.bool}
        for name, kind in kinds.items():
            _check_kind(getattr(step, name), f"{name} of step {t}", shape, kind)
        _check_kind(step.outcome, f"outcome of step {t}", ends, torch.float32)
        _require(step.reward.isfinite().all(), f"reward of step {t} is not finite")
        _require(step.lost is None or not step.lost.any(), f"step {t} was lost although nothing failed")
        if env.spec.stack > 1:
            frame = env.spec.obs_size // env.spec.stack
            moved_on = torch.equal(kept[0][..., frame:], step.next_obs[..., :-frame])
            _require(moved_on, f"next_obs of step {t} is not the stack before without its oldest frame, and a new one")
        going = ~step.done[..., None]
        same = torch.equal(step.obs * going, step.next_obs * going)
        _require(same, f"obs and next_obs of step {t} differ where the episode goes on")
        _check_going_on(env, step, t)
        tape.append(step)
        kept = [x for x in step if x is not None]
    return tape


def _check_going_on(env: VectorEnv, step: Step, t: int) -> None:
    """Masks and global state: those of the step are what is asked for now, and the true successor's unless it ended."""
    over = step.done.any(1)  # [P, E]
    for name, told in (("avail", env.avail()), ("state", env.state())):
        now, after = getattr(step, name), getattr(step, f"next_{name}")
        if now is None or told is None:
            continue
        _require(torch.equal(now, told), f"{name}() differs from {name} of step {t}, which was just taken")
        ended = (over[:, None] if name == "avail" else over).unsqueeze(-1)
        same = torch.equal(now.masked_fill(ended, 0), after.masked_fill(ended, 0))
        _require(same, f"{name} and next_{name} of step {t} differ where the episode goes on")


def _check_ends(spec: EnvSpec, first: Tensor, tape: Sequence[Step]) -> None:
    """How episodes end: limits, termination, agents that leave early, final observations."""
    age = torch.zeros(tape[0].done.shape, dtype=torch.int64)
    gone = torch.zeros_like(tape[0].done)
    at_limit, ended_at_limit, stale, ends, moved = 0, 0, 0, 0, False
    last = first
    for t, step in enumerate(tape):
        age += 1
        _require((step.next_obs[gone] == 0).all(), f"an agent that left still observes at step {t}")
        _require((step.reward[gone] == 0).all(), f"an agent that left is still paid at step {t}")
        _require(step.terminated[gone].all(), f"an agent that left is no longer terminated at step {t}")
        whole = step.terminated if spec.independent else step.terminated.all(1, keepdim=True).expand_as(step.done)
        _require(step.done[whole].all(), f"everybody terminated at step {t} without done")
        if not spec.independent:
            _require((step.done == step.done[:, :1]).all(), f"done differs among agents of one copy at step {t}")
        if spec.max_steps is not None:
            over = age >= spec.max_steps
            _require(step.done[over].all(), f"an episode passed the limit of {spec.max_steps} steps at step {t}")
            at_limit += int(over.sum())
            ended_at_limit += int((over & step.terminated).sum())
        moved = moved or not torch.equal(step.next_obs, last)
        ends += int(step.done.sum())
        stale += int((step.done & (step.obs == step.next_obs).all(-1)).sum())
        last = step.obs
        age[step.done] = 0
        gone = step.terminated & ~step.done
    _require(
        at_limit < 4 or ended_at_limit < at_limit, "terminated is set at the time limit, which is only a truncation"
    )
    _require(
        ends < 4 or stale < ends or not moved,
        "next_obs is the next episode's first observation where an episode ends; it must be the last of the old one",
    )


def _check_equal(ours: tuple[Tensor, list[Step]], theirs: tuple[Tensor, list[Step]], who: str) -> None:
    """Two recordings are equal to the bit."""
    _require(torch.equal(ours[0], theirs[0]), f"{who} differ in the first observation")
    _compare(ours[1], theirs[1], who)


def _compare(ours: Sequence[Step], theirs: Sequence[Step], who: str) -> None:
    for t, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for name, x, y in zip(Step._fields, a, b, strict=True):
            same = x is y if x is None or y is None else torch.equal(x, y)
            _require(same, f"{who} differ in {name} after {t + 1} steps")


def _check_restore(build: Callable[[Sequence[int]], VectorEnv], seeds: Sequence[int], actions: list[Tensor]) -> None:
    """Go on from a saved state, in a new object and in one that moved on: equal bits, next resets included."""
    env, moments = build(seeds), [0, 1, len(actions) // 3 + 2, len(actions) // 2 + 3]
    env.reset()
    for before, moment in zip([0, *moments], moments, strict=False):
        _advance(env, actions[before:moment])
        state = env.state_dict()
        _check_leaves(state, "state_dict")
        saved = copy.deepcopy(state)
        wanted = _advance(env, actions[moment:])
        _require(_same(state, saved), "what state_dict returned changed with later steps")
        other = build(seeds)
        other.load_state_dict(state)
        _compare(_advance(other, actions[moment:]), wanted, f"runs restored in a new object at step {moment}")
        env.load_state_dict(state)
        _compare(_advance(env, actions[moment:]), wanted, f"runs restored in the same object at step {moment}")
        _require(_same(state, saved), "load_state_dict keeps hold of the state that it was given")
        env.load_state_dict(saved)
    a, b = build(seeds), build(seeds)
    a.load_state_dict(saved)
    b.load_state_dict(saved)
    _require(torch.equal(a.reset(), b.reset()), "a reset after restoring differs")


def _check_restart(build: Callable[[Sequence[int]], VectorEnv], seeds: Sequence[int], actions: list[Tensor]) -> None:
    """Without an exact state, loading begins new episodes and the step after it is marked as lost."""
    env, other = build(seeds), build(seeds)
    env.reset()
    _advance(env, actions[:1])
    state = env.state_dict()
    _check_leaves(state, "state_dict")
    other.load_state_dict(state)
    (step,) = _advance(other, actions[1:2])
    _require(
        step.lost is not None and step.lost.all() and step.done.all() and not step.terminated.any(),
        "exact_state is False, but the step after load_state_dict is not marked as lost and done",
    )


def _check_leaves(state: State, path: str) -> None:
    """Only what a checkpoint can hold: dictionaries with string keys, tensors, JSON values."""
    if isinstance(state, dict):
        for key, value in state.items():
            _require(isinstance(key, str), f"{path} has the key {key!r}, which is not a string")
            _check_leaves(value, f"{path}.{key}")
    elif isinstance(state, list):
        for value in state:
            _require(not isinstance(value, Tensor | dict), f"{path} is a list of {type(value).__name__}")
            _check_leaves(value, path)
    else:
        holds = state is None or isinstance(state, Tensor | bool | int | float | str)
        _require(holds, f"{path} is {type(state).__name__}, neither a tensor nor a JSON value")


def _same(a: Any, b: Any) -> bool:
    """Whether two states are equal to the bit."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a.nan_to_num(), b.nan_to_num())
    return bool(a == b) or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))
