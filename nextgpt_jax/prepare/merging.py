"""The manifest of a folder, from what its shards hold."""

import collections
from collections.abc import Mapping
from typing import Any

import jax

import nextgpt_jax
from nextgpt_jax.errors import UserError
from nextgpt_jax.prepare.shards import Folder


def merge(folder: Folder, plan: Mapping[str, Any], count: int, max_skipped: float) -> bool:
    """Writes the manifest if all `count` shards are finished. Returns whether they are.

    Args:
      max_skipped: share of the records of a file that may have been skipped.

    Raises:
      UserError: more of a file was, nothing is left, or the manifest cannot be written.
    """
    parts = []
    for number in range(count):
        if not (part := folder.part(folder.name(number, count))):
            return False
        parts.append(part)
    skipped = [*plan["unusable"], *(row for part in parts for row in part["skipped"])]
    counts = {source["path"]: source["records"] for source in plan["sources"]}
    _check_share(skipped, counts, max_skipped)
    samples = sum(part["samples"] for part in parts)
    if not samples:
        raise UserError(f"{folder.path}: no record could be prepared, the first because: {skipped[0]['reason']}")
    slots: dict[str, collections.Counter[str]] = {"inputs": collections.Counter(), "outputs": collections.Counter()}
    for part in parts:
        for kind, found in slots.items():
            found |= collections.Counter(part[kind])
    manifest = {name: plan[name] for name in plan if name not in ("unusable", "samples")}
    manifest |= {
        "records": sum(counts.values()),
        "samples": samples,
        **{kind: dict(sorted(found.items())) for kind, found in slots.items()},
        "shards": [{name: part[name] for name in ("name", "samples", "bytes", "sha256")} for part in parts],
        "skipped": skipped,
        "versions": {"nextgpt_jax": nextgpt_jax.__version__, "jax": jax.__version__},
    }
    folder.write_manifest(manifest)
    return True


def _check_share(skipped: list[dict[str, str]], counts: Mapping[str, int], max_share: float) -> None:
    by_source = collections.Counter(row["source"] for row in skipped)
    for source, number in by_source.items():
        if number > max_share * counts[source]:
            first = next(row for row in skipped if row["source"] == source)
            raise UserError(
                f"{source}: {number} of {counts[source]} records cannot be prepared (data.max_skipped allows "
                f"{max_share:.2%}), the first, {first['record']}, because: {first['reason']}. The finished shards are "
                "kept: with a larger data.max_skipped the same command only writes the manifest"
            )
