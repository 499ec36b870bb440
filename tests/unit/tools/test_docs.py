"""What the docs say is what the code says; `make docs` mends a difference."""

from medusa_dist.config import Config
from medusa_dist.tools.docs import ROOT, page, with_messages, with_sampling, with_tree


def test_config_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "config.md").read_text() == page()


def test_config_page_has_every_top_level_key() -> None:
    assert all(f"`{name}" in page() for name in Config.model_fields)


def test_file_tree_of_the_architecture_page_is_up_to_date() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert with_tree(text) == text


def test_table_of_sampling_fields_is_up_to_date() -> None:
    text = (ROOT / "docs" / "requests.md").read_text()
    assert with_sampling(text) == text


def test_table_of_message_keys_is_up_to_date() -> None:
    text = (ROOT / "docs" / "requests.md").read_text()
    assert with_messages(text) == text


def test_readme_links_point_to_files_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    links = [part.split(")")[0] for part in readme.split("](")[1:]]
    assert links and all((ROOT / link).exists() for link in links if not link.startswith("http"))
