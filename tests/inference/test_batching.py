"""Sizes of batches."""

from nextgpt_jax.inference.batching import round_up_to_bucket


def test_lengths_are_rounded_up_to_few():
    buckets = [round_up_to_bucket(n) for n in range(1, 2049)]
    assert all(n <= bucket <= max(32, 1.5 * n) for n, bucket in enumerate(buckets, 1))
    assert sorted(set(buckets)) == [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]
