"""Engines of the same model and sizes compile once."""

import pytest

from jaxinfer import compile_cache


@pytest.fixture(scope="session", autouse=True)
def _kept_programs(tmp_path_factory):
    compile_cache.enable(tmp_path_factory.mktemp("programs"))
