"""The loop: how it is stopped, and what it says while nothing seems to happen."""

import os
import signal

import pytest
from test_loop import studio

from marl.loop import Interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_loop_after_the_step_with_everything_saved(number):
    tape, training, roll = studio(steps=100, eval_every=0, checkpoint_every=0)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def at_five(training, rates, news):
        if training.steps == 5:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="stopped at step 6, everything saved"):
        roll(at_five)
    assert tape[-1] == "save 6" and training.steps == 6
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_breaks_an_evaluation_off_which_is_played_whole_as_the_run_goes_on(number):
    tape, training, roll = studio(steps=4, eval_every=4, checkpoint_every=0, plays=iter([None, number, None]))
    with pytest.raises(Interrupted, match="stopped at step 4, everything saved"):
        roll()
    assert tape[-2:] == ["evaluate", "save 4"] and training.state_dict()["evaluation_due"]
    tape.clear()
    roll()
    assert tape == ["evaluate", "log 4 eval", "save 4"]  # and not once more when the run goes on again
    tape.clear()
    roll()
    assert tape == []


def test_a_signal_in_the_first_evaluation_leaves_the_run_where_it_begins():
    tape, training, roll = studio(steps=4, eval_every=4, checkpoint_every=0, plays=iter([signal.SIGTERM]))
    with pytest.raises(Interrupted, match="stopped at step 0, everything saved"):
        roll()
    assert tape == ["evaluate"] and training.steps == 0 and training.evaluation_due


def test_a_long_evaluation_says_once_that_it_has_not_ended(monkeypatch):
    monkeypatch.setattr("marl.loop.LONG", 2)  # as many steps as the evaluator here plays
    tape, _, roll = studio(steps=4, eval_every=4)
    roll()
    assert tape.lines == 2 * ["evaluation: its episodes have not ended after 2 steps; do they have a time limit?"]
    monkeypatch.setattr("marl.loop.LONG", 3)
    tape, _, roll = studio(steps=4, eval_every=4)
    roll()
    assert tape.count("evaluate") == 2 and tape.lines == []


def test_a_second_ctrl_c_does_not_wait():
    _, training, roll = studio(steps=100, eval_every=0)

    def twice(training, rates, news):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        roll(twice)
    assert not isinstance(caught.value, Interrupted) and training.steps == 1
