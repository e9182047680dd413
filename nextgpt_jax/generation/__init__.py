"""Decoding: prompts in, tokens and the hidden states of signal tokens out."""
