"""Media to encoder inputs as a plain script reads them: PIL, soundfile and PyAV, then what ImageBind does, in torch.

No frameworks of ours and no checks of the files. Results have torch's layout, channels before height and width.
"""

import functools
import math
from fractions import Fraction

import av
import numpy as np
import soundfile
import soxr
import torch
from PIL import Image

torch.set_num_threads(1)  # the workers are the parallelism
SIZE = 224
MEAN, STD = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
RATE, BINS, FRAMES = 16_000, 128, 204
SECONDS = 2


def load_image(path: str) -> np.ndarray:
    """As torchvision's Resize (bicubic), CenterCrop, ToTensor and Normalize: [3, 224, 224]."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    width, height = image.size
    scaled = int(SIZE * max(width, height) / min(width, height))
    width, height = (SIZE, scaled) if width <= height else (scaled, SIZE)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - SIZE) / 2), round((height - SIZE) / 2)
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + SIZE, top + SIZE))))
    planes = pixels.permute(2, 0, 1).contiguous().float().div_(255)
    return planes.sub_(MEAN[:, None, None]).div_(STD[:, None, None]).numpy()


def clip_starts(seconds: float, clips: int) -> list[float]:
    """Where clips of SECONDS begin that are spread over a medium."""
    last = max(Fraction(seconds) - SECONDS, Fraction(0))
    return [float(last * i / (clips - 1)) for i in range(clips)]


def load_audio(path: str) -> np.ndarray:
    """Three clips of 2 s as log-mel spectrograms: [3, 128, 204]."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    if rate != RATE:
        mono = soxr.resample(mono, rate, RATE)
    waveform = torch.from_numpy(mono)
    views = []
    for start in clip_starts(len(mono) / RATE, 3):
        clip = waveform[int(start * RATE) : int((start + SECONDS) * RATE)]
        bands = fbank(clip - clip.mean()).T[:, :FRAMES]
        views.append(torch.nn.functional.pad(bands, (0, FRAMES - bands.shape[1])))
    return torch.stack(views).sub_(-4.268).div_(9.138).numpy()


def fbank(waveform: torch.Tensor) -> torch.Tensor:
    """Kaldi's filter bank, [frames, 128], with the options that ImageBind gives torchaudio."""
    frames = waveform.unfold(0, 400, 160)
    frames = frames - frames.mean(dim=1, keepdim=True)
    before = torch.nn.functional.pad(frames[:, None], (1, 0), mode="replicate")[:, 0, :-1]
    frames = (frames - 0.97 * before) * torch.hann_window(400, periodic=False)
    power = torch.fft.rfft(frames, 512).abs().square()[:, :256]
    return torch.matmul(power, mel_filters()).clamp(min=torch.finfo(torch.float32).eps).log()


@functools.cache
def mel_filters() -> torch.Tensor:
    """Triangles at even distances in mel, [256, 128]."""

    def mel(hertz: torch.Tensor) -> torch.Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    low, high = mel(torch.tensor([20.0, RATE / 2], dtype=torch.float64)).tolist()
    edges = torch.linspace(low, high, BINS + 2, dtype=torch.float64)
    at = mel(torch.arange(256, dtype=torch.float64) * RATE / 512)[:, None]
    rising = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - at) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0).float()


def load_video(path: str) -> np.ndarray:
    """Five clips of two frames, three crops each: [15, 3, 2, 224, 224]."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        count, rate = stream.frames, float(stream.average_rate)
        wanted = []
        for start in clip_starts(count / rate, 5):
            first, end = (math.ceil(t * rate - 1e-4) for t in (start, start + SECONDS))
            wanted.append((first, min(end, count) - 1))
        needed = {i for pair in wanted for i in pair}
        decoded = enumerate(container.decode(stream))
        pixels = {i: frame.to_ndarray(format="rgb24") for i, frame in decoded if i in needed}
    views = []
    for pair in wanted:
        clip = torch.from_numpy(np.stack([pixels[i] for i in pair])).permute(0, 3, 1, 2).float().div_(255)
        height, width = clip.shape[2:]
        scaled = math.floor(max(height, width) / min(height, width) * SIZE)
        shape = (scaled, SIZE) if width < height else (SIZE, scaled)
        clip = torch.nn.functional.interpolate(clip, shape, mode="bilinear", align_corners=False)
        clip = clip.sub_(MEAN[:, None, None]).div_(STD[:, None, None]).permute(1, 0, 2, 3)
        for at in (0, math.ceil((scaled - SIZE) / 2), scaled - SIZE):
            views.append(clip[:, :, at : at + SIZE] if width < height else clip[..., at : at + SIZE])
    return torch.stack(views).numpy()


LOADERS = {"image": load_image, "audio": load_audio, "video": load_video}


def in_our_layout(modality: str, batch: np.ndarray) -> np.ndarray:
    """A batch with channels last."""
    return batch if modality == "audio" else np.moveaxis(batch, -3 if modality == "image" else -4, -1)
