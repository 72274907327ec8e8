"""Abacus for OpenFeature: flags that are experiments, and events that are counted."""

from abacus_openfeature.provider import AbacusProvider

__all__ = ["AbacusProvider"]
