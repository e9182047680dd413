"""The models: pure modules from arrays to arrays."""
