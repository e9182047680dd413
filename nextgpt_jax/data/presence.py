"""Which of many media files are there: by listing their folders once, as looking for each takes minutes for millions.

Files are known by hashes of 64 bits of their names, so that millions take little memory and can be kept. What is not
found in a listing may be there still (folders that cannot be listed, names that a file system spells in several ways),
so a caller asks `media_files.media_exists` about it.
"""

import contextlib
import functools
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence

import numpy as np

_SHARD = 5  # characters: media_files.resolve_media_path
_LEAST, _PER_FILE = 10_000, 20  # names that are listed
_SEARCHED = 1 << 16  # hashes at a time


def name_hash(name: str) -> int:
    """64 bits of BLAKE2."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def not_listed(folders: Sequence[tuple[str, str]], numbers: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Which media are not in the listings of the usual places, as positions in ascending order.

    Args:
      folders: (folder, modality).
      numbers: int [n], the folder of each medium.
      hashes: uint64 [n], of its name.
    """
    listed, order = functools.lru_cache(2)(_listed), np.argsort(numbers, kind="stable")
    ends = np.searchsorted(numbers, np.arange(len(folders) + 1), sorter=order)
    absent = []
    for number in sorted(range(len(folders)), key=folders.__getitem__):  # those of one folder after another
        folder, modality = folders[number]
        left = order[ends[number] : ends[number + 1]]
        most = _LEAST + _PER_FILE * len(left)  # a few media in a folder of millions are looked for one by one
        for place in (folder, os.path.join(folder, f"{modality}s")):
            if len(left):
                left = left[~_among(hashes[left], listed(place, most))]
        if len(left):
            left = left[~_among(hashes[left], _in_shards(folder, most))]
        absent.append(left)
    return np.sort(np.concatenate([order[:0], *absent]))


def _among(hashes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Whether each hash is one of `known`, which are sorted."""
    found = np.zeros(len(hashes), bool)
    for at in range(0, len(hashes) if len(known) else 0, _SEARCHED):
        some = hashes[at : at + _SEARCHED]
        places = np.minimum(np.searchsorted(known, some), len(known) - 1)
        found[at : at + _SEARCHED] = known[places] == some
    return found


def _listed(folder: str, most: int) -> np.ndarray:
    """Sorted hashes of the names of the files in a folder, at most this many; none, if it cannot be listed."""
    return np.sort(np.fromiter(map(name_hash, itertools.islice(_files(folder), most)), np.uint64))


def _in_shards(folder: str, most: int) -> np.ndarray:
    """Sorted hashes of the names of the files that begin with the name of their folder, in folders of a folder."""
    names = (
        name_hash(name)
        for shard in _folders(folder, most)
        for name in _files(os.path.join(folder, shard))
        if name[:_SHARD] == shard
    )
    return np.sort(np.fromiter(itertools.islice(names, most), np.uint64))


def _files(folder: str) -> Iterator[str]:
    with contextlib.suppress(OSError, ValueError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file():
                yield entry.name


def _folders(folder: str, most: int) -> list[str]:
    with contextlib.suppress(OSError, ValueError), os.scandir(folder) as entries:
        some = itertools.islice(entries, most)
        return [entry.name for entry in some if len(entry.name) <= _SHARD and entry.is_dir()]
    return []
