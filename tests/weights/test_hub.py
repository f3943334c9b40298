"""Finding a checkpoint: local folders first, then the hub, with one clear error where there is
none.
"""

import fnmatch

import huggingface_hub
import pytest
from huggingface_hub import errors

from jaxinfer import weights
from jaxinfer.weights import hub
from tests.weights import checkpoints


@pytest.fixture
def downloads(monkeypatch):
    """Calls of snapshot_download; what it answers is put into `answer`."""

    class Downloads(list):
        answer = None

        def __call__(self, name, **options):
            self.append((name, options))
            if isinstance(self.answer, Exception):
                raise self.answer
            return str(self.answer)

    found = Downloads()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found)
    return found


def test_a_local_folder_comes_first(tmp_path, monkeypatch, downloads):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("org/name").samefile(tmp_path / "org" / "name")
    assert downloads == []


def test_a_hub_id_is_fetched_and_loaded(tmp_path, downloads):
    _, config, _ = checkpoints.fresh(tmp_path)
    downloads.answer = tmp_path
    assert weights.load("org/name").config == config
    assert weights.load("org/na.me-2@v1.0").folder == tmp_path
    assert [(name, options["revision"]) for name, options in downloads] == [
        ("org/name", None),
        ("org/na.me-2", "v1.0"),
    ]


def test_only_safe_files_are_fetched(downloads, tmp_path):
    downloads.answer = tmp_path
    hub.resolve("org/name")
    options = downloads[0][1]

    def fetched(name):
        allowed = any(fnmatch.fnmatch(name, pattern) for pattern in options["allow_patterns"])
        return allowed and not any(fnmatch.fnmatch(name, p) for p in options["ignore_patterns"])

    for name in (
        "config.json",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "chat_template.jinja",
    ):
        assert fetched(name), name
    for name in (
        "pytorch_model.bin",
        "tokenizer.bin",
        "modeling_x.py",
        "tokenizer.py",
        "tokenizer.pkl",
        "consolidated.00.pth",
        "onnx/model.json",
        "original/params.json",
        "x.gguf",
    ):
        assert not fetched(name), name


@pytest.mark.parametrize("text", ["name", "./none", "/none/at", "a/b/c", "org/", "", "../org/name"])
def test_what_is_neither_folder_nor_hub_id(text, tmp_path, monkeypatch, downloads):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(weights.CheckpointError, match="not a hub id like org/name"):
        weights.load(text)
    assert downloads == []


def _response_error(kind):
    error = kind.__new__(kind)
    OSError.__init__(error, "403")
    return error


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (_response_error(errors.GatedRepoError), "gated; accept its terms"),
        (
            _response_error(errors.RepositoryNotFoundError),
            "no model of the hub .*check the spelling",
        ),
        (_response_error(errors.RevisionNotFoundError), "no model of the hub"),
        (errors.HFValidationError("bad name"), "no model of the hub"),
        (errors.LocalEntryNotFoundError("not cached"), "cannot fetch .*check the network"),
        (errors.OfflineModeIsEnabled("offline"), "cannot fetch .*offline"),
        (_response_error(errors.HfHubHTTPError), "cannot fetch"),
        (hub.HTTP_ERROR("no route\nto host"), "cannot fetch .*no route"),
        (OSError("disk full"), "cannot fetch .*disk full"),
    ],
)
def test_one_clear_error(answer, says, downloads):
    downloads.answer = answer
    with pytest.raises(weights.CheckpointError, match=says) as caught:
        weights.load("org/name")
    assert "'org/name'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_is_not_a_folder(tmp_path):
    checkpoints.fresh(tmp_path)
    with pytest.raises(weights.CheckpointError, match="give its folder"):
        weights.load(tmp_path / "model.safetensors")


def test_shards_behind_links_as_in_the_cache(tmp_path):
    """The hub's cache holds links to blobs without a suffix."""
    _, config, _ = checkpoints.fresh(tmp_path / "blobs", shards=2)
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        blob = path.rename(tmp_path / "blobs" / f"{abs(hash(path.name)):x}")
        (tmp_path / "snapshot" / path.name).symlink_to(f"../blobs/{blob.name}")
    assert weights.load(tmp_path / "snapshot").config == config
