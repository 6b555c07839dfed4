"""``check_reciprocity`` passes hosts that keep the promises and names the promise that a planted fault breaks."""

import itertools
import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn

from marl.algos.maddpg import MADDPG, MADDPGConfig
from marl.envs.base import EnvSpec
from marl.modules.critics import JointValues
from marl.modules.reciprocity import ReciprocityConfig
from marl.ops.returns import td_target
from marl.reciprocity import ReciprocalCritics, complete, reciprocate
from marl.streams import Streams
from marl.testing import BrokenPromise, answering, check_reciprocity
from marl.types import Batch, UserError

N, B, D, GAMMA = 3, 16, 4, 0.9


class Loop:
    """A plain loop of modules, as in the README: the host that most of the faults below are planted in."""

    def __init__(self, kappa: float | None, seed: int, agents: int = N) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.kappa, self.stream = kappa, torch.Generator().manual_seed(seed + 1)
        self.critics = [nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, 1)) for _ in range(agents)]
        self.next, self.reward = torch.randn(agents, B, D, generator=generator), torch.ones(agents, B)
        functions = [lambda s, q=q: q(s)[:, 0] for q in self.critics]
        self.reciprocal = ReciprocalCritics(functions, kappa or 0.0, generator=torch.Generator().manual_seed(seed + 2))

    def own(self) -> torch.Tensor:
        return torch.stack([q(s)[:, 0] for q, s in zip(self.critics, self.next, strict=True)])

    def value(self) -> torch.Tensor:
        if self.kappa is None:
            with torch.no_grad():
                return self.own()
        return self.reciprocal(self.next)

    def targets(self, terminated: bool) -> torch.Tensor:
        return self.reward + GAMMA * (not terminated) * self.value()

    def answer(self, values):
        for critic, value in zip(self.critics, values, strict=True):
            answering(critic, value)

    def draw(self) -> torch.Tensor:
        return torch.rand(3, generator=self.stream)


class Table(Loop):
    """All critics at all states, blended by hand with the weights of the subclass."""

    def weights(self) -> torch.Tensor:
        return complete(len(self.critics)).float()

    @torch.no_grad()
    def value(self) -> torch.Tensor:
        own, kappa = self.own(), self.kappa or 0.0
        peers = torch.stack([torch.stack([q(s)[:, 0] for q in self.critics]) for s in self.next])
        return own if kappa == 0 else (1 - kappa) * own + kappa * torch.einsum("ij,ijb->ib", self.weights(), peers)


class MADDPGHost:
    """One of this project's learners; without reciprocity the target is computed here, from its networks."""

    def __init__(self, kappa: float | None, seed: int) -> None:
        spec = EnvSpec("test", tuple("abc"), (4, 4, 3), (2, 2, 2), False, 25)
        self.learner = MADDPG(spec, [MADDPGConfig(hidden=(8,), reciprocity=ReciprocityConfig(kappa or 0.0))], [seed])
        streams = Streams([seed], "batch")
        obs, following = streams.normal(3, B, 4), streams.normal(3, B, 4)
        reward, action = streams.normal(3, B), streams.uniform(3, B, 2)
        self.batch = Batch(obs, action, reward, following, torch.zeros(1, 3, B, dtype=torch.bool))
        self.plain = kappa is None

    def targets(self, terminated: bool) -> torch.Tensor:
        batch = self.batch._replace(terminated=torch.full_like(self.batch.terminated, terminated))
        if not self.plain:
            return self.learner.compute_target(batch)[0]
        with torch.no_grad():
            action = torch.tanh(self.learner.target_actor(batch.next_obs))
            joint = batch.next_obs.transpose(1, 2).flatten(2).unsqueeze(1)
            value = JointValues(self.learner.target_critic, action, 4).own(joint)
        return td_target(batch.reward, self.learner.gamma, batch.terminated, value)[0]

    def answer(self, values):
        last = self.learner.target_critic.layers[-1]
        last.get_parameter("weight").data.zero_()
        last.get_parameter("bias").data.copy_(torch.tensor(values).view(last.get_parameter("bias").shape))

    def draw(self) -> torch.Tensor:
        return self.learner.explore.uniform(3)


class Noisy(Loop):
    """TD3's smoothing: every call draws from torch's global stream, so that calls of two hosts must not interleave."""

    def __init__(self, kappa, seed):
        super().__init__(kappa, seed)
        self.clean = self.next

    def targets(self, terminated):
        self.next = self.clean + 0.2 * torch.randn_like(self.clean)
        return super().targets(terminated)


class Rescaled(Table):
    """Targets that are no linear function of the bootstrap, as with a rescaled value: equal blends, equal targets."""

    def value(self):
        value = super().value()
        return value.sign() * value.abs().sqrt()


class Summed(Table):
    """VDN with the team's target written out for each agent: there, others weigh more than kappa even without."""

    def value(self):
        return super().value().sum(0, keepdim=True).expand(N, -1)


class Rich(Table):
    """Rewards of 1e5, whose last bit is 0.008."""

    def __init__(self, kappa, seed):
        super().__init__(kappa, seed)
        self.reward = self.reward * 1e5 + self.next[..., 0] / 7


@pytest.mark.parametrize(
    "make",
    [Loop, Table, MADDPGHost, lambda kappa, seed: Loop(kappa, seed, agents=1), Noisy, Rescaled, Summed, Rich],
)
def test_hosts_that_keep_the_promises_pass(make):
    check_reciprocity(make)


def test_the_global_streams_are_where_they_were():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    check_reciprocity(Table)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


class Unseeded(Loop):
    count = itertools.count()

    def value(self):
        return super().value() + next(self.count)


class Rounded(Loop):
    def value(self):
        return super().value() if self.kappa is None else super().value() * (1 + 1e-6)


class DrawsTorch(Loop):
    def value(self):
        if self.kappa is not None:
            torch.rand(1)
        return super().value()


class DrawsNumPy(Loop):
    def value(self):
        if self.kappa is not None:
            np.random.rand()
        return super().value()


class DrawsPython(Loop):
    def value(self):
        if self.kappa is not None:
            random.random()
        return super().value()


class DrawsItsOwn(Loop):
    def value(self):
        if self.kappa is not None:
            torch.rand(1, generator=self.stream)
        return super().value()


class DrawsLater(Loop):
    calls = 0

    def value(self):
        self.calls += 1
        if self.kappa is not None and self.calls > 1:
            torch.rand(1, generator=self.stream)
        return super().value()


class Gradient(Loop):
    def value(self):
        own = self.own()
        return own.detach() if not self.kappa else torch.lerp(own, own.roll(1, 0), self.kappa)


class Disconnected(Loop):
    def __init__(self, kappa, seed):
        super().__init__(kappa and 0.0, seed)


class AsPrinted(Table):
    def weights(self):
        return (complete(N) > 0).float()  # equation (12) sums over the neighbours


class AsPrintedAndRich(AsPrinted, Rich):
    pass


class Negative(Table):
    def weights(self):
        return torch.tensor([[0.0, 1.5, -0.5], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # rows sum to one all the same


class OnlyItself(Loop):
    def __init__(self, kappa, seed):
        super().__init__(kappa, seed)
        self.reciprocal = ReciprocalCritics(self.reciprocal.critics, kappa or 0.0, "self")


class TooMuch(Table):
    """1.5 kappa for others."""

    def value(self):
        return super().value() + 0.5 * (super().value() - self.own().detach())


class OwnOrBlend(Loop):
    def value(self):
        return torch.maximum(super().value(), self.own().detach())


class Constant(Table):
    """Any kappa above 0 counts as .1."""

    def __init__(self, kappa, seed):
        super().__init__(kappa and 0.1, seed)


class ConstantAlone(Loop):
    """One agent, whose kappa counts as .5 whatever it is."""

    def __init__(self, kappa, seed):
        super().__init__(kappa and 0.5, seed, agents=1)


class Squared(Table):
    """Kappa counts as its square."""

    def __init__(self, kappa, seed):
        super().__init__(kappa and kappa**2, seed)


class OneBuffer(Loop):
    """Targets come in the same memory each time; at kappa 0 the first of them are wrong."""

    buffer = None

    def targets(self, terminated):
        self.buffer, first = torch.zeros(N, B) if self.buffer is None else self.buffer, self.buffer is None
        return self.buffer.copy_(super().targets(terminated) + (5.0 if first and self.kappa == 0 else 0.0))


class BlendsRewards(Loop):
    def targets(self, terminated):
        return super().targets(terminated) * (0.5 if self.kappa and terminated else 1.0)


class BootstrapsAfterTheEnd(Loop):
    def targets(self, terminated):
        if not self.kappa:
            return super().targets(terminated)
        with torch.no_grad():
            own, peers = self.own(), torch.stack([q(self.next[0])[:, 0] for q in self.critics])
        mixed = reciprocate(own, peers.expand(N, -1, -1), 1.0)
        return self.reward + GAMMA * ((1 - self.kappa) * own * (not terminated) + self.kappa * mixed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Unseeded, "two hosts of one seed whose targets differ"),
        (Rounded, "kappa 0: targets differ by .* in turn 1"),
        (DrawsTorch, "kappa 0: the random stream of torch"),
        (DrawsNumPy, "kappa 0: the random stream of NumPy"),
        (DrawsPython, "kappa 0: the random stream of Python"),
        (DrawsItsOwn, "kappa 0: the host's own random stream"),
        (DrawsLater, "kappa 0: the host's own random stream"),
        (Gradient, "carry a gradient"),
        (Disconnected, "reciprocity is not connected"),
        (AsPrinted, "all critics answer 1 and targets move by 0.45; weights must sum to one"),  # .9 * .5 * (2 - 1)
        (AsPrintedAndRich, r"all critics answer 100000 and targets move by 4\.5e\+04; weights must sum to one"),
        (Negative, "critic 2 answers 1 more and the target of agent 0 falls by 0.225"),  # .9 * .5 * .5
        (OnlyItself, "no agent's target rises with another agent's critic"),
        (TooMuch, r"of agent 0 0, and its target is 0.225 above .* not weigh more than kappa"),  # .9 * (.75 - .5)
        (OwnOrBlend, "rise with another agent's critic, but none falls with it"),
        (Constant, r"kappa 1 with answers of 0.5, .* differ by 0.045; .* in proportion to kappa"),  # .9 * (.1 - .05)
        (ConstantAlone, "kappa 1: the targets are those of kappa 0.5, kappa is not heeded"),
        (Squared, r"kappa 1 with answers of 0.5, .* differ by 0.225; .* in proportion to kappa"),  # .9 * (.5 - .25)
        (OneBuffer, "kappa 0: targets differ by 5 from those without reciprocity in turn 1"),
        (BlendsRewards, "end the episode differ by 0.5 from those without"),  # 1 - .5
        (BootstrapsAfterTheEnd, "move the targets of transitions that end the episode by 450"),  # .9 * .5 * 1000
    ],
)
def test_a_planted_fault_is_named(make, message):
    with pytest.raises(BrokenPromise, match=message):
        check_reciprocity(make)


def test_targets_that_are_cut_at_a_bound_keep_the_promises():
    """Critics answer .2, 3 and 3, so that with kappa .5 and 1 all targets are at the upper bound."""

    class Cut(Loop):
        def __init__(self, kappa, seed):
            super().__init__(kappa, seed)
            self.reward = torch.zeros(N, B)
            for critic, bias in zip(self.critics, (0.2, 3.0, 3.0), strict=True):
                nn.init.constant_(critic[2].bias, bias)

        def targets(self, terminated):
            return super().targets(terminated).clamp(0.0, 1.0)

    check_reciprocity(Cut)


def test_one_agent_with_targets_that_are_never_positive_keeps_the_promises():
    class Costs(Loop):
        def __init__(self, kappa, seed):
            super().__init__(kappa, seed, agents=1)
            self.reward = torch.zeros(1, B)
            nn.init.constant_(self.critics[0][2].bias, -3.0)

        def targets(self, terminated):
            return super().targets(terminated).clamp(-50.0, 0.0)

    check_reciprocity(Costs)


def test_targets_that_are_no_numbers_are_refused():
    class Infinite(Loop):
        def targets(self, terminated):
            return super().targets(terminated) + torch.tensor([0.0] * (B - 1) + [float("-inf")])

    with pytest.raises(UserError, match=r"targets: expected finite numbers, got -inf of make_host\(0.5, seed\)"):
        check_reciprocity(Infinite)


def test_an_answer_that_does_nothing_is_said_to_do_nothing():
    class Deaf(Loop):
        def answer(self, values):
            pass

    with pytest.raises(UserError, match="answer: expected targets without reciprocity to change with what critics"):
        check_reciprocity(Deaf)


def test_targets_that_are_no_tensor_are_refused():
    class Lists(Loop):
        def targets(self, terminated):
            return super().targets(terminated).tolist()

    with pytest.raises(UserError, match=r"targets: expected a torch\.Tensor"):
        check_reciprocity(Lists)


def test_answering_replaces_every_part_of_an_answer():
    class Twins(nn.Module):
        def forward(self, x):
            return x.sum(-1, keepdim=True), x[:, :1]

    twins = Twins()
    answering(twins, 2.5)
    assert [part.tolist() for part in twins(torch.ones(2, 3))] == [[[2.5], [2.5]], [[2.5], [2.5]]]


def test_of_several_answers_to_one_critic_the_last_counts():
    critic = nn.Linear(3, 1)
    answering(critic, 10.0)
    answering(critic, 20.0)
    assert critic(torch.ones(2, 3)).tolist() == [[20.0], [20.0]]


def test_a_host_that_pickles_its_critics_keeps_the_promises():
    class Pickles(Loop):
        def value(self):
            self.critics = pickle.loads(pickle.dumps(self.critics))
            return super().value()

    check_reciprocity(Pickles)
