"""Fixtures of the engine tests."""

from tests.engine.conftest import crun, engine, make_site, rootful, scratch  # noqa: F401
