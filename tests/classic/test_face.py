"""What ``marl.classic`` shows to the outside."""

from __future__ import annotations

import subprocess
import sys

import pytest

from marl import classic


@pytest.mark.parametrize("name", classic.__all__)
def test_every_name_is_where_the_package_says(name):
    assert getattr(classic, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="CoopLSVY"):
        classic.CoopLSVY  # noqa: B018


def test_no_name_of_the_package_loads_torch():
    look = "for name in classic.__all__: getattr(classic, name)"
    code = f"import sys\nfrom marl import classic\n{look}\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
