#!/usr/bin/env bash
# jax 0.10.2, jax.numpy.asarray(x) of a NumPy array.
#
# Expected: a copy to the device, as jax.device_put makes it.
# Seen: an XLA program is compiled and run for every shape and dtype that was not seen before in the process. Loading a
# model with a hundred shapes of parameters this way compiles a hundred programs that do nothing. jax.device_put gives
# the same array and compiles nothing.
#
# Fails when JAX behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: compiled.append(name) if name.endswith("backend_compile_duration") else None
)
arrays = [np.ones((4, n), np.float32) for n in range(1, 101)]
put = [jax.device_put(x) for x in arrays]
after_device_put = len(compiled)
made = [jnp.asarray(x) for x in arrays]
after_asarray = len(compiled) - after_device_put
print(f"jax {jax.__version__}: device_put compiled {after_device_put} programs, asarray {after_asarray}, of 100 shapes")
assert all((a == b).all() and a.dtype == b.dtype for a, b in zip(put, made))
assert (after_device_put, after_asarray) == (0, 100), (after_device_put, after_asarray)
PYTHON
