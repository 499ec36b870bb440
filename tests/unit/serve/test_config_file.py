"""A Serve config is checked at every level before anything starts."""

from pathlib import Path

import pytest
import yaml

from medusa_dist.errors import ConfigError
from medusa_dist.serve.config_file import read_serve_file
from medusa_dist.serve.launch import reason

SHIPPED = sorted((Path(__file__).parents[3] / "serve_configs").glob("*.yaml"))


def good() -> dict:
    return {
        "http_options": {"host": "0.0.0.0", "port": 8123},
        "applications": [
            {
                "name": "one",
                "route_prefix": "/one",
                "import_path": "medusa_dist.app:build_app",
                "args": {"model": "some/model", "tensor_parallel_size": 2},
                "deployments": [{"name": "Medusa", "ray_actor_options": {"num_cpus": 1}}],
            }
        ],
    }


def read(tmp_path, tree):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return read_serve_file(path, "Medusa")


def test_valid_serve_file_gives_configs_and_url(tmp_path):
    file = read(tmp_path, good())
    assert file.configs["one"].tensor_parallel_size == 2
    assert file.url("one") == "http://127.0.0.1:8123/one"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_pass_and_stay_on_loopback(path):
    file = read_serve_file(path, "Medusa")
    assert file.configs and file.schema.http_options.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("where", "key", "message"),
    [
        ((), "http_option", r"http_option: unknown key; did you mean http_options\?"),
        (("http_options",), "prot", r"http_options\.prot: unknown key; did you mean port\?"),
        (("applications", 0), "route_prefixx", r"applications\[0\]\.route_prefixx: .* route_prefix\?"),
        (
            ("applications", 0, "deployments", 0),
            "max_queue",
            r"deployments\[0\]\.max_queue: unknown",
        ),
        (("applications", 0, "deployments", 0, "ray_actor_options"), "cpu", r"ray_actor_options\.cpu: unknown key"),
        (("applications", 0, "args"), "max_runing", r"applications\[0\]\.args\.max_runing: .* max_running\?"),
        (("applications", 0, "args"), "dtype", r"application one, args\.dtype: Input should be 'auto'"),
    ],
)
def test_unknown_key_is_refused_with_its_path(tmp_path, where, key, message):
    tree = place = good()
    for step in where:
        place = place[step]
    place[key] = 1
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, tree)


def test_all_problems_are_reported_at_once(tmp_path):
    tree = good()
    tree["a"] = tree["b"] = 1
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, tree)
    assert len(caught.value.message.splitlines()) == 2


def test_override_of_an_unknown_deployment_is_refused(tmp_path):
    tree = good()
    tree["applications"][0]["deployments"][0]["name"] = "LLM"
    with pytest.raises(ConfigError, match="unknown deployment 'LLM'; use 'Medusa'"):
        read(tmp_path, tree)


@pytest.mark.parametrize("text", ["a: [", "just text", "applications: 3"])
def test_file_that_is_no_serve_config_is_refused(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml is not"):
        read_serve_file(path, "Medusa")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_serve_file(tmp_path / "absent.yaml", "Medusa")


def test_reason_extracts_our_error_from_serves_message():
    message = (
        'The deployment failed to start 3 times in a row.\n\x1b[36mray::X\x1b[39m\n  File "a.py", line 1, in f\n'
        "medusa_dist.errors.ModelError: there is no folder x;\nname one that is\n"
    )
    assert reason(message) == "there is no folder x;\nname one that is"
    assert reason("something else") == "something else"
