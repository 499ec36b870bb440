"""medusa_dist: exact speculative decoding with Medusa heads, tensor-parallel, on Ray Serve.

Attributes are resolved on first use, so that a process that only imports the package (Ray Serve's controller, shell
completion of `medusa-dist`) does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medusa_dist.grammar import Grammar, StructuredOutputsParams
    from medusa_dist.llm import LLM
    from medusa_dist.offline.request_output import CompletionOutput, RequestOutput
    from medusa_dist.sampling_params import SamplingParams

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "CompletionOutput",
    "Grammar",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "__version__",
]

_HOME = {
    "LLM": "medusa_dist.llm",
    "CompletionOutput": "medusa_dist.offline.request_output",
    "Grammar": "medusa_dist.grammar",
    "RequestOutput": "medusa_dist.offline.request_output",
    "SamplingParams": "medusa_dist.sampling_params",
    "StructuredOutputsParams": "medusa_dist.grammar",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'medusa_dist' has no attribute {name!r}")
