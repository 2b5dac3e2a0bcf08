"""LAPACK on one thread inside the context, on as many as before outside."""

from threadpoolctl import threadpool_info

from ufm.runtime.threads import lapack_on_one_thread


def threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_only_inside_the_context_lapack_has_one_thread():
    before = threads()
    with lapack_on_one_thread():
        inside = threads()
    assert before, "no BLAS that threadpoolctl knows"
    assert inside == [1] * len(before)
    assert threads() == before
