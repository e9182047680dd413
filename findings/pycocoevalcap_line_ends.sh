#!/usr/bin/env bash
# pycocoevalcap 1.2, PTBTokenizer().tokenize (needs Java).
#
# Expected: each caption has its own tokens, or an error.
# Seen: the captions are given to Java one a line, and only "\n" is replaced in them. A carriage return or U+2028 in a
# caption begins another line, so that every later image gets the caption of the one before, and the last caption is
# lost, without an error: all metrics then compare captions of different images.
#
# Fails when the tokenizer behaves otherwise.
set -euo pipefail
command -v java >/dev/null || { echo "needs Java"; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pycocoevalcap==1.2
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer


def tokens(*captions):
    found = PTBTokenizer().tokenize({i: [{"caption": caption}] for i, caption in enumerate(captions)})
    return [found[i][0] for i in range(len(captions))]


assert tokens("a red\nball", "a dog", "a cat") == ["a red ball", "a dog", "a cat"]
for end in ("\r", "\u2028"):
    found = tokens(f"a red{end}ball", "a dog", "a cat")
    print(f"{end!r}: images 0, 1, 2 have {found}")
    assert found == ["a red", "ball", "a dog"], found
PYTHON
