"""Shards, as the tests of ffcv_ops write them."""

from tests.ffcv_ops.conftest import encoded, write_shards  # noqa: F401  fixtures
