"""Which heads a config means; heads that it names and does not use are said in the log."""

import logging

import pytest

from medusa_dist.config import Config
from medusa_dist.engine.startup.find_heads import find_heads

DEMO = "demo:smollm2-135m"


def config(source=None, **speculation):
    return Config.model_validate({"model": DEMO, "heads": {"source": source}, "speculation": speculation})


def test_demo_model_brings_its_own_heads_and_a_named_folder_is_taken(tmp_path):
    assert (find_heads(config()) / "heads.json").is_file()
    assert find_heads(config(str(tmp_path))) == tmp_path


@pytest.mark.parametrize("speculation", [{"mode": "off"}, {"drafters": ["lookup"]}])
def test_heads_that_no_drafter_uses_are_named_in_a_warning(tmp_path, caplog, speculation):
    with caplog.at_level(logging.WARNING):
        assert find_heads(config(**speculation)) is None
        assert not caplog.records
        assert find_heads(config(str(tmp_path), **speculation)) is None
    assert [record.message for record in caplog.records] == [
        "heads.source is not used: speculation.mode is off, or its drafters lack heads"
    ]
