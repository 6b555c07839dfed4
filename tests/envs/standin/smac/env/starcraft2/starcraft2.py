"""The interface of SMAC's ``StarCraft2Env``, quirks included, around a battle of a few lines.

n marines stand against n others on a line. An ally may stop (1), walk away from (2) or up to (4) the enemy, or shoot
(6 + j) the enemy j within reach, who loses 1 of its 2 points of health. After the allies each living enemy shoots the
first living ally with probability 1/2. What SMAC does and this does as well:

- ``reset`` gives a list of float32 arrays and the state; nothing may be asked before the first ``reset`` but the sizes;
- ``step`` takes a list of indices, gives a Python float, a bool and a dictionary, and asserts that each is available;
- the time limit ends an episode like a battle's end does; ``info["episode_limit"]`` tells only with continuing_episode;
- the dead may take action 0 alone, the living may not, and the dead observe zeros;
- if the game fails it is launched again, and ``step`` gives ``0, True, {}``;
- the game is a process of its own: here one that sleeps. ``CRASH`` in the folder SC2PATH makes it fail once.
"""

import contextlib
import os
import subprocess
import sys

import numpy as np

SIZES = {"3m": (3, 3, 60), "8m": (8, 8, 120), "2m_vs_1z": (2, 1, 150)}  # agents, enemies, limit


class StarCraft2Env:
    def __init__(
        self, map_name="8m", difficulty="7", game_version=None, seed=None, continuing_episode=False, limit=None
    ):
        self.n_agents, self.n_enemies, self.episode_limit = SIZES[map_name]
        self.episode_limit = limit or self.episode_limit
        self.n_actions = 6 + self.n_enemies
        self.difficulty, self.game_version, self.continuing_episode = difficulty, game_version, continuing_episode
        self._seed = seed
        self._sc2_proc = None
        self.force_restarts = self.battles_won = self.battles_game = self.timeouts = 0

    def _launch(self):
        self._sc2_proc = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
        self._rng = np.random.default_rng(self._seed)

    def full_restart(self):
        self._sc2_proc.kill()
        self._sc2_proc.wait()
        self._launch()
        self.force_restarts += 1

    def reset(self):
        if self._sc2_proc is None:
            self._launch()
        self.health = np.full(self.n_agents, 2)
        self.enemies = np.full(self.n_enemies, 2)
        self.distance = self._rng.integers(1, 3, self.n_agents)
        self._episode_steps = 0
        return self.get_obs(), self.get_state()

    def step(self, actions):
        actions = [int(a) for a in actions]
        for i, action in enumerate(actions):
            assert self.get_avail_agent_actions(i)[action] == 1, f"Agent {i} cannot perform action {action}"
        crash = os.path.join(os.environ["SC2PATH"], "CRASH")
        with contextlib.suppress(FileNotFoundError):  # whoever removes it fails
            os.remove(crash)
            self.full_restart()
            return 0, True, {}
        self._episode_steps += 1
        before = self.enemies.sum()
        for i, action in enumerate(actions):
            if action >= 6:
                self.enemies[action - 6] = max(self.enemies[action - 6] - 1, 0)
            self.distance[i] += {2: 1, 4: -1}.get(action, 0)
        for _ in range((self.enemies > 0).sum()):
            if self._rng.random() < 0.5 and self.health.any():
                self.health[np.argmax(self.health > 0)] -= 1
        reward = float(before - self.enemies.sum())
        info = {"battle_won": False}
        info["dead_allies"] = int((self.health == 0).sum())
        info["dead_enemies"] = int((self.enemies == 0).sum())
        terminated = False
        if not self.health.any() or not self.enemies.any():
            terminated = True
            self.battles_game += 1
            if self.health.any():
                self.battles_won += 1
                info["battle_won"] = True
                reward += 20
        elif self._episode_steps >= self.episode_limit:
            terminated = True
            if self.continuing_episode:
                info["episode_limit"] = True
            self.battles_game += 1
            self.timeouts += 1
        return reward, terminated, info

    def get_obs(self):
        return [self.get_obs_agent(i) for i in range(self.n_agents)]

    def get_obs_agent(self, agent_id):
        own = np.array([self.health[agent_id], self.distance[agent_id]])
        return (np.concatenate([own, self.enemies]) * (self.health[agent_id] > 0)).astype(np.float32)

    def get_obs_size(self):
        return 2 + self.n_enemies

    def get_state(self):
        return np.concatenate([self.health, self.distance, self.enemies]).astype(np.float32)

    def get_state_size(self):
        return 2 * self.n_agents + self.n_enemies

    def get_avail_actions(self):
        return [self.get_avail_agent_actions(i) for i in range(self.n_agents)]

    def get_avail_agent_actions(self, agent_id):
        if self.health[agent_id] == 0:
            return [1] + [0] * (self.n_actions - 1)
        near = self.distance[agent_id] <= 1
        moves = [0, 1, int(self.distance[agent_id] < 3), 0, int(self.distance[agent_id] > 0), 0]
        return moves + [int(near and health > 0) for health in self.enemies]

    def get_total_actions(self):
        return self.n_actions

    def get_env_info(self):
        return {
            "state_shape": self.get_state_size(),
            "obs_shape": self.get_obs_size(),
            "n_actions": self.get_total_actions(),
            "n_agents": self.n_agents,
            "episode_limit": self.episode_limit,
        }

    def get_stats(self):
        return {"battles_won": self.battles_won, "battles_game": self.battles_game, "restarts": self.force_restarts}

    def seed(self):
        return self._seed

    def save_replay(self):
        pass

    def render(self):
        pass

    def close(self):
        if self._sc2_proc:
            self._sc2_proc.kill()
            self._sc2_proc.wait()
