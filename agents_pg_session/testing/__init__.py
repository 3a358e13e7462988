"""Test kit: a real PostgreSQL, a proxy that does what networks do, and the promises any session of the SDK is held to.

Needs the extra `testing`. Nothing else of the package imports it.
"""
