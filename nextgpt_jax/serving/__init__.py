"""Answering requests that come and go: continuous batching, and the HTTP server on it."""
