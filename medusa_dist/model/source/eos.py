"""End-of-sequence token ids, from the model's own files.

Owns reading eos ids. Not here: the tokenizer, chat templates (text/, llm.py).
"""

import json
from pathlib import Path


def eos_token_ids(folder: Path) -> tuple[int, ...]:
    """Ids that end generation: generation_config.json if it names any, else config.json; ascending, may be empty."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        found = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
        if found is not None:
            return tuple(sorted(set(found if isinstance(found, list) else [found])))
    return ()
