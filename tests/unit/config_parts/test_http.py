import pytest

from medusa_dist.config import parse_config
from medusa_dist.errors import ConfigError


def origins(*given):
    return parse_config({"model": "m", "http": {"cors_origins": list(given)}}).http.cors_origins


def test_origins_are_normalised_to_what_browsers_send():
    given = ("https://Chat.Example.com", "http://localhost:3000", "https://a.b:443", "http://a:80", "http://[::1]:8080")
    assert origins(*given) == (
        *("https://chat.example.com", "http://localhost:3000"),
        *("https://a.b", "http://a", "http://[::1]:8080"),
    )
    assert origins("chrome-extension://abcdefgh", "https://a:80") == ("chrome-extension://abcdefgh", "https://a:80")


@pytest.mark.parametrize(
    "wrong",
    [
        "*",
        "null",
        "",
        "example.com",
        "https://a.b/",
        "https://a.b/x",
        "https://*.a.b",
        "https://a b",
        "http://a:b",
        "//a",
    ],
)
def test_value_that_is_no_origin_is_refused_by_name(wrong):
    with pytest.raises(ConfigError) as caught:
        origins("https://fine.example", wrong)
    assert caught.value.message.startswith(f"http.cors_origins: {wrong!r} is not an origin; write scheme://host")


def test_body_limit_below_1024_bytes_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"http\.max_body_bytes"):
        parse_config({"model": "m", "http": {"max_body_bytes": 0}})
