"""The error tree is the one drawn in errors.py; its sentences say what was expected, what came, where, what next."""

from __future__ import annotations

import re

import pytest

from tenon import errors
from tenon.errors import TenonError, missing_extra, nearest, quoted, sentence


def _classes() -> dict[str, type[TenonError]]:
    return {
        name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, TenonError)
    }


def test_the_drawing_in_the_docstring_names_exactly_the_classes_there_are() -> None:
    drawn = set(re.findall(r"── (\w+Error)\b", errors.__doc__ or "")) | {"TenonError"}
    assert drawn == set(_classes())


def test_the_drawn_exit_codes_are_the_ones_returned() -> None:
    for line in (errors.__doc__ or "").splitlines():
        found = re.search(r"(\w+Error)\s.*exit (\d)", line)
        if found:
            assert _classes()[found[1]].exit_code == int(found[2]), line


def test_there_are_at_most_ten_leaves() -> None:
    every = set(_classes().values())
    leaves = [kind for kind in every if not any(other is not kind and issubclass(other, kind) for other in every)]
    assert len(leaves) <= 10


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({}, "expected a number, got 'x'"),
        ({"at": "f.csv:3:age"}, "expected a number, got 'x' - at f.csv:3:age"),
        ({"at": "f.csv:3:age", "hint": "mend it"}, "expected a number, got 'x' - at f.csv:3:age; mend it"),
    ],
)
def test_a_sentence_leaves_out_only_what_was_not_given(args: dict[str, str], said: str) -> None:
    assert sentence("a number", "'x'", **args) == said


def test_names_are_quoted_sorted_and_cut_at_twenty_with_a_count() -> None:
    assert quoted(["b", "a", "b"]) == "'a', 'b'"
    assert quoted([f"{n:02}" for n in range(25)]).endswith("and 5 more")


def test_the_nearest_name_is_suggested_and_the_allowed_ones_are_listed_when_none_is_near() -> None:
    assert nearest("wether", ["weather", "flights"]) == "did you mean 'weather'?"
    assert nearest("zzz", ["weather", "flights"]) == "one of 'flights', 'weather'"


def test_a_missing_optional_package_names_the_command_that_installs_it() -> None:
    assert str(missing_extra("lightgbm", "train", "train trees")).endswith("pip install 'tenon[train]'")
