"""Media between files, memory and arrays, and the preprocessing of the encoder: numpy in, numpy out.

`load` (`read` or `from_content`, then `preprocess`) and `write` work on a modality by name, through its row in FORMATS.
"""

from nextgpt_jax.media.audio import Audio, audio_from_content, read_audio, resample, write_wav
from nextgpt_jax.media.formats import FORMATS, MediaFormat, from_content, load, preprocess, read, write
from nextgpt_jax.media.image import (
    CLIP_MEAN,
    CLIP_STD,
    MAX_PIXELS,
    image_from_content,
    preprocess_image,
    read_image,
    write_png,
)
from nextgpt_jax.media.mel import log_mel
from nextgpt_jax.media.originals import original_audio, original_image, original_video
from nextgpt_jax.media.sensors import (
    grayscale_from_content,
    imu_from_content,
    preprocess_grayscale,
    preprocess_imu,
    read_grayscale,
    read_imu,
)
from nextgpt_jax.media.spectrogram import fbank, preprocess_audio
from nextgpt_jax.media.video import (
    Video,
    clips_from_content,
    preprocess_clips,
    read_clips,
    read_video,
    sample_clips,
    write_mp4,
)

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "FORMATS",
    "MAX_PIXELS",
    "Audio",
    "MediaFormat",
    "Video",
    "audio_from_content",
    "clips_from_content",
    "fbank",
    "from_content",
    "grayscale_from_content",
    "image_from_content",
    "imu_from_content",
    "load",
    "log_mel",
    "original_audio",
    "original_image",
    "original_video",
    "preprocess",
    "preprocess_audio",
    "preprocess_clips",
    "preprocess_grayscale",
    "preprocess_image",
    "preprocess_imu",
    "read",
    "read_audio",
    "read_clips",
    "read_grayscale",
    "read_image",
    "read_imu",
    "read_video",
    "resample",
    "sample_clips",
    "write",
    "write_mp4",
    "write_png",
    "write_wav",
]
