"""Quality, bytes and decoding speed of a model held in every way that jaxinfer knows.

    python -m examples.quantization.compare --corpus corpus \\
        --output examples/quantization/results/pico-20m.json

`corpus` is a folder as `python -m examples.training.corpus build` writes it. Passages of its held-out
files are what is predicted, passages of its training files what calibration reads; where a setting is
chosen (GPTQ: whether its grids leave out the largest weights), it is by the perplexity of other
passages of the training files. Beside the JSON document a picture is drawn. `jaxinfer quantize` and
`jaxinfer quality` do the same with any texts.
"""

import argparse
import itertools
import json
import math
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.quantization import outliers
from examples.quantization.variants import Variant, judge, variants
from examples.training import corpus
from jaxinfer import Model, compile_cache, quality, shipped, weights
from jaxinfer.bench import environment
from jaxinfer.calibrate import calibrate
from jaxinfer.quality import plot
from jaxinfer.tokenizer import Tokenizer

KIND = "quantization"


def passages(path: Path, documents: range, size: int) -> str:
    """The first `size` characters of each of some documents (their order is that of a hash), one after
    the other.
    """
    found = itertools.islice(corpus.read(path), documents.start, documents.stop)
    return "\n".join(document.text[:size] for document in found)


@dataclass(frozen=True)
class Text:
    """ids, and how many bytes they spell."""

    ids: list[int]
    size: int


class Bench:
    """The texts, and the bfloat16 model that every variant is compared with. planted: a folder, not
    there yet, for its copy with planted outliers.
    """

    def __init__(self, values: argparse.Namespace, planted: Path):
        self._values, self._planted = values, planted
        self._tokenizer = Tokenizer.load(values.model)
        first, count = values.skipped_documents, values.documents
        self.held_out = self._text("held_out.jsonl", range(first, first + count))
        calibration = values.calibration_documents
        self.calibration = self._text("train.jsonl", range(calibration))
        self.choosing = self._text("train.jsonl", range(calibration, calibration + count))
        self.reference = self._timed(self._side(Variant("bfloat16", None)))
        self._reader = quality.Kept(self.reference)

    def measure(self, variant: Variant) -> dict:
        """One row, as `quality.Report` describes a candidate, under the variant's name."""
        begin = time.perf_counter()
        clip, side, tried = self._chosen(variant)
        made_s = time.perf_counter() - begin
        described = self._compare(self._timed(side), self.held_out).describe()
        described["candidate"]["setting"] = variant.name
        described["reference"]["setting"] = "bfloat16"
        recipe = variant.recipe
        about = {"name": variant.name, "method": None, "bits": variant.bits}
        about |= {"group": None, "zero": None, "kv_dtype": variant.kv_dtype}
        about |= {"planted": variant.planted, "by_text": variant.by_text}
        if recipe is not None:
            about |= dict(method=recipe.method, group=recipe.group, zero=not recipe.symmetric)
        if tried:
            about |= {"clip": clip, "tried": tried}
        return {**about, "made_s": made_s, **described}

    def _chosen(self, variant: Variant) -> tuple[bool, quality.Side, list[dict]]:
        """The side that predicts the choosing text best, and what each setting came to there."""
        if len(variant.clips) == 1:
            return variant.clips[0], self._side(variant), []
        best, found = (math.inf, True, None), []
        for clip in variant.clips:
            side = self._side(variant, clip=clip)
            rise = self._compare(side, self.choosing).rise[0]
            found.append({"clip": clip, "perplexity_rise": rise})
            if best[2] is None or rise < best[0]:
                best = rise, clip, side
        assert best[2] is not None
        return best[1], best[2], found

    def _compare(self, side: quality.Side, text: Text) -> quality.Report:
        return quality.compare(
            self.reference,
            side,
            text.ids,
            size=text.size,
            window=self._values.window,
            stride=self._values.stride,
            prompts=0,
            reader=self._reader,
        )

    def _side(self, variant: Variant, *, clip: bool = True) -> quality.Side:
        recipe, values = variant.recipe, self._values
        folder = values.model
        if variant.planted:
            folder = self._planted
            if not folder.exists():
                outliers.plant(values.model, folder)
        if variant.by_text and recipe is not None:
            loaded = calibrate(
                folder,
                recipe,
                self.calibration.ids,
                tokens=values.calibration_tokens,
                clip=clip,
                dtype=variant.dtype,
            )
        else:
            loaded = weights.load(folder, dtype=variant.dtype, quantize=recipe)
        model = Model(loaded.params, loaded.config, self._tokenizer, kv_dtype=variant.kv_dtype)
        return quality.Side(quality.Setting(dtype=variant.dtype, kv_dtype=variant.kv_dtype), model)

    def _timed(self, side: quality.Side) -> quality.Side:
        return quality.timed(side, self._values.repeats)

    def _text(self, name: str, documents: range) -> Text:
        values = self._values
        text = passages(values.corpus / name, documents, values.characters)
        return Text(self._tokenizer.encode(text), len(text.encode()))


def heading(argv: Sequence[str]) -> dict:
    """Where the numbers come from."""
    head = environment.describe(KIND, (), environment.hardware())
    return {**head, "command": shlex.join(["python", "-m", "examples.quantization.compare", *argv])}


def document(head: dict, bench: Bench, rows: list[dict], values: argparse.Namespace) -> dict:
    """What is written: `heading`, the reference, a row a variant, the bars."""
    together = quality.together(rows)
    rows = together.pop("candidates")
    texts = {
        "model": values.model.resolve().name,
        "held_out_tokens": len(bench.held_out.ids),
        "calibration_tokens": min(values.calibration_tokens, len(bench.calibration.ids)),
        "choosing_tokens": len(bench.choosing.ids),
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
    parser.add_argument(
        "--skipped_documents",
        type=int,
        default=30,
        help="held-out files before them: those by which the methods were made ready",
    )
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
    with tempfile.TemporaryDirectory() as folder:
        return _measure(values, Bench(values, Path(folder) / "planted"), argv)


def _measure(values: argparse.Namespace, bench: Bench, argv: Sequence[str]) -> dict:
    """Row after row, kept as soon as it is measured; then the picture."""
    chosen = [v for v in variants() if values.only is None or values.only in v.name]
    head, rows, found = heading(argv), [], {}
    for variant in chosen:
        row = bench.measure(variant)
        rows.append(row)
        words = f"{row['perplexity_rise']:+.3%} ± {row['perplexity_rise_error']:.3%}"
        size = row["candidate"]["weight_bytes"] / 1e6
        print(f"{variant.name}: {size:.1f} MB, perplexity {words}", file=sys.stderr, flush=True)
        found = document(head, bench, rows, values)
        values.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if rows:
        shown = {"reference": found["reference"], "tokens": found["tokens"], "candidates": rows}
        plot.draw_sizes(shown, values.output.with_suffix(".png"))
    return found


if __name__ == "__main__":
    main()
