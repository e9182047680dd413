"""The command line of answering: one prompt, a chat, or a file of requests."""

import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

from absl import flags

from nextgpt_jax.cli.flags import configure_jax, parse_flags, run_command
from nextgpt_jax.errors import UserError
from nextgpt_jax.files import check_folder
from nextgpt_jax.modalities import MODALITIES, output_modalities

_BATCH = 32  # requests of a file that are answered together

USAGE = """infer.py --config=configs/FILE.py (--prompt=TEXT | --chat | --requests=FILE.jsonl | --warmup) [options]

Answers with text, images, videos and audio. Media that are shown go where `<image>`, `<video>`, ... stand in the
prompt, or before it. Options:"""


def _define(values: flags.FlagValues) -> None:
    def define(kind, name, default, text):
        getattr(flags, f"DEFINE_{kind}")(name, default, text, flag_values=values)

    define("string", "prompt", None, "what to say")
    for name in MODALITIES:
        define("multi_string", name, [], f"{name} file to show (repeatable)")
    define("string", "output", "outputs", "folder for media and replies")
    define("string", "workdir", "", "answer with the weights of this training run")
    define(
        "string",
        "modality",
        None,
        f"auto, text (no media), or a list of what to produce: {','.join(output_modalities())}",
    )
    define("integer", "seed", None, "of sampling tokens and media")
    define("integer", "steps", None, "denoising steps")
    define("float", "guidance", None, "classifier-free guidance")
    define("float", "temperature", None, "of sampling tokens; 0: the most likely ones")
    define("integer", "top_k", None, "sample among this many tokens; 0: all")
    define("float", "top_p", None, "sample among the tokens of this probability")
    define("integer", "max_new_tokens", None, "length of the reply at most")
    define("boolean", "json", False, "print the reply as one JSON object on the last line")
    define("boolean", "chat", False, "talk in the terminal, several turns")
    define("boolean", "warmup", False, "compile all programs side by side first; alone: only that, for later runs")
    define("string", "requests", None, "answer every line of this JSONL file together")


def main(argv: Sequence[str]) -> None:
    """Parses flags and answers. Raises UserError for what the user can mend."""
    values = parse_flags(argv, _define, USAGE)
    modes = [values.prompt is not None, values.chat, values.requests is not None]
    if sum(modes) != 1 and (sum(modes) or not values.warmup):
        raise UserError("give one of --prompt=TEXT, --chat and --requests=FILE.jsonl (or --warmup alone)")
    if values.json and values.prompt is None:
        raise UserError("--json goes with --prompt (--requests writes replies.jsonl)")
    paths = {name: getattr(values, name) for name in MODALITIES}
    if values.prompt is None and (given := [name for name, files in paths.items() if files]):
        raise UserError(f"--{given[0]} goes with --prompt (in a chat, type /{given[0]} PATH)")
    check_folder(values.output, "--output")
    configure_jax()
    from nextgpt_jax.inference import requests  # after the flags: a typo should not wait for imports
    from nextgpt_jax.weights.load import model_config

    config = values.config
    options = {name: getattr(values, name) for name in requests.OPTIONS}
    if values.prompt is not None:  # bad input shows before the weights are loaded
        model = model_config(config.model)
        request = requests.make_request(values.prompt, paths, options, model, config.generation)
        engine = load_engine(config, values.workdir)
        if values.warmup:
            warm_up_for(engine, request)
        answer_one(engine, request, values.output, values.json)
        return
    records = requests.read_requests(values.requests) if values.requests is not None else []
    engine = load_engine(config, values.workdir)
    if values.warmup:
        start = time.perf_counter()
        engine.warm_up(rows=min(len(records), _BATCH) or 1, max_new_tokens=values.max_new_tokens)
        print(f"compiled all programs in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    if records:
        answer_file(engine, records, options, values.output)
    elif values.chat:
        chat(engine, options, values.output)


def warm_up_for(engine, request) -> None:
    """Compiles the programs that may answer a request."""
    from nextgpt_jax.inference.engine import parse_modality

    encoded = engine.encode(request)
    allowed, _ = parse_modality(engine.modalities, request.modality)
    engine.warm_up(
        prompt_tokens=[len(encoded.ids)],
        media=len(encoded.inputs),
        max_new_tokens=request.max_new_tokens,
        inputs=sorted({medium.modality for _, medium in encoded.inputs}),
        outputs=[name for name, may in zip(engine.modalities, allowed, strict=True) if may],
    )


def load_engine(config, workdir: str):
    """The engine of a config, with the trained weights of `workdir` if given."""
    from nextgpt_jax.inference.engine import Engine
    from nextgpt_jax.sharding import make_mesh
    from nextgpt_jax.weights.load import load_trained

    if not workdir and not config.model.delta:
        raise UserError("this config has no trained weights: give --workdir of a training run, or set model.delta")
    mesh = make_mesh(config.mesh)
    return Engine(load_trained(config.model, workdir, mesh=mesh if mesh.size > 1 else None), config.generation)


def answer_one(engine, request, output: str, as_json: bool) -> None:
    """Answers one request and prints the reply: text, then the paths of its media."""
    start = time.perf_counter()
    with progress() as on_step:
        reply = engine.answer([request], on_step)[0]
    paths = save_media(reply.media, pathlib.Path(output))
    print(reply.text)
    for path in paths:
        print(path)
    if as_json:
        seconds = round(time.perf_counter() - start, 3)
        files = _by_modality(reply.media, [str(path) for path in paths])
        print(json.dumps({"text": reply.text, **files, "tokens": reply.tokens, "seconds": seconds}, ensure_ascii=False))


def answer_file(engine, records: Sequence, options: dict, output: str, size: int = _BATCH) -> None:
    """Answers the good requests of a file, `size` at a time, and writes OUTPUT/replies.jsonl, one line a request.

    `options` hold for requests that do not say otherwise.
    """
    from nextgpt_jax.files import atomic_write
    from nextgpt_jax.inference.requests import make_request
    from nextgpt_jax.media import write

    folder = pathlib.Path(output)
    lines, answered = [], 0
    for begin in range(0, len(records), size):
        requests, found = {}, {}
        for i, record in enumerate(records[begin : begin + size], begin):
            try:
                if isinstance(record, UserError):
                    raise record
                merged = {**options, **record["options"]}
                request = make_request(record["prompt"], record["paths"], merged, engine.config, engine.defaults)
                engine.encode(request)  # refused alone, not with its batch
                requests[i] = request
            except UserError as error:
                found[i] = {"error": str(error)}
        with progress() as on_step:
            replies = engine.answer(list(requests.values()), on_step) if requests else []
        for i, reply in zip(requests, replies, strict=True):
            names = [f"{i:05d}_{k}{MODALITIES[m.modality].suffix}" for k, m in enumerate(reply.media)]
            for name, medium in zip(names, reply.media, strict=True):
                write(medium.modality, folder / name, medium.content)
            found[i] = {"text": reply.text, **_by_modality(reply.media, names), "tokens": reply.tokens}
        lines += [json.dumps(found[i], ensure_ascii=False) + "\n" for i in sorted(found)]
        answered += len(requests)
        with atomic_write(folder / "replies.jsonl") as temporary:  # what is answered stays, whatever comes
            temporary.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    print(f"{answered} of {len(records)} requests answered: {folder / 'replies.jsonl'}")


def chat(engine, options: dict, output: str) -> None:
    """A conversation in the terminal, with commands that start with a slash."""
    from nextgpt_jax.inference.requests import make_request
    from nextgpt_jax.prompts import Turn

    shows = ", ".join(f"/{name}" for name in engine.config.input_modalities)
    print(f"Say something. {shows} PATH shows a file with your next message, /new starts over, /quit ends.")
    history, paths = [], {}
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        command, _, argument = line.partition(" ")
        if line in ("/quit", "/exit"):
            return
        if line == "/new":
            history, paths = [], {}
        elif command.startswith("/") and command[1:] in engine.config.input_modalities and argument.strip():
            paths.setdefault(command[1:], []).append(argument.strip())
        elif line.startswith("/"):
            print(f"commands: {shows} PATH, /new, /quit")
        elif line:
            try:
                request = make_request(line, paths, options, engine.config, engine.defaults, history)
                with progress() as on_step:
                    reply = engine.answer([request], on_step)[0]
                history = [*history, Turn(request.turns[-1].human, reply.segments)]
                print(reply.text)
                for path in save_media(reply.media, pathlib.Path(output)):
                    print(path)
            except UserError as error:
                print(f"error: {error}")
            paths = {}


def save_media(made: Sequence, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes each medium under the next free name of its kind in the folder, which is made if there is something."""
    from nextgpt_jax.media import write

    paths = []
    for medium in made:
        number, suffix = 0, MODALITIES[medium.modality].suffix
        while (path := folder / f"{medium.modality}_{number:03d}{suffix}").exists():
            number += 1
        write(medium.modality, path, medium.content)
        paths.append(path)
    return paths


def _by_modality(made: Sequence, names: Sequence[str]) -> dict[str, list[str]]:
    """{"images": [...], "videos": [...], "audios": [...]}."""
    pairs = list(zip(made, names, strict=True))
    return {f"{kind}s": [name for medium, name in pairs if medium.modality == kind] for kind in output_modalities()}


class progress:
    """A bar of denoising steps on stderr, in a terminal; elsewhere the callback is None and costs nothing."""

    def __enter__(self) -> Callable[[int, int], None] | None:
        from tqdm import tqdm

        self._bar = tqdm(unit="step", leave=False) if sys.stderr.isatty() else None
        return self._step if self._bar is not None else None

    def _step(self, done: int, count: int) -> None:
        self._bar.total, self._bar.n = count, done
        self._bar.refresh()

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()


def run() -> None:
    """Entry point of nextgpt-infer and infer.py."""
    sys.exit(run_command(main, sys.argv))
