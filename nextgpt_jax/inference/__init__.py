"""Inference: requests in, text and media out."""
