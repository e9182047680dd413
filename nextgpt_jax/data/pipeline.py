"""Samples to batches with Grain: shuffled anew each epoch, read ahead by threads, with a position to resume from."""

from collections.abc import Sequence

import grain

from nextgpt_jax.config import DataConfig
from nextgpt_jax.data.batches import Encoder
from nextgpt_jax.data.samples import Conversation


def batches(samples: Sequence[Conversation], encoder: Encoder, config: DataConfig, seed: int) -> grain.DatasetIterator:
    """An endless iterator of batches (data/batches.py); get_state() and set_state() are its position."""
    dataset = grain.MapDataset.source(samples).shuffle(seed=seed).repeat().map(encoder).batch(config.batch_size)
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=4 * config.threads)
    return iter(dataset.to_iter_dataset(options))
