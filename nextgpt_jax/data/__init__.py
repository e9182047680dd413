"""Training data: samples from files, Grain pipelines, batches."""
