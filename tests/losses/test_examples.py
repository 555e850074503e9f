"""The examples in the docstrings of d2kd.losses, which ``make test`` runs (``--doctest-modules``)."""

import doctest
import inspect

import pytest

import d2kd.losses

FUNCTIONS = [name for name in d2kd.losses.__all__ if inspect.isfunction(getattr(d2kd.losses, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_public_function_has_one(name):
    function = getattr(d2kd.losses, name)
    (found,) = doctest.DocTestFinder(recurse=False).find(function, globs={})
    assert any(f"{name}(" in example.source for example in found.examples)
