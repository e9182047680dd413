"""The command that compiles everything that a server runs."""

import sys
import time
from collections.abc import Sequence

from absl import flags

from nextgpt_jax.cli.flags import configure_jax, parse_flags
from nextgpt_jax.errors import UserError
from nextgpt_jax.weights.run_steps import parse_step

USAGE = """{program} --config=CONFIG [options]

Compiles the programs that answer requests of all lengths and modalities, and keeps them in the compilation cache
(JAX_COMPILATION_CACHE_DIR, by default in the user's cache folder): nextgpt serve and infer --requests then start
without compiling. Options:"""


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", "", "use the weights of this training run", flag_values=values)
    flags.DEFINE_string("step", "latest", "with --workdir: latest, best (lowest loss) or a step", flag_values=values)
    text = "lengths of prompts, such as 32,512; default: all that serving.context has room for"
    flags.DEFINE_list("prompt_tokens", [], text, flag_values=values)
    flags.DEFINE_integer("inputs", 1, "largest number of media in a prompt", lower_bound=0, flag_values=values)
    text = "modalities that prompts have, such as image,audio, or none; default: all that the model reads"
    flags.DEFINE_list("input_modalities", None, text, flag_values=values)
    text = "modalities of answers, or none; default: all that the model generates"
    flags.DEFINE_list("output_modalities", None, text, flag_values=values)


def main(argv: Sequence[str]) -> None:
    """Parses flags and compiles. Raises UserError for errors that the user can fix."""
    values = parse_flags(argv, _define, USAGE)
    if wrong := [n for n in values.prompt_tokens if not n.strip().isdecimal() or not int(n)]:
        raise UserError(f"--prompt_tokens: {wrong[0]!r} is not a number of tokens")
    configure_jax()
    from tqdm import tqdm

    from nextgpt_jax.cli.infer import load_engine
    from nextgpt_jax.serving.warmup import warm_up
    from nextgpt_jax.weights.assemble import model_config

    model = model_config(values.config.model)
    chosen = {}
    for name, known in (
        ("input_modalities", model.input_modalities),
        ("output_modalities", model.output_modalities),
    ):
        given = getattr(values, name)
        chosen[name] = [] if given == ["none"] else given
        if unknown := set(chosen[name] or ()) - set(known):
            raise UserError(f"--{name}: {min(unknown)!r} is not one of none, {', '.join(known)}")
    start = time.perf_counter()
    engine = load_engine(values.config, values.workdir, parse_step(values.step, "--step"))
    loaded = time.perf_counter()
    with tqdm(unit="task", disable=not sys.stderr.isatty(), leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        lengths = [int(n) for n in values.prompt_tokens] or None
        count = warm_up(
            engine, values.config.serving, prompt_tokens=lengths, inputs=values.inputs, on_program=show, **chosen
        )
    seconds = time.perf_counter() - loaded
    print(f"loaded the model in {loaded - start:.0f} s, compiled for {count} shapes in {seconds:.0f} s")
