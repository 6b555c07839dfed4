"""The small games under the environments' contract: equal spaces, exact restore, independent agents, known returns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from marl.envs import list_environments, make_env
from marl.envs.check import check_env
from marl.envs.small import GAMES, Game
from marl.types import UserError

RETURNS = {
    "catch": (0.0, 11.0, 8.0),
    "cross": (0.1, 59.6, 50.0),
    "gates": (0.6, 40.0, 35.0),
    "gather": (0.0, 24.4, 20.0),
    "paddle": (0.6, 13.0, 11.0),
    "shoot": (4.2, 21.7, 12.0),
    "snake": (0.1, 18.7, 14.0),
}
"""Mean returns of random and scripted play, as docs/environments/small.md states them, and a margin between the two."""

ALL = pytest.mark.parametrize("name", GAMES)


def game(name: str, seeds: tuple[int, ...] = (0,), copies: int = 1, agents: int | None = None, **options: int) -> Game:
    env = make_env(f"small/{name}", seeds=seeds, copies=copies, agents=agents, options=options)
    assert isinstance(env, Game)
    return env


@ALL
@pytest.mark.parametrize("agents", [None, 2])
def test_a_game_keeps_the_contract(name: str, agents: int | None) -> None:
    check_env(lambda seeds: game(name, tuple(seeds), copies=2, agents=agents, max_steps=11), steps=30)


def test_all_games_have_equal_spaces_so_that_one_network_plays_them_all() -> None:
    specs = [game(name).spec for name in GAMES]
    spaces = {(s.obs_sizes, s.action_sizes, s.discrete, s.pixels, s.bytes, s.max_steps) for s in specs}
    assert spaces == {((400,), (6,), True, (4, 10, 10), True, 200)}
    assert [f"small/{name}" for name in GAMES] == [id for id in list_environments() if id.startswith("small/")]


@ALL
def test_agents_play_for_themselves_and_end_on_their_own(name: str) -> None:
    env = game(name, (3,), copies=4, agents=3, max_steps=50)
    assert env.spec.independent and env.spec.agents == ("learner_0", "learner_1", "learner_2")
    first = env.reset()
    assert len({picture.numpy().tobytes() for picture in first[0].flatten(0, 1)}) > 1
    before = [x.clone() for x in env.board]
    env.step(torch.tensor([5, 2, 3])[None, :, None].expand(1, 3, 4))
    alone = game(name, (3,), copies=4, agents=3, max_steps=50)
    alone.reset()
    alone.step(torch.tensor([1, 2, 4])[None, :, None].expand(1, 3, 4))
    for ours, theirs in zip(env.board, alone.board, strict=True):
        assert torch.equal(ours[4:8], theirs[4:8]), "what the neighbours do does not reach the second learner"
    assert any(not torch.equal(a, b) for a, b in zip(before, env.board, strict=True))


def mean_return(name: str, scripted: bool, copies: int = 200) -> Tensor:
    env = game(name, (11,), copies=copies)
    env.reset()
    total, running = torch.zeros(copies), torch.ones(copies, dtype=torch.bool)
    generator = torch.Generator().manual_seed(1)
    while running.any():
        action = env.scripted_action() if scripted else torch.randint(6, (1, 1, copies), generator=generator)
        step = env.step(action)
        total += step.reward[0, 0] * running
        running &= ~step.done[0, 0]
    return total.mean()


@ALL
def test_the_scripted_player_beats_chance_by_the_margin_and_both_earn_what_the_docs_say(name: str) -> None:
    random, scripted, margin = RETURNS[name]
    by_chance, by_rule = mean_return(name, False), mean_return(name, True)
    assert by_rule > by_chance + margin
    assert abs(by_chance - random) < 0.7 and abs(by_rule - scripted) < 0.05 * scripted + 0.5


def test_a_picture_can_be_drawn() -> None:
    env = game("snake", copies=2)
    env.reset()
    picture = env.render(copy=1)
    assert picture.shape == (320, 320, 3) and picture.dtype == "uint8"
    assert len(set(map(tuple, picture.reshape(-1, 3).tolist()))) == 5, "nothing, head, body, food and neck"


def test_wrong_names_and_numbers_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="no environment 'small/snak'; did you mean 'snake'"):
        game("snak")
    with pytest.raises(UserError, match="the number of agents must be at least 1, got 0"):
        game("snake", agents=0)
    with pytest.raises(UserError, match="max_steps: expected 1 or more, got 0"):
        game("snake", max_steps=0)
