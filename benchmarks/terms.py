"""What both sides of a learning comparison are given: one place, read by ours and by the rivals.

No import beyond the standard library, since rivals read it in environments of their own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MAPPOTerms:
    """MAPPO on simple_spread with N = 3, discrete actions, an actor shared by all agents, a critic of all observations.

    Copies, epochs and minibatches are those of JaxMARL's settings for this task, layers and steps those of Yu et al.
    (2022).

    Attributes:
        copies: of the environment, stepped together.
        steps: of each copy between two updates; also the episode's length.
        epochs, minibatches: passes over what was gathered, and parts of each pass.
        hidden: units of each layer, tanh, of actor and critic alike.
    """

    copies: int = 128
    steps: int = 25
    epochs: int = 4
    minibatches: int = 4
    hidden: tuple[int, ...] = (64, 64)
    lr: float = 7e-4
    gamma: float = 0.99
    lam: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    max_grad_norm: float = 10.0


@dataclass(frozen=True)
class QMIXTerms:
    """QMIX on a map of smax, GRU utilities shared by all agents; each round gathers one span and updates some times.

    Attributes:
        steps: of each copy in a round; also the time limit of the map's episodes and the length of what is replayed.
        updates: of each round.
        batch: episodes of one update.
        episodes: that the replay holds.
        hidden: units of the utilities' GRU and of the layer before it.
        embed, hyper: units of the mixer, and of the networks that make its weights.
    """

    map: str = "3s_vs_5z"
    copies: int = 16
    steps: int = 100
    updates: int = 8
    batch: int = 32
    episodes: int = 1024
    hidden: int = 64
    embed: int = 32
    hyper: int = 64
    lr: float = 5e-4
    gamma: float = 0.99
    epsilon: float = 0.05
    max_grad_norm: float = 10.0
    target_every: int = 160


@dataclass(frozen=True)
class GRUTerms:
    """Recurrent networks, one for each agent: linear, ReLU, GRU, linear; the sizes are those of ``QMIXTerms``.

    Attributes:
        steps, batch: of the sequences that each network reads.
        inputs, hidden, outputs: widths.
    """

    agents: int = 3
    steps: int = 100
    batch: int = 32
    inputs: int = 64
    hidden: int = 64
    outputs: int = 10


@dataclass(frozen=True)
class AtariTerms:
    """DQN on the 128 bytes of one Atari game: one-step targets without double Q-learning, Huber loss, Adam.

    Attributes:
        game: ale-py's name of it.
        copies: of the game, each with all 18 actions; an episode ends with the game, and rewards are cut to [-1, 1].
        workers: processes that play the copies, on our side; the rival has one for each copy, or none.
        frame_skip: frames that an action lasts.
        noop_max: idle frames that begin an episode, at most.
        sticky: at each frame, the chance that the last action goes on.
        hidden: units of each layer, ReLU, before the 18 values.
        batch: transitions of an update.
        update_every: environment steps of an update, all copies together.
        target_every: updates between copies to the target network.
        replay: transitions that are kept.
        warmup: environment steps before the first update; the timing begins when there were twice as many.
        epsilon: chance of a random action.
        chunk: environment steps, at least, between two looks at the clock.
    """

    game: str = "Krull"
    copies: int = 1
    workers: int = 0
    frame_skip: int = 4
    noop_max: int = 30
    sticky: float = 0.0
    hidden: tuple[int, ...] = (128, 128)
    batch: int = 128
    update_every: int = 4
    target_every: int = 500
    replay: int = 100_000
    warmup: int = 1_000
    lr: float = 5e-4
    gamma: float = 0.99
    max_grad_norm: float = 10.0
    epsilon: float = 0.01
    chunk: int = 64
