"""Checkpoints of 45 MB and more."""

import shutil

import pytest


@pytest.fixture
def tmp_path(tmp_path):
    """Gone after the test: pytest would keep those of three sessions."""
    yield tmp_path
    shutil.rmtree(tmp_path)
