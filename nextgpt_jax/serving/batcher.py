"""Continuous batching: requests join and leave the rows of one batch while the others are decoded.

One thread, in turn, lets waiting requests join free rows, decodes a few steps of all rows, and samples media for a
slice of time (on CPUs, other threads sample them meanwhile); so text goes on while media are made, and a new request
waits for no other's end.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from nextgpt_jax.config import ServingConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.inference.batching import BatchShape
from nextgpt_jax.inference.engine import Engine
from nextgpt_jax.inference.media_sampler import SignalGroup
from nextgpt_jax.inference.programs import Progress
from nextgpt_jax.inference.responses import TextStream, known_ids
from nextgpt_jax.inference.types import MediaOutput, Request, Response, StreamEvent
from nextgpt_jax.inference.validation import check_conversation
from nextgpt_jax.models.llms import kv_cache
from nextgpt_jax.serving.answers import Answer, Cancelled, Event, QueueFull, TimedOut
from nextgpt_jax.serving.media_jobs import MediaJobs
from nextgpt_jax.serving.stops import StopText, cut_response
from nextgpt_jax.templates import TokenizedConversation

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Stats:
    """What a batcher does at a moment, and what it has done since its start.

    Attributes:
      waiting: requests in the queue.
      decoding: requests in rows.
      media: media that wait for their decoder or are being sampled.
      steps: decoding steps of all rows.
      tokens: tokens of complete answers.
      prompt_tokens: tokens of the prompts that were read.
      sampled: generated media, by modality.
      ended: requests by how they ended: "answered", "cancelled", "timed_out", "failed", or "refused" by a full queue.
    """

    waiting: int = 0
    decoding: int = 0
    media: int = 0
    steps: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    sampled: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    ended: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


class _Job:
    """A request on its way through the batcher."""

    def __init__(
        self,
        request: Request,
        conversation: TokenizedConversation,
        stream: TextStream | None,
        stops: Sequence[str],
        deadline: float,
        streams: bool,
    ):
        self.request, self.conversation, self.deadline = request, conversation, deadline
        self.answer: Answer  # set once, by submit
        self.streams = streams  # parts are delivered
        self.stream, self.stops, self.stop_text = stream, stops, StopText(stops)
        self.row: int | None = None
        self.tokens = 0  # of the answer when it was last looked at
        self.groups = 0  # signal groups that were given to the decoders
        self.media: dict[int, MediaOutput] = {}  # by group; those that are not delivered yet
        self.response: Response | None = None  # the text is complete
        self.wanted = 0  # media of the response
        self.cancelled = False


class Batcher:
    """Answers requests on an engine; any thread may submit them.

    An answer depends on its request alone, not on the others or on its row.
    """

    def __init__(self, engine: Engine, config: ServingConfig | None = None):
        """Starts the thread.

        Raises:
          UserError: a setting is out of range.
        """
        self.engine, self.config = engine, config or ServingConfig()
        context, new_tokens = sizes(self.config, engine)
        sizes_of_row = {"context": context, "max_new_tokens": new_tokens}
        self.device_rows = engine.rows(self.config.rows, **sizes_of_row, kv_cache=self.config.kv_cache)
        self._free = list(reversed(range(self.device_rows.rows)))
        self._active: dict[int, _Job] = {}
        self._joining: list[_Job] = []  # neither in the queue nor, yet, in a row
        batches = self.config.media_batches or engine.media_sampler.concurrent_batches
        self._media = MediaJobs(engine.media_sampler, self.config.media_seconds, batches)
        self._unfinished: dict[int, _Job] = {}  # answers whose media are missing, by id
        self._in_flight: collections.deque[tuple[Progress, dict[int, _Job]]] = collections.deque()
        self._wakeup = threading.Condition()  # guards what follows
        self._waiting: collections.deque[_Job] = collections.deque()
        self._calls: list[tuple[concurrent.futures.Future, Callable[[], Any]]] = []
        self._closing, self._draining = False, True
        self._stats = Stats()
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def submit(
        self,
        request: Request,
        *,
        stops: Sequence[str] = (),
        stream: bool = True,
        timeout: float | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> Answer:
        """Puts a request into the queue.

        Args:
          stops: texts at which the answer ends, and which are not part of it.
          stream: deliver text and media as they are finished, not only the complete response.
          timeout: seconds until the answer is given up; None: the config's.
          on_event: see `Answer`.

        Raises:
          UserError: the request cannot be answered (see `Engine.validate`), or needs more room than a row has.
          QueueFull: as many requests wait as may.
          Cancelled: the batcher is closed.
        """
        conversation = self.engine.validate(request)
        request = fit(request, conversation, self.engine, self.device_rows.context, self.device_rows.max_new_tokens)
        text = TextStream(self.engine.parser, self.engine.stop_sequences) if stream or stops else None
        seconds = self.config.timeout if timeout is None else timeout
        job = _Job(request, conversation, text, tuple(stops), time.monotonic() + seconds, stream)
        job.answer = Answer(len(conversation.ids), functools.partial(self._cancel, job), on_event)
        with self._wakeup:
            if self._closing:
                raise Cancelled("the server is shutting down")
            if len(self._waiting) >= self.config.queue:
                self._stats.ended["refused"] += 1
                raise QueueFull(f"{self.config.queue} requests are waiting: try again later")
            self._waiting.append(job)
            self._wakeup.notify()
        return job.answer

    def call(self, function: Callable[[], Any]) -> concurrent.futures.Future:
        """Calls a function in the batcher's thread, between two looks: for other, short uses of the device.

        Raises:
          Cancelled: the batcher is closed.
        """
        future: concurrent.futures.Future = concurrent.futures.Future()
        with self._wakeup:
            if self._closing:
                raise Cancelled("the server is shutting down")
            self._calls.append((future, function))
            self._wakeup.notify()
        return future

    def stats(self) -> Stats:
        """A copy of the counts."""
        with self._wakeup:
            stats = dataclasses.replace(self._stats)
            stats.sampled, stats.ended = self._stats.sampled.copy(), self._stats.ended.copy()
            stats.waiting, stats.decoding, stats.media = len(self._waiting), len(self._active), len(self._media)
        return stats

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def close(self, *, drain: bool = True) -> None:
        """Takes no more requests and waits until those it has are answered or, without `drain`, given up."""
        with self._wakeup:
            self._closing, self._draining = True, self._draining and drain
            self._wakeup.notify()
        self._thread.join()

    def __enter__(self) -> "Batcher":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.close(drain=kind is None)

    def _cancel(self, job: _Job) -> None:
        with self._wakeup:
            job.cancelled = True
            self._wakeup.notify()

    # What follows runs in the batcher's thread.

    def _run(self) -> None:
        while self._wait():
            try:
                self._drop()
                self._run_calls()
                self._join()
                self._decode()
                self._sample()
            except Exception as error:  # a fault of the program: the rows are lost, the queue is not
                _log.exception("decoding failed; its requests are given up")
                self._reset(error)
        for job in [*self._active.values(), *self._unfinished.values(), *self._take_waiting(None)]:
            self._end(job, Cancelled("the server is shutting down"), "cancelled")
        self._run_calls()
        self._media.close()

    def _wait(self) -> bool:
        """Waits for something to do. False once the batcher is closed."""
        with self._wakeup:
            while not (self._calls or self._waiting or self._active or self._in_flight or self._unfinished):
                if self._closing:
                    return False
                self._wakeup.wait()
            return self._draining or not self._closing

    def _run_calls(self) -> None:
        with self._wakeup:
            calls, self._calls = self._calls, []
        for future, function in calls:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

    def _take_waiting(self, count: int | None) -> list[_Job]:
        with self._wakeup:
            count = len(self._waiting) if count is None else min(count, len(self._waiting))
            return [self._waiting.popleft() for _ in range(count)]

    def _drop(self) -> None:
        """Ends the requests that were cancelled or are too late."""
        now = time.monotonic()
        with self._wakeup:
            waiting = [*self._waiting]
        for job in [*waiting, *self._active.values(), *self._unfinished.values()]:
            if job.cancelled:
                self._end(job, Cancelled("the request was cancelled"), "cancelled")
            elif now > job.deadline:
                self._end(job, TimedOut("the answer took longer than its time limit"), "timed_out")

    def _join(self) -> None:
        """Lets waiting requests join free rows: a few if others are being decoded, as many as there are rows if not."""
        jobs = self._take_waiting(min(len(self._free), self.config.joins if self._active else len(self._free)))
        self._joining = jobs
        ready: dict[Any, list[tuple[_Job, list[np.ndarray]]]] = {}
        for job, embeddings in zip(jobs, self._encode(jobs) if jobs else (), strict=True):
            if isinstance(embeddings, Exception):
                _log.error("encoding media failed", exc_info=embeddings)
                self._end(job, embeddings, "failed")
                continue
            shape = self.device_rows.shape(1, len(job.conversation.ids), self.engine.num_embeddings(job.conversation))
            ready.setdefault(shape, []).append((job, embeddings))
        for shape, same in ready.items():  # prompts that are rounded up to the same length are read together
            for start in range(0, len(same), self.config.joins):
                self._read_prompts(same[start : start + self.config.joins], shape)
        self._joining = []

    def _read_prompts(self, prompts: Sequence[tuple[_Job, list[np.ndarray]]], shape: BatchShape) -> None:
        """Puts prompts into rows; those of a batch that fails one by one."""
        jobs = [job for job, _ in prompts]
        rows = self._free[-len(jobs) :]
        size = 1 if len(jobs) == 1 else self.config.joins
        try:
            self.device_rows.join(
                rows,
                [job.request for job in jobs],
                [job.conversation for job in jobs],
                [embedding for _, embeddings in prompts for embedding in embeddings],
                shape._replace(rows=size),
            )
        except Exception as error:
            if len(jobs) > 1:
                for prompt in prompts:
                    self._read_prompts([prompt], shape)
                return
            _log.exception("reading a prompt failed")
            self._end(jobs[0], error, "failed")
            return
        del self._free[-len(jobs) :]
        for job, row in zip(jobs, rows, strict=True):
            job.row = row
            self._active[row] = job
        with self._wakeup:
            self._stats.prompt_tokens += sum(len(job.conversation.ids) for job in jobs)

    def _encode(self, jobs: Sequence[_Job]) -> list[list[np.ndarray] | Exception]:
        """The embeddings of the inputs of each request, computed together; those of one by one if that fails."""
        try:
            embeddings = iter(self.engine.encode([m for job in jobs for _, m in job.conversation.inputs]))
            return [[next(embeddings) for _ in job.conversation.inputs] for job in jobs]
        except Exception as error:
            if len(jobs) == 1:
                return [error]
            return [self._encode([job])[0] for job in jobs]

    def _decode(self) -> None:
        """Starts the next steps, and looks at those before while they are computed."""
        if self._active:
            progress = self.device_rows.advance(self.config.decode_steps, self._most_tokens())
            self._in_flight.append((progress, dict(self._active)))
            with self._wakeup:
                self._stats.steps += self.config.decode_steps
        while len(self._in_flight) > bool(self._active):
            progress, jobs = self._in_flight.popleft()
            self._read(jax.device_get(progress), jobs)

    def _most_tokens(self) -> int:
        """Tokens that no row will have more of after the next steps, prompts included."""
        steps = self.config.decode_steps * (len(self._in_flight) + 1)
        most = 0
        for job in self._active.values():
            groups = 0 if job.request.modality == "text" else min(steps, self.engine.defaults.max_media - job.groups)
            tokens = job.tokens + steps + groups * self.engine.widest_group
            most = max(most, len(job.conversation.ids) + min(tokens, job.request.max_new_tokens))
        return most

    def _read(self, progress: Progress, jobs: dict[int, _Job]) -> None:
        for row, job in jobs.items():
            if job.row is None:
                continue
            ids, done = known_ids(progress, row)
            job.tokens = int(progress.num_tokens[row])
            self._start_media(job, progress)
            if job.stream:
                text = job.stop_text.advance(job.stream.advance(ids, done), done)
                if text and job.streams:
                    job.answer.deliver(StreamEvent(text=text))
            if done or job.stop_text.stopped:
                stopped = job.stop_text.stopped or bool(progress.stopped[row])
                response = self.engine.parser.response(ids, len(job.conversation.ids), stopped)
                if not done:
                    self.device_rows.leave(row)
                if job.stop_text.stopped:
                    response = cut_response(response, job.stops)
                job.response = response
                job.wanted = sum(not isinstance(s, str) for s in response.segments)
                self._free_row(job)
                self._unfinished[id(job)] = job
                self._deliver_media(job)

    def _start_media(self, job: _Job, progress: Progress) -> None:
        """Gives new signal groups of a row to their decoders."""
        assert job.row is not None
        if (count := int(progress.num_groups[job.row])) == job.groups:
            return
        hidden = self.device_rows.group_hidden(job.row)
        for g in range(job.groups, count):
            name = self.engine.config.output_modalities[progress.group_modality[job.row, g]]
            self._media.add(
                job, SignalGroup(job.request, g, name, hidden[g]), functools.partial(self._sampled, job, g, name)
            )
        job.groups = count

    def _sampled(self, job: _Job, group: int, name: str, content: Any) -> None:
        if isinstance(content, Exception):
            _log.error("sampling media failed", exc_info=content)
            self._end(job, content, "failed")
            return
        with self._wakeup:
            self._stats.sampled[name] += 1
        job.media[group] = MediaOutput(name, content)
        self._deliver_media(job)

    def _deliver_media(self, job: _Job) -> None:
        """Delivers media after the text, in the order of the response, and the response after them."""
        if not (response := job.response) or id(job) not in self._unfinished:
            return
        while len(response.media) < job.wanted and (medium := job.media.pop(len(response.media), None)):
            response.media.append(medium)
            if job.streams:
                job.answer.deliver(StreamEvent(media=medium))
        if len(response.media) == job.wanted:
            self._end(job, StreamEvent(response=response), "answered")

    def _sample(self) -> None:
        if self._media:
            self._media.advance(wait=not self._active)

    def _free_row(self, job: _Job) -> None:
        if job.row is not None:
            del self._active[job.row]
            self._free.append(job.row)
            job.row = None

    def _end(self, job: _Job, event: Event, how: str) -> None:
        """Delivers the last event of a request and forgets it."""
        if job.row is not None:
            self.device_rows.leave(job.row)
            self._free_row(job)
        self._unfinished.pop(id(job), None)
        self._media.drop(job)
        with self._wakeup:
            if job in self._waiting:
                self._waiting.remove(job)
            self._stats.ended[how] += 1
            self._stats.tokens += job.response.tokens if how == "answered" and job.response else 0
        job.answer.deliver(event)

    def _reset(self, error: Exception) -> None:
        """Gives up what is in the rows, whose state may be lost, and goes on with empty ones."""
        self._in_flight.clear()
        self.device_rows.clear()
        lost = [
            *self._active.values(),
            *(job for job in self._joining if not (job.answer.ended or job.row is not None)),
        ]
        self._joining = []
        for job in lost:
            self._free_row(job)
            self._end(job, error, "failed")


def sizes(config: ServingConfig, engine: Engine) -> tuple[int, int]:
    """The tokens of a row, and those of an answer at most.

    Raises:
      UserError: a setting is out of range.
    """
    model = engine.config.llm.max_position_embeddings
    if not 0 <= config.context <= model:
        raise UserError(f"serving.context is {config.context}: the model has {model}")
    for name in ("rows", "queue", "decode_steps", "joins", "timeout", "media_seconds"):
        if getattr(config, name) <= 0:
            raise UserError(f"serving.{name} is {getattr(config, name)}: give more than 0")
    if config.max_new_tokens < 0:
        raise UserError(f"serving.max_new_tokens is {config.max_new_tokens}: give 0 (the context) or more")
    if config.media_batches < 0:
        raise UserError(f"serving.media_batches is {config.media_batches}: give 0 (by the device) or more")
    if config.media_batches > 1 and engine.media_sampler.mesh:
        raise UserError(f"serving.media_batches is {config.media_batches}: on a mesh, batches are sampled one by one")
    kv_cache.check(config.kv_cache)
    context = config.context or model
    return context, min(config.max_new_tokens or context, context)


def fit(
    request: Request, conversation: TokenizedConversation, engine: Engine, context: int, new_tokens: int
) -> Request:
    """The request with its limit of tokens lowered to what a row has room for.

    Raises:
      UserError: the prompt or the forced media do not fit, or the request asks for more than `new_tokens`.
    """
    length = len(conversation.ids)
    if length >= context:
        raise UserError(f"the prompt has {length} tokens, but serving.context is {context}: shorten it")
    if request.max_new_tokens > new_tokens:
        raise UserError(f"max_new_tokens is {request.max_new_tokens}, but serving.max_new_tokens is {new_tokens}")
    fitted = dataclasses.replace(request, max_new_tokens=min(request.max_new_tokens, context - length))
    check_conversation(conversation, fitted, engine.config)
    return fitted
