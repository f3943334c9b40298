"""Quality, bytes and decoding speed of a model held in every way that jaxinfer knows.

    python -m examples.quantization.compare --corpus corpus \\
        --output examples/quantization/results/pico-20m.json

`corpus` is a folder as `python -m examples.training.corpus build` writes it: passages of its held-out
files are what is predicted, passages of its training files what calibration reads. Beside the JSON
document a picture is drawn. `jaxinfer quantize` and `jaxinfer quality` do the same with any texts.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from examples.quantization.variants import Variant, judge, variants
from examples.training import corpus
from jaxinfer import Model, compile_cache, quality, shipped, weights
from jaxinfer.bench import environment
from jaxinfer.calibrate import calibrate
from jaxinfer.quality import plot
from jaxinfer.tokenizer import Tokenizer

KIND = "quantization"


def passages(path: Path, count: int, size: int) -> str:
    """The first `size` characters of each of the first `count` documents (their order is that of a
    hash), one after the other.
    """
    texts = []
    for document in corpus.read(path):
        if len(texts) == count:
            break
        texts.append(document.text[:size])
    return "\n".join(texts)


class Bench:
    """The texts, and the bfloat16 model that every variant is compared with."""

    def __init__(self, values: argparse.Namespace):
        self._values, self._folder = values, values.model
        tokenizer = Tokenizer.load(self._folder)
        held_out = passages(values.corpus / "held_out.jsonl", values.documents, values.characters)
        training = passages(
            values.corpus / "train.jsonl", values.calibration_documents, values.characters
        )
        self.ids, self.calibration = tokenizer.encode(held_out), tokenizer.encode(training)
        self._tokenizer, self._bytes = tokenizer, len(held_out.encode())
        self.reference = self._side(Variant("bfloat16", None))
        self._reader = quality.Kept(self.reference)

    def measure(self, variant: Variant) -> dict:
        """One row, as `quality.Report` describes a candidate, under the variant's name."""
        begin = time.perf_counter()
        side, values = self._side(variant), self._values
        made_s = time.perf_counter() - begin
        report = quality.compare(
            self.reference,
            side,
            self.ids,
            size=self._bytes,
            window=values.window,
            stride=values.stride,
            prompts=0,
            reader=self._reader,
        )
        described = report.describe()
        described["candidate"]["setting"] = variant.name
        described["reference"]["setting"] = "bfloat16"
        recipe = variant.recipe
        about = {"name": variant.name, "method": None, "bits": None, "group": None, "zero": None}
        if recipe is not None:
            about |= dict(method=recipe.method, bits=4 if recipe.four_bits else 8)
            about |= dict(group=recipe.group, zero=not recipe.symmetric)
        return {**about, "by_text": variant.by_text, "made_s": made_s, **described}

    def _side(self, variant: Variant) -> quality.Side:
        recipe, values = variant.recipe, self._values
        if variant.by_text and recipe is not None:
            loaded = calibrate(
                self._folder,
                recipe,
                self.calibration,
                tokens=values.calibration_tokens,
                dtype=variant.dtype,
            )
        else:
            loaded = weights.load(self._folder, dtype=variant.dtype, quantize=recipe)
        model = Model(loaded.params, loaded.config, self._tokenizer)
        side = quality.Side(quality.Setting(dtype=variant.dtype), model)
        return quality.timed(side, values.repeats)


def document(bench: Bench, rows: list[dict], values: argparse.Namespace, argv) -> dict:
    """What is written: where the numbers come from, the reference, a row a variant, the bars."""
    together = quality.together(rows)
    rows = together.pop("candidates")
    head = environment.describe(KIND, (), environment.hardware())
    head["command"] = shlex.join(["python", "-m", "examples.quantization.compare", *argv])
    texts = {
        "model": values.model.resolve().name,
        "held_out_tokens": len(bench.ids),
        "calibration_tokens": min(values.calibration_tokens, len(bench.calibration)),
        "repeats": values.repeats,
    }
    rows = [{k: v for k, v in row.items() if k != "continuations"} for row in rows]
    return {**head, **texts, **together, "rows": rows, "bars": judge(rows)}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="a JSON file")
    parser.add_argument("--model", type=Path, default=shipped.target())
    parser.add_argument("--only", help="names of variants that hold this text")
    parser.add_argument("--documents", type=int, default=30, help="of the held-out files")
    parser.add_argument("--calibration_documents", type=int, default=80)
    parser.add_argument("--characters", type=int, default=4000, help="of each document at most")
    parser.add_argument("--calibration_tokens", type=int, default=32768)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--stride", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=5, help="of the timing")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict:
    argv = sys.argv[1:] if argv is None else list(argv)
    values = parse(argv)
    compile_cache.enable()
    bench = Bench(values)
    chosen = [v for v in variants() if values.only is None or values.only in v.name]
    rows, found = [], {}
    for variant in chosen:
        row = bench.measure(variant)
        rows.append(row)
        words = f"{row['perplexity_rise']:+.3%} ± {row['perplexity_rise_error']:.3%}"
        size = row["candidate"]["weight_bytes"] / 1e6
        print(f"{variant.name}: {size:.1f} MB, perplexity {words}", file=sys.stderr, flush=True)
        found = document(bench, rows, values, argv)  # what is measured is kept if the rest fails
        values.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if rows:
        shown = {"reference": found["reference"], "tokens": found["tokens"], "candidates": rows}
        plot.draw_sizes(shown, values.output.with_suffix(".png"))
    return found


if __name__ == "__main__":
    main()
