"""Who owns which page of the cache."""

from jaxinfer.pages.pool import PagePool

__all__ = ["PagePool"]
