import gzip
import json
import zlib

import pyarrow
import pytest

from medusa_dist.api.http.bodies import decode, encoding_of
from medusa_dist.api.schema.responses import ErrorReply
from medusa_dist.config_parts.http import HttpConfig
from medusa_dist.errors import BodyTooLargeError, ContentEncodingError, RequestError
from tests.support.fake_service import FakeService, client_of, completion

LIMIT = 20_000
PATH = "/v1/completions"
BODY = json.dumps(completion(prompt="Grüße", max_tokens=5), ensure_ascii=False).encode()


def bare_deflate(data):
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


def zstd(data):
    return pyarrow.compress(data, "zstd", asbytes=True)


ENCODERS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": bare_deflate,
    "zstd": zstd,
    "identity": bytes,
    " GZIP , identity": gzip.compress,
}


async def post(data, service=None, **headers):
    headers = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    async with client_of(service or FakeService(), http=HttpConfig(max_body_bytes=LIMIT)) as client:
        return await client.post(PATH, content=data, headers=headers)


def message(reply, status):
    assert reply.status_code == status and reply.headers["x-request-id"]
    ErrorReply.model_validate(reply.json())
    return reply.json()["error"]["message"]


@pytest.mark.parametrize("encoding", ENCODERS)
async def test_encoded_body_is_read_as_what_it_decodes_to(encoding):
    service = FakeService()
    reply = await post(ENCODERS[encoding](BODY), service, content_encoding=encoding)
    assert reply.status_code == 200, reply.text
    assert service.tokenizer.decode(service.requests[0].prompt_ids).endswith("Grüße")


def test_several_members_or_frames_decode_to_one_body():
    assert decode(gzip.compress(b"ab") + gzip.compress(b"cd"), "gzip", 4) == b"abcd"
    assert decode(zstd(b"ab") + zstd(b"cd"), "zstd", 4) == b"abcd"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "Deflate", "zstd"])
def test_body_that_decodes_to_more_than_the_limit_is_refused(encoding):
    data = ENCODERS[encoding](b"x" * LIMIT)
    assert decode(data, encoding.lower(), LIMIT) == b"x" * LIMIT
    with pytest.raises(BodyTooLargeError, match=r"19999 \(http\.max_body_bytes\)"):
        decode(data, encoding.lower(), LIMIT - 1)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_decoder_makes_one_byte_more_than_the_limit_of_a_bomb(encoding, monkeypatch):
    """200 MB of zeros; the decoder is asked for one byte more than the limit, and gives no more."""
    from medusa_dist.api.http import bodies

    sizes = []
    plain = bodies.DECODERS[encoding]
    monkeypatch.setitem(
        bodies.DECODERS, encoding, lambda data, size: sizes.append(len(found := plain(data, size))) or found
    )
    bomb = ENCODERS[encoding](bytes(50_000_000))
    with pytest.raises(BodyTooLargeError):
        decode(bomb, encoding, LIMIT)
    assert sizes == [LIMIT + 1]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "Deflate", "zstd"])
@pytest.mark.parametrize("spoil", [lambda d: d[:-3], lambda d: d + b"junk", lambda d: b"\xff" + d, lambda d: BODY])
async def test_body_in_another_format_is_400_naming_the_encoding(encoding, spoil):
    reply = await post(spoil(ENCODERS[encoding](BODY)), content_encoding=encoding)
    assert f"not valid {encoding.lower()}" in message(reply, 400)


@pytest.mark.parametrize("encoding", ["br", "compress", "gzip, gzip", "zstd,gzip", "aes128gcm", "x" * 1000])
async def test_other_encoding_is_415_naming_the_accepted_ones(encoding):
    text = message(await post(BODY, content_encoding=encoding), 415)
    assert "gzip, deflate, zstd" in text and encoding.split(",")[0][:70] in text and len(text) < 250


def test_content_encoding_names_map_to_decoders():
    assert [encoding_of(name) for name in ("", "identity", "x-gzip", "ZSTD")] == [None, None, "gzip", "zstd"]
    with pytest.raises(ContentEncodingError):
        encoding_of("br")


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize(("extra", "status"), [(0, 200), (1, 413)])
async def test_body_above_the_limit_is_413_naming_the_key(is_chunked, extra, status):
    data = BODY + b" " * (LIMIT + extra - len(BODY))

    async def parts():
        for start in range(0, len(data), 3000):
            yield data[start : start + 3000]

    reply = await post(parts() if is_chunked else data)
    assert reply.status_code == status
    if status == 413:
        assert f"{LIMIT} (http.max_body_bytes)" in message(reply, 413)


async def test_content_length_above_the_limit_is_413_before_reading():
    async def parts():
        raise AssertionError("read")
        yield b""

    assert "999999 bytes" in message(await post(parts(), content_length="999999"), 413)


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (BODY.decode().encode("latin-1"), "byte 0xfc at position"),
        (BODY.decode().encode("utf-16"), "byte 0xff at position 0"),
        (gzip.compress(BODY), "byte 0x8b at position 1"),
        (b'{"model": "\xed\xa0\x80"}', "byte 0xed at position 11"),
    ],
)
async def test_body_that_is_not_utf8_is_400_naming_byte_and_position(data, place):
    text = message(await post(data), 400)
    assert place in text and "UTF-8" in text and "content-encoding" in text


async def test_utf8_byte_order_mark_is_accepted():
    assert (await post(b"\xef\xbb\xbf" + BODY)).status_code == 200


async def test_wrong_key_is_401_before_the_body_is_read():
    async def parts():
        raise AssertionError("read")
        yield b""

    async with client_of(FakeService(), api_key="s3cret") as client:
        assert (await client.post(PATH, content=parts())).status_code == 401


def test_decoding_error_has_status_400():
    with pytest.raises(RequestError) as caught:
        decode(b"x", "gzip", 10)
    assert caught.value.status == 400
