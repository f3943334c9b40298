"""Compiled programs kept on disk, so that the second start does not compile again."""

import os
import stat
from pathlib import Path

import jax


def default_folder() -> Path:
    """jaxinfer's own folder below the user's cache directory."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "jaxinfer" / "xla"


def enable(folder: str | os.PathLike | None = None) -> Path | None:
    """Let XLA keep its programs in `folder` (default: `default_folder`), readable by this user
    only.

    A directory that the program has already configured is left alone. Returns the folder in use, or
    None where the default cannot be made private: then nothing is cached, because programs are
    code. A named folder that cannot be used is a ValueError.
    """
    chosen = jax.config.values["jax_compilation_cache_dir"]
    if folder is None and chosen:
        return Path(chosen)
    path = default_folder() if folder is None else Path(folder)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        private = (
            path.stat().st_uid == os.getuid() and not stat.S_IMODE(path.stat().st_mode) & 0o077
        )
    except OSError as error:
        private, reason = False, str(error)
    else:
        reason = "it belongs to another user"
    if not private:
        if folder is None:
            return None
        raise ValueError(
            f"the compile cache needs a folder of mode 0700 that this user owns, got {path}: {reason}"
        )
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path
