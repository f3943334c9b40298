"""Documents out of packages: wheels, Debian documentation, folders of source files; and their
download.
"""

from __future__ import annotations

import collections
import dataclasses
import email
import gzip
import hashlib
import html.parser
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator

from examples.training import sources
from examples.training.filters import MAX_FILE_BYTES, clean_prose, clean_python, is_permissive

MAX_PACKAGE_BYTES = {"python": 6_000_000, "prose": 12_000_000}
SKIPPED_PATH = re.compile(
    r"(_pb2(_grpc)?\.py|/locale/|/migrations/|/alembic/|/versions/|/tables?/|/data/|/openapi|_data\.py"
    r"|/site-packages/|/lib2to3/tests/|unicode|/emoji|/_?vendor(ed)?/|/translations?/|/generated/)"
)
TEST_PATH = re.compile(
    r"(^|/)(tests?|testing|functional)/|(^|/)(test_[^/]*|[^/]*_test|conftest)\.py$"
)


@dataclasses.dataclass(frozen=True)
class Document:
    """One file: `name` is package/path, `kind` is "python" or "prose"."""

    name: str
    kind: str
    text: str


class _VisibleText(html.parser.HTMLParser):
    """Collects the text of the main part of a page; blocks end in newlines, `pre` is kept as is."""

    SKIPPED = frozenset(
        {"script", "style", "nav", "head", "header", "footer", "button", "form", "table"}
    )
    BLOCKS = frozenset(
        {"p", "div", "li", "pre", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "br", "ul"}
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.skipped: list[str] = []
        self.preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Track skipped regions and block boundaries."""
        if tag in self.SKIPPED:
            self.skipped.append(tag)
        self.preformatted += tag == "pre"
        if tag in self.BLOCKS:
            self.pieces.append("\n" if tag in ("br", "li", "dd") else "\n\n")

    def handle_endtag(self, tag: str) -> None:
        """Leave a skipped region or a block."""
        if tag in self.skipped:
            del self.skipped[self.skipped.index(tag) :]
        self.preformatted -= tag == "pre"
        if tag in self.BLOCKS:
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        """Keep visible text."""
        if not self.skipped:
            self.pieces.append(data if self.preformatted else re.sub(r"\s+", " ", data))


def html_to_text(page: str) -> str:
    """The readable text of an HTML page."""
    parser = _VisibleText()
    parser.feed(page)
    lines = [
        line.strip("¶ \n") if not line.startswith("  ") else line.rstrip()
        for line in "".join(parser.pieces).replace("\xa0", " ").split("\n")
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def glosses_to_text(database: str) -> str:
    """Definitions and example sentences of a WordNet data file, one entry a line."""
    entries = []
    for line in database.split("\n"):
        if line[:1].isdigit() and " | " in line:
            head, gloss = line.split(" | ", 1)
            entries.append(f"{head.split()[4].replace('_', ' ')}: {gloss.strip()}")
    return "\n".join(entries)


def _pieces(text: str, size: int = 8000) -> Iterator[str]:
    """Cut a long text at line ends into pieces of about `size` characters."""
    piece: list[str] = []
    length = 0
    for line in text.split("\n"):
        piece.append(line)
        length += len(line) + 1
        if length >= size:
            yield "\n".join(piece)
            piece, length = [], 0
    yield "\n".join(piece)


def _python_files(package: str, files: Iterable[tuple[str, bytes]]) -> Iterator[Document]:
    budget = MAX_PACKAGE_BYTES["python"]
    for path, raw in files:
        if SKIPPED_PATH.search(path) or not 300 <= len(raw) <= MAX_FILE_BYTES:
            continue
        name = f"{package}/{path}"
        if TEST_PATH.search(path) and hashlib.sha256(name.encode()).digest()[0] >= 20:
            continue  # tests repeat themselves: one in thirteen is kept
        text = clean_python(raw.decode("utf-8", errors="replace"))
        if text is not None and budget > 0:
            budget -= len(text)
            yield Document(name, "python", text)


def _without_boilerplate(texts: dict[str, str]) -> dict[str, str]:
    """Drop the lines that stand in more than a tenth of a package's pages (menus, footers)."""
    counts: collections.Counter[str] = collections.Counter()
    for text in texts.values():
        counts.update({line for line in text.split("\n") if line.strip()})
    often = {line for line, count in counts.items() if count > max(10, 0.1 * len(texts))}
    return {
        name: "\n".join(line for line in text.split("\n") if line not in often)
        for name, text in texts.items()
    }


def read_metadata(archive: zipfile.ZipFile) -> str:
    """The METADATA of a wheel, empty where it has none."""
    names = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    name = next(names, None)
    return archive.read(name).decode("utf-8", errors="replace") if name else ""


def wheel_documents(path: pathlib.Path) -> list[Document]:
    """Python files and long description of a wheel; nothing without a permissive licence."""
    package = path.name.split("-")[0].lower()
    with zipfile.ZipFile(path) as archive:
        names, about = archive.namelist(), read_metadata(archive)
        if not is_permissive(about):
            return []
        names = sorted(names, key=lambda n: hashlib.sha256(n.encode()).digest())
        sources_of = ((n, archive.read(n)) for n in names if n.endswith(".py"))
        documents = list(_python_files(package, sources_of))
        texts = [(n, archive.read(n)) for n in names if n.endswith((".rst", ".md"))]
    texts.append(
        (
            "README",
            (email.message_from_string(about).get_payload() or "").encode(
                "utf-8", errors="replace"
            ),
        )
    )
    for name, raw in texts:
        prose = clean_prose(raw.decode("utf-8", errors="replace"))
        if prose is not None:
            documents.append(Document(f"{package}/{name}", "prose", prose))
    return documents


def folder_documents(folder: pathlib.Path, package: str) -> list[Document]:
    """Python files below a folder, such as the standard library's."""
    paths = (p for p in sorted(folder.rglob("*.py")) if "-packages" not in str(p))
    return list(
        _python_files(package, ((str(p.relative_to(folder)), p.read_bytes()) for p in paths))
    )


def debian_documents(path: pathlib.Path) -> list[Document]:
    """Documentation texts of one .deb that `sources.DEBIAN_PACKAGES` names."""
    package = path.name.split("_")[0]
    wanted = re.compile(sources.DEBIAN_PACKAGES[package].paths)
    texts: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "--extract", str(path), folder], check=True)
        for file in sorted(pathlib.Path(folder).rglob("*")):
            name = str(file.relative_to(folder))
            if file.is_symlink() or not file.is_file() or not wanted.search(name):
                continue
            raw = file.read_bytes()
            raw = gzip.decompress(raw) if name.endswith((".gz", ".dz")) else raw
            text = raw.decode("utf-8", errors="replace")
            if ".htm" in name:
                texts[name] = html_to_text(text)
            elif "/wordnet/" in name:
                entries = _pieces(glosses_to_text(text))
                texts |= {f"{name}#{index}": piece for index, piece in enumerate(entries)}
            elif name.endswith(".dz"):
                texts |= {f"{name}#{index}": piece for index, piece in enumerate(_pieces(text))}
            else:
                texts[name] = text
    documents, budget = [], MAX_PACKAGE_BYTES["prose"]
    for name, text in _without_boilerplate(texts).items():
        prose = clean_prose(text)
        if prose is not None and budget > 0:
            budget -= len(prose)
            documents.append(Document(f"{package}/{name}", "prose", prose))
    return documents


def download(folder: pathlib.Path) -> None:
    """Fetch every package of `sources.py`; a missing one is reported and passed over."""
    for kind in ("wheels", "debs"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder / "wheels"),
    ]
    for name in sources.PYTHON_PACKAGES:
        if subprocess.run([*pip, name], check=False).returncode:
            print(f"no wheel of {name}", file=sys.stderr)
    for name in sources.DEBIAN_PACKAGES:
        if subprocess.run(
            ["apt-get", "download", name], cwd=folder / "debs", check=False
        ).returncode:
            print(f"no Debian package {name}", file=sys.stderr)
