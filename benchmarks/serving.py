"""A server of the keypad model under load, beside the same requests one by one.

    python benchmarks/serving.py [--seconds N] [--clients N] [--old CHECKOUT] [--no_torch]

First the requests are answered one by one: by a loaded engine of this checkout, by that of another one (--old, a
directory), and by transformers and diffusers with the weights in the layout that export writes (text by greedy generate
of as many tokens as our answer has, media by the pipelines from prompt embeddings, so without the output projections).
Then `nextgpt serve` runs in a process of its own, and clients ask it over HTTP with streaming, each at its own pace.
Every answer is checked to be that of its own request: its text names the digits of its prompt, and the judge of
examples/keypad reads media. The time between tokens is that of streams of long answers, one of them and 16 at once.
"""

import argparse
import asyncio
import base64
import collections
import datetime
import io
import json
import os
import pathlib
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from typing import NamedTuple

import httpx2
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "examples" / "keypad" / "weights" / "base"
WORDS = "zero one two three four five six seven eight nine".split()
MIXES = {"text": {"text": 1.0}, "mixed": {"text": 0.55, "image": 0.25, "audio": 0.12, "video": 0.08}}
THINK = 0.05  # mean seconds between a client's requests
COUNTING = "count from zero to nine"  # a long answer, to measure the time between tokens


class Ask(NamedTuple):
    """A request of the load."""

    kind: str
    prompt: str
    words: tuple[str, ...]  # that the answer names
    digit: int
    seed: int


class Reply(NamedTuple):
    """What became of a request; seconds from its start."""

    kind: str
    status: int
    first: float  # to the first text
    gaps: tuple[float, ...]  # between texts
    last: float
    own: bool  # the text is that of the request
    digit: bool  # so are the media
    tokens: int


def make_ask(rng: random.Random, mix: dict[str, float], seed: int) -> Ask:
    kind = rng.choices([*mix], [*mix.values()])[0]
    if kind == "counting":
        return Ask("text", COUNTING, tuple(WORDS), 0, seed)
    a = rng.randrange(10)
    if kind == "text":
        b = rng.randrange(10 - a)
        words = (WORDS[a], WORDS[b], WORDS[a + b])
        return Ask(kind, f"what is {WORDS[a]} plus {WORDS[b]}?", words, a + b, seed)
    prompts = {"image": "please draw a {}", "audio": "play the tone of key {}", "video": "show me a {} moving left"}
    return Ask(kind, prompts[kind].format(WORDS[a]), (WORDS[a],), a, seed)


def names(text: str, ask: Ask) -> bool:
    return all(word in text.lower() for word in ask.words)


ONE_BY_ONE = """
import json, sys, time
sys.path.insert(0, ".")
import jax
from configs.keypad import get_config
try:
    from nextgpt_jax.cli.infer import load_engine
except ModuleNotFoundError:
    from nextgpt_jax.inference.cli import load_engine
from nextgpt_jax.inference.requests import make_request
config = get_config()
engine = load_engine(config, "")
answer = engine.generate if hasattr(engine, "generate") else engine.answer
asks = json.load(sys.stdin)
def run():
    for kind, prompt, seed in asks:
        request = make_request(prompt, {}, {"seed": seed, "modality": kind}, engine.config, engine.defaults)
        (reply,) = answer([request])
        yield reply.tokens if hasattr(reply, "tokens") else 0
tokens = [*run()]
start = time.perf_counter()
tokens = [*run()]
print(json.dumps([time.perf_counter() - start, tokens]))
"""


def one_by_one(root: pathlib.Path, asks: list[Ask]) -> tuple[float, list[int]]:
    """Seconds of a warm engine for requests one by one, and the tokens of the answers."""
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", ONE_BY_ONE],
        input=json.dumps([(a.kind, a.prompt, a.seed) for a in asks]),
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, tokens = json.loads(done.stdout.splitlines()[-1])
    return seconds, tokens


def with_torch(asks: list[Ask], tokens: list[int]) -> float:
    """Seconds of transformers and diffusers for the same requests one by one."""
    import diffusers
    import torch
    import transformers

    llm = transformers.AutoModelForCausalLM.from_pretrained(WEIGHTS / "llm", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(WEIGHTS / "llm")
    options = {"torch_dtype": torch.float32}
    pipelines = {
        "image": diffusers.StableDiffusionPipeline.from_pretrained(
            WEIGHTS / "stable-diffusion", safety_checker=None, **options
        ),
        "video": diffusers.TextToVideoSDPipeline.from_pretrained(WEIGHTS / "text-to-video", **options),
        "audio": diffusers.AudioLDMPipeline.from_pretrained(WEIGHTS / "audioldm", **options),
    }
    sizes = {
        "image": {"height": 32, "width": 32, "guidance_scale": 4.0},
        "video": {"height": 32, "width": 32, "num_frames": 8, "guidance_scale": 5.0},
        "audio": {"audio_length_in_s": 0.5, "guidance_scale": 3.0},
    }
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)

    def answer(ask: Ask, count: int) -> None:
        ids = tokenizer(ask.prompt, return_tensors="pt")
        with torch.inference_mode():
            llm.generate(**ids, min_new_tokens=count, max_new_tokens=max(1, count), do_sample=False, pad_token_id=2)
            if ask.kind != "text":
                encoder = pipelines[ask.kind].text_encoder.config
                shape = (1, encoder.hidden_size) if ask.kind == "audio" else (1, 77, encoder.hidden_size)
                if ask.kind != "audio":
                    shape = (1, encoder.max_position_embeddings, encoder.hidden_size)
                embeds = torch.randn(shape, generator=torch.Generator().manual_seed(ask.seed))
                pipelines[ask.kind](
                    prompt_embeds=embeds, negative_prompt_embeds=embeds * 0, num_inference_steps=20, **sizes[ask.kind]
                )

    for ask, count in zip(asks[:8], tokens):
        answer(ask, count)
    start = time.perf_counter()
    for ask, count in zip(asks, tokens, strict=True):
        answer(ask, count)
    return time.perf_counter() - start


def judged(kind: str, url: str) -> int | None:
    """The digit of a medium in a data: URL."""
    from examples.keypad import judge
    from nextgpt_jax import media

    content = base64.b64decode(url.split(",", 1)[1])
    if kind == "image":
        from PIL import Image

        return int(judge.classify(np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))[None])[0])
    with tempfile.NamedTemporaryFile(suffix=".mp4" if kind == "video" else ".wav") as file:
        file.write(content)
        file.flush()
        if kind == "video":
            import av

            with av.open(file.name) as opened:
                frames = np.stack([frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)])
            return judge.moving_digit(frames)
        return judge.key(media.read_audio(file.name, sample_rate=8000), 8000)


class Load:
    """Clients of a server, for some seconds."""

    def __init__(self, url: str, pid: int):
        self.url, self.pid = url, pid
        self.replies: list[Reply] = []
        self.media: list[tuple[int, str, str]] = []  # digits that were asked for, kinds, data: URLs; judged at the end
        self.memory: list[float] = []

    async def run(self, clients: int, mix: dict[str, float], seconds: float, think: float = THINK) -> None:
        end = time.perf_counter() + seconds
        limits = httpx2.Limits(max_connections=clients)
        async with httpx2.AsyncClient(base_url=self.url, timeout=120, limits=limits) as http:
            watching = asyncio.create_task(self._watch())
            await asyncio.gather(*(self._client(http, i, mix, end, think) for i in range(clients)))
            watching.cancel()

    async def _watch(self) -> None:
        while True:
            for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS"):
                    self.memory.append(int(line.split()[1]) / 2**10)
            await asyncio.sleep(1.0)

    async def _client(
        self, http: httpx2.AsyncClient, number: int, mix: dict[str, float], end: float, think: float
    ) -> None:
        rng = random.Random(number)
        await asyncio.sleep(rng.random() * think)
        count = 0
        while time.perf_counter() < end:
            ask = make_ask(rng, mix, 1000 * number + count % 1000)
            count += 1
            begin = time.perf_counter()
            try:
                self.replies.append(await self._ask(http, ask))
            except httpx2.HTTPError as error:  # lost
                print(f"{ask}: {error!r} after {time.perf_counter() - begin:.1f} s", file=sys.stderr)
                self.replies.append(Reply(ask.kind, 0, 0.0, (), time.perf_counter() - begin, False, False, 0))
            await asyncio.sleep(rng.expovariate(1 / think) if think else 0)

    async def _ask(self, http: httpx2.AsyncClient, ask: Ask) -> Reply:
        body = {
            "model": "keypad",
            "messages": [{"role": "user", "content": ask.prompt}],
            "modality": ask.kind,
            "seed": ask.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        start, times, text, media, tokens = time.perf_counter(), [], "", [], 0
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                await response.aread()
                last = time.perf_counter() - start
                return Reply(ask.kind, response.status_code, 0.0, (), last, True, True, 0)
            finished = False
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line[6:])
                if event.get("usage"):
                    tokens = event["usage"]["completion_tokens"]
                for choice in event.get("choices", []):
                    delta = choice["delta"]
                    if delta.get("content"):
                        times.append(time.perf_counter() - start)
                        text += delta["content"]
                    media += delta.get("media") or []
                    finished |= bool(choice.get("finish_reason"))
        last = time.perf_counter() - start
        wanted = [] if ask.kind == "text" else [ask.kind]
        kinds = [part["type"].removesuffix("_url") for part in media]
        own = finished and names(text, ask) and kinds == wanted
        for part in media:
            self.media.append((ask.digit, ask.kind, part[part["type"]]["url"]))
        gaps = tuple(np.diff(times))
        return Reply(ask.kind, 200, times[0] if times else last, gaps, last, own, True, tokens)


def percentiles(values: list[float]) -> str:
    return " / ".join(f"{np.percentile(values, p):.2f}" for p in (50, 95)) if values else "-"


def show(name: str, load: Load, seconds: float, base: dict[str, float]) -> bool:
    """Prints the rows of a load. Whether no answer was lost or crossed."""
    good = [reply for reply in load.replies if reply.status == 200]
    statuses = collections.Counter(reply.status for reply in load.replies)
    rate = len(good) / seconds
    right = [judged(kind, url) == digit for digit, kind, url in load.media[:400]]
    third = max(1, len(load.memory) // 3)
    memory = f"{np.median(load.memory[:third]):.0f} -> {np.median(load.memory[-third:]):.0f} MiB"
    own = all(reply.own for reply in good) and set(statuses) <= {200, 429}
    print(
        f"{name}: {dict(statuses)}, every answer its own: {own}, media with their digit: {sum(right)} of {len(right)}"
    )
    print(f"  {rate:.1f} answers/s; memory of the server {memory}")
    for other, one in base.items():
        print(f"  {rate * one:.2f} x {other}, which takes {one * 1000:.0f} ms each")
    for kind in sorted({reply.kind for reply in good}):
        of = [reply for reply in good if reply.kind == kind]
        first, last = percentiles([r.first for r in of]), percentiles([r.last for r in of])
        print(f"  {kind}: {len(of)} answers, first text {first} s, complete {last} s (median / 95th percentile)")
    return own


def start(*flags: str) -> tuple[subprocess.Popen, str]:
    """A server that is ready, and its URL."""
    command = [sys.executable, "-m", "nextgpt_jax", "serve", "--config=keypad", "--port=0", *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert server.stdout
    url = next(line.split()[-1] for line in server.stdout if line.startswith("serving on"))
    threading.Thread(
        target=collections.deque, args=(server.stdout, 0), daemon=True
    ).start()  # or its log fills the pipe
    while server.poll() is None:
        try:
            if httpx2.get(f"{url}/readyz").status_code == 200:
                break
        except httpx2.HTTPError:
            pass
        time.sleep(0.1)
    return server, url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="of each load")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--old", help="directory of another checkout")
    parser.add_argument("--no_torch", action="store_true")
    parser.add_argument("--sample", type=int, default=50, help="requests that are answered one by one")
    args = parser.parse_args()
    print(f"{datetime.date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    one: dict[str, dict[str, float]] = {}
    for name, mix in MIXES.items():
        rng = random.Random(0)
        kinds = [kind for kind, share in mix.items() for _ in range(round(share * args.sample))]  # as in the load
        asks = [make_ask(rng, {kind: 1.0}, seed) for seed, kind in enumerate(kinds)]
        seconds, tokens = one_by_one(ROOT, asks)
        one[name] = {"one by one": seconds / len(asks)}
        if args.old:
            one[name][f"{args.old} one by one"] = one_by_one(pathlib.Path(args.old).resolve(), asks)[0] / len(asks)
        if not args.no_torch:
            one[name]["transformers and diffusers one by one"] = with_torch(asks, tokens) / len(asks)
    begin = time.perf_counter()
    server, url = start("--warmup", "--noaccess_log")
    try:
        print(f"the server was ready after {time.perf_counter() - begin:.0f} s, everything compiled")
        whole = True
        for name, mix in MIXES.items():
            load = Load(url, server.pid)
            asyncio.run(load.run(args.clients, mix, args.seconds))
            whole &= show(f"{args.clients} clients, {name}", load, args.seconds, one[name])
        gaps = {}
        for clients in (1, 16):
            load = Load(url, server.pid)
            asyncio.run(load.run(clients, {"counting": 1.0}, min(20.0, args.seconds), think=0.0))
            whole &= all(reply.own for reply in load.replies)
            gaps[clients] = [sum(r.gaps) / r.tokens for r in load.replies if r.tokens and r.gaps]
        print(f"seconds a token: {', '.join(f'{np.median(g):.4f} ({n} streams)' for n, g in gaps.items())}")
    finally:
        server.terminate()
        server.wait()
    begin = time.perf_counter()
    server, url = start()
    try:
        load = Load(url, server.pid)
        ready = time.perf_counter() - begin
        asyncio.run(load.run(1, MIXES["text"], 0.5, think=0.0))
        print(f"from the start of a server with a warm cache to its first text: {ready + load.replies[0].first:.1f} s")
    finally:
        server.terminate()
        server.wait()
    sys.exit(0 if whole else 1)


if __name__ == "__main__":
    main()
