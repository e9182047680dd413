"""Media that wait for their decoder or are being sampled, a slice of time at a time."""

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


class MediaJobs:
    """The media of many answers, in batches of one modality, first come first served."""

    def __init__(self, sampler: MediaSampler, seconds: float):
        """`seconds`: of a slice."""
        self._sampler, self._seconds = sampler, seconds
        self._waiting: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._batch: MediaBatch | None = None
        self._evaluation_seconds: dict[tuple[BatchKey, int], float] = {}  # the fewest, by size of the batch

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def add(self, owner: Any, group: SignalGroup, deliver: Deliver) -> None:
        """Puts a medium into the queue. `deliver` is called once, unless its owner is dropped before."""
        self._waiting.append(_Job(owner, group, deliver))

    def drop(self, owner: Any) -> None:
        """Forgets all media of an owner."""
        self._waiting = deque(job for job in self._waiting if job.owner is not owner)
        for job in self._running:
            if job.owner is owner:
                job.deliver = lambda content: None
                job.owner = None
        if self._running and all(job.owner is None for job in self._running):
            self._running, self._batch = [], None

    def advance(self) -> None:
        """Samples for about the seconds of a slice, and delivers what is finished."""
        if not self._batch and not self._start():
            return
        assert self._batch
        of = self._sampler.key(self._running[0].group)
        key = (of, self._sampler.padded_size(of.modality, len(self._running)))
        try:
            each = self._evaluation_seconds.get(key)
            evaluations = max(1, int(self._seconds / each)) if each else 1
            begin, before = time.perf_counter(), self._batch.done
            self._batch.advance(evaluations)
            self._batch.wait()
            done = self._batch.done - before
            if each or before:  # the very first may compile
                seconds = (time.perf_counter() - begin) / max(1, done)
                self._evaluation_seconds[key] = min(each or seconds, seconds)
            if self._batch.done == self._batch.evaluations:
                contents = self._batch.finish()
                finished, self._running, self._batch = self._running, [], None
                for job, content in zip(finished, contents, strict=True):
                    job.deliver(content)
        except Exception as error:
            self._failed(error)

    def _start(self) -> bool:
        """Forms the next batch. Whether there is one."""
        if not self._waiting:
            return False
        first = self._waiting[0]
        key = self._sampler.key(first.group)
        size = 1 if first.alone else self._size(key)
        for job in self._waiting:
            if len(self._running) < size and job.alone == first.alone and self._sampler.key(job.group) == key:
                self._running.append(job)
        chosen = set(map(id, self._running))
        self._waiting = deque(job for job in self._waiting if id(job) not in chosen)
        try:
            self._batch = self._sampler.start([job.group for job in self._running])
        except Exception as error:
            self._failed(error)
        return self._batch is not None

    def _size(self, key: BatchKey) -> int:
        """The size of a batch: it is doubled as long as an evaluation fits into a slice, or media get cheaper by it.

        A larger one would only keep text waiting, and its own media. A size that was never tried is tried.
        """
        size = self._sampler.padded_size(key.modality, 1)
        while (larger := self._sampler.padded_size(key.modality, size + 1)) > size:
            seconds, more = (self._evaluation_seconds.get((key, n)) for n in (size, larger))
            if seconds is None or (more and more > max(self._seconds, _CHEAPER * seconds * larger / size)):
                break
            size = larger
        return size

    def _failed(self, error: Exception) -> None:
        """Samples the media of a batch that failed one by one: only those that fail alone are lost."""
        failed, self._running, self._batch = self._running, [], None
        if len(failed) == 1:
            failed[0].deliver(error)
            return
        for job in reversed([job for job in failed if job.owner is not None]):
            job.alone = True
            self._waiting.appendleft(job)
