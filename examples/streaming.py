"""Text as it is generated, and the numbers at the end.

python examples/streaming.py [--model FOLDER|ORG/NAME]
"""

import argparse

import jaxinfer


def main(name: str | None = None) -> jaxinfer.Completion:
    model = jaxinfer.load(name)
    prompt = "def fibonacci(n):"
    print(prompt, end="", flush=True)
    for chunk in model.stream(prompt, temperature=0.7, top_p=0.95, max_new_tokens=64, seed=1):
        print(
            chunk.text, end="", flush=True
        )  # closing the iterator early would stop the generation
    completion = chunk.completion  # the last chunk has it
    print(
        f"\n\nfinished by {completion.finish_reason}, first token after {completion.ttft_s:.2f} s",
        end="",
    )
    print(
        f", {completion.decode_tokens_per_s:.0f} tokens/s" if completion.decode_tokens_per_s else ""
    )
    return completion


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    main(parser.parse_args().model)
