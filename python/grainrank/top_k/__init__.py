"""Exact nearest neighbours of embeddings, streamed over blocks of queries and of candidates.

The memory is that of the result and of one block; the candidates may be a file far larger than it.
"""

from .exact import SearchResult, search

__all__ = ["SearchResult", "search"]
