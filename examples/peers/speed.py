"""Timed runs of several engines over the same cases, and the rows that come of them."""

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from examples.peers.engines import Host
from examples.peers.process import Case, PeerError, Worker
from examples.peers.timing import spread

Log = Callable[[str], None]
Results = dict[tuple[str, Case], list[dict]]


def measure(
    folder: Path,
    names: Sequence[str],
    cases: Sequence[Case],
    host: Host,
    *,
    repeats: int,
    loading: int,
    log: Log,
) -> list[dict]:
    """A row per peer and case. loading: how many engines load and warm up at once; 0: each has the
    machine to itself from its start to its end. Where several are held, repetitions alternate
    between them, so that a busy moment hits all alike. An engine that fails gets a row with its
    error; the others go on.
    """
    results: Results = {}
    errors: dict[str, str] = {}
    groups = [[name] for name in names] if loading == 0 else [list(names)]
    for group in groups:
        with contextlib.ExitStack() as stack:
            noises = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in group]
            said = dict(zip(group, noises, strict=True))
            workers = _start(stack, folder, said, cases, host, max(loading, 1), errors, log)
            _repeat(workers, cases, repeats, results, errors, log)
    return _rows(folder.name, names, cases, results, errors)


def _start(stack, folder, said, cases, host, loading, errors, log) -> list[Worker]:
    """Workers that have run every case once: it compiles, and touches every page. said: a file by
    name for what each says.
    """

    def start(name: str) -> Worker | None:
        log(f"{folder.name}: loading {name}")
        try:
            worker = Worker(name, folder, host, said[name])
        except PeerError as error:
            errors[name] = str(error)
            return None
        stack.callback(worker.close)
        try:
            for case in cases:
                worker.run(case, seed=0)
        except PeerError as error:
            errors[name] = str(error)
            return None
        log(f"{folder.name}: {name} is ready")
        return worker

    with ThreadPoolExecutor(loading) as starters:
        found = list(starters.map(start, said))
    return [worker for worker in found if worker is not None]


def _repeat(workers, cases, repeats, results: Results, errors, log: Log) -> None:
    for repeat in range(1, repeats + 1):
        for case in cases:
            log(f"repetition {repeat} of {repeats}, batch {case.batch}, context {case.context}")
            for worker in workers:
                if worker.name in errors:
                    continue
                try:
                    timed = worker.run(case, seed=repeat)
                except PeerError as error:
                    errors[worker.name] = str(error)
                else:
                    results.setdefault((worker.name, case), []).append(timed)
                    log(
                        f"  {worker.name}: prefill {1e3 * timed['prefill_s']:.4g} ms, decode "
                        f"{timed['decode_tokens'] / timed['decode_s']:.4g} tokens/s"
                    )


def _rows(model: str, names, cases, results: Results, errors: dict[str, str]) -> list[dict]:
    rows = []
    for name in names:
        if name in errors:
            rows += [
                {"model": model, "peer": name, **c._asdict(), "error": errors[name]} for c in cases
            ]
            continue
        for case in cases:
            reference = next(results[other, case] for other in names if other not in errors)
            rows.append(_row(model, name, case, results[name, case], reference))
    return rows


def _row(model: str, name: str, case: Case, timed: list[dict], reference: list[dict]) -> dict:
    return {
        "model": model,
        "peer": name,
        **case._asdict(),
        "prefill_ms": _spread(1e3 * t["prefill_s"] for t in timed),
        "step_ms": _spread(1e3 * t["decode_s"] * case.batch / t["decode_tokens"] for t in timed),
        "prefill_tok_s": _spread(case.batch * case.context / t["prefill_s"] for t in timed),
        "decode_tok_s": _spread(t["decode_tokens"] / t["decode_s"] for t in timed),
        "first_tokens_as_reference": statistics.mean(
            a[0] == b[0]
            for ours, theirs in zip(timed, reference, strict=True)
            for a, b in zip(ours["tokens"], theirs["tokens"], strict=True)
        ),
    }


def _spread(values: Iterable[float]) -> dict[str, float]:
    return spread(list(values))
