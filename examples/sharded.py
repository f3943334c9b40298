"""One model over several devices: two copies for data, each split in two. Without real devices, CPU
stands in for them.

python examples/sharded.py [--model FOLDER|ORG/NAME]
"""

import argparse

import jax

import jaxinfer

PROMPTS = ("import os", "The purpose of this module is to")


def main(name: str | None = None) -> list[jaxinfer.Completion]:
    greedy = jaxinfer.SamplingParams(temperature=0.0, max_new_tokens=24)
    alone = jaxinfer.load(name, dtype="float32").generate(PROMPTS, greedy)

    model = jaxinfer.load(name, dtype="float32", mesh="data=2,model=2")
    for parameter in jax.tree.leaves(model.params)[:4]:
        print(f"{parameter.shape!s:<14}{parameter.sharding.spec}")
    completions = model.generate(PROMPTS, greedy)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        print(f"--- {prompt!r}\n{completion.text}")
    same = [c.token_ids for c in completions] == [c.token_ids for c in alone]
    print(f"{model.mesh.size} devices give the tokens of one: {same}")
    return completions


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    name = parser.parse_args().model
    jax.config.update("jax_num_cpu_devices", 4)  # used where there is no accelerator
    main(name)
