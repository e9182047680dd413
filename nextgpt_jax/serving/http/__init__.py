"""The HTTP server: OpenAI's API on a batcher (docs/serving.md)."""
