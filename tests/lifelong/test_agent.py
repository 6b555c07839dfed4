"""Lifelong agents round by round, on tiny budgets: who plays, who borrows, what is shared, and how they go on."""

import copy
import dataclasses

import lifelong_tools
import pytest
import torch

from marl.algos.dqn import DQN as DQNLearner
from marl.algos.dqn import DQNConfig
from marl.engines import make_engine
from marl.envs import make_env
from marl.lifelong import agent, shard
from marl.lifelong.agent import Plan, Team
from marl.lifelong.experience import extract, restored
from marl.lifelong.round import Lent, Round
from marl.lifelong.snapshot import Damaged, copy_hub
from marl.lifelong.tasks import Tasks
from marl.replay import Replay
from marl.streams import derive
from marl.types import Acted

DQN = DQNConfig(hidden=(8,), conv="small", warmup=40, batch_size=8, buffer_size=200)
TINY = dataclasses.replace(lifelong_tools.TINY, dqn=DQN)
FRAMES, UPDATES = 96, 14


def team(folder, orders, options=TINY, shared=True, ewc=10.0, seed=0, engine=None):
    """A team whose agents meet the tasks in these orders, one list for each agent."""
    tasks, plan = Tasks.of(options.tasks, options.env), Plan("team", len(orders), shared, ewc)
    made = Team(options, seed, tasks, plan, folder / "team", engine or make_engine("local"))
    made.sequence.table = torch.tensor(orders).T.contiguous()
    made.total = len(orders[0]) * made.steps
    return made


def run(team, until=None):
    rows = []
    while team.done < (team.total if until is None else until):
        rows += team.advance()
    return rows


def stacked(team):
    """The agents of a team whose engine is local."""
    return team.crew.workers[0].made[1]


def values(rows, metric, series=None):
    return [row.value for row in rows if row.metric == metric and series in (None, row.series)]


def step_by_step(monkeypatch):
    """A piece of work is one step of all copies."""
    monkeypatch.setattr(agent, "SECONDS", 0.0)


# ---- borrow or learn -----------------------------------------------------------------------------------------------


def test_a_task_that_another_agent_has_learnt_is_borrowed_and_not_played(tmp_path):
    rows = run(team(tmp_path, [[0, 1], [1, 0]]))
    # Round 1: both play. Round 2: each has what the other one learnt.
    assert values(rows, "frames") == [2 * FRAMES, 2 * FRAMES]
    assert values(rows, "updates") == [2 * UPDATES, 4 * UPDATES]  # borrowing saves frames, not updates
    assert values(rows, "learning_frames", "team: gather, agent 0") == [0, 0, 0]
    assert values(rows, "right") == [2, 4] and values(rows, "wrong") == [0, 0]


def test_a_task_that_nobody_has_learnt_is_played(tmp_path):
    rows = run(team(tmp_path, [[0, 1], [0, 1]]))
    assert values(rows, "frames") == [2 * FRAMES, 4 * FRAMES]
    assert values(rows, "learning_frames", "team: gather, agent 0") == [0, FRAMES / 2, FRAMES]


def test_an_agent_recognises_what_it_has_learnt_itself(tmp_path):
    rows = run(team(tmp_path, [[0, 0, 1, 0]]))
    assert values(rows, "frames") == [FRAMES, FRAMES, 2 * FRAMES, 2 * FRAMES]
    learnt = [row.x for row in rows if row.metric == "learning_frames" and "catch" in row.series]
    assert learnt == list(range(9))  # its second and third visit go on behind the first


def test_two_agents_that_meet_the_same_new_task_at_once_end_as_one_task(tmp_path):
    both = team(tmp_path, [[0, 0], [0, 0]])
    rows = run(both, both.steps)
    assert len(both.hub) == 1
    known = both.hub.fetch(1, "reader")
    scores = values(rows, "agent_return")[:2]
    assert known.score == max(scores) and known.agent == f"agent_{scores.index(max(scores))}"
    rows = run(both)
    assert values(rows, "frames") == [2 * FRAMES]  # in the second round both borrow it


def test_what_is_borrowed_is_what_the_other_agent_played(tmp_path, monkeypatch):
    step_by_step(monkeypatch)
    made = team(tmp_path, [[0, 1], [1, 0]])
    run(made, made.steps)
    made.advance()
    lent = stacked(made).now.borrowed[0]
    theirs = made.hub.fetch(2, "reader").transitions
    assert torch.equal(extract(lent, 0)["obs"], theirs["obs"]) and len(lent) == FRAMES
    assert stacked(made).now.players == []


def test_a_replay_that_was_evicted_is_learnt_by_playing(tmp_path):
    rows = run(team(tmp_path, [[0, 1], [1, 0]], dataclasses.replace(TINY, hub_bytes=1)))
    assert values(rows, "frames") == [2 * FRAMES, 4 * FRAMES]


@pytest.mark.parametrize("identify_steps", [1009, 1016])
def test_identification_by_simnet_is_counted_in_frames_in_whole_steps_of_its_8_copies(tmp_path, identify_steps):
    options = dataclasses.replace(TINY, identify="simnet", identify_steps=identify_steps, threshold=2.0)
    rows = run(team(tmp_path, [[0, 0]], options))
    assert values(rows, "frames") == [1016 + FRAMES, 1016 + FRAMES + 1016]
    played = values(rows, "learning_frames", "team: catch, agent 0")
    assert played == [1016, 1016 + FRAMES / 2, 1016 + FRAMES, 1016, 1016, 1016]


@pytest.fixture
def simnet(monkeypatch):
    """Fingerprints of gather are 10 from those of catch, two of one task 1 apart; each takes a step of 8 copies."""

    def prints(tasks, seeds, steps, env):
        base = {"small/catch": 0.0, "small/gather": 10.0}
        return [{"w": torch.tensor([base[task] + seed % 2])} for task, seed in zip(tasks, seeds, strict=True)]

    monkeypatch.setattr(shard, "fingerprints", prints)
    monkeypatch.setattr(shard, "derive", lambda seed, *path: path[-1] if path[0] == "round" else derive(seed, *path))


@pytest.mark.parametrize(
    "threshold, right, wrong, played",
    [
        (1.0, [1, 2, 3], [0, 0, 0], [1, 2, 2]),  # catch is new, gather is new, catch is recognised
        (20.0, [1, 1, 2], [0, 1, 1], [1, 1, 1]),  # gather is taken for catch, and is not played
        (0.0, [1, 2, 3], [0, 0, 0], [1, 2, 2]),  # rounds 0 and 2 have equal seeds here
    ],
)
def test_matches_are_right_or_wrong(tmp_path, simnet, threshold, right, wrong, played):
    options = dataclasses.replace(TINY, identify="simnet", identify_steps=1, threshold=threshold)
    rows = run(team(tmp_path, [[0, 1, 0]], options))
    assert values(rows, "right") == right and values(rows, "wrong") == wrong
    assert values(rows, "frames") == [FRAMES * times + 8 * k for k, times in enumerate(played, start=1)]


def test_a_known_task_taken_for_a_new_one_is_wrong_and_is_played_again(tmp_path, simnet):
    options = dataclasses.replace(TINY, identify="simnet", identify_steps=1, threshold=0.5)
    rows = run(team(tmp_path, [[0, 0]], options))
    assert values(rows, "right") == [1, 1] and values(rows, "wrong") == [0, 1]
    assert values(rows, "frames") == [FRAMES + 8, 2 * FRAMES + 16]


# ---- isolated agents -----------------------------------------------------------------------------------------------


def test_isolated_agents_have_no_hub_and_play_everything(tmp_path):
    rows = run(team(tmp_path, [[0, 1], [1, 0]], shared=False))
    assert values(rows, "frames") == [2 * FRAMES, 4 * FRAMES]
    assert values(rows, "traffic") == [0, 0] and not (tmp_path / "team" / "hub").exists()


def test_an_isolated_agent_learns_the_same_whoever_else_is_there(tmp_path):
    alone = run(team(tmp_path, [[0, 1]], shared=False))
    among = run(team(tmp_path, [[0, 1], [1, 0]], shared=False))
    for metric in ("agent_return", "learning_return"):
        for task in ("catch", "gather"):
            series = f"team: {task}, agent 0"
            assert values(alone, metric, series) == pytest.approx(values(among, metric, series), abs=1e-6)


# ---- the penalty ---------------------------------------------------------------------------------------------------


def test_the_penalty_holds_weights_that_mattered_and_the_first_round_has_none(tmp_path):
    moved = []
    for ewc in (0.0, 1000.0):
        made = team(tmp_path, [[0, 1]], shared=False, ewc=ewc)
        run(made, made.steps)
        first = stacked(made).learner.critic.flat.data.clone()
        run(made)
        moved.append((first, float((stacked(made).learner.critic.flat.data - first).norm())))
    assert torch.equal(moved[0][0], moved[1][0])
    assert moved[1][1] < moved[0][1]
    assert list(stacked(made).ewc.anchors) == [1, 2]  # an isolated agent calls its tasks by their rounds


# ---- to go on ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [0, 32, FRAMES, FRAMES + 32, 2 * FRAMES + 32])
def test_saved_in_the_middle_it_goes_on_bit_for_bit_with_the_hub_of_that_moment(tmp_path, monkeypatch, stop):
    step_by_step(monkeypatch)
    orders = [[0, 1, 0], [1, 0, 1]]
    straight = team(tmp_path / "a", orders)
    all_rows = run(straight)

    first = team(tmp_path / "b", orders)
    rows = run(first, stop)
    state = copy.deepcopy(first.state_dict())
    run(first)  # it went on, to its end, and was killed: its hub knows the future
    first.close()

    second = team(tmp_path / "b", orders)
    second.load_state_dict(state)
    rows += run(second)
    assert all(a == b for a, b in zip(rows, all_rows, strict=True))  # frames, matches, returns, the hub's traffic
    assert torch.equal(stacked(second).learner.critic.flat.data, stacked(straight).learner.critic.flat.data)
    assert second.hub.traffic() == straight.hub.traffic() and len(second.hub) == len(straight.hub) == 2


def test_the_last_two_copies_of_the_hub_stay(tmp_path):
    made = team(tmp_path, [[0, 1]])
    made.advance()
    for _ in range(4):
        made.state_dict()
    assert sorted(path.name for path in (tmp_path / "team").iterdir()) == ["hub", "saved-3", "saved-4"]


def gone(index):
    index.unlink()


def overwritten(index):
    index.write_bytes(b"no database " * 9 + index.read_bytes()[108:])


def emptied(index):
    index.write_bytes(b"")


def torn(index):
    """Every page but the first is overwritten: SQLite opens and copies it as if nothing had happened."""
    index.write_bytes(index.read_bytes()[:4096].ljust(index.stat().st_size, b"x"))


@pytest.mark.parametrize("spoil", [gone, overwritten, emptied, torn])
def test_a_team_whose_hub_copy_is_spoilt_begins_anew_to_the_same_numbers(tmp_path, monkeypatch, caplog, spoil):
    """Also where it is stopped on its way, before and after it is where it was."""
    step_by_step(monkeypatch)
    orders = [[0, 1, 0], [1, 0, 1]]
    all_rows = run(team(tmp_path / "a", orders))
    made, rows = team(tmp_path / "b", orders), []
    for k, stop in enumerate((FRAMES + 32, 32, 2 * FRAMES), start=1):
        rows += run(made, stop)
        state = copy.deepcopy(made.state_dict())
        made.close()
        assert state["copies_made"] == k  # a number never stands for two moments
        made = team(tmp_path / "b", orders)
        if k != 2:
            spoil(tmp_path / "b" / "team" / f"saved-{k}" / "index.sqlite")
        made.load_state_dict(state)
    rows += run(made)
    assert all(a == b for a, b in zip(rows, all_rows, strict=True))
    assert len(caplog.messages) == 2 and caplog.messages[1].endswith("; team begins anew, to the same numbers")


def test_a_hub_stays_as_it_is_where_its_copy_cannot_be_read(tmp_path):
    made = team(tmp_path, [[0, 1]])
    run(made, FRAMES)
    made.state_dict()
    made.close()
    hub, saved = tmp_path / "team" / "hub", tmp_path / "team" / "saved-1"
    before = {path.name: path.read_bytes() for path in hub.rglob("*") if path.is_file()}
    overwritten(saved / "index.sqlite")
    with pytest.raises(Damaged, match=r"saved-1/index\.sqlite was not copied to .*: file is not a database"):
        copy_hub(saved, hub)
    assert {path.name: path.read_bytes() for path in hub.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in (tmp_path / "team").iterdir()) == ["hub", "saved-1"]


# ---- replays as bundles --------------------------------------------------------------------------------------------


def test_a_member_of_a_replay_can_be_lent_and_holds_the_same_transitions():
    env = make_env("small/snake", seeds=[3, 4], copies=4)  # episodes end often: successors lie in the side table
    replay = Replay(4 * 20, env.spec, 2, 4, [0, 1])
    view = env.start()
    for t in range(60):
        action = torch.full((2, 1, 4), t % 4 + 1 if t % 30 < 15 else 2)  # in circles, then into the wall
        step = env.step(action)
        replay.add(view, Acted(action), step)
        view = step.view
    lent = restored(extract(replay, 1), dataclasses.replace(DQN, n_step=3), env.spec, seed=9)
    replay.n_step = 3
    lent.sampler.load_state_dict({"generators": replay.sampler.state_dict()["generators"][1:]})
    theirs, mine = replay.sample(200), lent.sample(200)
    assert len(lent) == len(replay) == 80 and bool(theirs.terminated[1].any())
    for name in ("obs", "action", "reward", "next_obs", "terminated", "rewards", "steps"):
        assert torch.equal(getattr(theirs, name)[1:], getattr(mine, name)), name


def test_batches_come_in_the_order_of_the_agents_whoever_plays():
    tasks = Tasks.of(TINY.tasks, {})
    marked = []
    for mark in (1.0, 2.0):
        view = make_env("small/catch", seeds=[0]).start()
        step = make_env("small/catch", seeds=[0]).step(torch.zeros(1, 1, 1, dtype=torch.int64))
        replay = Replay(8, tasks.spec, 1, 1, [0])
        replay.add(view, Acted(torch.zeros(1, 1, 1, dtype=torch.int64)), step._replace(reward=step.reward + mark))
        marked.append(extract(replay, 0))
    base = float(step.reward)
    network = dict(DQNLearner(tasks.spec, [DQN], [0]).critic.named_parameters())
    network = {name: weights.detach()[0, 0] for name, weights in network.items()}
    lent = {0: Lent(marked[0], network), 2: Lent(marked[1], network)}
    options = dataclasses.replace(TINY, copies=1, frames=10)
    now = Round(["small/catch"] * 3, [5, 6, 7], [1, 1, 1], lent, [[], [], []], tasks, options)
    now.replay.add(view, Acted(torch.zeros(1, 1, 1, dtype=torch.int64)), step._replace(reward=step.reward + 9))
    assert now.draw(2).reward.flatten(1).tolist() == [[base + 1] * 2, [base + 9] * 2, [base + 2] * 2]
