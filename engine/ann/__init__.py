"""Item indexes: interest vectors in, nearest items out.

Only the contract is here. `engine.ann.exact` imports torch and `engine.ann.hnsw` hnswlib, and the process that checks a
saved index needs neither torch nor the time to import it.
"""

from engine.ann.index import ItemIndex

__all__ = ["ItemIndex"]
