"""The command line of preparing data: embeddings of media and captions, computed once."""

from collections.abc import Sequence

from absl import flags

from nextgpt_jax.cli.flags import configure_jax, parse_flags, parse_shard
from nextgpt_jax.errors import UserError

USAGE = """{program} --config=NAME_OR_FILE:STAGE --output=DIR [--config.a.b=value ...]

Computes the embeddings of all media and captions that a stage trains on, and writes them with the conversations to
DIR, which data.captions or data.instructions then names. The same command again goes on where it was stopped.

With --check, reads every medium instead, without any model, and lists those that cannot be read: the exit status is 1
if there are any. Options:"""


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "output", "", "folder for the prepared data; with --check: file for the list", flag_values=values
    )
    flags.DEFINE_bool("check", False, "only read all media, and list those that cannot be read", flag_values=values)
    flags.DEFINE_string(
        "shard", "0/1", "i/n: this process is number i (from 0) of n that share the work", flag_values=values
    )
    flags.DEFINE_integer("records_per_shard", 2048, "records of the data files per shard", flag_values=values)
    flags.DEFINE_integer("batch_size", 64, "images that are encoded together, over all devices", flag_values=values)
    flags.DEFINE_string("dtype", "float32", "of stored embeddings: float32, bfloat16 or float16", flag_values=values)
    flags.DEFINE_string(
        "caption_embeddings",
        "",
        "folder of the reference's MEDIUM.npy files; what it lacks is computed",
        flag_values=values,
    )
    flags.DEFINE_integer("ray_workers", 0, "write shards by this many workers of a Ray cluster", flag_values=values)
    flags.DEFINE_float("ray_gpus", 0, "GPUs of each of these workers", flag_values=values)
    flags.DEFINE_bool("merge", False, "only write the manifest, once all shards are finished", flag_values=values)


def main(argv: Sequence[str]) -> int | None:
    """Parses flags, then prepares or checks data. Raises UserError for what the user can mend."""
    values = parse_flags(argv, _define, USAGE)
    if values.check:
        from nextgpt_jax.prepare.check import check_media

        return check_media(values.config, values.output)
    if not values.output:
        raise UserError("--output=DIR is missing: the folder for the prepared data")
    index, count = parse_shard(values.shard)
    configure_jax()
    from nextgpt_jax.prepare.run import Options, Preparer  # after parsing, so that a typo is reported at once

    options = Options(values.records_per_shard, values.batch_size, values.dtype, values.caption_embeddings)
    preparer = Preparer(values.config, values.output, options)
    if values.ray_workers and not values.merge:
        from nextgpt_jax.prepare.on_ray import write_on_ray

        if count > 1:
            raise UserError("--ray_workers shares the work by itself: leave out --shard")
        write_on_ray(preparer, values.config, values.output, options, values.ray_workers, values.ray_gpus)
    elif not values.merge:
        preparer.write(range(index, preparer.count, count))
    if preparer.merge():
        print(f"prepared: {preparer.folder.path}")
    elif values.merge:
        raise UserError(f"{values.output} lacks shards: run the processes of all --shard=i/n to their end")
    else:
        print(
            f"finished shards {values.shard} of {preparer.folder.path}: the last of the processes writes the manifest"
        )
