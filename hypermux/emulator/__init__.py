"""A local API router that behaves as the real one did, faults included.

It checks signatures with code of its own, so that a mistake in `core.signing` cannot hide.
"""
