"""Training data: dataset files, examples, batches."""
