"""The tokenizer of a model folder, or what stands for it.

Owns when a model is served without one. Not here: the tokenizer of a GGUF file (gguf.py), text (text/). No torch.
"""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from medusa_dist.config import Config
from medusa_dist.errors import ModelError
from medusa_dist.text.chat_template import choose_template
from medusa_dist.text.no_tokenizer import NoTokenizer


def load_tokenizer(folder: Path | str, config: Config) -> Any:
    """The tokenizer of a folder on this machine, or NoTokenizer with skip_tokenizer_init.

    It has the chat template that the config chooses. Raises ModelError if its files are missing or cannot be read.
    """
    if config.skip_tokenizer_init:
        return NoTokenizer()
    try:
        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code, local_files_only=True)
    except Exception as error:  # noqa: BLE001 - transformers raises OSError, ValueError, KeyError and others here
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"{folder}: the tokenizer is missing or cannot be read ({reason[0] if reason else type(error).__name__}); "
            "add its files, or set skip_tokenizer_init to use token ids alone"
        ) from None
    choose_template(found, config.chat_template)
    return found
