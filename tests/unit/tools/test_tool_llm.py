"""From a Serve config, or from options, to the tools' LLM."""

from pathlib import Path

import pytest

from medusa_dist.app import DEPLOYMENT
from medusa_dist.errors import ConfigError
from medusa_dist.tools import tool_llm as open_llm_module
from medusa_dist.tools.tool_llm import open_llm, options_config, read_config
from tests.support import tiny_llm
from tests.support.tiny_tool_llm import save_llm, service_config

pytestmark = pytest.mark.usefixtures("one_thread")


def test_open_llm_uses_the_configs_keys_and_overrides(tmp_path: Path) -> None:
    save_llm(tmp_path)
    file = tmp_path / "serve.yaml"
    file.write_text(
        service_config(tmp_path, kv_cache_tokens=512, max_running=3, speculation="{mode: static, tree: [[0]]}")
    )
    config = read_config(file, None, DEPLOYMENT)
    with open_llm(config) as llm:
        assert llm.config == config and "heads" in llm.engine.drafters
    with open_llm(config, speculation=5, max_running=2) as llm:
        assert (llm.config.speculation.max_nodes, llm.config.max_running) == (5, 2)
        assert llm.config.kv_cache_tokens == 512


def test_config_of_several_applications_requires_the_app_option(tmp_path: Path) -> None:
    two = service_config(tmp_path) + service_config(tmp_path, max_running=2).replace("tiny", "other").split("\n", 1)[1]
    file = tmp_path / "serve.yaml"
    file.write_text(two.replace("    args:", "    route_prefix: /one\n    args:", 1))
    with pytest.raises(ConfigError, match=r"several applications \(tiny, other\); choose one with --app"):
        read_config(file, None, DEPLOYMENT)
    assert read_config(file, "other", DEPLOYMENT).max_running == 2
    with pytest.raises(ConfigError, match=r"no application 'third'; choose one of tiny, other"):
        read_config(file, "third", DEPLOYMENT)


def test_the_tools_context_is_1024_tokens_or_what_the_model_has(tmp_path: Path) -> None:
    for positions, expected in ((4096, 1024), (256, 256)):
        tiny_llm.save_llm(tmp_path, max_model_len=positions)
        assert options_config(str(tmp_path), None, "float32").max_model_len == expected


def test_tool_that_looks_inside_refuses_several_ranks(tmp_path: Path) -> None:
    tiny_llm.save_llm(tmp_path)
    config = options_config(str(tmp_path), None, "float32")
    with pytest.raises(ConfigError, match=r"tensor_parallel_size: .* 2 ranks"):
        open_llm(config.model_copy(update={"tensor_parallel_size": 2}))


def test_tool_that_does_not_look_inside_may_use_several_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llm.save_llm(tmp_path)
    asked: list[dict] = []
    monkeypatch.setattr(open_llm_module, "LLM", lambda **keys: asked.append(keys))
    open_llm(options_config(str(tmp_path), None, "float32", ranks=2), looks_inside=False)
    assert asked[0]["tensor_parallel_size"] == 2
