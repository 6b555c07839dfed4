"""What tests in several files ask for."""

import os
import shutil
import sys

import hypothesis
import pytest

hypothesis.settings.register_profile("shared machine", deadline=None)  # which may stand still for a second
hypothesis.settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a run of 100 steps with checkpoints at 50 and 100; to be copied, not touched."""
    from run_tools import SMALL

    from marl.cli import main

    folder = tmp_path_factory.mktemp("finished") / "run"
    assert (
        main(
            [
                "train",
                "maddpg",
                "probe/team",
                *SMALL,
                "--steps",
                "100",
                "--checkpoint-every",
                "50",
                "--run",
                str(folder),
            ]
        )
        == 0
    )
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of ``finished`` to do harm to."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(scope="session")
def ray_instance():
    """A Ray instance with three CPUs in this process, which ``make_engine("ray")`` then uses. It takes 5 to 45 s."""
    pytest.importorskip("ray")
    from marl.engines import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # workers import the tests' modules
        patch.setattr(ray, "cores", lambda: 3)
        engine = ray.RayEngine()
    yield
    engine.close()
