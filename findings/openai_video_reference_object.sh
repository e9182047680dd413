#!/usr/bin/env bash
# openai 2.54.0 (Python), client.videos.create(input_reference={"image_url": ...}).
#
# Expected: its type, ImageInputReferenceParam | FileTypes, allows an object with the URL of an image, so a request is
# sent that has it.
# Seen: the client takes every input_reference for a file and raises before anything is sent. A file works, and so does
# the same object in a JSON body that the client sends by itself (client.post).
#
# Fails when the client behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openai==2.54.0
"$folder/venv/bin/python" - <<'PYTHON'
import httpx
import openai

sent = []


def respond(request: httpx.Request) -> httpx.Response:
    sent.append(request.headers["content-type"].partition(";")[0])
    return httpx.Response(200, json={"id": "video_1", "object": "video", "status": "queued"})


client = openai.OpenAI(api_key="none", http_client=httpx.Client(transport=httpx.MockTransport(respond)))
url = {"image_url": "data:image/png;base64,iVBORw0KGgo="}
try:
    client.videos.create(prompt="a walk", input_reference=url)
    raised = None
except Exception as error:
    raised = error
print(f"openai {openai.__version__}: an object raises {type(raised).__name__}: {str(raised)[:70]}; requests sent: {sent}")
assert isinstance(raised, RuntimeError) and not sent, (raised, sent)
client.videos.create(prompt="a walk", input_reference=("seen.png", b"\x89PNG", "image/png"))
client.post("/videos", body={"prompt": "a walk", "input_reference": url}, cast_to=object)
print(f"a file, and the object without videos.create: {sent}")
assert sent == ["multipart/form-data", "application/json"], sent
PYTHON
