"""The command that answers: one prompt, a chat, or a file of requests."""

import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from nextgpt_jax.cli.flags import configure_jax, parse_flags, run_command
from nextgpt_jax.errors import UserError
from nextgpt_jax.files import check_folder
from nextgpt_jax.modalities import MODALITIES, output_modalities
from nextgpt_jax.weights.run_steps import LATEST, parse_step

if TYPE_CHECKING:  # imported where they are used: a typo in a flag should not wait for jax
    from nextgpt_jax.config import ExperimentConfig, ServingConfig
    from nextgpt_jax.inference.engine import Engine
    from nextgpt_jax.inference.requests import RequestFile
    from nextgpt_jax.inference.types import MediaOutput, Request, Response

USAGE = """{program} --config=CONFIG (--prompt=TEXT | --chat | --requests=FILE.jsonl | --warmup) [options]

Answers with text, images, videos and audio. Input files replace the placeholders `<image>`, `<video>`, ... of the
prompt, or come before it if there are none. Options:"""


def _define(values: flags.FlagValues) -> None:
    def define(kind, name, default, text):
        getattr(flags, f"DEFINE_{kind}")(name, default, text, flag_values=values)

    define("string", "prompt", None, "prompt text")
    for name in MODALITIES:
        define("multi_string", name, [], f"{name} input file (repeatable)")
    define("string", "output", "outputs", "folder for generated media, and for replies.jsonl")
    define("string", "workdir", "", "use the weights of this training run")
    define("string", "step", "latest", "with --workdir: the checkpoint to use: latest, best (lowest loss) or a step")
    text = "with --workdir: use the moving average of the weights; default: if the run makes one (train.ema_decay)"
    define("boolean", "ema", None, text)
    names = ",".join(output_modalities())
    define("string", "modality", None, f"auto (the model decides), text (no media), or a list of some of {names}")
    define("integer", "seed", None, "random seed")
    define("integer", "steps", None, "number of denoising steps")
    define("float", "guidance", None, "classifier-free guidance scale")
    define("string", "sampler", None, "of generated media, such as unipc or dpm++; default: the decoder's own")
    define("float", "temperature", None, "sampling temperature of tokens; 0: take the most likely token")
    define("integer", "top_k", None, "sample from the k most likely tokens; 0: from all")
    define("float", "top_p", None, "sample from the most likely tokens with this total probability; 1: from all")
    define("integer", "max_new_tokens", None, "maximum number of generated tokens")
    text = f"edit the first input of this modality instead of generating a new medium: one of {names}"
    define("string", "edit", None, text)
    define("float", "strength", None, "with --edit: how much may change, above 0, at most 1; default: 0.6")
    define("boolean", "inversion", None, "with --edit: begin from the input's own noise, found by inverting DDIM")
    define("boolean", "json", False, "print the response as one JSON object on the last line")
    define("boolean", "chat", False, "chat in the terminal")
    define(
        "boolean",
        "warmup",
        False,
        "compile all programs in parallel before answering; alone: only compile",
    )
    define(
        "string",
        "requests",
        None,
        "answer every line of this JSONL file; the same command continues an interrupted run",
    )


def main(argv: Sequence[str]) -> None:
    """Parses flags and answers. Raises UserError for errors that the user can fix."""
    values = parse_flags(argv, _define, USAGE)
    modes = [values.prompt is not None, values.chat, values.requests is not None]
    if sum(modes) != 1 and (sum(modes) or not values.warmup):
        raise UserError("give one of --prompt=TEXT, --chat and --requests=FILE.jsonl (or --warmup alone)")
    if values.json and values.prompt is None:
        raise UserError("--json goes with --prompt (--requests writes replies.jsonl)")
    step = parse_step(values.step, "--step")
    if values.ema is not None and not values.workdir:
        raise UserError("--ema and --noema choose weights of --workdir")
    if values["step"].present and not values.workdir:
        raise UserError("--step chooses a checkpoint of --workdir (--steps: the number of denoising steps)")
    paths = {name: getattr(values, name) for name in MODALITIES}
    if values.prompt is None and (given := [name for name, files in paths.items() if files]):
        raise UserError(f"--{given[0]} goes with --prompt (in a chat, type /{given[0]} PATH)")
    if values.chat and values.edit is not None:
        raise UserError("--edit goes with --prompt or --requests")
    check_folder(values.output, "--output")
    configure_jax()
    from nextgpt_jax.inference import requests
    from nextgpt_jax.inference.requests import RequestFile
    from nextgpt_jax.mesh import available_devices
    from nextgpt_jax.serving.warmup import warm_up
    from nextgpt_jax.weights.assemble import model_config

    available_devices()  # raises, before anything is read
    config = values.config
    options = {option.field: getattr(values, name) for name, option in requests.OPTIONS.items()}
    if values.prompt is not None:  # report bad input before loading the weights
        model = model_config(config.model)
        request = requests.make_request(values.prompt, paths, options, model, config.generation)
        engine = load_engine(config, values.workdir, step, values.ema)
        if values.warmup:
            warm_up_for(engine, request)
        answer_one(engine, request, values.output, values.json)
        return
    file = RequestFile(values.requests) if values.requests is not None else None
    engine = load_engine(config, values.workdir, step, values.ema)
    if values.warmup:
        start = time.perf_counter()
        if file:
            warm_up(engine, config.serving)
        else:
            engine.warm_up(max_new_tokens=values.max_new_tokens)
        print(f"compiled all programs in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    if file:
        weights = {"workdir": values.workdir, "step": step, "ema": values.ema}
        run = {"config": {"model": vars(config.model), "generation": vars(config.generation)}, "weights": weights}
        answer_file(engine, config.serving, file, options, values.output, run)
    elif values.chat:
        chat(engine, options, values.output)


def load_engine(
    config: "ExperimentConfig", workdir: str, step: str | int = LATEST, ema: bool | None = None
) -> "Engine":
    """The engine of a config, with the trained weights of a checkpoint of `workdir` if given (see `load_trained`)."""
    from nextgpt_jax.inference.engine import Engine
    from nextgpt_jax.mesh import make_mesh
    from nextgpt_jax.weights.load import load_trained

    if not workdir and not config.model.delta:
        raise UserError("this config has no trained weights: give --workdir of a training run, or set model.delta")
    mesh = make_mesh(config.mesh)
    system = load_trained(config.model, workdir, step=step, ema=ema, mesh=mesh if mesh.size > 1 else None)
    return Engine(system, config.generation)


def warm_up_for(engine: "Engine", request: "Request") -> None:
    """Compiles the programs that may answer a request."""
    from nextgpt_jax.inference.validation import parse_modality

    conversation, names = engine.validate(request), engine.config.output_modalities
    allowed, _ = parse_modality(names, request.modality)
    engine.warm_up(
        prompt_tokens=[len(conversation.ids)],
        inputs=len(conversation.inputs),
        max_new_tokens=request.max_new_tokens,
        input_modalities=sorted({medium.modality for _, medium in conversation.inputs}),
        output_modalities=[name for name, is_allowed in zip(names, allowed, strict=True) if is_allowed],
        edits=[request.edit.modality] if request.edit else [],
    )


def answer_one(engine: "Engine", request: "Request", output: str, as_json: bool) -> None:
    """Answers one request and prints the response."""
    from nextgpt_jax.serving.request_file import files_by_modality

    start = time.perf_counter()
    response, paths = respond(engine, request, lambda media: save_media(media, pathlib.Path(output)))
    if as_json:
        seconds = round(time.perf_counter() - start, 3)
        files = files_by_modality(response.media, [str(path) for path in paths])
        line = {"text": response.text, **files, "tokens": response.tokens, "seconds": seconds}
        print(json.dumps(line, ensure_ascii=False))


def respond(
    engine: "Engine", request: "Request", save: Callable[[Sequence["MediaOutput"]], list[pathlib.Path]]
) -> tuple["Response", list[pathlib.Path]]:
    """Answers a request; prints the text and the paths of the saved media, in a terminal as soon as they are ready."""
    with progress() as bar:
        if not sys.stdout.isatty():
            response = engine.generate([request], bar)[0]
            print(response.text)
            paths = save(response.media)
            print("".join(f"{path}\n" for path in paths), end="")
            return response, paths
        paths, response, in_text = [], None, True

        def on_step(done: int, total: int) -> None:
            end_text()
            bar(done, total)

        def end_text() -> None:
            nonlocal in_text
            if in_text:
                print()
            in_text = False

        for event in engine.stream(request, on_step if bar else None):
            print(event.text, end="", flush=True)
            if event.media:
                end_text()
                if bar:
                    bar.hide()
                saved = save([event.media])
                print("".join(f"{path}\n" for path in saved), end="", flush=True)
                paths += saved
            response = event.response
        end_text()
    return response, paths


def answer_file(
    engine: "Engine",
    config: "ServingConfig",
    requests: "RequestFile",
    options: Mapping[str, Any],
    output: str,
    run: Mapping[str, Any],
) -> None:
    """Answers the requests of a file and writes OUTPUT/replies.jsonl, one line per request.

    Args:
      options: defaults for requests that do not set them.
      run: what else the answers depend on (see `request_file.answer_file`).
    """
    from tqdm import tqdm

    from nextgpt_jax.serving import request_file
    from nextgpt_jax.serving.batcher import Batcher

    start, folder = time.perf_counter(), pathlib.Path(output)
    bar = tqdm(total=requests.count, unit="reply", leave=False, disable=not sys.stderr.isatty())

    def show(done: int, made: Mapping[str, int]) -> None:
        seconds = time.perf_counter() - start
        bar.set_postfix({f"{name}s/s": f"{count / seconds:.1f}" for name, count in made.items()}, refresh=False)
        bar.update(done - bar.n)

    with bar, Batcher(engine, config) as batcher:
        done = request_file.answer_file(batcher, requests, options, folder, run, show)
    before = f" ({done.before} replies were there)" * bool(done.before)
    print(f"{done.answered} of {done.requests - done.before} requests answered{before}: {folder / 'replies.jsonl'}")
    if done.failed:
        raise SystemExit(f"{done.failed} requests failed by a fault of the program: see their lines and the log above")


def chat(engine: "Engine", options: Mapping[str, Any], output: str) -> None:
    """A conversation in the terminal, with commands that start with a slash."""
    from nextgpt_jax.inference.requests import make_request
    from nextgpt_jax.prompts import Turn

    def save(media: Sequence["MediaOutput"]) -> list[pathlib.Path]:
        try:
            return save_media(media, pathlib.Path(output))
        except UserError as error:  # the conversation continues
            print(f"error: {error}")
            return []

    attach = ", ".join(f"/{name}" for name in engine.config.input_modalities)
    print(f"Type a message. {attach} PATH adds a file to it, /new starts a new conversation, /quit ends.")
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
            print(f"commands: {attach} PATH, /new, /quit")
        elif line:
            try:
                request = make_request(line, paths, options, engine.config, engine.defaults, history)
                response, _ = respond(engine, request, save)
                history = [*history, Turn(request.turns[-1].human, response.segments)]
            except UserError as error:
                print(f"error: {error}")
            paths = {}


def save_media(media: Sequence["MediaOutput"], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes each medium to the next free file name of its modality. Creates the folder if there is a medium."""
    from nextgpt_jax.media import write

    paths = []
    for medium in media:
        number, suffix = 0, MODALITIES[medium.modality].suffix
        while (path := folder / f"{medium.modality}_{number:03d}{suffix}").exists():
            number += 1
        write(medium.modality, path, medium.content)
        paths.append(path)
    return paths


class ProgressBar:
    """Denoising steps on stderr; visible from a step until `hide`."""

    def __init__(self):
        self._bar = None

    def __call__(self, done: int, total: int) -> None:
        """Shows that `done` of `total` steps are done."""
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(unit="step", leave=False)
        self._bar.total, self._bar.n = total, done
        self._bar.refresh()

    def hide(self) -> None:
        """Removes the bar from the terminal."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None


@contextlib.contextmanager
def progress() -> Iterator[ProgressBar | None]:
    """A ProgressBar if stderr is a terminal, else None: then samplers need not report every step."""
    bar = ProgressBar() if sys.stderr.isatty() else None
    try:
        yield bar
    finally:
        if bar:
            bar.hide()


def run() -> None:
    """Entry point of nextgpt-infer and infer.py."""
    sys.exit(run_command(main, sys.argv))
