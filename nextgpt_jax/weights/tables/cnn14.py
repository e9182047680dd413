"""PANNs' Cnn14 as it is published: the network with the window and filters of its front end."""

from nextgpt_jax.weights.rules import CONV, Table, Transform, affine, rule
from nextgpt_jax.weights.tables.inception import batch_norm

_STFT = Transform(lambda w: w[:, 0].T, lambda w: w.T[:, None])  # a convolution [bins, 1, n_fft] <-> [n_fft, bins]


def _table() -> Table:
    rows = [rule(f"spectrogram_extractor.stft.conv_{part}.weight", f"stft_{part}.kernel", _STFT) for part in _PARTS]
    rows += [rule("logmel_extractor.melW", "mel"), *batch_norm("bn0", "bn0")]
    for block in range(6):
        for n in "12":
            ours = f"blocks.{block}.conv{n}"
            rows += [rule(f"conv_block{block + 1}.conv{n}.weight", f"{ours}.conv.kernel", CONV)]
            rows += batch_norm(f"conv_block{block + 1}.bn{n}", f"{ours}.bn")
    return Table(
        tuple(rows + affine("fc1", "fc1") + affine("fc_audioset", "fc_audioset")),
        ignored=(r".*\.num_batches_tracked",),
    )


_PARTS = ("real", "imag")
CNN14 = _table()
