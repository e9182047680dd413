"""Whatever a file holds, building, exporting and showing it ends well or in one line, and nothing is half-written."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from nextgpt_jax.cli import build_mosit, build_t2m, export_data, view
from nextgpt_jax.cli.flags import run_command

TEXTS = st.sampled_from(["", "a dog", "<image>", "<Image>x</Image>", "1.jpg", "../1.jpg", "human", "gpt", "<b>&", "\0"])
VALUES = st.recursive(
    TEXTS | st.none() | st.integers(0, 3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["from", "value", "caption", "image_name"]), inner, max_size=3)
    ),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]), "value": TEXTS}), min_size=1, max_size=4
)
FIELDS = ("image_name", "audio_name", "caption", "input_images", "image_captions", "video_caption", "image", "id")
RECORDS = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4) | st.fixed_dictionaries(
    {"conversations": MESSAGES | VALUES}, optional={name: VALUES for name in FIELDS[3:6]}
)


@settings(max_examples=40)
@given(st.lists(RECORDS | VALUES, min_size=1, max_size=3))
def test_any_records(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("any")
    path = folder / "data.json"
    path.write_text(json.dumps(records))
    (folder / "1.jpg").touch()
    for main, first, name in (
        (build_t2m.main, f"--captions={path}", "t2m.json"),
        (build_mosit.main, f"--library={path}", "mosit.jsonl"),
        (export_data.main, str(path), "export.json"),
        (view.main, str(path), "page.html"),
    ):
        more = ["--topics=library"] if main is build_mosit.main else []
        status = run_command(main, ["command", first, f"--output={folder / name}", *more])
        assert status == (0 if (folder / name).exists() else 2)
    assert not list(folder.glob("*.partial")) and not list(folder.glob("*.journal"))
