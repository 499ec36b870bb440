"""The parts below Ray that a rank is made of. Imports torch: only rank processes load this module (rank.py).

Owns nothing but the choice; the tests bring a module of the same shape without a model.
"""

from medusa_dist.engine.start import EngineRank, join_store, open_store
from medusa_dist.model.source import resolve_source

__all__ = ["EngineRank", "join_store", "open_store", "resolve_source"]
