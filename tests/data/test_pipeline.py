"""Batches: shuffling, length buckets, resuming, read-ahead."""

import collections
import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nextgpt_jax.config import DataConfig
from nextgpt_jax.data.examples import BatchSpec
from nextgpt_jax.data.pipeline import batches, shuffled
from nextgpt_jax.prompts import Turn
from tests.data.test_examples import builder


def test_the_pipeline_shuffles_every_epoch_and_resumes(folder):
    samples = [(Turn((str(i),), (str(i),)),) for i in range(10)]
    config = DataConfig(batch_size=5)
    data = batches(samples, builder(), config, 0, range(6))
    found = [batch["tokens"] for batch in data]
    assert len(found) == 6
    epochs = [np.concatenate(found[i : i + 2]) for i in (0, 2, 4)]
    for epoch in epochs:
        assert len({row.tobytes() for row in epoch}) == 10
    assert not np.array_equal(epochs[0], epochs[1])
    again = batches(samples, builder(), config, 0, range(3, 6))
    some = batches(samples, builder(), config, 0, range(3, 6), [1, 4])
    for expected in found[3:]:
        np.testing.assert_array_equal(next(again)["tokens"], expected)
        np.testing.assert_array_equal(next(some)["tokens"], expected[[1, 4]])


def test_no_more_batches_are_prefetched_than_there_are_threads():
    made, samples = [], [(Turn((str(i),), (str(i),)),) for i in range(50)]

    class Counted:
        max_length = 96

        spec = BatchSpec({}, {})

        def empty(self, *shape):
            return builder().empty(*shape)

        def fill(self, example, sample):
            made.append(sample)
            builder().fill(example, sample)

    data = batches(samples, Counted(), DataConfig(batch_size=1, num_workers=2), 0, range(50))
    next(data)
    time.sleep(0.5)
    assert len(made) <= 3


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), size=st.integers(1, 5))
def test_epochs_have_every_sample_in_batches_of_similar_length(lengths, size):
    """And a batch is as long as its bucket, which is long enough; what fills up an epoch is of the next one."""
    samples = [(Turn(("h" * n,), (str(i),)),) for i, n in enumerate(lengths)]
    make, count = builder(samples, max_length=128), -(-len(samples) // size)
    source = shuffled(samples, make, DataConfig(batch_size=size, bucket_boundaries=(48, 60)), 1, 2 * count)
    full = {make(s)["tokens"][: make.length(s)].tobytes() for s in samples}
    seen = []
    for epoch in range(2):
        for k in range(count):
            batch = source[epoch * count + k]
            assert batch["tokens"].shape == batch["loss_mask"].shape and len(batch["tokens"]) == size
            assert batch["tokens"].shape[1] in (48, 60, 128) and batch["lengths"].max() <= batch["tokens"].shape[1]
            seen += [row[:n].tobytes() for row, n in zip(batch["tokens"], batch["lengths"], strict=True)]
        times = collections.Counter(seen)
        assert len(seen) == (epoch + 1) * count * size and set(seen) == full
        assert min(times.values()) >= epoch + 1 and max(times.values()) <= -(-len(seen) // len(samples))
