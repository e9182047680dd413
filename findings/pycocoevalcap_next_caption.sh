#!/usr/bin/env bash
# pycocoevalcap 1.2, PTBTokenizer().tokenize (needs Java).
#
# Expected: the tokens of a caption depend on that caption.
# Seen: all captions are one text for Stanford's tokenizer, a line each. The full stop after a single letter at the end of
# a caption is a mark, which is removed, or a part of an abbreviation, which stays, as the next line begins with a capital
# or not. So the BLEU of an image depends on the caption of the image after it.
#
# Fails when the tokenizer behaves otherwise.
set -euo pipefail
command -v java >/dev/null || { echo "needs Java"; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pycocoevalcap==1.2
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

caption = "a map of plan B."
references = {0: ["a map of plan b"]}
found = {}
for following in ("A dog runs", "a dog runs"):
    tokens = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate((caption, following))})
    bleu = Bleu(4).compute_score(references, {0: tokens[0]}, verbose=0)[0][3]
    found[following] = tokens[0][0], round(bleu, 3)
    print(f"{caption!r} before {following!r}: {tokens[0][0]!r}, BLEU-4 {bleu:.3f}")
assert found["A dog runs"] == ("a map of plan b", 1.0), found
assert found["a dog runs"] == ("a map of plan b.", 0.669), found
PYTHON
