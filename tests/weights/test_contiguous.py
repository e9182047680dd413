import ml_dtypes
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nextgpt_jax.weights.contiguous import contiguous


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 40), max_size=5).flatmap(
        lambda shape: st.tuples(st.just(shape[:2] + [n % 4 for n in shape[2:]]), st.permutations(range(len(shape))))
    ),
    st.sampled_from([np.float16, np.float32, np.int8, ml_dtypes.bfloat16]),
)
def test_any_permutation_of_axes(layout, dtype):
    shape, axes = layout
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    found = contiguous(values.transpose(axes))
    assert found.flags.c_contiguous and found.dtype == dtype
    np.testing.assert_array_equal(found.astype(np.float32), values.transpose(axes).astype(np.float32))


def test_several_tiles_and_other_strides():
    values = np.arange(40 * 5000, dtype=np.int32).reshape(40, 5000)
    for view in (values.T, values[::2].T, values[::-1].T, values[:, 3:].T, np.broadcast_to(values[:, :1], (40, 7)).T):
        np.testing.assert_array_equal(contiguous(view), np.ascontiguousarray(view))
        assert contiguous(view).flags.c_contiguous
