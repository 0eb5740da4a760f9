"""Handlers for transformers: tokens in front of others, products of queries and keys, attention."""

from collections.abc import Mapping

from gatesearch.models.imported.builder import Handler

HANDLERS: Mapping[str, Handler] = {}
