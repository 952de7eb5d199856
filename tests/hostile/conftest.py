"""Broken bundles are made from the runtime's hand-made one."""

from __future__ import annotations

from tests.runtime.conftest import bundle, cache_home, folder

__all__ = ["bundle", "cache_home", "folder"]
