"""The diffs on the pages are the recipes: what a reader is told to change is what runs in the tests."""

from __future__ import annotations

import re

import pytest
from swap_tools import PAGES, changed, diff, recipes, shown

ON_PAGES = [(page.name, name, lines) for page in sorted(PAGES.glob("*.md")) for name, lines in shown(page.read_text())]


@pytest.mark.parametrize("recipe", recipes())
def test_one_page_shows_the_diff_and_the_list_of_recipes_leads_there(recipe):
    found = [(page, lines) for page, name, lines in ON_PAGES if name == recipe]
    assert len(found) == 1, f"{recipe} is shown on {len(found)} pages, expected on one"
    ((page, lines),) = found
    assert lines == diff(recipe)
    assert re.search(rf"\]\({re.escape(page)}[)#]", (PAGES / "index.md").read_text()), f"index.md has no link to {page}"


def test_no_page_shows_a_recipe_that_is_gone():
    assert {name for _, name, _ in ON_PAGES} <= set(recipes())


@pytest.mark.parametrize("recipe", [name for name in recipes() if name.startswith("sb3_")])
def test_a_user_of_stable_baselines3_changes_at_most_ten_lines(recipe):
    assert 0 < changed(recipe) <= 10


def test_a_block_that_differs_by_a_blank_would_be_found():
    text = "told\n\n`examples/swap_in/sb3_single`\n\n```diff\n" + "\n".join(diff("sb3_single")) + "\n```\nmore\n"
    assert shown(text) == [("sb3_single", diff("sb3_single"))]
    assert shown(text.replace("+from marl", "+ from marl")) != [("sb3_single", diff("sb3_single"))]
    assert shown(text.replace("`examples/swap_in/sb3_single`", "no caption")) == []
