"""Targets that values are trained towards, and advantages that policies are.

Sequences are ``[P, N, T, E]``: T steps in time order of E environment copies. ``next_value`` is always the value of the
*true* successor, also where an episode was cut there. ``terminated`` stops the bootstrap; ``done`` is True wherever an
episode ends, by termination or by a time limit, and nothing flows back from the next step, which belongs to another
episode.
"""

from __future__ import annotations

import torch
from torch import Tensor


def td_target(reward: Tensor, gamma: Tensor, terminated: Tensor, value: Tensor) -> Tensor:
    """``r + gamma (1 - terminated) v(s')``: the one-step target (PR, equation 14).

    Args:
        reward: ``[P, N, B]``.
        gamma: discount of each member, ``[P, 1, 1]``.
        terminated: ``[P, N, B]`` bool; a time limit is no termination.
        value: ``[P, N, B]``, the value of the true successor.
    """
    return reward + gamma * value.masked_fill(terminated, 0.0)


def window_target(rewards: Tensor, steps: Tensor, gamma: Tensor, terminated: Tensor, value: Tensor) -> Tensor:
    """``r_1 + gamma r_2 + ... + gamma^(m-1) r_m + gamma^m (1 - terminated) v``: ``[P, N, B]``, each row with its own m.

    Args:
        rewards: ``[P, N, B, n]``, zero after the m-th.
        steps: m, ``[P, 1 or N, B]`` int64 from 1 to n.
        gamma: discount of each member, ``[P, 1, 1]``.
        terminated: ``[P, N, B]`` bool, of the m-th step; a time limit is no termination.
        value: ``[P, N, B]``, of the m-th step's true successor.
    """
    powers = gamma.unsqueeze(-1) ** torch.arange(rewards.shape[-1])
    return (rewards * powers).sum(-1) + gamma**steps * value.masked_fill(terminated, 0.0)


def gae(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: Tensor, lam: Tensor
) -> Tensor:
    """Generalised advantage estimates ``[P, N, T, E]`` (Schulman et al. 2016, equation 16).

    delta_t = r_t + gamma (1 - terminated_t) v'_t - v_t and A_t = delta_t + gamma lam (1 - done_t) A_{t+1}.

    Args:
        reward: ``[P, N, T, E]``.
        value: v_t, of the state left.
        next_value: v'_t, of the true successor.
        terminated, done: bool.
        gamma, lam: of each member, ``[P, 1, 1]``.
    """
    delta = td_target(reward, gamma.unsqueeze(-1), terminated, next_value) - value
    return _accumulate(delta, (gamma * lam).unsqueeze(-1) * ~(done | terminated))


def lambda_returns(
    reward: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: Tensor, lam: Tensor
) -> Tensor:
    """Lambda-returns ``[P, N, T, E]`` (Sutton, Barto 2018, section 12.1), the TD(lambda) targets; one step if lam = 0.

    G_t = r_t + gamma (1 - terminated_t) [(1 - lam) v'_t + lam G_{t+1}], with v'_t for G_{t+1} where an episode was cut
    and at the last step. The only values that enter are those bootstrapped from: less v_t this is ``gae`` if each v'_t
    inside an episode equals v_{t+1}, and another quantity if it does not, as with reciprocity's blended v'.

    Args: as ``gae``.
    """
    follows = ~(done | terminated)
    follows[..., -1, :] = False
    share = lam.unsqueeze(-1) * follows  # of G_{t+1}; the rest is v'
    discount = gamma.unsqueeze(-1)
    return _accumulate(td_target(reward, discount * (1 - share), terminated, next_value), discount * share)


def n_step_returns(
    reward: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: Tensor, n: int
) -> Tensor:
    """``r_t + ... + gamma^(n-1) r_{t+n-1} + gamma^n v'_{t+n-1}``, ``[P, N, T, E]``.

    Where fewer than n steps remain in the episode or the sequence, the sum ends with the last of them and its v', or
    with nothing if it terminated.

    Args: as ``gae``.
    """
    discount, ends = gamma.unsqueeze(-1), (done | terminated)[..., :-1, :]
    returns = td_target(reward, discount, terminated, next_value)
    for _ in range(n - 1):  # an (n + 1)-step return is a reward and the n-step return of the next step
        ahead = torch.where(ends, next_value[..., :-1, :], returns[..., 1:, :])
        ahead = torch.cat([ahead, next_value[..., -1:, :]], dim=-2)
        returns = td_target(reward, discount, terminated, ahead)
    return returns


def _accumulate(x: Tensor, decay: Tensor) -> Tensor:
    """y_t = x_t + decay_t y_{t+1} along T, from the end."""
    steps = list(x.unbind(-2))
    decays = decay.unbind(-2)
    for t in range(len(steps) - 2, -1, -1):
        steps[t] = torch.addcmul(steps[t], decays[t], steps[t + 1])
    return torch.stack(steps, dim=-2)
