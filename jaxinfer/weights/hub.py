"""Where a checkpoint is: a local folder, or a model of the Hugging Face hub, fetched."""

import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from jaxinfer.weights.safetensors_file import CheckpointError

PATTERNS = ("*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model", "*.txt", "LICENSE*")
NEVER = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.py", "*.gguf", "original/*", "*/*")
# the root of what its HTTP client raises: httpx's HTTPError, in older releases requests'
HTTP_ERROR: type[Exception] = errors.HfHubHTTPError.__bases__[0]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


def resolve(path_or_hub_id: str | Path, files: Sequence[str] = PATTERNS) -> Path:
    """The folder of a checkpoint: an existing one, else one fetched from the hub.

    The hub knows models by `org/name` or `org/name@revision`. files: patterns of what is fetched.
    CheckpointError where there is neither, naming the remedy.
    """
    path = Path(path_or_hub_id).expanduser()
    if path_or_hub_id != "" and path.is_dir():
        return path
    text = str(path_or_hub_id)
    if path_or_hub_id != "" and path.exists():
        raise CheckpointError(
            f"a model is a folder with config.json and *.safetensors, got the file {text}; "
            f"{_file(path)}"
        )
    if isinstance(path_or_hub_id, Path) or not HUB_ID.fullmatch(text):
        raise CheckpointError(
            f"no folder {text!r}, and it is not a hub id like org/name; give a folder that holds "
            "config.json and *.safetensors, or a hub id"
        )
    name, _, revision = text.partition("@")
    return Path(_fetch(name, revision or None, files))


def _file(path: Path) -> str:
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        pickle = f"{path.suffix} files are pickles, which can run code while they load"
        return f"{pickle}: convert it to safetensors"
    return f"give its folder, {path.parent}"


def _fetch(name: str, revision: str | None, files: Sequence[str]) -> str:
    try:
        return huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(files), ignore_patterns=list(NEVER)
        )
    except errors.GatedRepoError as error:
        remedy = "accept its terms on huggingface.co, then run `hf auth login`"
        raise CheckpointError(f"the model {name!r} of the hub is gated; {remedy}") from error
    except (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.HFValidationError,
    ) as error:
        raise CheckpointError(
            "no local folder and no model of the hub is called "
            f"{name!r}{f' at {revision!r}' if revision else ''}; check the spelling, or run `hf "
            "auth login` if it is private"
        ) from error
    except (HTTP_ERROR, OSError) as error:
        lines = str(error).splitlines() or ["no detail"]
        raise CheckpointError(
            f"cannot fetch {name!r} from the hub, and it is not in the local cache "
            f"({type(error).__name__}: {lines[0]}); check the network, or give a local folder"
        ) from error
