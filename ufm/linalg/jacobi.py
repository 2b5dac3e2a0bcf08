"""Eigenvalues of small symmetric matrices of decimals, to the precision of their context."""

import decimal
from decimal import Decimal


def eigenvalues(A: list[list[Decimal]]) -> list[Decimal]:
    """Eigenvalues of a small symmetric matrix by Jacobi's rotations, in no order.

    Accurate to some 10 digits less than the decimal context has, relative to the largest entry.
    """
    digits = decimal.getcontext().prec
    size, A = len(A), [list(row) for row in A]
    negligible = max(abs(x) for row in A for x in row) * Decimal(10) ** (10 - digits)
    pairs = [(i, j) for i in range(size) for j in range(i)]
    while any(abs(A[i][j]) > negligible for i, j in pairs):
        for i, j in pairs:
            if not A[i][j]:
                continue
            theta = (A[j][j] - A[i][i]) / (2 * A[i][j])
            t = (1 if theta >= 0 else -1) / (abs(theta) + (theta * theta + 1).sqrt())
            c = 1 / (t * t + 1).sqrt()
            for row in A:
                row[i], row[j] = c * (row[i] - t * row[j]), c * (t * row[i] + row[j])
            A[i], A[j] = (
                [c * (x - t * y) for x, y in zip(A[i], A[j], strict=True)],
                [c * (t * x + y) for x, y in zip(A[i], A[j], strict=True)],
            )
    return [A[i][i] for i in range(size)]
