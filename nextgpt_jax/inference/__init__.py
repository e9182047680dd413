"""Answering: the engine, and its command line."""
