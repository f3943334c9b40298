"""Assemble a training corpus from permissively licensed Python and Debian packages.

`download` fetches the packages that `sources.py` names with pip and apt-get; `build` extracts
Python source and English documentation from them, keeps a package only if its metadata names a
permissive licence, drops what teaches a small model nothing (generated, minified, tabular,
undocumented, near-duplicate or unparsable files) and splits off the held-out files *before*
anything is trained. This file does not know tokenizers or models.

    python -m examples.training.corpus download --to packages
    python -m examples.training.corpus build --packages packages --to corpus
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import pathlib
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator

from examples.training import sources
from examples.training.filters import stated_licence
from examples.training.packages import (
    Document,
    debian_documents,
    download,
    folder_documents,
    read_metadata,
    wheel_documents,
)

HELD_OUT_ONE_IN = 220  # files


def is_held_out(name: str) -> bool:
    """Whether a file belongs to the held-out set: a fixed function of its name alone."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def deduplicate(documents: Iterable[Document], seen: set[int] | None = None) -> Iterator[Document]:
    """Drop a document when over 40% of its characters stand in lines that were seen before.

    Lines are compared without surrounding blanks; lines under 25 characters do not count. Feed the
    held-out documents first: then no near-copy of one of them can reach the training set.
    """
    seen = set() if seen is None else seen
    for document in documents:
        lines = [line for line in map(str.strip, document.text.split("\n")) if len(line) >= 25]
        known = sum(len(line) for line in lines if hash(line) in seen)
        if lines and known <= 0.4 * sum(map(len, lines)):
            seen.update(map(hash, lines))
            yield document


def split(documents: list[Document]) -> tuple[list[Document], list[Document]]:
    """(train, held out), each free of near-duplicates of itself and of the other."""
    seen: set[int] = set()
    held_out = list(deduplicate((d for d in documents if is_held_out(d.name)), seen))
    train = list(deduplicate((d for d in documents if not is_held_out(d.name)), seen))
    return train, held_out


def write(documents: Iterable[Document], path: pathlib.Path) -> None:
    """One JSON object a line: name, kind, text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for document in documents:
            file.write(json.dumps(dataclasses.asdict(document)) + "\n")


def read(path: pathlib.Path) -> Iterator[Document]:
    """The documents that `write` wrote."""
    with path.open() as file:
        for line in file:
            yield Document(**json.loads(line))


def _documents(path: pathlib.Path) -> list[Document]:
    return wheel_documents(path) if path.suffix == ".whl" else debian_documents(path)


def build(packages: pathlib.Path, folder: pathlib.Path, workers: int = 2) -> dict[str, int]:
    """Write train.jsonl and held_out.jsonl below `folder`; returns characters by split and kind."""
    paths = sorted(packages.glob("wheels/*.whl"))
    paths += [
        p
        for p in sorted(packages.glob("debs/*.deb"))
        if p.name.split("_")[0] in sources.DEBIAN_PACKAGES
    ]
    with multiprocessing.Pool(workers) as pool:
        found = list(itertools.chain.from_iterable(pool.imap(_documents, paths)))
    found += folder_documents(pathlib.Path(sysconfig.get_path("stdlib")), "cpython")
    found.sort(key=lambda d: hashlib.sha256(d.name.encode()).digest())
    train, held_out = split(found)
    sizes: collections.Counter[str] = collections.Counter()
    for label, documents in (("train", train), ("held_out", held_out)):
        write(documents, folder / f"{label}.jsonl")
        for document in documents:
            sizes[f"{label}/{document.kind}"] += len(document.text.encode())
    counted = collections.Counter(d.name.split("/")[0] for d in train)
    (folder / "packages.json").write_text(json.dumps(dict(sorted(counted.items())), indent=1))
    return dict(sizes)


def licence_table(packages: pathlib.Path, folder: pathlib.Path) -> str:
    """A Markdown table: every package that `build` took documents from, their number, its licence."""
    counts = json.loads((folder / "packages.json").read_text())
    licences = {name: package.licence for name, package in sources.DEBIAN_PACKAGES.items()}
    licences["cpython"] = "PSF-2.0 (the standard library)"
    for path in packages.glob("wheels/*.whl"):
        with zipfile.ZipFile(path) as archive:
            stated = stated_licence(read_metadata(archive))
        licences[path.name.split("-")[0].lower()] = stated.replace("License :: ", "")[:100]
    rows = [f"| {name} | {count} | {licences[name]} |" for name, count in counts.items()]
    return (
        "\n".join(["| package | documents | licence as stated |", "| --- | --- | --- |", *rows])
        + "\n"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    fetch = commands.add_parser("download", help="fetch the packages")
    fetch.add_argument("--to", type=pathlib.Path, required=True)
    make = commands.add_parser("build", help="extract, clean, deduplicate and split")
    make.add_argument("--packages", type=pathlib.Path, required=True)
    make.add_argument("--to", type=pathlib.Path, required=True)
    make.add_argument("--workers", type=int, default=2)
    table = commands.add_parser("licences", help="print a table of the packages and their licences")
    table.add_argument("--packages", type=pathlib.Path, required=True)
    table.add_argument("--corpus", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "download":
        download(arguments.to)
    elif arguments.command == "licences":
        print(licence_table(arguments.packages, arguments.corpus))
    else:
        print(json.dumps(build(arguments.packages, arguments.to, arguments.workers)))


if __name__ == "__main__":
    main()
