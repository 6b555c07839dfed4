"""Settings: what is written, parsed, swept and saved comes back as it was; what does not fit is refused."""

import json
import typing
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marl import config as cfg
from marl.algos.ddpg import DDPGConfig
from marl.algos.maddpg import MADDPGConfig
from marl.algos.td3 import TD3Config
from marl.config import option
from marl.envs.mpe.options import MpeOptions
from marl.loop import LoopConfig
from marl.types import UserError


@dataclass(frozen=True)
class Inner:
    rate: float = option(0.5, "A rate.", sweep=True)
    kind: Literal["ring", "star", 3] = option("ring", "A kind.")


@dataclass(frozen=True)
class Outer:
    steps: int = option(10, "Steps.")
    clip: float | None = option(None, "Clip.")
    sizes: tuple[int, ...] = option((1, 2), "Sizes.")
    on: bool = option(False, "On.")
    inner: Inner = option(Inner(), "Inner.")


CONFIGS = [Outer, DDPGConfig, MADDPGConfig, TD3Config, LoopConfig, MpeOptions]


def values_of(kind):
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple:
        return st.lists(values_of(args[0]), max_size=3).map(tuple)
    if origin is not None or not isinstance(kind, type):
        return st.one_of([st.none() if a is type(None) else values_of(a) for a in args])
    text = st.text("abc/._-", max_size=5)
    return {int: st.integers(), float: st.floats(allow_nan=False), bool: st.booleans(), str: text}[kind]


def spell(value):
    """As a user writes it on the command line."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@st.composite
def configs(draw):
    config = draw(st.sampled_from(CONFIGS))()
    for setting in cfg.settings(type(config)):
        config = cfg.replace(config, setting.name, draw(values_of(setting.type)))
    return config


@given(configs())
def test_a_configuration_survives_json(config):
    assert cfg.from_json(type(config), json.loads(json.dumps(cfg.to_json(config)))) == config


@given(configs())
def test_every_setting_survives_the_command_line(config):
    for setting in cfg.settings(type(config)):
        value = cfg.get(config, setting.name)
        back = cfg.parse(setting.name, setting.type, spell(value))
        assert back == value and type(back) is type(value)


@given(configs(), st.data())
def test_replace_changes_one_leaf_and_get_reads_it(config, data):
    names = [s.name for s in cfg.settings(type(config))]
    setting = data.draw(st.sampled_from(list(cfg.settings(type(config)))))
    value = data.draw(values_of(setting.type))
    changed = cfg.replace(config, setting.name, value)
    assert cfg.get(changed, setting.name) == value
    assert all(cfg.get(changed, n) == cfg.get(config, n) for n in names if n != setting.name)


def test_settings_are_listed_with_dotted_names_types_and_defaults():
    listed = {s.name: s for s in cfg.settings(Outer)}
    assert list(listed) == ["steps", "clip", "sizes", "on", "inner.rate", "inner.kind"]
    assert (listed["inner.rate"].default, listed["inner.rate"].sweep, listed["steps"].sweep) == (0.5, True, False)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_setting_has_an_explanation_that_ends_as_a_sentence(config):
    assert [s.name for s in cfg.settings(config) if not s.help.endswith((".", ")"))] == []


def test_what_an_older_run_did_not_have_takes_its_default():
    assert cfg.from_json(Outer, {"steps": 3, "inner": {"rate": 1}}) == Outer(steps=3, inner=Inner(rate=1))


@pytest.mark.parametrize(
    "kind, text, value",
    [
        (int, "7", 7),
        (float, "1e-3", 0.001),
        (float, ".5", 0.5),
        (bool, "Yes", True),
        (bool, "0", False),
        (tuple[int, ...], "64,64", (64, 64)),
        (tuple[int, ...], "", ()),
        (float | None, "None", None),
        (float | None, "2", 2.0),
        (Literal["a", 3], "3", 3),
    ],
)
def test_text_is_read_by_the_type_of_its_setting(kind, text, value):
    parsed = cfg.parse("x", kind, text)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    "kind, text, answer",
    [
        (int, "1.5", "x: expected int, got '1.5'"),
        (bool, "maybe", "x: expected bool, got 'maybe'"),
        (tuple[int, ...], "1,y", "x: expected int,..., got '1,y'"),
        (tuple[int, ...], "1,,2", "x: expected int,..., got '1,,2'"),
        (tuple[str, ...], "a,", "x: expected str,..., got 'a,'"),
        (float | None, "many", "x: expected float or none, got 'many'"),
        (Literal["ring", "star"], "rong", "x: 'rong' is not a choice; did you mean 'ring'?"),
        (Literal["ring", "star"], "q", "x: 'q' is not a choice; choose from ring, star"),
    ],
)
def test_text_that_does_not_fit_is_repeated_with_what_was_expected(kind, text, answer):
    with pytest.raises(UserError) as caught:
        cfg.parse("x", kind, text)
    assert str(caught.value) == answer


@pytest.mark.parametrize(
    "name, value, answer",
    [
        ("stepz", 1, "no setting 'stepz'; did you mean 'steps'?"),
        ("inner.rat", 1.0, "no setting 'rat'; did you mean 'rate'?"),
        ("steps.more", 1, "no setting 'steps.more'"),
        ("steps", "1", "steps: expected int, got '1'"),
        ("steps", True, "steps: expected int, got True"),
        ("on", 1, "on: expected bool, got 1"),
        ("sizes", 3, "sizes: expected int,..., got 3"),
        ("sizes", [1, "2"], "sizes: expected int,..., got (1, '2')"),
        ("inner.kind", "moon", "kind: expected ring|star|3, got 'moon'"),
        ("inner", 3, "inner: expected Inner, got 3"),
    ],
)
def test_replace_refuses_what_the_setting_does_not_hold(name, value, answer):
    with pytest.raises(UserError) as caught:
        cfg.replace(Outer(), name, value)
    assert answer in str(caught.value)


def test_replace_takes_a_list_for_a_tuple_and_an_integer_for_a_float():
    config = cfg.replace(cfg.replace(Outer(), "sizes", [3, 4]), "inner.rate", 1)
    assert config == Outer(sizes=(3, 4), inner=Inner(rate=1)) and isinstance(config.sizes, tuple)


def test_an_unknown_or_ill_typed_field_of_a_file_is_refused():
    with pytest.raises(UserError, match="no setting 'stepz' in Outer; did you mean 'steps'"):
        cfg.from_json(Outer, {"stepz": 1})
    with pytest.raises(UserError, match="rate: expected float, got 'x'"):
        cfg.from_json(Outer, {"inner": {"rate": "x"}})


def test_without_a_near_word_all_choices_are_listed():
    assert cfg.suggestion("xyz", ["b", "a"]) == "; choose from a, b" and cfg.suggestion("xyz", []) == ""
