"""What ``lifelong.py`` compares with: stable-baselines3's DQN on the memory of an Atari game."""

from __future__ import annotations

from typing import Any

from benchmarks.pair import Work
from benchmarks.terms import AtariTerms

# Only what the rival's own virtual environment holds may be imported here.


def sb3_frames(**settings: Any) -> Work:
    """Frames of the game, learning included, of stable-baselines3's DQN; what is equal, ``AtariTerms`` says.

    With ``workers`` every copy has a process of its own, which is how the rival does it.

    In its favour: no ``Monitor`` and no log, observations are stored as bytes and not divided by 255, Adam is torch's
    fused one, exploring copies act at random without asking the network, and with several copies it learns in longer
    bouts.
    """
    import ale_py
    import gymnasium
    from stable_baselines3 import DQN
    from stable_baselines3.common.atari_wrappers import ClipRewardEnv, NoopResetEnv
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    terms = AtariTerms(**settings)

    def game() -> gymnasium.Env[Any, Any]:
        gymnasium.register_envs(ale_py)  # perhaps in a process of its own
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        env = gymnasium.make(
            f"ALE/{terms.game}-v5",
            obs_type="ram",
            frameskip=terms.frame_skip,
            repeat_action_probability=terms.sticky,
            full_action_space=True,
        )
        return ClipRewardEnv(NoopResetEnv(env, noop_max=terms.noop_max // terms.frame_skip))  # its idle steps are whole

    env = (SubprocVecEnv if terms.workers else DummyVecEnv)([game] * terms.copies)
    model = DQN(
        "MlpPolicy",
        env,
        learning_rate=terms.lr,
        buffer_size=terms.replay,
        learning_starts=terms.warmup,
        batch_size=terms.batch,
        gamma=terms.gamma,
        train_freq=terms.update_every,
        gradient_steps=terms.copies,
        target_update_interval=terms.update_every * terms.target_every,
        exploration_initial_eps=terms.epsilon,
        exploration_final_eps=terms.epsilon,
        max_grad_norm=terms.max_grad_norm,
        policy_kwargs={"net_arch": list(terms.hidden), "optimizer_kwargs": {"fused": True}},
        device="cpu",
        seed=0,
    )
    model.set_logger(Logger(None, []))

    def play(steps: int) -> float:
        before = model.num_timesteps
        model.learn(steps, log_interval=10**9, reset_num_timesteps=False)
        return float((model.num_timesteps - before) * terms.frame_skip)

    play(2 * terms.warmup)
    return lambda: play(terms.chunk)
