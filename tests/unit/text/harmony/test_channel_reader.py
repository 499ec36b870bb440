"""Answers in harmony, as in OpenAI's documentation of the format."""

import pytest

from medusa_dist.text.harmony.channel_reader import MARKS, ChannelReader, is_harmony
from medusa_dist.text.tools.parts import CallArguments, CallStart, Content, Reasoning
from tests.support.tool_cases import collected

THOUGHT = "<|channel|>analysis<|message|>Need the weather tool.<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Tokyo"}'
WEATHER = ("get_weather", '{"city": "Tokyo"}')


def read(*pieces):
    reader = ChannelReader(["get_weather"])
    return collected([part for piece in pieces for part in reader.feed(piece)] + reader.feed("", is_last=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<|channel|>final<|message|>2 + 2 = 4.", ("", "2 + 2 = 4.", [])),
        ("<|channel|>final<|message|>2 + 2 = 4.<|return|>", ("", "2 + 2 = 4.", [])),
        (
            "<|channel|>analysis<|message|>Simple.<|end|><|start|>assistant<|channel|>final<|message|>a <b |> <|",
            ("Simple.", "a <b |> <|", []),
        ),
        (THOUGHT + CALL, ("Need the weather tool.", "", [WEATHER])),
        (THOUGHT + CALL + "<|call|>", ("Need the weather tool.", "", [WEATHER])),
        (THOUGHT + CALL.replace(" <|constrain|>json", ""), ("Need the weather tool.", "", [WEATHER])),
        (
            THOUGHT + ' to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>{"city": "Tokyo"}',
            ("Need the weather tool.", "", [WEATHER]),
        ),
        (
            THOUGHT + "<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant" + CALL,
            ("Need the weather tool.", "I look it up.", [WEATHER]),
        ),
        (
            THOUGHT + THOUGHT + CALL[:-8],
            ("Need the weather tool.\n\nNeed the weather tool.", "", [("get_weather", '{"city": ')]),
        ),
        ("<|channel|>commentary to=functions.other <|constrain|>json<|message|>{}", ("", "{}", [])),
        ("<|channel|>analysis<|message|>cut", ("cut", "", [])),
        ("<|channel|>ana", ("", "", [])),
        ("no header at all", ("", "no header at all", [])),
    ],
)
def test_channels_are_the_same_whole_and_in_every_split(text, expected):
    assert read(text) == expected
    assert read(*text) == expected
    for cut in range(1, len(text)):
        assert read(text[:cut], text[cut:]) == expected


def test_texts_and_arguments_stream_as_they_come():
    reader = ChannelReader(["get_weather"])
    assert reader.feed("<|channel|>analysis<|message|>hm <") == [Reasoning("hm ")]
    assert reader.feed("b") == [Reasoning("<b")]
    assert reader.feed("<|end|><|start|>assistant" + CALL[:-4]) == [
        CallStart(0, "get_weather"),
        CallArguments(0, '{"city": "Tok'),
    ]
    assert ChannelReader().feed("<|channel|>final<|message|>yes") == [Content("yes")]


def test_template_with_channels_is_harmony():
    template = "{{ '<|start|>assistant<|channel|>analysis<|message|>' }}{{ '<|channel|>final<|message|>' }}"
    assert is_harmony(template, MARKS) and not is_harmony("<|start|>assistant", MARKS)
    assert not is_harmony(template, MARKS[1:])
