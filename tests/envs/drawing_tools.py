"""What an environment of MuJoCo says that cannot be drawn."""

from __future__ import annotations

import re

import pytest

from marl.envs import make_env
from marl.types import UserError


def assert_drawing_names_the_variable(id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a display and without ``MUJOCO_GL`` the answer is one line, which names that."""
    monkeypatch.setenv("MUJOCO_GL", "")
    for display in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(display, raising=False)
    env = make_env(id)
    env.reset()
    line = f"^{re.escape(id)} cannot be drawn; without a display set MUJOCO_GL=egl \\("
    with pytest.raises(UserError, match=line) as caught:
        env.render()
    assert "\n" not in str(caught.value)
