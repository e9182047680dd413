"""What is refused, and how it is said."""

import httpx
import openai
import pytest

from tests.serving.http.media import part, png, text, url, user
from tests.serving.http.server import KEY


@pytest.mark.parametrize(
    "options, named",
    [
        ({"logit_bias": {"5": 1}}, "logit_bias is not supported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not supported"),
        ({"logprobs": True}, "logprobs is not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty is not supported"),
        ({"extra_body": {"step": 3}}, "did you mean steps?"),
        ({"extra_body": {"modality": "smell"}}, "modality 'smell'"),
        ({"extra_body": {"steps": True}}, "steps"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"seed": 2**31}, "seed"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "differ"),
        ({"max_tokens": 100}, "max_new_tokens is 100, but serving.max_new_tokens is 48"),
        ({"n": 1000}, "n is 1000"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "be kind"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": "be kind"}]}, "messages[0].role"),
        ({"messages": [user(" ")]}, "the prompt is empty"),
        ({"messages": [user("what is <image>?")]}, "<image>"),
        ({"messages": [user("hi"), {"role": "assistant", "content": "hello"}]}, "messages[1].role"),
        ({"messages": [user("hi"), {"role": "assistant", "content": ""}, user("ho")]}, "messages[1]"),
        ({"messages": [user(text("hi"), {"type": "image_url"})]}, "messages[0].content[1].image_url is missing"),
        ({"messages": [user(text("hi"), {"type": "file", "file": {}})]}, "messages[0].content[1].type"),
        ({"messages": [user(text("hi"), *[part(png())] * 17)]}, "at most 16 media"),
        ({"messages": [user(text("hi"), part(png(), "depth/png"))]}, "depth/png is no type of depth"),
    ],
)
def test_fields_by_name(client, options, named):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**{"model": "keypad", "messages": [user("hi")]} | options)
    assert named in error.value.body["message"] and "\n" not in error.value.body["message"]
    assert set(error.value.body) == {"message", "type", "param", "code"}


def test_values_that_change_nothing_are_taken(client):
    ask = {"model": "keypad", "messages": [user("hi")], "max_tokens": 2, "extra_body": {"modality": "text"}}
    nothing = {"frequency_penalty": 0, "logit_bias": {}, "response_format": {"type": "text"}, "logprobs": False}
    assert client.chat.completions.create(**ask, **nothing, user="me", top_logprobs=None).choices


@pytest.mark.parametrize(
    "place",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "http://127.0.0.1/x.png",
        "https://example.com/x.png",
        "data:text/plain;base64,aGVsbG8=",
        "data:image/png;base64,aGVsbG8=",
        "data:image/png;base64,???",
        "data:image/png,hello",
        "data:",
        "upload:photo",
        "ftp://[::1",
        "http://[::1",
        "",
        "ADDRESS/files/../../../etc/passwd",
        "ADDRESS/files/%2Fetc%2Fpasswd",
        "ADDRESS/files/none.png",
    ],
)
def test_no_other_place_is_read(client, address, place):
    question = user(text("what?"), {"type": "image_url", "image_url": {"url": place.replace("ADDRESS", address)}})
    with pytest.raises(openai.BadRequestError, match=r"messages\[0\].content\[1\]") as error:
        client.chat.completions.create(model="keypad", messages=[question])
    assert "/tmp" not in str(error.value) and "root:" not in str(error.value)


@pytest.mark.parametrize("path", ["/files/%2Fetc%2Fpasswd", "/files/../../etc/passwd", "/files/%2e%2e%2fpasswd"])
def test_no_other_file_is_sent(address, path):
    assert httpx.get(address + path).status_code == 404


def test_generation(client):
    images, videos, embeddings = client.images, client.videos, client.embeddings
    wrong = [
        (lambda: images.generate(prompt="x", size="512x512"), "size is '512x512': this server makes '16x16' only"),
        (lambda: images.generate(prompt="x", quality="hd"), "quality is not supported"),
        (lambda: images.generate(prompt=" "), "prompt"),
        (lambda: images.edit(image=png(), mask=png(), prompt="make it a nine"), "mask is not supported"),
        (lambda: images.edit(image=b"no image", prompt="make it a nine"), "image"),
        (lambda: images.edit(image=png(), prompt="x", extra_body={"strength": 2}), "strength"),
        (lambda: videos.create(prompt="x", seconds="8"), "seconds is '8': this server makes '1' only"),
        (lambda: videos.create(prompt="x", extra_body={"steps": "many"}), "steps"),
        (lambda: videos.create(prompt="x", input_reference=("a.png", b"no", "image/png")), "input_reference"),
        (lambda: videos.list(after="none").data, "after"),
        (lambda: client.audio.speech.create(input="x", model="keypad", voice="alloy"), "voice"),
        (lambda: embeddings.create(model="keypad", input=[1, 2]), "input[0]"),
        (lambda: embeddings.create(model="keypad", input=["a", "a " * 100]), "input[1] has"),
        (lambda: embeddings.create(model="keypad", input="a", dimensions=5), "dimensions"),
    ]
    for ask, named in wrong:
        with pytest.raises(openai.BadRequestError) as error:
            ask()
        assert named in error.value.body["message"]


def test_names(client, address):
    for ask in (
        lambda: client.chat.completions.create(model="gpt-4", messages=[user("hi")]),
        lambda: client.models.retrieve("gpt-4"),
        lambda: client.videos.retrieve("video_1"),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()
    assert httpx.get(f"{address}/nothing").json()["error"]["message"] == "there is no /nothing"
    assert httpx.get(f"{address}/v1/chat/completions", headers=client.auth_headers).status_code == 405


@pytest.mark.parametrize("key", [None, "a", "a key", "another", "A KEY", "a keya key", "ключ"])
def test_keys(address, key):
    headers = {} if key is None else {"Authorization": f"Bearer {key}".encode()}
    right = key in (KEY, "another")
    for method, path in (("GET", "models"), ("GET", "videos"), ("POST", "chat/completions"), ("POST", "embeddings")):
        response = httpx.request(method, f"{address}/v1/{path}", headers=headers)
        assert response.status_code == (401 if not right else 200 if method == "GET" else 400)
        assert right or response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", ["healthz", "readyz", "metrics", "openapi.json"])
def test_status_needs_no_key(address, path):
    assert httpx.get(f"{address}/{path}").status_code == 200


@pytest.mark.parametrize(
    "body, kind",
    [
        (b"{", "application/json"),
        (b"", "application/json"),
        (b"[]", "application/json"),
        (b'{"messages": "\xff"}', "application/json"),
        (b'{"model": "keypad", "messages": [{"role": "user", "content": "\\ud800"}]}', "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"n": NaN, "messages": []}', "application/json"),
        (b"--x\r\n\r\n--x--", "multipart/form-data; boundary=x"),
        (b"nothing", "multipart/form-data"),
        (b"nothing", "multipart/form-data; boundary=\xff"),
        (b"request=%7B", "application/x-www-form-urlencoded"),
    ],
)
@pytest.mark.parametrize("path", ["chat/completions", "videos"])
def test_malformed_bodies(client, address, body, kind, path):
    headers = client.auth_headers | {"Content-Type": kind.encode("latin-1")}
    response = httpx.post(f"{address}/v1/{path}", content=body, headers=headers)
    assert response.status_code == 400, response.text
    assert "\n" not in response.json()["error"]["message"]


def test_long_bodies(client, address):
    """The answer arrives although the client sends to the end."""

    def chunks():
        for _ in range(200):
            yield bytes(100_000)

    announced = httpx.post(f"{address}/v1/videos", content=bytes(20_000_000), headers=client.auth_headers)
    chunked = httpx.post(f"{address}/v1/chat/completions", content=chunks(), headers=client.auth_headers)
    for response in (announced, chunked):
        assert response.status_code == 413 and "1 MB" in response.json()["error"]["message"]
    with pytest.raises(openai.APIStatusError, match="1 MB"):
        client.videos.create(prompt="x", input_reference=("a.png", bytes(2_000_000), "image/png"))
    unknown = httpx.post(f"{address}/v1/videos", content=bytes(20_000_000))
    assert unknown.status_code in (401, 413)


def test_a_data_url_may_be_named_by_its_place_only(client):
    """Errors of decoders name the place in the request."""
    broken = url(png()[:-40])
    question = user(text("what?"), {"type": "image_url", "image_url": {"url": broken}})
    with pytest.raises(openai.BadRequestError, match=r"messages\[0\].content\[1\]"):
        client.chat.completions.create(model="keypad", messages=[question])
