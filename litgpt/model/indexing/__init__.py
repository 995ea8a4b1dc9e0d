"""Indexers: small heads that choose what the queries of sparse attention see."""
