"""f, ∇f and ∇²f of small problems in 40 digits, and critical points refined in them (mpmath).

Plain sums over classes, dimensions and samples: nothing is shared with the package but the
definition of f. A point is a list [W, H, b] of mpmath matrices.
"""

import mpmath as mp
import numpy as np

mp.mp.dps = 40


class Precise:
    """One problem in 40 digits."""

    def __init__(self, problem):
        self.K, self.d, self.N, self.bias = problem.K, problem.d, problem.N, problem.bias
        n = [problem.n] * problem.K if isinstance(problem.n, int) else problem.n
        self.labels = [k for k, count in enumerate(n) for _ in range(count)]
        decays = (problem.lam_W, problem.lam_H, problem.lam_b if problem.bias else 0.0)
        self.lams = [mp.mpf(float(lam)) for lam in decays]

    def lifted(self, params):
        """A float64 point, exactly."""
        W, H, b = (np.asarray(x, np.float64) for x in params)
        b = b if self.bias else 0 * b
        return [mp.matrix(W.tolist()), mp.matrix(H.tolist()), mp.matrix(b.tolist())]

    def flat(self, point):
        """W row-major, H row-major, b."""
        W, H, b = point
        entries = [W[k, a] for k in range(self.K) for a in range(self.d)]
        entries += [H[a, i] for a in range(self.d) for i in range(self.N)]
        return mp.matrix(entries + ([b[k] for k in range(self.K)] if self.bias else []))

    def unflat(self, vector):
        """The inverse of `flat`."""
        K, d, N = self.K, self.d, self.N
        W, H, b = mp.matrix(K, d), mp.matrix(d, N), mp.matrix(K, 1)
        for k in range(K):
            for a in range(d):
                W[k, a] = vector[k * d + a]
            if self.bias:
                b[k] = vector[K * d + d * N + k]
        for a in range(d):
            for i in range(N):
                H[a, i] = vector[K * d + a * N + i]
        return [W, H, b]

    def probabilities(self, point):
        """(P, G, mean cross-entropy), without cancellation where a sample is certain."""
        W, H, b = point
        Z, P, G = W * H, mp.matrix(self.K, self.N), mp.matrix(self.K, self.N)
        loss = mp.mpf(0)
        for i, y in enumerate(self.labels):
            powers = [mp.exp(Z[k, i] + b[k] - Z[y, i] - b[y]) for k in range(self.K)]
            wrong = sum(powers[k] for k in range(self.K) if k != y)
            for k in range(self.K):
                P[k, i] = powers[k] / (1 + wrong)
                G[k, i] = (P[k, i] if k != y else -wrong / (1 + wrong)) / self.N
            loss += mp.log1p(wrong)
        return P, G, loss / self.N

    def value(self, point):
        """f."""
        decay = sum(lam / 2 * sum(v**2 for v in x) for lam, x in zip(self.lams, point, strict=True))
        return self.probabilities(point)[2] + decay

    def gradient(self, point):
        """∇f by blocks; that of b is 0 without a bias."""
        W, H, b = point
        G = self.probabilities(point)[1]
        rows = [sum(G[k, i] for i in range(self.N)) for k in range(self.K)]
        slope_b = mp.matrix(rows) + self.lams[2] * b if self.bias else mp.matrix(self.K, 1)
        return [G * H.T + self.lams[0] * W, W.T * G + self.lams[1] * H, slope_b]

    def hessian(self, point):
        """∇²f in the order of `flat`."""
        W, H, _ = point
        P, G, _ = self.probabilities(point)
        K, d, N = self.K, self.d, self.N
        size = K * d + d * N + (K if self.bias else 0)
        A = mp.zeros(size, size)
        for i in range(N):
            rows = []  # ∂z_k/∂x of this sample
            for k in range(K):
                row = {k * d + a: H[a, i] for a in range(d)}
                row |= {K * d + a * N + i: W[k, a] for a in range(d)}
                rows.append(row | ({K * d + d * N + k: mp.mpf(1)} if self.bias else {}))
            p = [P[k, i] for k in range(K)]
            for k in range(K):
                rest = sum(p[j] for j in range(K) if j != k)
                for j in range(K):
                    S = (p[k] * rest if j == k else -p[k] * p[j]) / N
                    for u, left in rows[k].items():
                        for v, right in rows[j].items():
                            A[u, v] += S * left * right
                for a in range(d):
                    A[k * d + a, K * d + a * N + i] += G[k, i]
                    A[K * d + a * N + i, k * d + a] += G[k, i]
        for u in range(size):
            A[u, u] += self.lams[0 if u < K * d else 1 if u < K * d + d * N else 2]
        return A

    def eigenvalues(self, point):
        """Eigenvalues of ∇²f, ascending."""
        return sorted(mp.eigsy(self.hessian(point), eigvals_only=True))

    def refined(self, params, steps=8):
        """(the critical point that Newton's method finds from params, distance to it).

        Steps of least length: eigenvalues below 1e-28 of the largest are the symmetry orbit.

        Raises:
            ArithmeticError: if the steps do not shrink to 1e-30.
        """
        start = self.flat(self.lifted(params))
        vector = start.copy()
        for _ in range(steps):
            point = self.unflat(vector)
            values, vectors = mp.eigsy(self.hessian(point))
            parts = vectors.T * self.flat(self.gradient(point))
            floor = mp.mpf(10) ** -28 * max(abs(v) for v in values)
            for j, value in enumerate(values):
                parts[j] = parts[j] / value if abs(value) > floor else mp.mpf(0)
            step = vectors * parts
            vector -= step
            if mp.norm(step) <= mp.mpf(10) ** -30 * (1 + mp.norm(vector)):
                return self.unflat(vector), float(mp.norm(vector - start))
        raise ArithmeticError("no critical point found in 40 digits")

    def shares(self, params):
        """Shares of the terms that cancel which a point leaves over."""
        point = self.lifted(params)
        (W, H, b), (slope_W, slope_H, slope_b) = point, self.gradient(point)
        lam_W, lam_H, lam_b = self.lams
        G = self.probabilities(point)[1]
        size = {name: mp.norm(x) for name, x in (("W", W), ("H", H), ("b", b))}
        found = {
            "the gradient in W": (mp.norm(slope_W), mp.norm(G * H.T) + lam_W * size["W"]),
            "the gradient in H": (mp.norm(slope_H), mp.norm(W.T * G) + lam_H * size["H"]),
            "the sum of the rows of W": (
                mp.norm(mp.matrix([sum(W[k, a] for k in range(self.K)) for a in range(self.d)])),
                mp.sqrt(self.K) * size["W"],
            ),
            "the balance of W and H": (
                mp.norm(lam_W * W.T * W - lam_H * H * H.T),
                lam_W * size["W"] ** 2 + lam_H * size["H"] ** 2,
            ),
        }
        if self.bias:
            left = terms = mp.mpf(0)
            for k in range(self.K):
                pull = sum(abs(G[k, i]) for i in range(self.N)) + lam_b * abs(b[k])
                if abs(slope_b[k]) * terms >= left * pull:
                    left, terms = abs(slope_b[k]), pull
            found["the gradient in b"] = (left, terms)
        if self.bias and lam_b > 0:
            found["the sum of b"] = (abs(sum(b)), mp.sqrt(self.K) * (1 + size["b"]))
        return {name: float(left / terms) for name, (left, terms) in found.items() if terms > 0}
