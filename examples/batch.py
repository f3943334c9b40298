"""Many prompts at once: they share every step, and none depends on its neighbours.

python examples/batch.py [--model FOLDER|ORG/NAME]
"""

import argparse

import jaxinfer

PROMPTS = (
    "import os",
    "The purpose of this module is to",
    "class Stack:\n    def push(self, item):",
    "A dictionary is a collection of",
)


def main(name: str | None = None) -> list[jaxinfer.Completion]:
    model = jaxinfer.load(name)
    params = jaxinfer.SamplingParams(max_new_tokens=32, temperature=0.7, top_p=0.95, seed=1)
    together = model.generate(PROMPTS, params)
    for prompt, completion in zip(PROMPTS, together, strict=True):
        print(f"--- {prompt!r} ({completion.finish_reason})\n{completion.text}")

    (alone,) = model.generate(PROMPTS[2], params)
    print("--- the third one alone is the same text:", alone.text == together[2].text)
    return together


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    main(parser.parse_args().model)
