"""Compiling everything that a batcher runs, before the first request."""

import concurrent.futures
import functools
from collections.abc import Callable, Iterator, Sequence

from nextgpt_jax.config import ServingConfig
from nextgpt_jax.inference.batching import round_up_to_power_of_two
from nextgpt_jax.inference.engine import Engine
from nextgpt_jax.inference.slots import attended_bucket, prompt_bucket
from nextgpt_jax.serving.batcher import sizes


def warm_up(
    engine: Engine,
    config: ServingConfig,
    *,
    prompt_tokens: Sequence[int] | None = None,
    inputs: int = 1,
    input_modalities: Sequence[str] | None = None,
    output_modalities: Sequence[str] | None = None,
    on_program: Callable[[int, int], None] = lambda done, all: None,
) -> int:
    """Compiles the programs of a Batcher in parallel; they are kept in the compilation cache, if there is one.

    Args:
      prompt_tokens: lengths of prompts, rounded up like those of requests; None: all that a row has room for.
      inputs: largest number of inputs of a prompt.
      input_modalities: of the inputs; None: all that the model reads.
      output_modalities: of the generated media; None: all that the model has.
      on_program: called as on_program(done, all) after each task.

    Returns:
      The number of tasks; each compiles one to four programs.
    """
    context, new_tokens = sizes(config, engine)
    if prompt_tokens is None:
        prompt_tokens = [*_buckets(prompt_bucket, context)]
    embeddings = inputs * max(engine.config.num_embeddings.values(), default=1)
    rows = engine.rows(config.rows, context=context, max_new_tokens=new_tokens, kv_cache=config.kv_cache)
    shapes = {
        rows.shape(prompts, tokens, media)
        for prompts in (1, config.joins)
        for tokens in prompt_tokens
        for media in _powers_of_two(round_up_to_power_of_two(max(1, embeddings)))
    }
    first, *others = sorted(shapes)
    tasks: list[Callable[[], object]] = [
        functools.partial(rows.warm_up_decoding, first, [*_buckets(attended_bucket, context)]),
        *(functools.partial(rows.warm_up, shape) for shape in others),
    ]
    for name in engine.config.input_modalities if input_modalities is None else input_modalities:
        tasks += [functools.partial(engine.warm_up_encoder, name, n) for n in _powers_of_two(config.rows)]
    for name in engine.config.output_modalities if output_modalities is None else output_modalities:
        batches = _powers_of_two(engine.media_sampler.batch_size(name))
        for edits in (False, True):
            tasks += [functools.partial(engine.media_sampler.warm_up, name, n, edits=edits) for n in batches]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for done, task in enumerate(concurrent.futures.as_completed([pool.submit(task) for task in tasks]), 1):
            task.result()
            on_program(done, len(tasks))
    return len(tasks)


def _buckets(rounded_up: Callable[[int, int], int], context: int) -> Iterator[int]:
    """The numbers of tokens that `rounded_up(tokens, context)` returns."""
    n = 1
    while (bucket := rounded_up(n, context)) < context:
        yield bucket
        n = bucket + 1
    yield context


def _powers_of_two(n: int) -> list[int]:
    return [1 << i for i in range(n.bit_length()) if 1 << i <= n]
