"""Shared by all tests: small real corpora, and a tiny trained run made once."""

import mlx_codegen  # noqa: F401  (first of all: it loads the fast BLAS before mlx.core)

pytest_plugins = ["tiny_run", "family_run"]
