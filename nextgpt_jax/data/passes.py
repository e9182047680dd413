"""Passes over the records of every file of some samples: kept between starts (cache.py), made by many processes."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from nextgpt_jax.data import workers
from nextgpt_jax.data.cache import Arrays, Request, kept
from nextgpt_jax.data.readers import Samples

ALONE = 50_000  # records: fewer are not worth other processes


def of_files(
    purpose: str,
    samples: Samples,
    settings: Sequence[Any] | None,
    function: Callable[[Any, tuple[int, range]], Any],
    shared: Any,
    join: Callable[[list[Any]], Arrays],
    chunk: int,
) -> list[Arrays]:
    """What a pass finds in each file of some samples, from an earlier start or made now.

    Args:
      purpose: its name in the cache.
      settings: that the result depends on besides the samples' own, as JSON can write them; None: nothing is kept.
      function: function(shared, (file, numbers)) looks at these records of a file; see `workers.compute`.
      join: what it found in consecutive ranges of a file, to what is found in the file.
      chunk: records that are looked at at a time.
    """
    requests = []
    for file in samples.files:
        depends = (samples.task, samples.format, os.path.abspath(file.folder), *(settings or ()))
        known = getattr(file.records, "identity", "") if settings is not None else ""
        requests.append(Request(file.records.path, known, depends))

    def build(wanted: list[Request]) -> list[Arrays]:
        sizes = {file: len(samples.files[file].records) for file in map(requests.index, wanted)}
        return [join(parts) for parts in workers.compute_ranges(function, shared, sizes, chunk, ALONE)]

    return kept(purpose, requests, build)
