"""Each usual bug, put into a good environment, is caught by ``check_env`` and named."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_copies import Duel

from marl.envs import EnvSpec, Step, VectorEnv
from marl.envs.check import ContractError, check_env
from marl.envs.copies import CopiesEnv, LocalPool, copy_seeds
from marl.streams import Streams
from marl.types import State

LIMIT = 5


class Walk(VectorEnv):
    """Two agents walk on a line from a random place; the task ends above 1, the time after 5 steps.

    Agent 0 observes its place, agent 1 its place and its last step.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.spec = EnvSpec("walk", ("a", "b"), (1, 2), (1, 2), discrete=False, max_steps=LIMIT)
        self.members, self.copies = len(seeds), 3
        self.streams = Streams(seeds, "walk")
        self.age = torch.zeros(self.members, 1, self.copies, dtype=torch.int64)
        self.place = self.streams.uniform(2, 3)
        self.pace = torch.zeros_like(self.place)

    def observe(self) -> Tensor:
        obs = torch.stack([self.place, self.pace], dim=-1)
        obs[:, 0, :, 1] = 0
        return obs

    def reset(self) -> Tensor:
        self.age = torch.zeros_like(self.age)
        self.place, self.pace = self.streams.uniform(2, 3), torch.zeros_like(self.pace)
        return self.observe()

    def step(self, action: Tensor) -> Step:
        self.pace = action[..., 0]
        self.place = self.place + 0.3 * self.pace
        self.age = self.age + 1
        terminated = (self.place > 1).all(1, keepdim=True).expand(-1, 2, -1).clone()
        done = terminated | (self.age >= LIMIT)
        next_obs = self.observe()
        reward = self.place.clone()
        self.place = torch.where(done, self.streams.uniform(2, 3), self.place)
        self.pace = torch.where(done, 0.0, self.pace)
        self.age = torch.where(done[:, :1], 0, self.age)
        return Step(self.observe(), next_obs, reward, terminated, done)

    def state_dict(self) -> State:
        tensors = {"age": self.age.clone(), "place": self.place.clone(), "pace": self.pace.clone()}
        return {**tensors, "streams": self.streams.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.age, self.place, self.pace = (state[k].clone() for k in ("age", "place", "pace"))
        self.streams.load_state_dict(state["streams"])


def test_a_good_environment_passes() -> None:
    check_env(Walk)


class Altered(Walk):
    """``Walk`` whose answers are changed on the way out."""

    def change(self, step: Step) -> Step:
        return step

    def step(self, action: Tensor) -> Step:
        return self.change(super().step(action))


class TerminatesAtLimit(Altered):
    def change(self, step: Step) -> Step:
        return step._replace(terminated=step.done)


class ForgetsFinalObservation(Altered):
    def change(self, step: Step) -> Step:
        return step._replace(next_obs=step.obs.clone())


class DirtyPadding(Altered):
    def change(self, step: Step) -> Step:
        obs, next_obs = step.obs.clone(), step.next_obs.clone()
        obs[:, 0, :, 1] = next_obs[:, 0, :, 1] = 7
        return step._replace(obs=obs, next_obs=next_obs)


class DoubleReward(Altered):
    def change(self, step: Step) -> Step:
        return step._replace(reward=step.reward.double())


class TeamRewardOfOneAgent(Altered):
    def change(self, step: Step) -> Step:
        return step._replace(reward=step.reward[:, :1])


class NotFinite(Altered):
    def change(self, step: Step) -> Step:
        return step._replace(reward=step.reward / 0)


class SlowReset(Altered):
    """Answers the first observation of the next episode, but says nothing of the end."""

    def change(self, step: Step) -> Step:
        return step._replace(done=step.terminated, obs=torch.where(step.terminated[..., None], step.obs, step.next_obs))


class UnevenDone(Altered):
    def change(self, step: Step) -> Step:
        done = step.done.clone()
        done[:, 1] = True
        return step._replace(done=done)


class ReturnsItsBuffer(Walk):
    def step(self, action: Tensor) -> Step:
        step = super().step(action)
        self.buffer = getattr(self, "buffer", step.obs)
        return step._replace(obs=self.buffer.copy_(step.obs))


class ReadsPadding(Walk):
    def step(self, action: Tensor) -> Step:
        step = super().step(action)
        return step._replace(reward=step.reward + action[..., 1])


class ScalesTheAction(Walk):
    def step(self, action: Tensor) -> Step:
        return super().step(action.mul_(0.5))


class Unseeded(Walk):
    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__(list(np.random.default_rng().integers(2**31, size=len(seeds))))


class SharedStream(Walk):
    """All members draw from one generator, so a member's numbers depend on who else is there."""

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__([s + len(seeds) for s in seeds])


class ForgetsGenerator(Walk):
    def load_state_dict(self, state: State) -> None:
        super().load_state_dict({**state, "streams": self.streams.state_dict()})


class ForgetsAge(Walk):
    def load_state_dict(self, state: State) -> None:
        super().load_state_dict({**state, "age": self.age})


class SavesWithoutCopy(Walk):
    def state_dict(self) -> State:
        return {**super().state_dict(), "age": self.age}

    def step(self, action: Tensor) -> Step:
        age = self.age
        step = super().step(action)
        self.age = age.copy_(self.age)
        return step


class SavesArrays(Walk):
    def state_dict(self) -> State:
        return {**super().state_dict(), "extra": np.zeros(1)}


class SilentRestart(Walk):
    """Says that it cannot be saved, restarts, and does not tell that the transition is lost."""

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__(seeds)
        self.spec = EnvSpec("walk", ("a", "b"), (1, 2), (1, 2), discrete=False, max_steps=LIMIT, exact_state=False)

    def load_state_dict(self, state: State) -> None:
        self.reset()


class PaysTheDeparted(Altered):
    """Agent 1 leaves at its second step, and goes on earning."""

    def change(self, step: Step) -> Step:
        terminated = step.terminated.clone()
        terminated[:, 1] = (self.age[:, 0] >= 2) | (step.done[:, 1])
        blank = (self.age[:, 0] >= 3) | step.done[:, 1]
        next_obs, obs = step.next_obs.clone(), step.obs.clone()
        next_obs[:, 1] = torch.where(blank[..., None], 0.0, next_obs[:, 1])
        obs[:, 1] = torch.where((blank & ~step.done[:, 1])[..., None], 0.0, obs[:, 1])
        return step._replace(terminated=terminated, next_obs=next_obs, obs=obs)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (TerminatesAtLimit, "terminated is set at the time limit"),
        (ForgetsFinalObservation, "next_obs is the next episode's first observation"),
        (DirtyPadding, "padding that is not zero"),
        (DoubleReward, "reward of step 0 must be torch.float32"),
        (TeamRewardOfOneAgent, "reward of step 0 must have shape"),
        (NotFinite, "reward of step 0 is not finite"),
        (SlowReset, "passed the limit of 5 steps"),
        (UnevenDone, "differ where the episode goes on|done differs"),
        (ReturnsItsBuffer, "wrote into a tensor that was returned earlier"),
        (ReadsPadding, "differ only in padding differ in reward"),
        (ScalesTheAction, "changed the action tensor"),
        (Unseeded, "two environments of equal seeds differ"),
        (SharedStream, "member 0 alone and in the population differ"),
        (ForgetsGenerator, "restored in a new object"),
        (ForgetsAge, "runs restored in"),
        (SavesWithoutCopy, "what state_dict returned changed"),
        (SavesArrays, "state_dict.extra is ndarray"),
        (SilentRestart, "not marked as lost"),
        (PaysTheDeparted, "an agent that left is still paid"),
    ],
)
def test_a_usual_bug_is_caught(broken: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message) as caught:
        check_env(broken)
    assert "\n" not in str(caught.value)


class Blinks(Walk):
    """``Walk`` whose first agent's observations tell the time in bytes, the last three moments of it."""

    shape = (1, 1, 3)

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__(seeds)
        self.spec = EnvSpec(
            "blinks", ("a", "b"), (3, 3), (1, 2), False, max_steps=LIMIT, bytes=True, pixels=self.shape, stack=3
        )

    def observe(self) -> Tensor:
        age = self.age[..., None].expand(-1, 2, -1, 1)
        return torch.cat([(age - back).clamp(min=0) for back in (2, 1, 0)], -1).float()

    def step(self, action: Tensor) -> Step:
        step = super().step(action)
        return step._replace(next_obs=self.tell(step.next_obs), obs=self.tell(step.obs))

    def tell(self, obs: Tensor) -> Tensor:
        return obs


class SharesOfOne(Blinks):
    def tell(self, obs: Tensor) -> Tensor:
        return obs / 255


class Negative(Blinks):
    def tell(self, obs: Tensor) -> Tensor:
        return obs - 1


class TooBright(Blinks):
    def tell(self, obs: Tensor) -> Tensor:
        return obs * 200


class OtherPicture(Blinks):
    shape = (1, 3, 3)


class NewestFirst(Blinks):
    def tell(self, obs: Tensor) -> Tensor:
        return obs.flip(-1)


class UnevenFrames(Blinks):
    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__(seeds)
        self.spec = dataclasses.replace(self.spec, stack=2)


def test_bytes_pictures_and_stacks_that_are_what_they_say_pass() -> None:
    check_env(Blinks)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (SharesOfOne, r"obs of step 0 must be whole numbers from 0 to 255, .*got 0.0039"),
        (Negative, "whole numbers from 0 to 255, .*got -1"),
        (TooBright, "whole numbers from 0 to 255, .*got 400"),
        (OtherPicture, r"pixels are \(1, 3, 3\), 9 numbers, and observations have \[3\]"),
        (NewestFirst, "next_obs of step 0 is not the stack before without its oldest frame"),
        (UnevenFrames, r"stack is 2, and observations of \[3\] numbers are not so many equal frames"),
    ],
)
def test_bytes_pictures_and_stacks_that_are_not_are_caught(broken: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message) as caught:
        check_env(broken)
    assert "\n" not in str(caught.value)


class Strict(Duel):
    """``Duel`` that takes no action which it did not offer; agent 1 leaves at step 2."""

    def step(self, action: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, bool]:
        able = self.avail()[[0, 1], action]
        assert able[0] and (able[1] or self.time >= 2)
        return super().step(action)


class Forgetful(Duel):
    """``Duel`` that does not restore what its outcome is counted from."""

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict({**state, "low": 0})


class NoChoice(CopiesEnv):
    def avail(self) -> Tensor | None:
        return torch.zeros_like(super().avail())


class TooManyChoices(CopiesEnv):
    def avail(self) -> Tensor | None:
        return torch.ones_like(super().avail())


class DoubleState(CopiesEnv):
    def state(self) -> Tensor | None:
        return super().state().double()


class NoMaskBehind(CopiesEnv):
    def step(self, action: Tensor) -> Step:
        step = super().step(action)
        return step._replace(next_avail=self.spec.action_mask[:, None].expand_as(step.avail))


class StateOfTheStepBefore(CopiesEnv):
    def step(self, action: Tensor) -> Step:
        before = self.state()
        return super().step(action)._replace(state=before)


class NoOutcome(CopiesEnv):
    def step(self, action: Tensor) -> Step:
        return super().step(action)._replace(outcome=None)


class StateUnasked(Altered):
    def change(self, step: Step) -> Step:
        return step._replace(state=step.obs[:, 0])


def duels(kind: Any = CopiesEnv, copy: Any = Duel) -> Any:
    return lambda seeds: kind(LocalPool(copy, copy_seeds(seeds, 2)), members=len(seeds), copies=2)


def test_actions_that_are_not_available_are_not_taken() -> None:
    check_env(duels(copy=Strict))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (duels(NoChoice), "avail of reset leaves an agent no action"),
        (duels(TooManyChoices), "avail of reset has actions beyond an agent's own"),
        (duels(DoubleState), "state of reset must be torch.float32"),
        (duels(NoMaskBehind), "avail and next_avail of step 0 differ where the episode goes on"),
        (duels(StateOfTheStepBefore), r"state\(\) differs from state of step 0"),
        (duels(NoOutcome), "outcome of step 0 is None, though its spec says that there is one"),
        (duels(copy=Forgetful), "runs restored in a new object at step .* differ in outcome"),
        (StateUnasked, "state of step 0 is there, though its spec says that it is not"),
    ],
)
def test_masks_states_and_outcomes_that_are_wrong_are_caught(broken: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_env(broken)
