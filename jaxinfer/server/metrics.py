"""What a server counts, for Prometheus. Each server has a registry of its own."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from jaxinfer.server.loop import EngineLoop
from jaxinfer.server.ticket import Aborted, Ticket

SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """Histograms and counters; an observer of the engine's loop."""

    def __init__(self):
        self.registry = CollectorRegistry()

        def histogram(name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"jaxinfer_{name}", help, registry=self.registry, buckets=buckets)

        def counter(name: str, help: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"jaxinfer_{name}", help, labels, registry=self.registry)

        self.first = histogram(
            "time_to_first_token_seconds", "From a call to its first token.", LONG
        )
        self.between = histogram("inter_token_seconds", "From one token to the next.", SHORT)
        self.queued = histogram("queue_seconds", "From a call to its place in the batch.", LONG)
        self.whole = histogram("request_seconds", "From a call to its last token.", LONG)
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.")
        self.generated_tokens = counter("generated_tokens", "Tokens generated.")
        self.calls = counter("http_requests", "Answers by route and status.", ("route", "status"))
        self.ends = counter("tickets_ended", "Generating calls by how they ended.", ("reason",))

    def watch(self, loop: EngineLoop) -> None:
        """Show what the loop and its engine say of themselves whenever metrics are read."""
        self.registry.register(_LoopCollector(loop))

    def render(self) -> bytes:
        return generate_latest(self.registry)

    # as an observer of the loop

    def admitted(self, waited_s: float) -> None:
        self.queued.observe(waited_s)

    def tokens(self, ticket: Ticket, index: int, count: int, now: float) -> None:
        self.generated_tokens.inc(count)
        last = ticket.last.get(index)
        if last is None:
            self.first.observe(now - ticket.began)
            return
        for _ in range(count):
            self.between.observe((now - last) / count)

    def ended(self, ticket: Ticket) -> None:
        self.whole.observe(time.monotonic() - ticket.began)
        error = ticket.error
        reason = "finished" if error is None else "refused"
        self.ends.labels(str(error.cause) if isinstance(error, Aborted) else reason).inc()


class _LoopCollector:
    """Numbers read at the moment they are asked for."""

    def __init__(self, loop: EngineLoop):
        self._loop = loop

    def collect(self) -> Iterator[Metric]:
        loop, stats = self._loop, self._loop.engine.stats
        gauges = {
            "requests_running": ("Sequences in the batch.", stats.running),
            "requests_waiting": ("Sequences that wait for a place.", loop.open - stats.running),
            "slots": ("Places in the batch.", stats.slots),
            "pages": ("Pages of the cache; 0 where places own theirs.", stats.pages),
            "pages_used": ("Pages of the cache that are taken.", stats.pages_used),
            "pages_kept": ("Pages that nobody holds and prompts may find.", stats.pages_kept),
            "swap_space_bytes": ("Of the host's memory for pages that gave way.", stats.swap_size),
            "swap_used_bytes": ("Of it, taken.", stats.swap_used),
            "ready": ("1 where calls are taken.", loop.ready),
            "healthy": ("1 where steps make progress.", loop.healthy),
        }
        for name, (help, value) in gauges.items():
            yield GaugeMetricFamily(f"jaxinfer_{name}", help, value=max(float(value), 0.0))
        counters = {
            "steps": ("Steps of the engine.", stats.steps),
            "prefix_hit_tokens": ("Tokens of prompts found in the cache.", stats.prefix_tokens),
            "read_prompt_tokens": ("Tokens of prompts that entered.", stats.prompt_tokens),
            "preemptions": ("Sequences that gave way to others.", stats.preemptions),
            "swaps_out": ("Of them, those whose pages went to the host.", stats.swaps_out),
            "swaps_in": ("Sequences whose pages came back from the host.", stats.swaps_in),
            "swapped_out_bytes": ("Of pages, to the host.", stats.swap_bytes_out),
            "swapped_in_bytes": ("Of pages, from the host.", stats.swap_bytes_in),
            "step_failures": ("Steps that raised.", stats.failures),
            "recompiles": ("Programs compiled since ready.", stats.compiled - loop.compiled),
        }
        for name, (help, value) in counters.items():
            yield CounterMetricFamily(f"jaxinfer_{name}", help, value=value)
