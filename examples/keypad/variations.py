"""Media as people bring them: digits drawn and photographed in other ways, tones recorded elsewhere, copied videos.

`PICTURES`, `FILMS` and `RECORDINGS` hold a function for each variation. The encoder learns from training scans in all
of them and in mixtures (`any_picture`, ...); the evaluation shows held-out scans in each, with other random numbers.
"""

import io
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from examples.keypad import world
from nextgpt_jax import media

Rng = np.random.Generator
Ink = Float[np.ndarray, "32 32"]
Color = Float[np.ndarray, " 3"]  # 0 to 255

_FINE = 2 * world.SIZE  # pixels, of a drawing whose strokes change
_RESAMPLINGS = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS, Image.Resampling.NEAREST)
_CODECS = {"libx264": "mp4", "mpeg4": "mp4", "libvpx": "webm", "mjpeg": "avi"}  # with their containers


class Frame(NamedTuple):
    """Where a drawing of 32 pixels is in a picture: sizes in pixels, and its corner."""

    height: int
    width: int
    side: int
    top: int
    left: int


# Pictures.


def white_on_black(ink: Ink, rng: Rng) -> UInt8[np.ndarray, "32 32 3"]:
    """Chalk, or a drawing in a dark window."""
    return painted(ink, rng.uniform(225.0, 255.0, 3), rng.uniform(0.0, 30.0, 3))


def colored(ink: Ink, rng: Rng) -> UInt8[np.ndarray, "32 32 3"]:
    """Ink and paper of any two colors whose brightness differs."""
    return painted(ink, *_colors(rng, 90.0))


def large(ink: Ink, rng: Rng) -> UInt8[np.ndarray, "256 256 3"]:
    """256 pixels, dark on white."""
    frame = Frame(256, 256, 256, 0, 0)
    return painted(placed(ink, frame, _RESAMPLINGS[rng.integers(4)]), np.zeros(3), np.full(3, 255.0))


def small(ink: Ink, rng: Rng) -> UInt8[np.ndarray, "300 400 3"]:
    """150 to 200 pixels somewhere in the middle of 400 x 300. The encoder sees the square in its center."""
    return world.paper(placed(ink, _somewhere(300, 400, rng.uniform(1 / 2, 2 / 3), rng)))


def thick(ink: Ink, rng: Rng) -> UInt8[np.ndarray, "64 64 3"]:
    """Drawn with a broad pen of one width, 5 to 6.5 pixels of 32."""
    return world.paper(pen(ink, rng.uniform(5.0, 6.5)))


def thin(ink: Ink, rng: Rng) -> UInt8[np.ndarray, "64 64 3"]:
    """Drawn with a fine pen of one width, 1 to 1.75 pixels of 32."""
    return world.paper(pen(ink, rng.uniform(1.0, 1.75)))


def jpeg(ink: Ink, rng: Rng) -> UInt8[np.ndarray, "h w 3"]:
    """64 to 300 pixels, strongly compressed."""
    side = int(rng.integers(64, 301))
    picture = world.paper(placed(ink, Frame(side, side, side, 0, 0)))
    return compressed(picture, int(rng.integers(8, 26)))


PICTURES: dict[str, Callable[[Ink, Rng], UInt8[np.ndarray, "h w 3"]]] = {
    "white on black": white_on_black,
    "colored": colored,
    "256 px": large,
    "small in 400 x 300": small,
    "thick": thick,
    "thin": thin,
    "JPEG": jpeg,
}


def any_picture(ink: Ink, rng: Rng) -> UInt8[np.ndarray, "h w 3"]:
    """A mixture of all the variations, each within wider limits."""
    height = int(rng.choice((32, 48, 64, 128, 200, 256, 300)))
    width = height if rng.random() < 0.5 else int(height * rng.uniform(0.75, 1.6))
    ink = _any_strokes(ink, rng)
    if rng.random() < 0.5:
        side = min(height, width)
        frame = Frame(height, width, side, (height - side) // 2, (width - side) // 2)
    else:
        frame = _somewhere(height, width, rng.uniform(0.3, 1.0), rng)
    drawn = placed(ink, frame, _RESAMPLINGS[rng.integers(4)])
    picture = painted(drawn, *_any_colors(rng))
    if rng.random() < 0.3:
        noise = rng.normal(0.0, rng.uniform(0.0, 20.0), picture.shape)
        picture = np.clip(np.round(picture + noise), 0, 255).astype(np.uint8)
    return compressed(picture, int(rng.integers(5, 96))) if rng.random() < 0.4 else picture


def painted(ink: Float[np.ndarray, "*b h w"], dark: Color, light: Color) -> UInt8[np.ndarray, "*b h w 3"]:
    """As `world.paper`, in the colors `dark` of ink and `light` of paper."""
    return np.round(light + (dark - light) * ink[..., None]).astype(np.uint8)


def placed(
    ink: Float[np.ndarray, "n n"], frame: Frame, resampling: Image.Resampling = Image.Resampling.BICUBIC
) -> Float[np.ndarray, "h w"]:
    """A drawing scaled into a blank picture; what lies outside is cut off."""
    picture = Image.new("F", (frame.width, frame.height))
    drawing = Image.fromarray(ink.astype(np.float32)).resize((frame.side, frame.side), resampling)
    picture.paste(drawing, (frame.left, frame.top))
    return np.clip(np.asarray(picture), 0.0, 1.0)


def compressed(picture: UInt8[np.ndarray, "h w 3"], quality: int) -> UInt8[np.ndarray, "h w 3"]:
    """A picture through JPEG."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def pen(ink: Ink, width: float) -> Float[np.ndarray, "64 64"]:
    """The drawing's lines again, with a pen of one width, in pixels of 32."""
    from scipy.ndimage import distance_transform_edt

    lines = skeleton(_fine(ink) > 0.5)
    if not lines.any():
        return np.zeros((_FINE, _FINE), np.float32)
    radius = width * _FINE / world.SIZE / 2
    return np.clip(radius + 0.5 - distance_transform_edt(~lines), 0.0, 1.0).astype(np.float32)


def skeleton(drawing: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Lines of one pixel in the middle of the strokes (Zhang and Suen 1984)."""
    lines = np.pad(drawing, 1).astype(np.uint8)
    while True:
        before = lines.copy()
        for first in (True, False):
            around = np.stack([np.roll(lines, shift, (0, 1)) for shift in _AROUND])  # clockwise, from above
            count, pairs = around.sum(0), ((around == 0) & (np.roll(around, -1, 0) == 1)).sum(0)
            up, right, down, left = around[::2]
            ends = (up * right * down, right * down * left) if first else (up * right * left, up * down * left)
            border = (count >= 2) & (count <= 6) & (pairs == 1) & (ends[0] == 0) & (ends[1] == 0)
            lines[border] = 0
        if (lines == before).all():
            return lines[1:-1, 1:-1].astype(bool)


_AROUND = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))  # shifts that bring a neighbor here


def _fine(ink: Ink) -> Float[np.ndarray, "64 64"]:
    return placed(ink, Frame(_FINE, _FINE, _FINE, 0, 0))


def _any_strokes(ink: Ink, rng: Rng) -> Float[np.ndarray, "n n"]:
    """The drawing with its own strokes, with wider or narrower ones, or with those of a pen."""
    kind = rng.random()
    if kind < 0.4:
        return ink
    if kind < 0.7:
        return pen(ink, rng.uniform(0.8, 7.0))
    from scipy.ndimage import grey_dilation, grey_erosion

    fine, size = _fine(ink), int(rng.integers(2, 8))
    return grey_dilation(fine, (size, size)) if kind < 0.88 else np.maximum(grey_erosion(fine, (3, 3)), pen(ink, 0.8))


def _somewhere(height: int, width: int, share: float, rng: Rng) -> Frame:
    """A place in the square in the center, for a drawing of `share` of its side."""
    square = min(height, width)
    side = max(8, round(share * square))
    top, left = (int(rng.integers(0, square - side + 1)) for _ in range(2))
    return Frame(height, width, side, top + (height - square) // 2, left + (width - square) // 2)


def _colors(rng: Rng, contrast: float) -> tuple[Color, Color]:
    """Colors of ink and paper; their brightness (ITU-R BT.601) differs by at least `contrast`."""
    while True:
        pair = rng.uniform(0.0, 255.0, (2, 3))
        if abs(np.subtract(*(pair @ (0.299, 0.587, 0.114)))) >= contrast:
            return pair[0], pair[1]


def _any_colors(rng: Rng) -> tuple[Color, Color]:
    kind = rng.random()
    if kind < 0.2:
        return world.INK, world.PAPER
    if kind < 0.3:
        return 255.0 - world.INK, 255.0 - world.PAPER
    if kind < 0.65:
        dark, light = rng.uniform(0.0, 60.0) + rng.uniform(0.0, 20.0, 3), 255.0 - rng.uniform(0.0, 60.0, 3)
        return (dark, light) if rng.random() < 0.4 else (light, dark)
    return _colors(rng, 60.0)


# Videos: frames of amounts of ink, at world.FPS.

Movie = Float[np.ndarray, "f 32 32"]


def copied(inks: Movie, rng: Rng) -> media.Video:
    """Another size and frame rate, and the pixels of another codec, strongly compressed."""
    side, codec = 2 * int(rng.integers(24, 65)), list(_CODECS)[rng.integers(len(_CODECS))]
    frames = world.paper(np.stack([placed(ink, Frame(side, side, side, 0, 0)) for ink in inks]))
    return recoded(media.Video(np.repeat(frames, 2, 0), 2 * world.FPS), codec, rng.uniform(0.4, 0.9))


def filmed_white_on_black(inks: Movie, rng: Rng) -> media.Video:
    """`white_on_black`, moving."""
    return media.Video(painted(inks, rng.uniform(225.0, 255.0, 3), rng.uniform(0.0, 30.0, 3)), world.FPS)


def wide(inks: Movie, rng: Rng) -> media.Video:
    """In the middle of a picture of 16 to 9. The encoder sees the square in its center."""
    height = 2 * int(rng.integers(60, 121))
    width = 2 * (height * 8 // 9)
    frame = Frame(height, width, height, 0, (width - height) // 2)
    return media.Video(world.paper(np.stack([placed(ink, frame) for ink in inks])), world.FPS)


FILMS: dict[str, Callable[[Movie, Rng], media.Video]] = {
    "re-encoded": copied,
    "wide": wide,
    "white on black": filmed_white_on_black,
}


def any_film(inks: Movie, rng: Rng) -> media.Video:
    """A mixture of all the variations, each within wider limits."""
    side = 2 * int(rng.integers(16, 100))
    width = side if rng.random() < 0.5 else 2 * int(side * rng.uniform(0.5, 0.9))
    frame = Frame(side, width, side, 0, (width - side) // 2)
    resampling = _RESAMPLINGS[rng.integers(4)]
    frames = painted(np.stack([placed(ink, frame, resampling) for ink in inks]), *_any_colors(rng))
    video = media.Video(frames, world.FPS)
    return recoded(video, list(_CODECS)[rng.integers(len(_CODECS))], rng.uniform(0.0, 1.0))


def recoded(video: media.Video, codec: str, loss: float) -> media.Video:
    """The frames through a codec. `loss` is from 0 (best quality) to 1; mpeg4 and mjpeg have one quality."""
    file, options = io.BytesIO(), {}
    if codec == "libx264":
        options = {"crf": str(round(15 + 23 * loss)), "preset": "ultrafast"}
    elif codec == "libvpx":
        options = {"crf": str(round(8 + 40 * loss)), "b": "0", "deadline": "realtime", "cpu-used": "8"}
    with av.open(file, "w", format=_CODECS[codec]) as container:
        stream = container.add_stream(codec, rate=Fraction(video.fps).limit_denominator(1000), options=options)
        stream.height, stream.width = video.frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for pixels in video.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return media.Video(frames, video.fps)


# Tones.


def other_rate(key: int, rng: Rng) -> media.Audio:
    """Recorded at 11 to 48 kHz, with noise up to half that rate."""
    return recorded(key, rng, rate=int(rng.choice((11_025, 22_050, 32_000, 44_100, 48_000))))


def noisy(key: int, rng: Rng) -> media.Audio:
    """Noise 3 to 12 dB below the tone."""
    return recorded(key, rng, snr=(3.0, 12.0))


def quiet(key: int, rng: Rng) -> media.Audio:
    """20 to 40 dB below full scale."""
    return recorded(key, rng, level=(-40.0, -20.0))


def loud(key: int, rng: Rng) -> media.Audio:
    """As loud as samples can be, and up to 6 dB beyond: peaks are cut off."""
    return recorded(key, rng, level=(-1.0, 6.0))


RECORDINGS: dict[str, Callable[[int, Rng], media.Audio]] = {
    "other rates": other_rate,
    "noise": noisy,
    "quiet": quiet,
    "loud": loud,
}


def any_recording(key: int, rng: Rng) -> media.Audio:
    """A mixture of all the variations, each within wider limits."""
    rate = int(rng.choice((8_000, 8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000)))
    return recorded(key, rng, rate=rate, snr=(0.0, 60.0), level=(-46.0, 8.0), seconds=(0.25, 2.2))


def recorded(
    key: int,
    rng: Rng,
    *,
    rate: int = world.RATE,
    snr: tuple[float, float] = (15.0, 40.0),
    level: tuple[float, float] = (-20.0, -7.0),
    seconds: tuple[float, float] = (0.4, 1.0),
) -> media.Audio:
    """A key's tone with twist and noise, between short silences.

    Args:
      rate: of the recording, in Hz; the noise goes up to half of it.
      snr: limits of the ratio of the tone to the noise, in dB.
      level: limits of the tone's peak, in dB above full scale; what is beyond is cut off.
      seconds: limits of the tone's duration.
    """
    lead, duration, tail = rng.uniform((0.0, seconds[0], 0.0), (0.15, seconds[1], 0.15))
    twist, off = 10 ** (rng.uniform(-2.0, 2.0) / 20), 1.0 + rng.uniform(-0.01, 0.01)
    wave = world.dual(key, duration, rng.uniform(0.0, 2 * np.pi, 2), (1 / twist, twist), off, rate)
    wave = np.pad(wave, (int(lead * rate), int(tail * rate)))
    noise = 10 ** (-rng.uniform(*snr) / 20)  # both sines have a power of 1 in all
    wave = wave + noise * rng.standard_normal(len(wave))
    peak = 10 ** (rng.uniform(*level) / 20)
    return media.Audio(np.clip(peak / 2 * wave, -1.0, 1.0).astype(np.float32), rate)


VARIATIONS: dict[str, dict[str, Callable]] = {"image": PICTURES, "video": FILMS, "audio": RECORDINGS}


def varied(modality: str, given: np.ndarray | int, rng: Rng) -> np.ndarray | media.Video | media.Audio:
    """Ink, a movie or a key in one of its modality's variations, chosen at random."""
    ways = list(VARIATIONS[modality].values())
    return ways[rng.integers(len(ways))](given, rng)
