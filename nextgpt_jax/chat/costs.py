"""What a chat endpoint will ask for: tokens and their price, estimated before anything is sent."""

import math
from collections.abc import Sequence
from typing import NamedTuple

_BYTES_PER_TOKEN = 4.0  # of English text, for the tokenizers of current chat models
_TOKENS_PER_MESSAGE = 4  # role and separators

Messages = Sequence[dict[str, str]]


class Usage(NamedTuple):
    """Tokens of requests: of the prompts, and of the replies."""

    tokens_in: int = 0
    tokens_out: int = 0

    def plus(self, other: "Usage") -> "Usage":
        """The sum of both."""
        return Usage(self.tokens_in + other.tokens_in, self.tokens_out + other.tokens_out)

    def price(self, price_in: float, price_out: float) -> float:
        """Their price, for prices of a million tokens."""
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6


NO_USAGE = Usage()


def estimate_tokens(messages: Messages) -> int:
    """About how many tokens messages have. For English it is within about 20 %; the endpoint counts with its own
    tokenizer."""
    return sum(_TOKENS_PER_MESSAGE + math.ceil(len(m["content"].encode()) / _BYTES_PER_TOKEN) for m in messages)


def describe(usage: Usage, price_in: float, price_out: float) -> str:
    """ "1,200 tokens in, 800 out", and their price if one is given."""
    text = f"{usage.tokens_in:,} tokens in, {usage.tokens_out:,} out"
    return f"{text}, cost {usage.price(price_in, price_out):,.2f}" if price_in or price_out else text
