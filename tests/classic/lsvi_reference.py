"""CoopLSVI as the paper's boxes have it: histories in lists, a matrix inverse at every plan, one agent at a time.

It draws random numbers in the same order as the fast one, so that both live the same episodes.
"""

import numpy as np

TIE = 1e-9


def history_values(rows, features, values, beta, regulariser, left):
    """Equations 4 to 6 (or 8 to 10): optimistic values ``[G S, A]`` from rows ``(x, a, r, x')``."""
    states, actions, dim = features.shape
    whole, target = regulariser * np.eye(dim), np.zeros(dim)
    for x, a, reward, y in rows:
        phi = features[x, a]
        whole += np.outer(phi, phi)
        target += phi * (reward + values[y])
    inverse = np.linalg.inv(whole)
    q = np.empty((states, actions))
    for x in range(states):
        for a in range(actions):
            phi = features[x, a]
            q[x, a] = min(phi @ inverse @ target + beta * np.sqrt(phi @ inverse @ phi), left)
    return q


def history_log_det(rows, features, regulariser):
    whole = regulariser * np.eye(features.shape[2])
    for x, a, _, _ in rows:
        whole += np.outer(features[x, a], features[x, a])
    return np.linalg.slogdet(whole)[1]


def counted_values(rows, features, values, beta, regulariser, left):
    """The tabular algorithm: ``(sum of r + V(x')) / (n + lambda) + beta / sqrt(n + lambda)``; no vector anywhere."""
    counts, sums = np.zeros(features.shape[:2]), np.zeros(features.shape[:2])
    for x, a, reward, y in rows:
        counts[x, a] += 1
        sums[x, a] += reward + values[y]
    return np.minimum(sums / (counts + regulariser) + beta / np.sqrt(counts + regulariser), left)


def counted_log_det(rows, features, regulariser):
    counts = np.zeros(features.shape[:2])
    for x, a, _, _ in rows:
        counts[x, a] += 1
    return np.log(counts + regulariser).sum()


class Reference:
    """M agents; ``processes`` each agent's own, ``features`` ``[G S, A, d]``, ``block`` ``[M]``."""

    def __init__(self, processes, features, block, threshold, bonus, seed, replan=1.2, regulariser=1.0, tabular=False):
        self.processes, self.features, self.block = processes, features, block
        self.agents, self.horizon, self.states = len(processes), processes[0].horizon, processes[0].states
        self.threshold, self.bonus, self.replan, self.regulariser = threshold, bonus, np.log(replan), regulariser
        self.values = counted_values if tabular else history_values
        self.log_det = counted_log_det if tabular else history_log_det
        self.worlds, self.ties = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
        self.common = [[] for _ in range(self.horizon)]
        self.fresh = [[[] for _ in range(self.horizon)] for _ in range(self.agents)]
        self.rounds = self.episodes = self.last = 0
        self.q = np.zeros((self.agents, self.horizon, *features.shape[:2]))
        self.planned = np.zeros((self.agents, self.horizon))
        for m in range(self.agents):
            self.plan(m)

    def known(self, m, h):
        return self.common[h] + self.fresh[m][h]

    def plan(self, m):
        beta = self.bonus.at(self.episodes + 1, self.features.shape[2], self.horizon, self.agents)
        values = np.zeros(self.features.shape[0])
        for h in reversed(range(self.horizon)):
            self.q[m, h] = self.values(
                self.known(m, h), self.features, values, beta, self.regulariser, self.horizon - h
            )
            values = self.q[m, h].max(axis=1)
            self.planned[m, h] = self.log_det(self.known(m, h), self.features, self.regulariser)

    def episode(self):
        due = False
        for m, process in enumerate(self.processes):
            offset = self.block[m] * self.states
            x = self.draw(process.tabular.start)
            for h in range(self.horizon):
                row = self.q[m, h, offset + x]
                best = np.flatnonzero(row >= row.max() - TIE)
                a = best[int(self.ties.random() * len(best))] if len(best) > 1 else best[0]
                y = self.draw(process.tabular.transition[h, x, a])
                self.fresh[m][h].append((offset + x, a, process.reward[h, x, a], offset + y))
                synced = self.log_det(self.common[h], self.features, self.regulariser)
                growth = self.log_det(self.known(m, h), self.features, self.regulariser) - synced
                due |= growth > self.threshold / (self.episodes + 1 - self.last)
                x = y
        self.episodes += 1
        if due:
            self.synchronise()
        for m in range(self.agents):
            now = [self.log_det(self.known(m, h), self.features, self.regulariser) for h in range(self.horizon)]
            if due or (now - self.planned[m] > self.replan + 1e-9).any():
                self.plan(m)

    def synchronise(self):
        """Line 23 to 32 in an order that makes sense: the union first, then everyone's copy, then clear."""
        for h in range(self.horizon):
            self.common[h] += [row for m in range(self.agents) for row in self.fresh[m][h]]
            for m in range(self.agents):
                self.fresh[m][h] = []
        self.rounds += 1
        self.last = self.episodes

    def draw(self, probabilities):
        return int(np.searchsorted(np.cumsum(probabilities), self.worlds.random(), side="right"))
