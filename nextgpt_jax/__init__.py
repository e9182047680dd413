"""NExT-GPT in JAX: text and media in, text and media out."""
