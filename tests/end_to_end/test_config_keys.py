"""Every key of the config does something: each is changed, and the change is seen where the key is used.

The keys come from the model itself, so one that is added without a check fails. What each key does in full is tested
beside the part that does it; here it is only that no key is ignored.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from medusa_dist.config import Config, parse_config
from medusa_dist.config_parts.strict import Strict
from tests.support import config_checks_engine, config_checks_service
from tests.support.config_checks_engine import World
from tests.support.tiny_llm import save_llm

pytestmark = pytest.mark.usefixtures("one_thread")
CHECKS = config_checks_engine.CHECKS | config_checks_service.CHECKS


ONE_VALUE = {"heads.placement"}  # keys that have only one legal value so far


def group_of(field: FieldInfo) -> type[BaseModel] | None:
    """The class of a nested group of keys, also of one that may be left out."""
    options: list[Any] = [field.annotation, *getattr(field.annotation, "__args__", ())]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def leaf_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All keys that hold a value, nested ones with dots."""
    for name, field in model.model_fields.items():
        nested = group_of(field)
        yield from [f"{prefix}{name}"] if nested is None else leaf_keys(nested, f"{prefix}{name}.")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> World:
    return World(save_llm(tmp_path_factory.mktemp("bytes")))


@pytest.mark.parametrize("key", list(leaf_keys(Config)))
def test_every_config_key_has_an_effect(
    key: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert key in CHECKS, f"nothing shows that {key} does anything: add a check of where it is used"
    check(key, {"world": world, "tmp_path": tmp_path, "patch": monkeypatch})


def check(key: str, given: dict[str, Any]) -> None:
    code = CHECKS[key].__code__
    CHECKS[key](**{name: given[name] for name in code.co_varnames[: code.co_argcount]})


@pytest.mark.slow
@pytest.mark.parametrize("key", sorted(set(leaf_keys(Config)) - ONE_VALUE))
def test_check_of_a_config_key_fails_if_the_key_is_ignored(
    key: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check fails where every config has the key's default, whatever was given."""
    monkeypatch.setattr(config_checks_engine, "parse_config", lambda args: ignoring(key, parse_config(args)))
    with pytest.raises((Exception, pytest.fail.Exception)):
        check(key, {"world": World(world.folder), "tmp_path": tmp_path, "patch": monkeypatch})


def ignoring(key: str, config: Config) -> Config:
    keys = config.model_dump()
    *groups, last = key.split(".")
    inner, model = keys, Config
    for group in groups:
        inner, model = inner[group], group_of(model.model_fields[group])
    field = model.model_fields[last]
    inner[last] = {"model": "/nowhere", "max_replicas": 9}[last] if field.is_required() else field.default
    if key in ("speculation.mode", "speculation.tree"):  # one does not go without the other
        inner |= {"mode": "auto", "tree": None}
    return parse_config(keys)


def test_every_check_belongs_to_a_config_key() -> None:
    assert set(CHECKS) == set(leaf_keys(Config))


def test_leaf_keys_include_those_of_optional_groups() -> None:
    class Inner(Strict):
        a: int = 1

    class Outer(Strict):
        b: int | None = None
        one: Inner = Inner()
        maybe: Inner | None = None

    assert list(leaf_keys(Outer)) == ["b", "one.a", "maybe.a"]
