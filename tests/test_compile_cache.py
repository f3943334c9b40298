"""Compiled programs are kept in a private folder, and a second process finds them."""

import stat
import subprocess
import sys

import jax
import pytest

from jaxinfer import compile_cache


@pytest.fixture
def restored():
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_folder_is_private(tmp_path, monkeypatch, restored):
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compile_cache.enable()
    assert folder == tmp_path / "jaxinfer" / "xla"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_a_folder_that_the_program_chose_is_left_alone(tmp_path, restored):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    assert compile_cache.enable() == tmp_path
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)


def test_an_unusable_folder_is_an_error_only_when_named(tmp_path, monkeypatch, restored):
    jax.config.update("jax_compilation_cache_dir", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="mode 0700"):
        compile_cache.enable(tmp_path / "file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compile_cache.enable() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_programs_are_found_again(tmp_path):
    code = "import jax; from jaxinfer import compile_cache; compile_cache.enable(); jax.jit(lambda x: x * 3 + 1)(2.0)"
    env = {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"}

    def entries():
        subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=120)
        return {
            path.name
            for path in (tmp_path / "jaxinfer" / "xla").iterdir()
            if path.name.endswith("-cache")
        }

    first = entries()
    assert first
    assert entries() == first
