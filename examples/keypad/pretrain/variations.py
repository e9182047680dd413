"""The encoder again: media as people bring them get the embeddings of those that it already knows.

It goes on from the encoder of imagebind.py. The towers learn to give every medium the mean embedding of its thing, so
that what was trained with the encoder (the delta) stays as it is.
"""

import concurrent.futures
import functools
import multiprocessing
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int
from transformers import AutoTokenizer

from examples.keypad import things, world
from examples.keypad.pretrain.common import all_captions, fit, load, save
from examples.keypad.pretrain.imagebind import CONFIG, IMAGEBIND, KINDS, NUMBER, THINGS
from examples.keypad.variations import FILMS, PICTURES, RECORDINGS, any_film, any_picture, any_recording, varied
from nextgpt_jax import media
from nextgpt_jax.models.encoders.imagebind import ImageBind, Tower
from nextgpt_jax.weights.tables import imagebind as imagebind_table

_MEDIA = {  # what a tower learns from
    "vision": {"scans": 7200, "pictures": 5600, "each": 10_400, "movies": 10_400, "films": 2400, "each film": 4000},
    "audio": {"tones": 1320, "recordings": 2640},
}
_KNOWN = 1000  # media that the mean embeddings are taken over
_CHUNK = 500
_BENT, _BEND = 0.7, 0.9  # the share of drawings that are bent, and by how much: deviation in pixels

Media = tuple[Float[np.ndarray, "n ..."], Int[np.ndarray, " n"]]  # preprocessed, with the numbers of their things


def variations(output: pathlib.Path, *, steps: int = 5000) -> None:
    """The encoder again, on media as people bring them: other colors, sizes, strokes, codecs, rates and levels."""
    folder = output / "imagebind"
    table = imagebind_table.table(CONFIG.modalities)
    model = load(lambda: ImageBind(CONFIG, rngs=nnx.Rngs(0)), folder, table)
    captions = _captions(model, folder)
    for branch, counts in _MEDIA.items():
        known, numbers = _pool(counts)
        print(f"{branch}: a pool of {len(numbers)} media", flush=True)
        loss = _loss(captions, _means(model, branch, np.random.default_rng(10)))
        batches = _batches(known, numbers, np.random.default_rng(1))
        count = steps if branch == "vision" else max(1, steps // 10)  # tones are learned soon
        model.towers[branch] = fit(
            branch,
            model.towers[branch],
            loss,
            batches,
            steps=count,
            lr=1e-3,
            ema=max(0.0, 1 - 10 / count),  # over about the last tenth
            weight_decay=0.1,
        )
        save(model, table, IMAGEBIND, folder, "model.safetensors")
        report(model, branch, captions)


def report(model: ImageBind, branch: str, captions: Float[Array, "things e"]) -> None:
    """Prints how many held-out media of each variation are nearest to their caption."""
    rng = np.random.default_rng(11)
    inks, labels = world.ink()[world.HELD_OUT], world.scans()[1][world.HELD_OUT]
    makers: dict[str, Callable[[], Media]] = {}
    if branch == "audio":
        keys = np.arange(200) % 10
        makers["tones"] = lambda: _tones(keys, _plain_tone, rng)
        for name, vary in RECORDINGS.items():
            makers[name] = lambda vary=vary: _tones(keys, vary, rng)
    else:
        makers["scans"] = lambda: _pictures(inks, labels, lambda ink, rng: world.paper(ink), rng)
        makers["movies"] = lambda: _films(inks, labels, _plain_film, rng)
        for name, vary in PICTURES.items():
            makers[name] = lambda vary=vary: _pictures(inks, labels, vary, rng)
        for name, vary in FILMS.items():
            makers[f"movies, {name}"] = lambda vary=vary: _films(inks[::4], labels[::4], vary, rng, frames=world.FRAMES)
    for name, make in makers.items():
        x, numbers = make()
        found = (embedded(model, branch, x) @ np.asarray(captions).T).argmax(-1)
        print(f"held-out {name} nearest to their caption: {(found == numbers).sum()} of {len(numbers)}", flush=True)


def _captions(model: ImageBind, folder: pathlib.Path) -> Float[Array, "things e"]:
    """The mean embedding of the captions of each thing."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = np.concatenate([all_captions(tokenizer, name) for name in KINDS])
    return jnp.asarray(embedded(model, "text", ids.reshape(-1, ids.shape[-1])).reshape(*ids.shape[:2], -1).mean(1))


def _means(model: ImageBind, branch: str, rng: np.random.Generator) -> Float[Array, "things e"]:
    """The mean embedding of each thing that the tower knows, of unit length; 0 for the others. Drawings are as bent as
    those that are learned from."""
    if branch == "audio":
        keys = rng.integers(10, size=_KNOWN)
        x, numbers = _tones(keys, _plain_tone, rng)
    else:
        (stills, digits), (movies, moves) = _scans(_KNOWN, rng), _movies(2 * _KNOWN, rng)
        x, numbers = np.concatenate([stills, movies]), np.concatenate([digits, moves])
    sums = np.zeros((len(THINGS), CONFIG.out_embed_dim), np.float32)
    np.add.at(sums, numbers, embedded(model, branch, x))
    return jnp.asarray(sums / np.maximum(np.linalg.norm(sums, axis=-1, keepdims=True), 1e-6))


def _loss(captions: Float[Array, "things e"], means: Float[Array, "things e"]):
    """The distance to the thing's mean embedding, and that its caption is the nearest."""

    def loss(tower: Tower, batch: dict[str, Array], _: Array) -> tuple[Array, dict[str, Array]]:
        given = tower(batch["media"], 0)
        match = jax.nn.one_hot(batch["things"], len(THINGS))
        logits = given @ captions.T
        named = optax.softmax_cross_entropy(logits, 0.95 * match + 0.05 / len(THINGS)).mean()
        far = 1.0 - jnp.sum(given * (match @ means), -1).mean()
        right = (logits.argmax(-1) == batch["things"]).mean()
        return named + 4.0 * far, {"named": named, "far": far, "right": right}

    return loss


def _batches(known, numbers, rng: np.random.Generator, size: int = 64) -> Iterator[dict[str, np.ndarray]]:
    """Random media, with grain like that of compression."""
    while True:
        rows = rng.integers(len(numbers), size=size)
        x = known[rows].astype(np.float32)
        if x.ndim == 5:
            x += rng.normal(0.0, rng.uniform(0.0, 0.06), x.shape)
        yield {"media": x, "things": numbers[rows]}


def _pool(counts: dict[str, int]) -> Media:
    """Media of training scans, and tones: so many of each kind, made by a process for each core."""
    parts = [(kind, min(_CHUNK, count - at)) for kind, count in counts.items() for at in range(0, count, _CHUNK)]
    with concurrent.futures.ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as processes:
        made = list(processes.map(_part, *zip(*parts), range(1000, 1000 + len(parts))))
    return np.concatenate([x for x, _ in made]), np.concatenate([n for _, n in made])


def _part(kind: str, count: int, seed: int) -> Media:
    return _KINDS[kind](count, np.random.default_rng(seed))


def _inks(count: int, rng: np.random.Generator) -> tuple[Float[np.ndarray, "n 32 32"], Int[np.ndarray, " n"]]:
    """Transformed training scans, most of them bent, and their digits."""
    rows = rng.integers(len(world.ink()[world.TRAIN]), size=count)
    parts = [world.augmented(world.ink()[rows[at : at + _CHUNK]], rng) for at in range(0, count, _CHUNK)]
    inks, bent = np.concatenate(parts), rng.random(count) < _BENT
    inks[bent] = world.bent(inks[bent], rng, _BEND)
    return inks, world.scans()[1][rows]


def _scans(count: int, rng: np.random.Generator) -> Media:
    return _pictures(*_inks(count, rng), lambda ink, rng: world.paper(ink), rng)


def _movies(count: int, rng: np.random.Generator) -> Media:
    return _films(*_inks(count, rng), _plain_film, rng)


def _plain_tone(key: int, rng: np.random.Generator) -> media.Audio:
    return media.Audio(world.tone(key, rng), world.RATE)


def _plain_film(inks: Float[np.ndarray, "f 32 32"], rng: np.random.Generator) -> media.Video:
    return media.Video(world.paper(inks), world.FPS)


def _pictures(inks, labels, vary, rng: np.random.Generator) -> Media:
    """Clips of two equal frames, which is what the encoder makes of an image."""
    shown = np.stack([media.preprocess("image", vary(ink, rng), CONFIG).astype(np.float16) for ink in inks])
    return np.repeat(shown[:, None], 2, axis=1), np.array([NUMBER["image", int(d), ""] for d in labels])


def _films(inks, labels, vary, rng: np.random.Generator, frames: int = 2) -> Media:
    """Movies; of two frames, as only the first and the last are looked at."""
    ways = rng.choice(things.DIRECTIONS, len(inks)).tolist()
    clips = []
    for at in range(0, len(inks), _CHUNK):
        moving = world.moving(inks[at : at + _CHUNK], ways[at : at + _CHUNK], rng, frames=frames)
        for movie in moving:
            chosen = media.sample_clips(vary(movie, rng), clips=1, frames=CONFIG.video_frames)
            clips.append(media.preprocess("video", chosen, CONFIG)[0].astype(np.float16))
    return np.stack(clips), np.array([NUMBER["video", int(d), way] for d, way in zip(labels, ways)])


def _tones(keys, vary, rng: np.random.Generator) -> Media:
    spectrograms = []
    for key in keys.tolist():
        audio = vary(key, rng)
        samples = media.resample(audio.samples, audio.sample_rate, 16_000)
        spectrograms.append(media.preprocess("audio", samples, CONFIG)[0].astype(np.float16))
    return np.stack(spectrograms), np.array([NUMBER["audio", key, ""] for key in keys.tolist()])


def embedded(model: ImageBind, branch: str, x: np.ndarray) -> Float[np.ndarray, "n e"]:
    """The embeddings of preprocessed media, or of ids."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def embed(state, x):
        return nnx.merge(graphdef, state).embed(branch, x if x.dtype == jnp.int32 else x.astype(jnp.float32))

    chunks = (x[at : at + _CHUNK] for at in range(0, len(x), _CHUNK))
    return np.concatenate([np.asarray(embed(state, chunk)) for chunk in chunks])


_KINDS: dict[str, Callable[[int, np.random.Generator], Media]] = {
    "scans": _scans,
    "pictures": lambda count, rng: _pictures(*_inks(count, rng), any_picture, rng),
    "each": lambda count, rng: _pictures(*_inks(count, rng), functools.partial(varied, "image"), rng),
    "movies": _movies,
    "films": lambda count, rng: _films(*_inks(count, rng), any_film, rng),
    "each film": lambda count, rng: _films(*_inks(count, rng), functools.partial(varied, "video"), rng),
    "tones": lambda count, rng: _tones(rng.integers(10, size=count), _plain_tone, rng),
    "recordings": lambda count, rng: _tones(rng.integers(10, size=count), any_recording, rng),
}
