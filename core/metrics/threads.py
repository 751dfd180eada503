"""One thread for small matrices."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache

from threadpoolctl import ThreadpoolController


def one_blas_thread() -> AbstractContextManager[object]:
    """Keep the linear algebra within a ``with`` block on one thread.

    The matrices of the metrics are small: threads of the library wait for each other longer than they
    compute, several times longer when another process shares the cores.
    """
    return _libraries().limit(limits=1, user_api="blas")


@lru_cache(maxsize=1)
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # finds the libraries loaded so far, so it is made at the first use
