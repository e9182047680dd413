"""Pretrains the frozen parts of the embedded world, which the repository holds already.

    python -m examples.keypad.pretrain PART [--output examples/keypad/weights/base]

The parts, in an order that works: llama; imagebind; vae, diffusion (the image decoder); video-text, video; audio-text,
audio-vae, vocoder, audio.

Each part is saved in the hub's layout: config.json, safetensors with PyTorch's names (float16), tokenizer.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from examples.keypad.pretrain import audio, video
from examples.keypad.pretrain.imagebind import imagebind
from examples.keypad.pretrain.images import diffusion, vae
from examples.keypad.pretrain.llama import llama
from nextgpt_jax.cli.flags import run_command

PARTS = {
    "llama": llama,
    "imagebind": imagebind,
    "vae": vae,
    "diffusion": diffusion,
    "video-text": video.text_encoder,
    "video": video.video,
    "audio-text": audio.text_encoder,
    "audio-vae": audio.audio_vae,
    "vocoder": audio.vocoder,
    "audio": audio.audio,
}

_FOLDER = pathlib.Path(__file__).parents[1] / "weights" / "base"


def main(argv: Sequence[str]) -> None:
    """Parses flags and trains a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--output", type=pathlib.Path, default=_FOLDER)
    parser.add_argument("--steps", type=int, help="train for another number of steps")
    args = parser.parse_args(argv[1:])
    PARTS[args.part](args.output, **({"steps": args.steps} if args.steps else {}))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
