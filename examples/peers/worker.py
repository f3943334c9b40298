"""One engine in a process of its own: a case a line of JSON on stdin, its timing a line of JSON on
stdout.

python -m examples.peers.worker ENGINE VARIANT MODEL_FOLDER HOST, where HOST is the fields of
`engines.Host` as JSON
"""

import dataclasses
import importlib
import json
import os
import sys
from pathlib import Path

from examples.peers import timing
from examples.peers.engines import Host


def main() -> None:
    engine, variant, folder, settings = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    fields = json.loads(settings)
    host = Host(**fields | {"scratch": Path(fields["scratch"])})
    vocab_size = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
    module = importlib.import_module(f"examples.peers.{engine}_engine")
    loaded = module.Engine(Path(folder), variant, host)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        case = json.loads(line)
        rows = timing.prompts(case["batch"], case["context"], vocab_size, case["seed"])
        print(
            json.dumps(dataclasses.asdict(loaded.run(rows, case["new"]))), file=answers, flush=True
        )


if __name__ == "__main__":
    main()
