"""A whole LLM for the tools: a tiny random model that speaks bytes, with heads, and how to serve it."""

from pathlib import Path

from tests.support import tiny_llm


def save_llm(folder: Path) -> None:
    """Model and tokenizer in `folder`, two heads in folder/heads."""
    tiny_llm.save_llm(folder, max_model_len=256, chat=False)


def service_config(folder: Path, **args: object) -> str:
    """A Serve config of one application, as YAML."""
    lines = [f"      model: {folder}", "      dtype: float32", f"      heads: {{source: {folder / 'heads'}}}"]
    lines += [f"      {key}: {value}" for key, value in args.items()]
    head = "applications:\n  - name: tiny\n    import_path: medusa_dist.app:build_app\n    args:\n"
    return head + "\n".join(lines) + "\n"
