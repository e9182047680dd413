"""The size of the batches in which media are sampled, by what their evaluations take; and batches in threads."""

import contextlib
import threading
import time
import types

import pytest

from nextgpt_jax.inference.media_sampler import BatchKey
from nextgpt_jax.serving import media_jobs

STEPS = 4


class Device:
    """A sampler on a device with a clock, on which an evaluation of a batch takes `seconds(size)`."""

    def __init__(self, seconds):
        self.now, self.sizes, self._seconds = 0.0, [], seconds

    def perf_counter(self):
        return self.now

    def key(self, group):
        return BatchKey(group, STEPS, "")

    def padded_size(self, modality, rows):
        return min(1 << (rows - 1).bit_length(), 32)

    def start(self, groups):
        size = self.padded_size("image", len(groups))
        self.sizes.append(size)
        return Batch(self, self._seconds(size), len(groups))


class Batch:
    def __init__(self, device, seconds, count):
        self.evaluations, self.done = STEPS, 0
        self._device, self._seconds, self._count, self._pending = device, seconds, count, 0

    def advance(self, evaluations):
        last = min(self.done + evaluations, STEPS)
        self._pending, self.done = last - self.done, last

    def wait(self):
        self._device.now += self._pending * self._seconds

    def finish(self):
        return ["medium"] * self._count


@pytest.mark.parametrize(
    ("name", "seconds", "settled"),
    [
        ("media are not cheaper together: as many as a slice has time for", lambda n: 0.012 * n, 4),
        ("they are, as on an accelerator: as many as there may be", lambda n: 0.06 + 0.004 * n, 32),
        ("they are up to a size, and beyond a slice", lambda n: 0.08 if n <= 2 else 0.08 * n, 2),
        ("one takes longer than a slice, and two twice as long", lambda n: 0.3 * n, 1),
    ],
)
def test_batches_grow_while_that_costs_text_little_or_saves_much(monkeypatch, name, seconds, settled):
    device, delivered = Device(seconds), []
    monkeypatch.setattr(media_jobs, "time", types.SimpleNamespace(perf_counter=device.perf_counter))
    jobs = media_jobs.MediaJobs(device, seconds=0.05)
    for _ in range(400):
        jobs.add(object(), "image", delivered.append)
    while len(jobs):
        jobs.advance()
    assert len(delivered) == 400
    assert device.sizes[-2] == settled, (name, device.sizes)
    assert all(device.sizes.count(size) <= 1 for size in set(device.sizes) if size > settled)  # tried, once


class Threads:
    """A sampler of single media that notes how many are sampled at the same time."""

    def __init__(self):
        self.now, self.most, self.evaluations, self._lock = 0, 0, 0, threading.Lock()

    def key(self, group):
        return BatchKey(group, STEPS, "")

    def padded_size(self, modality, rows):
        return 1

    def start(self, groups):
        return Sampled(self, groups[0])

    def evaluate(self):
        with self._lock:
            self.now, self.evaluations = self.now + 1, self.evaluations + 1
            self.most = max(self.most, self.now)
        time.sleep(0.01)
        with self._lock:
            self.now -= 1


class Sampled:
    evaluations = STEPS

    def __init__(self, device, modality):
        self.done, self._device, self._modality = 0, device, modality

    def advance(self, evaluations):
        self.done += 1

    def wait(self):
        self._device.evaluate()
        if self._modality == "broken":
            raise ValueError("it fails")

    def finish(self):
        return [self._modality]


@pytest.fixture
def device():
    return Threads()


@pytest.fixture
def jobs(device):
    with contextlib.closing(media_jobs.MediaJobs(device, seconds=0.05, batches=2)) as jobs:
        yield jobs


def test_batches_are_sampled_at_the_same_time_and_one_that_fails_fails_alone(device, jobs):
    delivered = []
    for modality in ("video", "broken", "image", "audio"):
        jobs.add(object(), modality, delivered.append)
    jobs.advance(wait=False)
    assert len(jobs) == 4 and not delivered
    while len(jobs):
        jobs.advance()
    assert sorted(map(str, delivered)) == ["audio", "image", "it fails", "video"]
    assert device.most == 2 and device.evaluations == 3 * STEPS + 1


def test_dropped_media_are_sampled_no_further(device, jobs):
    delivered, owner = [], object()
    for modality in ("video", "image", "audio"):
        jobs.add(owner, modality, delivered.append)
    jobs.advance(wait=False)
    jobs.drop(owner)
    assert not len(jobs)
    time.sleep(0.1)
    assert device.evaluations <= 4 and not delivered


def test_an_owner_that_a_delivery_ends_loses_its_other_media(jobs):
    delivered, owner = [], object()

    def end(content):
        delivered.append(content)
        jobs.drop(owner)
        raise RuntimeError("of the delivery")

    jobs.add(owner, "image", end)
    jobs.add(owner, "audio", end)
    jobs.add(object(), "video", delivered.append)
    failures = 0
    while len(jobs):
        try:
            jobs.advance()
        except RuntimeError:
            failures += 1
    assert delivered in (["image", "video"], ["audio", "video"]) and failures == 1
