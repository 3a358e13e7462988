"""The same proxy and observer as the PostgreSQL tests have."""

from tests.postgres.conftest import observer, proxied_url, proxy

__all__ = ["observer", "proxied_url", "proxy"]
