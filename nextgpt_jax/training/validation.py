"""The losses on held-out samples, without dropout."""

import collections
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from nextgpt_jax import compiler
from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.data.examples import ExampleBuilder
from nextgpt_jax.data.pipeline import ordered_batches
from nextgpt_jax.data.readers import Samples
from nextgpt_jax.sharding import HostBatch, replicated
from nextgpt_jax.training import losses
from nextgpt_jax.training.source_losses import losses_by_source
from nextgpt_jax.training.step import alignment_weights

PREFIX = "validation_"


class Validation:
    """Computes the losses of a model on all held-out samples."""

    def __init__(
        self,
        samples: Samples,
        builder: ExampleBuilder,
        config: ExperimentConfig,
        host_batch: HostBatch,
        graphdef: nnx.GraphDef,
        mesh: Mesh,
    ):
        self._samples, self._builder, self._config, self._host_batch = samples, builder, config, host_batch
        self._weights = weights = alignment_weights(config)

        def evaluate(trainable, frozen, batch):
            counts = losses.target_counts(batch)
            model = nnx.merge(graphdef, trainable, frozen)
            return losses.loss(model, batch, counts, alignment_weights=weights)[1], counts

        self._evaluate = compiler.jit(evaluate, out_shardings=replicated(mesh))

    def __call__(self, trainable: Any, frozen: Any) -> dict[str, float]:
        """The losses, each a mean over all targets: validation_loss, ..., as in training; and by source.

        Raises:
          UserError: a medium cannot be read.
        """
        config = self._config.data
        made = ordered_batches(self._samples, self._builder, config, self._host_batch.indices)
        found = [self._evaluate(trainable, frozen, self._host_batch.to_global(batch)) for batch in made]
        sums: collections.Counter[str] = collections.Counter()
        totals: collections.Counter[str] = collections.Counter()
        found = jax.device_get(found)
        for metrics, counts in found:
            for name, count in counts.items():
                names = ("loss_language", "token_accuracy") if name == "tokens" else (f"loss_alignment_{name}",)
                for metric in names:
                    sums[metric] += float(metrics[metric]) * float(count)
                    totals[metric] += float(count)
        means = {name: sums[name] / totals[name] for name in sums if totals[name]}
        aligned = sum(
            self._weights[name.removeprefix("loss_alignment_")] * mean
            for name, mean in means.items()
            if name.startswith("loss_alignment_")
        )
        means["loss"] = means.get("loss_language", 0.0) + aligned
        means |= losses_by_source([metrics for metrics, _ in found], self._samples.mixture().names, self._weights)
        return {PREFIX + name: means[name] for name in sorted(means)}
