"""Conversations to batches of one layout, whatever the stage.

tokens     int32 [B, T]      padded with 0 on the right (attention is causal, so no mask is needed)
lengths    int32 [B]         tokens of each row, for throughput; not an input of the step
loss_mask  bool [B, T]       which tokens are targets
media      {modality: {"input": float32 [B, M, H, W, 3], "positions": int32 [B, M]}}; position T: unused
signals    {modality: {"positions": int32 [B, G, n], "captions": int32 [B, G, L], "mask": bool [B, G]}}
"""

import dataclasses

import numpy as np

from nextgpt_jax.data.samples import Conversation
from nextgpt_jax.errors import UserError
from nextgpt_jax.media import preprocess_image, read_image
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.prompts import Template, Tokenizer, encode


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Turns one conversation into one row of a batch."""

    tokenizer: Tokenizer
    caption_tokenizer: Tokenizer
    base_vocab: int
    image_size: int
    max_length: int
    max_inputs: int
    max_outputs: int
    caption_length: int
    modalities: tuple[str, ...]  # of outputs
    template: Template

    def __call__(self, conversation: Conversation) -> dict:
        """One row, as numpy arrays without the batch axis. What lies beyond max_length is cut off.

        Raises:
          UserError: more media than the batch layout has room for, or a medium that cannot be read.
        """
        encoded = encode(conversation, self.tokenizer, self.base_vocab, self.template)
        length = min(len(encoded.ids), self.max_length)
        tokens, loss_mask = np.zeros(self.max_length, np.int32), np.zeros(self.max_length, bool)
        tokens[:length], loss_mask[:length] = encoded.ids[:length], encoded.loss[:length]
        row = {"tokens": tokens, "lengths": np.int32(length), "loss_mask": loss_mask}

        used = [m.modality for _, m in encoded.inputs if m.modality != "image"]
        used += [o.modality for _, o in encoded.outputs if o.modality not in self.modalities]
        if used:
            raise UserError(f"a conversation has {used[0]}, which this model does not handle")
        self._check("max_inputs", len(encoded.inputs), self.max_inputs)
        images = np.zeros((self.max_inputs, self.image_size, self.image_size, 3), np.float32)
        positions = np.full(self.max_inputs, self.max_length, np.int32)
        for i, (position, medium) in enumerate(encoded.inputs):
            images[i] = preprocess_image(read_image(medium.content), self.image_size)
            positions[i] = position
        row["media"] = {"image": {"input": images, "positions": positions}} if self.max_inputs else {}

        row["signals"] = {}
        for name in self.modalities:
            outputs = [(p, o) for p, o in encoded.outputs if o.modality == name]
            self._check("max_outputs", len(outputs), self.max_outputs)
            n = MODALITIES[name].num_signal_tokens
            entry = {
                "positions": np.zeros((self.max_outputs, n), np.int32),
                "captions": np.zeros((self.max_outputs, self.caption_length), np.int32),
                "mask": np.zeros(self.max_outputs, bool),
            }
            for i, (position, output) in enumerate(outputs):
                if position + n <= self.max_length:
                    entry["positions"][i] = np.arange(position, position + n)
                    entry["captions"][i] = caption_ids(self.caption_tokenizer, output.caption, self.caption_length)
                    entry["mask"][i] = True
            if self.max_outputs:
                row["signals"][name] = entry
        return row

    def _check(self, field: str, found: int, room: int) -> None:
        if found > room:
            raise UserError(f"a conversation has {found} media but data.{field} is {room}: raise it")


def caption_ids(tokenizer: Tokenizer, caption: str, length: int) -> np.ndarray:
    """A caption as the text encoder takes it: start, text (cut if too long), end, padding. int32 [length]."""
    ids = tokenizer(caption, padding="max_length", truncation=True, max_length=length)["input_ids"]
    return np.asarray(ids, np.int32)
