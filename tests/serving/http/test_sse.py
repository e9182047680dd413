"""Streams of events by themselves, on an ASGI server that the test plays."""

import asyncio

from nextgpt_jax.serving.http.sse import EventStream


def run(events, send, receive=None, **seconds):
    async def forever():
        await asyncio.Event().wait()

    async def main():
        stream = EventStream(events, **({"send_seconds": 5.0, "ping_seconds": 5.0} | seconds))
        await stream({"type": "http"}, receive or forever, send)

    asyncio.run(asyncio.wait_for(main(), 10))


def test_pings_while_nothing_happens_and_errors_at_the_end():
    sent = []

    async def events():
        yield {"a": "ä"}
        await asyncio.sleep(0.1)
        raise RuntimeError("secret")

    async def send(message):
        sent.append(message.get("body", b""))

    run(events(), send, ping_seconds=0.03)
    assert sent[1] == 'data: {"a":"ä"}\n\n'.encode() and sent[2] == b": still there\n\n"
    assert b'"error"' in sent[-2] and b"secret" not in b"".join(sent) and b"[DONE]" not in b"".join(sent)


def test_a_client_that_takes_nothing_or_goes_ends_the_generator():
    for receive in (None, "gone"):
        ended = []

        async def events(ended=ended):
            try:
                while True:
                    yield {}
                    await asyncio.sleep(0.01)
            finally:
                ended.append(True)

        async def send(message, receive=receive):
            if message["type"] == "http.response.body" and not receive:
                await asyncio.Event().wait()

        async def gone():
            await asyncio.sleep(0.05)
            return {"type": "http.disconnect"}

        run(events(), send, gone if receive else None, send_seconds=0.05)
        assert ended == [True]


def test_no_pings_while_events_come_and_none_after_the_end():
    sent = []

    async def events():
        for number in range(10):
            yield {"number": number}
            await asyncio.sleep(0.01)

    async def send(message):
        sent.append(message)
        if not message.get("more_body", True):  # a client that takes its time
            await asyncio.sleep(0.1)

    run(events(), send, ping_seconds=0.05)
    assert len(sent) == 13 and not sent[-1]["more_body"]  # start, events, [DONE], end


def test_a_silent_generator_is_closed_when_a_ping_is_not_taken():
    ended = []

    async def events():
        try:
            yield {}
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def send(message):
        if message.get("body", b"").startswith(b":"):
            await asyncio.Event().wait()

    run(events(), send, ping_seconds=0.02, send_seconds=0.05)
    assert ended == [True]
