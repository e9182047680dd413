"""The command line of answering: one prompt, a chat, or a file of requests."""

import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from absl import flags

from nextgpt_jax.command import enable_compilation_cache, parse_flags, run_command
from nextgpt_jax.errors import UserError, check_folder

USAGE = """infer.py --config=configs/FILE.py (--prompt=TEXT | --chat | --requests=FILE.jsonl) [options]

Answers with text and images. Images go where `<image>` stands in the prompt, or before it. Options:"""


def _define(values: flags.FlagValues) -> None:
    def define(kind, name, default, text):
        getattr(flags, f"DEFINE_{kind}")(name, default, text, flag_values=values)

    define("string", "prompt", None, "what to say")
    define("multi_string", "image", [], "an image to show (repeatable)")
    define("string", "output", "outputs", "folder for images and replies")
    define("string", "workdir", "", "answer with the weights of this training run")
    define("string", "modality", None, "auto, text (no images) or image (at least one)")
    define("integer", "seed", None, "of sampling tokens and images")
    define("integer", "steps", None, "denoising steps of an image")
    define("float", "guidance", None, "classifier-free guidance of an image")
    define("float", "temperature", None, "of sampling tokens; 0: the most likely ones")
    define("integer", "top_k", None, "sample among this many tokens; 0: all")
    define("float", "top_p", None, "sample among the tokens of this probability")
    define("integer", "max_new_tokens", None, "length of the reply at most")
    define("boolean", "json", False, "print the reply as one JSON object on the last line")
    define("boolean", "chat", False, "talk in the terminal, several turns")
    define("string", "requests", None, "answer every line of this JSONL file together")


def main(argv: Sequence[str]) -> None:
    """Parses flags and answers. Raises UserError for what the user can mend."""
    values = parse_flags(argv, _define, USAGE)
    modes = [values.prompt is not None, values.chat, values.requests is not None]
    if sum(modes) != 1:
        raise UserError("give one of --prompt=TEXT, --chat and --requests=FILE.jsonl")
    if values.json and values.prompt is None:
        raise UserError("--json goes with --prompt (--requests writes replies.jsonl)")
    if values.image and values.prompt is None:
        raise UserError("--image goes with --prompt (in a chat, type /image PATH)")
    check_folder(values.output, "--output")
    enable_compilation_cache()
    from nextgpt_jax.inference import requests  # after the flags: a typo should not wait for imports

    config = values.config
    options = {name: getattr(values, name) for name in requests.OPTIONS}
    if values.prompt is not None:  # bad input shows before the weights are loaded
        request = requests.make_request(values.prompt, values.image, options, config.decode)
        answer_one(load_engine(config, values.workdir), request, values.output, values.json)
    elif values.requests is not None:
        batch = requests.read_requests(values.requests, config.decode, options)
        answer_file(load_engine(config, values.workdir), batch, values.output)
    else:
        chat(load_engine(config, values.workdir), options, config.decode, values.output)


def load_engine(config, workdir: str):
    """The engine of a config, with the trained weights of `workdir` if given."""
    from nextgpt_jax.inference.engine import Engine
    from nextgpt_jax.load import load_trained

    if not workdir and not config.model.delta:
        raise UserError("this config has no trained weights: give --workdir of a training run, or set model.delta")
    parts = ("text_encoder", "unet", "vae")
    return Engine(load_trained(config.model, workdir, decoder_parts=parts), config.decode)


def answer_one(engine, request, output: str, as_json: bool) -> None:
    """Answers one request and prints the reply: text, then the paths of its images."""
    start = time.perf_counter()
    with progress() as on_step:
        reply = engine.answer([request], on_step)[0]
    paths = save_images(reply.images, pathlib.Path(output))
    print(reply.text)
    for path in paths:
        print(path)
    if as_json:
        seconds = round(time.perf_counter() - start, 3)
        found = {"text": reply.text, "images": [str(p) for p in paths], "tokens": reply.tokens, "seconds": seconds}
        print(json.dumps(found, ensure_ascii=False))


def answer_file(engine, batch: Sequence, output: str, size: int = 32) -> None:
    """Answers the good requests of a file, `size` at a time, and writes OUTPUT/replies.jsonl, one line a request."""
    from nextgpt_jax.media import write_png

    folder = pathlib.Path(output)
    lines: list[dict] = [{"error": str(r)} if isinstance(r, UserError) else {} for r in batch]
    good = []
    for i, request in enumerate(batch):
        if not isinstance(request, UserError):
            try:
                engine.encode(request)
                good.append(i)
            except UserError as error:
                lines[i] = {"error": str(error)}
    folder.mkdir(parents=True, exist_ok=True)
    for at in range(0, len(good), size):
        chunk = good[at : at + size]
        with progress() as on_step:
            replies = engine.answer([batch[i] for i in chunk], on_step)
        for i, reply in zip(chunk, replies, strict=True):
            names = [f"{i:05d}_{k}.png" for k in range(len(reply.images))]
            for name, image in zip(names, reply.images, strict=True):
                write_png(folder / name, image)
            lines[i] = {"text": reply.text, "images": names, "tokens": reply.tokens}
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".partial")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(temporary, 0o644)
    os.replace(temporary, folder / "replies.jsonl")
    print(f"{len(good)} of {len(batch)} requests answered: {folder / 'replies.jsonl'}")


def chat(engine, options: dict, defaults, output: str) -> None:
    """A conversation in the terminal, with commands that start with a slash."""
    from nextgpt_jax.inference.requests import make_request
    from nextgpt_jax.prompts import Turn

    print("Say something. /image PATH shows an image with your next message, /new starts over, /quit ends.")
    history, images = [], []
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if line in ("/quit", "/exit"):
            return
        if line == "/new":
            history, images = [], []
        elif line.startswith("/image"):
            images.append(line.removeprefix("/image").strip())
        elif line.startswith("/"):
            print("commands: /image PATH, /new, /quit")
        elif line:
            try:
                request = make_request(line, images, options, defaults, history)
                with progress() as on_step:
                    reply = engine.answer([request], on_step)[0]
            except UserError as error:
                print(f"error: {error}")
                images = []
                continue
            history, images = [*history, Turn(request.turns[-1].human, reply.segments)], []
            print(reply.text)
            for path in save_images(reply.images, pathlib.Path(output)):
                print(path)


def save_images(images: Sequence, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes PNG files under the next free names of the folder, which is made if there is something to write."""
    from nextgpt_jax.media import write_png

    paths, number = [], 0
    for image in images:
        while (path := folder / f"image_{number:03d}.png").exists():
            number += 1
        write_png(path, image)
        paths.append(path)
    return paths


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
