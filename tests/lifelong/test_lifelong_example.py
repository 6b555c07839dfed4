"""The example of two agents and a hub runs, in small."""

from examples import lifelong_small


def test_two_agents_identify_learn_and_share(capsys):
    scores = lifelong_small.main(frames=1_200, identify_steps=1_200)
    said = capsys.readouterr().out
    assert set(scores) == {"agent_0", "agent_1"}
    assert "agent_0: a new game; learns it by playing" in said
    assert said.count(" per episode; sent ") == 2
