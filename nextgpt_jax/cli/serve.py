"""The command `nextgpt serve`: an HTTP server with OpenAI's API."""

import math
import os
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from nextgpt_jax.cli.flags import configure_jax, parse_flags
from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.weights.run_steps import parse_step

USAGE = """{program} --config=CONFIG [options]

Serves OpenAI's API: chat with text, images, video and sound, streamed or not, generation of media, embeddings
(docs/serving.md). Options:"""
KEYS_VARIABLE = "NEXTGPT_API_KEYS"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _define(values: flags.FlagValues) -> None:
    def define(kind, name, default, text):
        getattr(flags, f"DEFINE_{kind}")(name, default, text, flag_values=values)

    define("string", "host", "127.0.0.1", "address to listen on; 0.0.0.0: all of this machine")
    define("integer", "port", 8000, "port; 0: a free one")
    define("string", "name", "", "of the model, in requests; empty: the config's")
    define(
        "multi_string", "api_key", [], f"a key that requests need (repeatable; also in {KEYS_VARIABLE}, with commas)"
    )
    define("string", "api_keys", "", "file with such keys, one a line")
    define("float", "rate_limit", 0.0, "requests per minute and key; 0: no limit")
    define("float", "max_upload", 64.0, "megabytes of a request")
    define("integer", "max_inputs", 16, "media in a request")
    define("boolean", "allow_urls", False, "fetch media from public http(s) addresses")
    define(
        "string", "public_url", "", "this server's address in URLs of generated media; empty: as the client calls it"
    )
    define("float", "file_minutes", 60.0, "how long generated media can be fetched")
    define(
        "float", "drain_seconds", None, "after SIGTERM, for answers that have begun; default: until all are finished"
    )
    define("boolean", "access_log", True, "write a line for each request")
    define("boolean", "page", False, "a chat page at /chat, too (docs/page.md)")
    define("string", "workdir", "", "use the weights of this training run")
    define("string", "step", "latest", "with --workdir: the checkpoint to use: latest, best (lowest loss) or a step")
    define("boolean", "ema", None, "with --workdir: use the moving average of the weights; default: if there is one")
    define("boolean", "warmup", False, "compile all programs before the first request; see nextgpt warmup")


def main(argv: Sequence[str]) -> None:
    """Parses flags, loads the model and serves until a signal. Raises UserError for what the user can mend."""
    values = parse_flags(argv, _define, USAGE)
    step = parse_step(values.step, "--step")
    if not values.workdir and (values.ema is not None or values["step"].present):
        raise UserError("--step, --ema and --noema choose weights of --workdir")
    for name in ("max_upload", "file_minutes", "rate_limit", "drain_seconds"):
        if not math.isfinite(getattr(values, name) or 0) or (getattr(values, name) or 0) < 0:
            raise UserError(f"--{name}={getattr(values, name)} is out of range")
    if not 0 <= values.port < 2**16:
        raise UserError(f"--port={values.port} is out of range")
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'nextgpt-jax[serve]'") from None
    if values.page:
        from nextgpt_jax.serving import page

        page.check_installed()
    from nextgpt_jax.serving.http.run import listen, serve
    from nextgpt_jax.serving.http.settings import Settings

    keys = api_keys(values.api_key, values.api_keys)
    settings = Settings(
        name=values.name or model_name(argv),
        keys=keys,
        rate=values.rate_limit,
        max_upload=round(values.max_upload * 1e6),
        max_inputs=values.max_inputs,
        allow_urls=values.allow_urls,
        public_url=values.public_url,
        file_seconds=values.file_minutes * 60,
    )
    listening = listen(values.host, values.port)  # before the weights are read
    if not keys and values.host not in _LOOPBACK:
        print(f"warning: {values.host} without --api_key: everybody who reaches it may ask", file=sys.stderr)
    configure_jax()
    from nextgpt_jax.cli.infer import load_engine
    from nextgpt_jax.mesh import available_devices
    from nextgpt_jax.serving.batcher import Batcher
    from nextgpt_jax.serving.http.app import make_app
    from nextgpt_jax.serving.warmup import warm_up

    available_devices()
    engine = load_engine(values.config, values.workdir, step, values.ema)
    if values.warmup:
        print("compiling all programs", file=sys.stderr)
        warm_up(engine, values.config.serving)
    batcher = Batcher(engine, values.config.serving)
    app = make_app(batcher, settings, encoder=values.config.model.encoder)
    if values.page:
        page.add_page(app, batcher, keys=keys, max_upload=settings.max_upload)
        print("the chat page is at /chat", file=sys.stderr)
    serve(app, listening, drain_seconds=values.drain_seconds, access_log=values.access_log)


def api_keys(given: Sequence[str], file: str) -> tuple[str, ...]:
    """The keys of flags, of a file, and of the environment.

    Raises:
      UserError: the file cannot be read, or has none.
    """
    keys = [*given, *(key for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key.strip())]
    if file:
        try:
            lines = pathlib.Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeError) as error:
            raise UserError(f"--api_keys: {file}: {first_line(error)}") from None
        found = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise UserError(f"--api_keys: {file} has no keys")
        keys += found
    return tuple(key.strip() for key in keys)


def model_name(argv: Sequence[str]) -> str:
    """The name of the config, without its folder and variant."""
    for i, arg in enumerate(argv):
        name, equals, value = arg.partition("=")
        if name in ("--config", "-config"):
            spec = value if equals else argv[i + 1]
            return pathlib.Path(spec.partition(":")[0]).stem
    return "nextgpt"
