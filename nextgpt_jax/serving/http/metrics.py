"""What /metrics shows, for Prometheus: the batcher's counts, and how long requests and answers take."""

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from nextgpt_jax.serving.answers import Event
from nextgpt_jax.serving.batcher import Batcher

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_ENDINGS = ("answered", "cancelled", "timed_out", "failed", "refused")


class _Counts:
    """The batcher's counts at the moment they are asked for."""

    def __init__(self, batcher: Batcher):
        self._batcher = batcher

    def collect(self) -> Iterator[Metric]:
        stats = self._batcher.stats()
        yield GaugeMetricFamily("nextgpt_waiting", "Requests in the queue.", stats.waiting)
        yield GaugeMetricFamily("nextgpt_decoding", "Requests in rows of the batch.", stats.decoding)
        yield GaugeMetricFamily("nextgpt_rows", "Rows of the batch.", self._batcher.config.rows)
        yield GaugeMetricFamily("nextgpt_media_pending", "Media that wait or are being sampled.", stats.media)
        yield CounterMetricFamily("nextgpt_steps", "Decoding steps.", stats.steps)
        yield CounterMetricFamily("nextgpt_tokens", "Tokens of complete answers.", stats.tokens)
        yield CounterMetricFamily("nextgpt_prompt_tokens", "Tokens of prompts that were read.", stats.prompt_tokens)
        media = CounterMetricFamily("nextgpt_media", "Generated media.", labels=["modality"])
        for name in self._batcher.engine.config.output_modalities:
            media.add_metric([name], stats.sampled[name])
        yield media
        ended = CounterMetricFamily("nextgpt_answers", "Requests by how they ended.", labels=["how"])
        for name in _ENDINGS:
            ended.add_metric([name], stats.ended[name])
        yield ended


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self, batcher: Batcher):
        self._registry = CollectorRegistry()
        self._registry.register(_Counts(batcher))
        self._first = Histogram(
            "nextgpt_first_event_seconds",
            "Until the first text or medium of a streamed answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._answers = Histogram(
            "nextgpt_answer_seconds", "Until an answer was complete.", buckets=_SECONDS, registry=self._registry
        )
        self._http = Histogram(
            "nextgpt_http_seconds",
            "Until a response was sent, by route.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._statuses = Counter(
            "nextgpt_http_responses", "Responses by route and status.", ["route", "status"], registry=self._registry
        )

    def answer(self) -> Callable[[Event], None]:
        """Takes the events of an answer that begins now."""
        start, seen = time.monotonic(), False

        def take(event: Event) -> None:
            nonlocal seen
            if isinstance(event, Exception):
                return
            seconds = time.monotonic() - start
            if not seen and not event.response:
                self._first.observe(seconds)
            seen = True
            if event.response:
                self._answers.observe(seconds)

        return take

    def http(self, route: str, status: int, seconds: float) -> None:
        """Counts a response."""
        self._statuses.labels(route, str(status)).inc()
        self._http.labels(route).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self._registry)
