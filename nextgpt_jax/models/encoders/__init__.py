"""Tier 1: encoders of media.

An encoder's config has `out_embed_dim`, `modalities` (all its branches), `media_branches` (those of media; a row of
modalities.MODALITIES names one), `input_shape(modality)` of one preprocessed medium, `num_embeddings(modality)` that it
gives for one, and `from_pretrained(folder)`. Its module is made of a config and the `branches` to build, and has
`encode_media(branch, x [n, *input_shape], views=...) -> [n, num_embeddings, out_embed_dim]`.
"""
