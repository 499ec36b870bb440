"""The place of the store, or the reason why there is none."""

from pathlib import Path

import pytest

from medusa_dist.config_parts.files import FilesConfig
from medusa_dist.errors import ConfigError, StorageOffError
from medusa_dist.storage.store import NO_KEY, Store, open_store, tenant_of


def test_auto_is_a_folder_of_the_user_on_one_node_and_off_on_several(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    store = open_store(FilesConfig(), "org/model")
    assert isinstance(store, Store) and str(store.files.folder) == str(tmp_path / "medusa_dist/files/org%2Fmodel")
    assert list(tmp_path.iterdir()) == [], "nothing is made before something is stored"
    off = open_store(FilesConfig(), "org/model", num_nodes=2)
    assert isinstance(off, StorageOffError) and "files.store" in off.message and "2 nodes" in off.message


def test_off_says_which_key_does_it():
    off = open_store(FilesConfig(store="off"), "m")
    assert isinstance(off, StorageOffError) and "files.store: off" in off.message


@pytest.mark.parametrize(("place", "root"), [("/data/x", "/data/x"), ("file:///data/x", "/data/x"), ("~/x", "~/x")])
def test_given_folder_is_used_on_any_number_of_nodes_with_a_part_for_each_model(place, root):
    store = open_store(FilesConfig(store=place), "..", num_nodes=5)
    assert str(store.files.folder) == f"{Path(root).expanduser()}/%2E."


def test_url_gets_a_part_for_each_model():
    assert str(open_store(FilesConfig(store="memory://b/p/"), "a/b").files.folder) == "memory://b/p/a%2Fb"


def test_relative_path_is_refused_with_the_key():
    with pytest.raises(ConfigError, match=r"files\.store: 'data' is a relative path"):
        open_store(FilesConfig(store="data"), "m")


def test_tenants_differ_by_key_and_do_not_show_it():
    assert tenant_of(None) == NO_KEY
    names = {tenant_of("one"), tenant_of("two"), NO_KEY}
    assert len(names) == 3 and tenant_of("one") == tenant_of("one") and "one" not in tenant_of("one")


def test_a_file_that_could_never_fit_is_a_config_error():
    with pytest.raises(ValueError, match=r"files\.max_file_bytes \(4096\) must be at most files\.max_total_b"):
        FilesConfig(max_file_bytes=4096, max_total_bytes=2048)
