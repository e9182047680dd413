"""The same answers from one device and from eight, also by rows whose cache is in 8 bits."""

import subprocess
import sys

import pytest

PROGRAM = """
import pathlib, sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from nextgpt_jax import sharding
from nextgpt_jax.mesh import make_mesh
from nextgpt_jax.config import MeshConfig
from nextgpt_jax.inference.engine import Engine
from nextgpt_jax.inference.responses import known_ids
from nextgpt_jax.inference.types import Request
from nextgpt_jax.weights.load import load_trained
from nextgpt_jax.prompts import Turn
from tests import tiny
from tests.compilations import compilations

sharding.MIN_SHARDED_SIZE = 0  # here everything is small
config = tiny.experiment(pathlib.Path(sys.argv[1]), "stage3", tiny.PICTURES)
config.model.quantize = sys.argv[2]
config.generation.image.batch = 4
requests = [
    Request((Turn((text,)),), seed=i, modality="image", temperature=0.0, max_new_tokens=12)
    for i, text in enumerate(("a", "make a two", "zero", "one and two"))
]
answers, engines = [], []
for mesh in (None, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
    system = load_trained(config.model, "", mesh=mesh)
    engine = Engine(system, config.generation)
    answers.append(engine.generate(requests))
    engines.append(engine)
split = [x for x in jax.tree.leaves(system.model) if x.addressable_shards[0].data.size < x.size]
assert len(jax.devices()) == 8 and len(split) > 20, len(split)
for one, other in zip(*answers, strict=True):
    assert (one.text, one.tokens) == (other.text, other.tokens)
    for a, b in zip(one.media, other.media, strict=True):
        assert np.abs(a.content.astype(int) - b.content.astype(int)).max() <= 1
assert all(len(reply.media) == 1 for reply in answers[0])


def in_rows(engine):  # with a cache in 8 bits
    rows = engine.rows(4, context=64, max_new_tokens=16, kv_cache="int8")
    rows.join(range(4), requests, [engine.validate(request) for request in requests], [], rows.shape(4, 30, 1))
    progress = jax.device_get(rows.advance(99))
    return [known_ids(progress, i) for i in range(4)], rows.group_hidden(0)


(one, hidden), (other, same_hidden) = map(in_rows, engines)
assert one == other and all(done for _, done in one)
np.testing.assert_allclose(hidden, same_hidden, atol=1e-3 * np.abs(hidden).max())
before = compilations()
*_, last = engine.stream(requests[0])
assert (last.response.text, len(last.response.media)) == (answers[0][0].text, 1) and compilations() == before
print("same")
"""


@pytest.mark.parametrize("scheme", ["", pytest.param("int8", marks=pytest.mark.slow)])
def test_the_same_answers_on_eight_devices(tiny_root, scheme):
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tiny_root), scheme], capture_output=True, text=True)
    assert done.stdout == "same\n", done.stderr
