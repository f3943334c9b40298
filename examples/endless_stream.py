"""Text without end from a cache that does not grow: the first tokens and a window of the latest
ones are kept.

python examples/endless_stream.py [--model FOLDER|ORG/NAME] [--tokens N]
"""

import argparse

import jaxinfer


def main(name: str | None = None, tokens: int = 1200) -> jaxinfer.Completion:
    model = jaxinfer.load(name)
    stream = jaxinfer.Stream(window=128, sinks=4)
    prompt = "The purpose of this module is to"
    print(
        f"the model was trained on {model.config.max_position} positions; {tokens} tokens follow\n\n{prompt}",
        end="",
    )
    settings = dict(max_new_tokens=tokens, temperature=0.8, top_p=0.95, seed=1, ignore_eos=True)
    for chunk in model.stream(prompt, stream=stream, **settings):
        print(chunk.text, end="", flush=True)
    completion = chunk.completion
    print(f"\n\n{len(completion.token_ids)} tokens, {completion.decode_tokens_per_s:.0f} tokens/s")
    return completion


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--tokens", type=int, default=1200)
    options = parser.parse_args()
    main(options.model, options.tokens)
