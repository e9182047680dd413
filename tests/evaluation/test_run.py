"""Runs of a small task: interrupted, in shards, with samples that cannot be answered."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextgpt_jax.config import EvalConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.choosing import WHOLE, Shard, batches, choose, sample_seed
from nextgpt_jax.evaluation.evaluate import evaluate
from nextgpt_jax.evaluation.run import prepare
from nextgpt_jax.evaluation.types import Sample
from tests.evaluation.small import TASK, Length


@pytest.fixture
def run_task(tiny_engine, tiny_config, tiny_root):
    """Evaluates the small task in a folder."""

    def run(folder, *, batch=2, interrupt=None, task=TASK, shard=WHOLE, merge=False, **options):
        config = dataclasses.replace(tiny_config, eval=EvalConfig(batch=batch))
        prepared = prepare(task, tiny_root / "data", config, folder, **options)
        asked, generate = [], tiny_engine.generate

        def generate_some(requests):
            if len(asked) == interrupt:
                raise KeyboardInterrupt
            asked.append(len(requests))
            return generate(requests)

        made = []

        def make_engine():
            made.append(1)
            return tiny_engine

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiny_engine, "generate", generate_some)
            result = evaluate(prepared, tiny_engine.config, make_engine, shard=shard, merge=merge)
        run.asked, run.made = asked, bool(made)
        return result

    return run


def figures(result):
    return {figure["name"]: figure["value"] for figure in result["figures"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


def test_a_run_and_its_result(run_task, whole):
    result = run_task(whole)
    assert run_task.asked == [2, 2, 1, 1]
    lines = [json.loads(line) for line in (whole / "answers.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(7))
    assert [list(line.get("media", {})) for line in lines][:3] == [[], ["image"], []]
    assert all((whole / name).exists() for line in lines for name in line.get("media", {}).get("image", []))
    assert result["unanswered"] == 1 and "context" in result["errors"][0]["error"]
    length, longer, brightness, java = result["figures"]
    texts = [len(line.get("text", "")) for line in lines]
    assert length["value"] == np.mean(texts) and length["paper"] == 12.5 and length["count"] == 7
    assert brightness["value"] > 0 and not brightness["higher_is_better"]
    assert java["value"] is None and java["error"] == "not computed: java is not installed"
    assert np.load(whole / "numbers" / "length.npy").shape == (7, 2) and result["subset"] is None
    assert json.loads((whole / "result.json").read_text()) == result
    again = run_task(whole)
    assert not run_task.made and figures(again) == figures(result)


def test_an_interrupted_run_is_continued(run_task, whole, tmp_path):
    """With the same batches, so to the digit, and nothing is answered twice."""
    expected = run_task(whole)
    for stop in (1, 2):  # batches
        with pytest.raises(KeyboardInterrupt):
            run_task(tmp_path, interrupt=stop)
    with (tmp_path / "answers.jsonl").open("ab") as file:  # killed while it wrote a batch
        file.write(b'{"index": 6, "id": "s6", "te')
    assert figures(run_task(tmp_path)) == figures(expected) and run_task.asked == [1]
    assert (tmp_path / "answers.jsonl").read_bytes() == (whole / "answers.jsonl").read_bytes()
    medium = next((tmp_path / "media").iterdir())
    medium.unlink()  # its batch does not count any more
    assert figures(run_task(tmp_path)) == figures(expected) and len(run_task.asked) == 1 and medium.exists()
    assert (tmp_path / "answers.jsonl").read_bytes() != b""


def test_shards_change_nothing(run_task, whole, tmp_path):
    expected = figures(run_task(whole))
    assert run_task(tmp_path, shard=Shard(1, 3)) is None and run_task.asked == [2]
    assert run_task(tmp_path, shard=Shard(0, 3)) is None and run_task.asked == [2, 1]
    with pytest.raises(UserError, match="2 of 7 samples in .* are not answered: run their shards"):
        run_task(tmp_path, merge=True)
    last = run_task(tmp_path, shard=Shard(2, 3))
    assert figures(last) == expected and figures(run_task(tmp_path, merge=True)) == expected
    names = {path.name for path in tmp_path.glob("answers*")}
    assert names == {f"answers-0000{i}-of-00003.jsonl" for i in range(3)}


def test_other_runs_are_not_continued(run_task, whole, tmp_path):
    run_task(whole)
    for options, name in [
        ({"seed": 1}, "seed"),
        ({"limit": 4}, "samples and limit"),
        ({"batch": 4}, "config"),
        ({"weights": {"llm": "0"}}, "weights"),
    ]:
        with pytest.raises(UserError, match=f"has the answers of a run with other {name}: give another --output"):
            run_task(whole, **options)


class Undefined(Length):
    """One of its figures is of nothing."""

    name = "undefined"

    def aggregate(self, numbers):
        return {"Length": numbers[:, 0].mean(), "Of none": np.nan}


def test_a_figure_that_is_not_finite_is_not_computed(run_task, tmp_path):
    task = dataclasses.replace(TASK, metrics=lambda samples, settings: [Undefined()])
    length, none = run_task(tmp_path, task=task, limit=1)["figures"]
    assert length["value"] >= 0 and none["value"] is None and none["error"] == "not computed: it is nan"


def test_a_subset_says_that_it_is_one(run_task, tmp_path):
    result = run_task(tmp_path, limit=3, seed=5)
    assert result["subset"] == {"limit": 3, "of": 7, "seed": 5} and result["samples"] == 3


def test_what_no_sample_can_do_is_said_first(run_task, tmp_path):
    samples = [Sample("a", "hi", {"depth": ["x.png"]})]
    for task, message in [
        (dataclasses.replace(TASK, load=lambda _: samples), "small: this model's encoder does not read depth"),
        (dataclasses.replace(TASK, options={"modality": "smell"}, load=lambda _: [Sample("a", "hi")]), "smell"),
        (dataclasses.replace(TASK, load=lambda _: []), "holds no samples"),
        (dataclasses.replace(TASK, load=lambda _: samples * 2), "two samples of the data have the id 'a'"),
    ]:
        with pytest.raises(UserError, match=message):
            run_task(tmp_path / "run", task=task)
    assert not (tmp_path / "run").exists()
    lost = [Sample("a", "hi", {"image": [tmp_path / "none.png"]})]
    with pytest.raises(UserError, match=r"none of the 1 samples could be answered; a: no such .*none.png"):
        run_task(tmp_path / "run", task=dataclasses.replace(TASK, load=lambda _: lost))


IDS = st.lists(st.text(max_size=6), min_size=1, max_size=30, unique=True)


@settings(max_examples=30)
@given(IDS, st.integers(0, 2**31 - 1), st.integers(1, 40), st.integers(0, 10))
def test_subsets_are_parts_of_larger_ones(ids, seed, limit, more):
    samples = [Sample(id, "hi") for id in ids]
    some, available = choose(samples, limit, seed)
    assert available == len(ids) and len(some) == min(limit, len(ids))
    chosen = [s.id for s in some]
    assert chosen == [i for i in ids if i in chosen]  # in their order
    larger, _ = choose(samples, limit + more, seed)
    assert set(chosen) <= {s.id for s in larger}
    assert all(0 <= sample_seed(seed, i) < 2**31 for i in ids)


@settings(max_examples=30)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 9))
def test_shards_share_the_batches(count, size, shards):
    whole = batches(count, size)
    assert [i for batch in whole for i in batch] == list(range(count))
    parts = [batch for k in range(shards) for batch in Shard(k, shards).part(whole)]
    assert sorted(parts, key=lambda b: b.start) == whole


def test_seeds_differ():
    assert len({sample_seed(seed, f"s{i}") for seed in range(4) for i in range(50)}) == 200
    assert sample_seed(0, "s0") == 1387289893
