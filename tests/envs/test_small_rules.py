"""The small games' rules: positions worked by hand, and plain Python on whole numbers against the tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from marl.envs.base import Step
from marl.envs.small import GAMES, Game, SmallOptions
from marl.envs.small.base import DOWN, FIRE, LEFT, RIGHT, STAY, UP, free_cell, pick
from marl.envs.small.catch import CatchBoard
from marl.envs.small.cross import Cross, CrossBoard
from marl.envs.small.gates import GatesBoard
from marl.envs.small.gather import GatherBoard
from marl.envs.small.paddle import PaddleBoard
from marl.envs.small.shoot import ShootBoard
from marl.envs.small.snake import SnakeBoard


def game(name: str, copies: int = 1, seed: int = 0, limit: int = 200) -> Game[Any]:
    return GAMES[name]([seed], copies, None, SmallOptions(limit))


def tensors(board: Any) -> Any:
    """A board of whole numbers, flags and lists of them, with one row."""
    return board._make(torch.tensor([x]) for x in board)


def played(name: str, board: Any, action: int) -> tuple[Any, Step]:
    """The board and the answer after one step from a given position."""
    env = game(name)
    env.board = tensors(board)
    step = env.step(torch.tensor([[[action]]]))
    return type(board)(*(x[0].tolist() for x in env.board)), step


def lit(step: Step, channel: int) -> set[tuple[int, int]]:
    """The cells (row, column) of a channel that the last picture of a step shows."""
    plane = step.next_obs[0, 0, 0].view(4, 10, 10)[channel]
    return {(row, column) for row, column in plane.nonzero().tolist()}


# Positions worked by hand.


@pytest.mark.parametrize(
    ("stone", "action", "reward"), [(False, RIGHT, 1), (True, RIGHT, -1), (False, STAY, 0), (True, LEFT, 0)]
)
def test_catch_pays_for_what_lands_where_the_basket_went(stone: bool, action: int, reward: float) -> None:
    # In row 8, column 4: it lands in row 9 now. The basket at 3 is below it only if it goes RIGHT.
    board, step = played("catch", CatchBoard(basket=3, row=8, column=4, stone=stone), action)
    assert step.reward.item() == reward
    assert board.row == 0 and not step.done.item()


def test_catch_shows_basket_fruit_and_stone() -> None:
    _, fruit = played("catch", CatchBoard(basket=9, row=2, column=4, stone=False), RIGHT)  # the wall stops the basket
    assert (lit(fruit, 0), lit(fruit, 1), lit(fruit, 2)) == ({(9, 9)}, {(3, 4)}, set())
    _, stone = played("catch", CatchBoard(basket=0, row=2, column=4, stone=True), LEFT)
    assert (lit(stone, 0), lit(stone, 1), lit(stone, 2)) == ({(9, 0)}, set(), {(3, 4)})


def test_cross_pays_for_the_next_pavement_only() -> None:
    nowhere = [[5, 9]] * 6
    board, step = played("cross", CrossBoard(walker=72, goal=6, cars=nowhere), UP)  # from row 7 to row 6
    assert step.reward.item() == 1 and (board.walker, board.goal) == (62, 3)
    board, step = played("cross", CrossBoard(walker=72, goal=3, cars=nowhere), UP)  # row 6 has paid already
    assert step.reward.item() == 0 and (board.walker, board.goal) == (62, 3)


def test_cross_starts_again_below_and_the_bottom_row_never_pays() -> None:
    nowhere = [[5, 9]] * 6
    board, step = played("cross", CrossBoard(walker=12, goal=0, cars=nowhere), UP)  # the top: row 0
    assert step.reward.item() == 1 and (board.walker, board.goal) == (92, 6)
    board, step = played("cross", CrossBoard(walker=92, goal=6, cars=nowhere), STAY)
    assert step.reward.item() == 0 and board.goal == 6


def test_cross_ends_under_a_car_but_not_by_changing_places_with_it() -> None:
    # The lane of row 8 goes right: its car at column 3 is at 4 after the step.
    cars = [[3, 7], *[[5, 9]] * 5]
    _, step = played("cross", CrossBoard(walker=94, goal=6, cars=cars), UP)  # enters (8, 4) together with the car
    assert step.terminated.item() and (8, 4) in lit(step, 1)
    _, step = played("cross", CrossBoard(walker=84, goal=6, cars=cars), LEFT)  # to (8, 3), while the car goes to (8, 4)
    assert not step.terminated.item()
    _, step = played("cross", CrossBoard(walker=80, goal=6, cars=[[9, 5], *cars[1:]]), STAY)  # 9 goes round to 0
    assert step.terminated.item()


def test_gates_pays_in_the_gap_and_ends_in_the_wall() -> None:
    near = GatesBoard(flyer=3, wall=2, gap=4, next_gap=0)  # arrives at column 1 now, open in rows 4, 5, 6
    board, step = played("gates", near, DOWN)
    assert step.reward.item() == 1 and not step.done.item()
    assert (board.flyer, board.wall, board.gap) == (4, 6, 0)  # the second wall, at 2 + 5 - 1
    _, step = played("gates", near, STAY)
    assert step.reward.item() == 0 and step.terminated.item()
    _, step = played("gates", near._replace(wall=3), STAY)  # still a column away
    assert step.reward.item() == 0 and not step.done.item()


def test_gates_shows_a_full_column_but_for_three_rows() -> None:
    _, step = played("gates", GatesBoard(flyer=5, wall=4, gap=0, next_gap=7), UP)
    assert lit(step, 0) == {(4, 1)}
    assert lit(step, 1) == {(row, 3) for row in range(3, 10)} | {(row, 8) for row in range(7)}
    _, step = played("gates", GatesBoard(flyer=5, wall=6, gap=0, next_gap=7), UP)  # the second one at 10: not yet seen
    assert {column for _, column in lit(step, 1)} == {5}


def test_gather_pays_for_who_shares_the_cell_after_both_have_moved() -> None:
    far = [99, 99, 98, 0, 0, 1]
    # Food at (4, 6) drifts to (4, 5), a thorn at (4, 3) to (4, 4).
    before = GatherBoard(walker=44, things=[46, *far[1:3], 43, *far[4:]])
    board, step = played("gather", before, RIGHT)
    assert step.reward.item() == 1 and board.walker == 45
    assert board.things[0] % 10 == 9 and board.things[1:] == [98, 97, 44, 1, 2]
    board, step = played("gather", before, STAY)
    assert step.reward.item() == -1 and board.things[3] % 10 == 0 and board.things[0] == 45
    _, step = played("gather", before, UP)
    assert step.reward.item() == 0
    _, step = played("gather", before._replace(things=[45, *far[1:]]), RIGHT)  # they change places
    assert step.reward.item() == 0


def test_gather_brings_back_what_left_the_board_at_its_own_side() -> None:
    board, step = played("gather", GatherBoard(walker=55, things=[40, 99, 98, 29, 0, 1]), STAY)
    assert board.things[0] % 10 == 9 and board.things[3] % 10 == 0 and step.reward.item() == 0
    # (4, 0) - 1 is the number of the cell (3, 9): a walker who stands there meets nobody.
    _, step = played("gather", GatherBoard(walker=39, things=[40, 99, 98, 29, 0, 1]), STAY)
    assert step.reward.item() == 0


def test_paddle_mirrors_the_ball_at_a_side_wall_and_at_the_ceiling() -> None:
    flying = PaddleBoard(paddle=1, row=4, column=9, down=-1, right=1, trail=-1)
    board, step = played("paddle", flying, STAY)
    assert (board.row, board.column, board.down, board.right) == (3, 8, -1, -1)
    assert lit(step, 2) == {(4, 9)}
    board, _ = played("paddle", flying._replace(row=0, column=5), STAY)
    assert (board.row, board.column, board.down, board.right) == (1, 6, 1, 1)


@pytest.mark.parametrize(("paddle", "right"), [(4, 1), (5, 1), (6, -1)])
def test_paddle_returns_the_ball_the_way_that_its_cell_says(paddle: int, right: int) -> None:
    # The ball comes to column 5 from the left: on the right cell of a paddle at 4, the middle of 5, the left of 6.
    board, step = played("paddle", PaddleBoard(paddle, 8, 4, 1, 1, -1), STAY)
    assert step.reward.item() == 1 and not step.done.item()
    assert (board.row, board.column, board.down, board.right) == (7, 5, -1, right)


def test_paddle_ends_where_the_ball_meets_none() -> None:
    _, step = played("paddle", PaddleBoard(7, 8, 4, 1, 1, -1), STAY)  # column 5, the paddle covers 6, 7, 8
    assert step.reward.item() == 0 and step.terminated.item()
    _, step = played("paddle", PaddleBoard(7, 8, 4, 1, 1, -1), LEFT)  # just in time
    assert step.reward.item() == 1


def test_shoot_hits_what_is_above_after_the_ducks_moved_and_then_reloads() -> None:
    ready = ShootBoard(gun=5, wait=0, row=[2, 6], column=[4, 5], right=[1, 1])
    board, step = played("shoot", ready, FIRE)  # the first duck comes to column 5, the second leaves it
    assert step.reward.item() == 1 and board.wait == 3
    assert board.column[0] in (0, 9) and (board.row[1], board.column[1]) == (6, 6)
    _, step = played("shoot", ready._replace(column=[4, 4]), FIRE)
    assert step.reward.item() == 2
    for wait in (1, 2, 3):
        board, step = played("shoot", ready._replace(wait=wait), FIRE)
        assert step.reward.item() == 0 and board.wait == wait - 1
    _, step = played("shoot", ready, STAY)
    assert step.reward.item() == 0


def test_shoot_shows_where_ducks_came_from_and_how_long_the_gun_waits() -> None:
    board = ShootBoard(gun=5, wait=3, row=[2, 6], column=[4, 1], right=[1, -1])
    _, step = played("shoot", board, RIGHT)
    assert (lit(step, 0), lit(step, 1), lit(step, 2)) == ({(9, 6)}, {(2, 5), (6, 0)}, {(2, 4), (6, 1)})
    assert lit(step, 3) == {(9, 0), (9, 1)}


def snake(head: int, heading: int, body: list[int], food: int) -> SnakeBoard:
    """``body`` from the head to the tail's end, the head with it."""
    life = [0] * 100
    for k, cell in enumerate(body):
        life[cell] = len(body) - k
    return SnakeBoard(head, heading, life, food)


def body(board: SnakeBoard) -> list[int]:
    cells = [cell for cell in range(100) if board.life[cell]]
    return sorted(cells, key=lambda cell: -board.life[cell])


def test_snake_moves_on_and_its_tail_follows() -> None:
    board, step = played("snake", snake(22, RIGHT, [22, 21, 20], food=99), STAY)
    assert body(board) == [23, 22, 21] and step.reward.item() == 0
    assert (lit(step, 0), lit(step, 1), lit(step, 3)) == ({(2, 3)}, {(2, 2), (2, 1)}, {(2, 2)})


def test_snake_grows_by_what_it_eats() -> None:
    board, step = played("snake", snake(22, RIGHT, [22, 21, 20], food=32), DOWN)
    assert body(board) == [32, 22, 21, 20] and step.reward.item() == 1
    assert board.food not in body(board)


def test_snake_cannot_turn_back() -> None:
    board, _ = played("snake", snake(22, RIGHT, [22, 21, 20], food=99), LEFT)
    assert board.head == 23 and board.heading == RIGHT


def test_snake_ends_at_the_wall_and_in_its_body_but_not_where_its_tail_was() -> None:
    _, step = played("snake", snake(29, RIGHT, [29, 28, 27], food=99), STAY)
    assert step.terminated.item()
    _, step = played("snake", snake(9, UP, [9, 19, 29], food=99), STAY)
    assert step.terminated.item()
    # A ring of four: 22 -> 12 -> 11 -> 21. From 22 to the left lies the tail's end, which leaves at the same time.
    board, step = played("snake", snake(22, DOWN, [22, 12, 11, 21], food=99), LEFT)
    assert not step.terminated.item() and body(board) == [21, 22, 12, 11]
    # With a fifth cell behind, 21 is still there.
    _, step = played("snake", snake(22, DOWN, [22, 12, 11, 21, 31], food=99), LEFT)
    assert step.terminated.item()


def test_every_free_cell_is_as_likely() -> None:
    free = torch.zeros(3, 100, dtype=torch.bool)
    free[:, [7, 50, 99]] = True
    # Thirds of [0, 1) in turn.
    assert free_cell(free, torch.tensor([0.1, 0.5, 0.9])).tolist() == [7, 50, 99]
    assert pick(torch.tensor([0.0, 0.1999, 0.2, 1 - 2**-24]), 5).tolist() == [0, 0, 1, 4]


# Plain Python: what each step must pay, and whether it ends the game.


def step_of(action: int) -> tuple[int, int]:
    return {UP: (-1, 0), RIGHT: (0, 1), DOWN: (1, 0), LEFT: (0, -1)}.get(action, (0, 0))


def walked(cell: int, action: int) -> tuple[int, int]:
    down, right = step_of(action)
    return min(max(cell // 10 + down, 0), 9), min(max(cell % 10 + right, 0), 9)


def catch_by_hand(b: CatchBoard, action: int) -> tuple[int, bool]:
    basket = min(max(b.basket + step_of(action)[1], 0), 9)
    return (0 if b.row < 8 or basket != b.column else -1 if b.stone else 1), False


def cross_by_hand(b: CrossBoard, action: int) -> tuple[int, bool]:
    row, column = walked(b.walker, action)
    if row in (9, 6, 3, 0):
        return int(row == b.goal), False
    lane = [8, 7, 5, 4, 2, 1].index(row)
    return 0, column in [(car + (1, -1)[lane % 2]) % 10 for car in b.cars[lane]]


def gates_by_hand(b: GatesBoard, action: int) -> tuple[int, bool]:
    row = min(max(b.flyer + step_of(action)[0], 0), 9)
    if b.wall != 2:
        return 0, False
    return (1, False) if row in (b.gap, b.gap + 1, b.gap + 2) else (0, True)


def gather_by_hand(b: GatherBoard, action: int) -> tuple[int, bool]:
    reward = 0
    for k, cell in enumerate(b.things):
        if walked(b.walker, action) == (cell // 10, cell % 10 + (-1 if k < 3 else 1)):
            reward += 1 if k < 3 else -1
    return reward, False


def paddle_by_hand(b: PaddleBoard, action: int) -> tuple[int, bool]:
    if b.row != 8 or b.down != 1:
        return 0, False
    column = {-1: 1, 10: 8}.get(b.column + b.right, b.column + b.right)
    paddle = min(max(b.paddle + step_of(action)[1], 1), 8)
    return (1, False) if column in (paddle - 1, paddle, paddle + 1) else (0, True)


def shoot_by_hand(b: ShootBoard, action: int) -> tuple[int, bool]:
    if action != FIRE or b.wait:
        return 0, False
    return sum(column + right == b.gun for column, right in zip(b.column, b.right, strict=True)), False


def snake_by_hand(b: SnakeBoard, action: int) -> tuple[int, bool]:
    back = {UP: DOWN, DOWN: UP, LEFT: RIGHT, RIGHT: LEFT}[b.heading]
    down, right = step_of(b.heading if action in (STAY, FIRE, back) else action)
    row, column = b.head // 10 + down, b.head % 10 + right
    if not (0 <= row < 10 and 0 <= column < 10):
        return 0, True
    eats = row * 10 + column == b.food
    return int(eats), b.life[row * 10 + column] > (0 if eats else 1)


BY_HAND: dict[str, Callable[[Any, int], tuple[int, bool]]] = {
    "catch": catch_by_hand,
    "cross": cross_by_hand,
    "gates": gates_by_hand,
    "gather": gather_by_hand,
    "paddle": paddle_by_hand,
    "shoot": shoot_by_hand,
    "snake": snake_by_hand,
}


def differences(env: Game[Any], actions: Tensor, by_hand: Callable[[Any, int], tuple[int, bool]]) -> int:
    """Steps whose reward or end is not what plain Python says; every other action is the scripted player's."""
    env.reset()
    found = 0
    for t, action in enumerate(actions):
        action = torch.where(torch.arange(env.copies) % 2 == t % 2, action, env.scripted_action()[0, 0])
        rows = [type(env.board)(*row) for row in zip(*(x.tolist() for x in env.board), strict=True)]
        step = env.step(action[None, None])
        for row, a, reward, over in zip(
            rows, action.tolist(), step.reward[0, 0].tolist(), step.terminated[0, 0].tolist(), strict=True
        ):
            found += (reward, over) != by_hand(row, a)
    return found


@pytest.mark.parametrize("name", GAMES)
@settings(max_examples=6)
@given(seed=st.integers(0, 2**30))
def test_no_reward_and_no_end_without_its_reason(name: str, seed: int) -> None:
    actions = torch.randint(6, (60, 16), generator=torch.Generator().manual_seed(seed))
    assert differences(game(name, 16, seed), actions, BY_HAND[name]) == 0


def test_the_comparison_would_find_a_pavement_that_pays_by_mistake() -> None:
    class Wrong(Cross):
        """After the top it asks for row 9, where the walker stands already."""

        def advance(self, board: CrossBoard, action: Tensor, random: Tensor) -> tuple[CrossBoard, Tensor, Tensor]:
            after, reward, over = super().advance(board, action, random)
            across = reward & (board.goal == 0)
            return after._replace(goal=torch.where(across, 9, after.goal)), reward, over

    env = Wrong([0], 16, None, SmallOptions(200))
    actions = torch.randint(6, (200, 16), generator=torch.Generator().manual_seed(0))
    rules_of_nine = differences(env, actions, lambda b, a: cross_by_hand(b._replace(goal=min(b.goal, 6)), a))
    assert rules_of_nine > 0


@pytest.mark.parametrize("name", GAMES)
@settings(max_examples=6)
@given(seed=st.integers(0, 2**30))
def test_boards_stay_possible_and_pictures_are_bytes(name: str, seed: int) -> None:
    env = game(name, 16, seed, limit=40)
    env.reset()
    generator = torch.Generator().manual_seed(seed)
    eaten = torch.zeros(16)
    for _ in range(60):
        action = torch.randint(6, (1, 1, 16), generator=generator)
        step = env.step(torch.where(torch.arange(16) < 8, env.scripted_action(), action))
        pictures = step.obs[0, 0].view(16, 4, 100)
        assert ((pictures == 0) | (pictures == 255)).all()
        if name != "paddle":  # its player is three cells wide
            assert ((pictures[:, 0] > 0).sum(1) == 1).all()
        b = env.board
        if isinstance(b, GatherBoard):
            assert b.things.min() >= 0 and b.things.max() < 100
        if isinstance(b, SnakeBoard):
            eaten = torch.where(step.done[0, 0], 0, eaten + step.reward[0, 0])
            assert torch.equal((b.life > 0).sum(1), 3 + eaten.long())
            assert (b.life.gather(1, b.food[:, None]) == 0).all()
            assert torch.equal(b.life.argmax(1), b.head)
        if isinstance(b, CrossBoard):
            assert (b.cars[..., 0] != b.cars[..., 1]).all() and set(b.goal.tolist()) <= {0, 3, 6}
