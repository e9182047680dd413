"""Media that wait for their decoder or are being sampled, a slice of time at a time."""

import concurrent.futures
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from nextgpt_jax.inference.media_sampler import BatchKey, MediaBatch, MediaSampler, SignalGroup

_CHEAPER = 0.8  # of its time by itself: what a medium takes in a batch that is worth doubling

Deliver = Callable[[Any], None]  # takes the content of a medium, or the exception that sampling it raised


class _Job:
    def __init__(self, owner: Any, group: SignalGroup, deliver: Deliver):
        self.owner, self.group, self.deliver, self.alone = owner, group, deliver, False


class _Batch:
    """Jobs of one key that are being sampled together."""

    def __init__(self, jobs: list[_Job], sampled: MediaBatch, key: BatchKey, size: int):
        self.jobs, self.sampled, self.key, self.size = jobs, sampled, key, size
        self.outcome: concurrent.futures.Future | None = None  # of the thread that samples it, if there is one

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for its media."""
        return all(job.owner is None for job in self.jobs)


class MediaJobs:
    """The media of many answers, in batches of one modality, first come first served.

    An accelerator samples one batch, in slices of time between which text is decoded. On a CPU, which neither of them
    fills, batches are sampled by threads of their own.
    """

    def __init__(self, sampler: MediaSampler, seconds: float, batches: int = 1):
        """
        Args:
          seconds: of a slice.
          batches: that are sampled at the same time; of several, each by a thread.
        """
        self._sampler, self._seconds, self._batches = sampler, seconds, batches
        self._threads = concurrent.futures.ThreadPoolExecutor(batches, "media") if batches > 1 else None
        self._waiting: deque[_Job] = deque()
        self._running: list[_Batch] = []
        self._finished: deque[tuple[_Job, Any]] = deque()  # not delivered yet, with their contents
        # The fewest, by key and size of a batch, and how many were sampled at the same time.
        self._evaluation_seconds: dict[tuple[BatchKey, int, int], float] = {}

    def __len__(self) -> int:
        return len(self._waiting) + sum(len(batch.jobs) for batch in self._running) + len(self._finished)

    def add(self, owner: Any, group: SignalGroup, deliver: Deliver) -> None:
        """Puts a medium into the queue. `deliver` is called once, unless its owner is dropped before."""
        self._waiting.append(_Job(owner, group, deliver))

    def drop(self, owner: Any) -> None:
        """Forgets all media of an owner."""
        self._waiting = deque(job for job in self._waiting if job.owner is not owner)
        for job in [*(job for batch in self._running for job in batch.jobs), *(job for job, _ in self._finished)]:
            if job.owner is owner:
                job.deliver = lambda content: None
                job.owner = None
        self._running = [batch for batch in self._running if not batch.abandoned]

    def advance(self, *, wait: bool = True) -> None:
        """Samples for about the seconds of a slice, and delivers what is finished. With threads, it only waits for so
        long, or with `wait` false not at all."""
        while self._waiting and len(self._running) < self._batches:
            self._start()
        outcomes = self._looked_at(wait) if self._threads else [self._slice(batch) for batch in self._running]
        running = []
        for batch, contents in zip(self._running, outcomes, strict=True):
            if contents is None:
                running.append(batch)
            elif isinstance(contents, Exception):
                self._failed(batch.jobs, contents)
            else:
                self._finished.extend(zip(batch.jobs, contents, strict=True))
        self._running = running
        while self._finished:  # in any case, but not twice: a delivery may raise, or drop others
            job, content = self._finished.popleft()
            job.deliver(content)

    def close(self) -> None:
        """Ends the threads."""
        if self._threads:
            self._threads.shutdown(wait=False)

    def _looked_at(self, wait: bool) -> list[list[Any] | Exception | None]:
        """What came of the running batches, as of `_slice`."""
        assert self._threads
        for batch in self._running:
            batch.outcome = batch.outcome or self._threads.submit(self._sample, batch)
        outcomes = [batch.outcome for batch in self._running if batch.outcome]
        if wait:
            concurrent.futures.wait(outcomes, self._seconds, concurrent.futures.FIRST_COMPLETED)
        return [outcome.result() if outcome.done() else None for outcome in outcomes]

    def _sample(self, batch: _Batch) -> list[Any] | Exception | None:
        """Samples a batch in a thread, to its end or until it is abandoned."""
        outcome = None
        while outcome is None and not batch.abandoned:
            outcome = self._slice(batch)
        return outcome

    def _slice(self, batch: _Batch) -> list[Any] | Exception | None:
        """Samples a batch for a slice. Its contents once they are finished, or the exception that it raised."""
        sampled, of = batch.sampled, (batch.key, batch.size, len(self._running))
        try:
            each = self._evaluation_seconds.get(of)
            evaluations = max(1, int(self._seconds / each)) if each else 1
            begin, before = time.perf_counter(), sampled.done
            sampled.advance(evaluations)
            sampled.wait()
            done = sampled.done - before
            if each or before:  # the very first may compile
                seconds = (time.perf_counter() - begin) / max(1, done)
                self._evaluation_seconds[of] = min(each or seconds, seconds)
            return sampled.finish() if sampled.done == sampled.evaluations else None
        except Exception as error:
            return error

    def _start(self) -> None:
        """Forms the next batch."""
        first = self._waiting[0]
        key = self._sampler.key(first.group)
        size = 1 if first.alone else self._size(key)
        jobs: list[_Job] = []
        for job in self._waiting:
            if len(jobs) < size and job.alone == first.alone and self._sampler.key(job.group) == key:
                jobs.append(job)
        chosen = set(map(id, jobs))
        self._waiting = deque(job for job in self._waiting if id(job) not in chosen)
        try:
            sampled = self._sampler.start([job.group for job in jobs])
        except Exception as error:
            self._failed(jobs, error)
            return
        self._running.append(_Batch(jobs, sampled, key, self._sampler.padded_size(key.modality, len(jobs))))

    def _size(self, key: BatchKey) -> int:
        """The size of a batch: it is doubled as long as an evaluation fits into a slice, or media get cheaper by it.

        A larger one would only keep text waiting, and its own media. A size that was never tried is tried.
        """
        size = self._sampler.padded_size(key.modality, 1)
        together = min(self._batches, len(self._running) + len(self._waiting))
        while (larger := self._sampler.padded_size(key.modality, size + 1)) > size:
            seconds, more = (self._evaluation_seconds.get((key, n, together)) for n in (size, larger))
            if seconds is None or (more and more > max(self._seconds, _CHEAPER * seconds * larger / size)):
                break
            size = larger
        return size

    def _failed(self, jobs: list[_Job], error: Exception) -> None:
        """Samples the media of a batch that failed one by one: only those that fail alone are lost."""
        if len(jobs) == 1:
            self._finished.append((jobs[0], error))
            return
        for job in reversed([job for job in jobs if job.owner is not None]):
            job.alone = True
            self._waiting.appendleft(job)
