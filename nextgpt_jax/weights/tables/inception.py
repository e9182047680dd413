"""FID's InceptionV3 as pytorch-fid publishes it."""

from nextgpt_jax.weights.rules import CONV, Table, affine, rule

_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
_BRANCHES = {
    ("5b", "5c", "5d"): "1x1 5x5_1 5x5_2 3x3dbl_1 3x3dbl_2 3x3dbl_3 _pool",
    ("6a",): "3x3 3x3dbl_1 3x3dbl_2 3x3dbl_3",
    ("6b", "6c", "6d", "6e"): "1x1 7x7_1 7x7_2 7x7_3 7x7dbl_1 7x7dbl_2 7x7dbl_3 7x7dbl_4 7x7dbl_5 _pool",
    ("7a",): "3x3_1 3x3_2 7x7x3_1 7x7x3_2 7x7x3_3 7x7x3_4",
    ("7b", "7c"): "1x1 3x3_1 3x3_2a 3x3_2b 3x3dbl_1 3x3dbl_2 3x3dbl_3a 3x3dbl_3b _pool",
}


def _table() -> Table:
    units = [*_STEM]
    for blocks, branches in _BRANCHES.items():
        units += [f"Mixed_{block}.branch{branch}" for block in blocks for branch in branches.split()]
    rows = affine("fc", "fc")
    for unit in units:
        rows += [rule(f"{unit}.conv.weight", f"{unit}.conv.kernel", CONV)]
        rows += batch_norm(f"{unit}.bn", f"{unit}.bn")
    return Table(tuple(rows), ignored=(r".*\.num_batches_tracked",))


def batch_norm(torch: str, flax: str) -> list:
    """The rules of a batch normalization."""
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return [rule(f"{torch}.{name}", f"{flax}.{target}") for name, target in names.items()]


INCEPTION = _table()
