"""The examples in the docstrings of d2kd.losses."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import d2kd.losses

FUNCTIONS = [name for name in d2kd.losses.__all__ if inspect.isfunction(getattr(d2kd.losses, name))]


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(d2kd.losses.__path__)])
def test_examples_give_what_they_say(name):
    assert doctest.testmod(importlib.import_module(f"d2kd.losses.{name}")).failed == 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_public_function_has_one(name):
    function = getattr(d2kd.losses, name)
    (found,) = doctest.DocTestFinder(recurse=False).find(function, globs={})
    assert any(f"{name}(" in example.source for example in found.examples)
