"""The README's performance section, made of the committed result files.

python -m examples.performance.readme           rewrites it
python -m examples.performance.readme --check   exits with 1 where it is not what the files say
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.performance import documents, markdown

BEGIN = "<!-- written by python -m examples.performance.readme -->"
END = "<!-- end of what it writes -->"


def rewrite(text: str, section: str) -> str:
    """`text` with what lies between the markers replaced. ValueError where they are not there once
    each, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the README needs one line {BEGIN!r} and after it one line {END!r}")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{section}\n\n{END}{rest.split(END)[1]}"


def main(argv: Sequence[str] | None = None, root: Path = documents.ROOT) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    values = parser.parse_args(argv)
    readme = root / "README.md"
    try:
        old = readme.read_text(encoding="utf-8")
        new = rewrite(old, markdown.page(documents.read(root)))
    except (ValueError, OSError) as error:
        print(f"readme: {error}", file=sys.stderr)
        return 1
    if new == old:
        return 0
    if values.check:
        print(
            "readme: README.md is not what the result files say; run python -m examples.performance.readme",
            file=sys.stderr,
        )
        return 1
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
