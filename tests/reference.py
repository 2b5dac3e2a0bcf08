"""A slow and obvious twin of the library: plain NumPy, float64, loops over samples and classes.

It is written from the formulas of the papers alone and shares no code with ``ufm``, so that
agreement between the two is evidence. Samples are the columns of H; ``b=None`` means that the
model has no bias.
"""

from decimal import Decimal, localcontext

import numpy as np

DIGITS = 80


# Single samples


def softmax(z):
    """Softmax p of one logit vector."""
    powers = [np.exp(value - max(z)) for value in z]
    return np.array([power / sum(powers) for power in powers])


def residual(z, y):
    """Softmax p minus the unit vector e_y; the entry p_y - 1 is minus the sum of the others."""
    r = softmax(z)
    r[y] = -sum(r[j] for j in range(len(z)) if j != y)
    return r


def cross_entropy(z, y):
    """Cross-entropy log(sum_j exp(z_j - z_y)) of one sample."""
    largest = max(z)
    return largest - z[y] + np.log(sum(np.exp(value - largest) for value in z))


def entropy(p):
    """Entropy -sum_j p_j log p_j, where 0 log 0 = 0."""
    return -sum(value * np.log(value) for value in p if value > 0)


def curvature_matrix(z):
    """The Hessian diag(p) - p p^T of the cross-entropy in the logits."""
    p = softmax(z)
    S = np.zeros((len(z), len(z)))
    for j in range(len(z)):
        for k in range(len(z)):
            S[j, k] = (p[j] if j == k else 0.0) - p[j] * p[k]
    return S


# Single samples to eighty digits: the exact values behind the stability tests


def exact_residual(z, y):
    """Softmax minus one-hot to eighty digits, as a list of Decimal."""
    with localcontext() as context:
        context.prec = DIGITS
        powers = [(Decimal(float(value)) - Decimal(float(max(z)))).exp() for value in z]
        total = sum(powers)
        others = sum(power for j, power in enumerate(powers) if j != y)
        return [-others / total if j == y else p / total for j, p in enumerate(powers)]


def exact_cross_entropy(z, y):
    """Cross-entropy to eighty digits, as a Decimal."""
    with localcontext() as context:
        context.prec = DIGITS
        own = Decimal(float(z[y]))
        largest = Decimal(float(max(z)))
        total = sum((Decimal(float(value)) - largest).exp() for value in z)
        return largest - own + total.ln()


def exact_conjugate(r, y):
    """sum_j p_j log p_j at p = e_y + r to eighty digits, as a Decimal."""
    with localcontext() as context:
        context.prec = DIGITS
        p = [Decimal(float(value)) + (1 if j == y else 0) for j, value in enumerate(r)]
        return sum(value * value.ln() for value in p if value > 0)


# The model


def logits(W, H, b):
    """Z = W H + b 1^T, one entry at a time."""
    (K, d), N = W.shape, H.shape[1]
    Z = np.zeros((K, N))
    for k in range(K):
        for i in range(N):
            Z[k, i] = sum(W[k, a] * H[a, i] for a in range(d)) + (0.0 if b is None else b[k])
    return Z


def scaled_residuals(W, H, b, labels):
    """G = (P - Y)/N, the gradient of the data term in Z."""
    Z = logits(W, H, b)
    N = len(labels)
    return np.stack([residual(Z[:, i], labels[i]) / N for i in range(N)], axis=1)


def data_term(W, H, b, labels):
    """The mean cross-entropy."""
    Z = logits(W, H, b)
    return sum(cross_entropy(Z[:, i], y) for i, y in enumerate(labels)) / len(labels)


def objective(W, H, b, labels, lam_W, lam_H, lam_b):
    """f = mean cross-entropy + half the weighted squares of W, H and b."""
    value = data_term(W, H, b, labels)
    value += lam_W / 2 * sum(entry**2 for entry in W.ravel())
    value += lam_H / 2 * sum(entry**2 for entry in H.ravel())
    if b is not None:
        value += lam_b / 2 * sum(entry**2 for entry in b)
    return value


def gradient(W, H, b, labels, lam_W, lam_H, lam_b):
    """(df/dW, df/dH, df/db), each sum written out; df/db is None without a bias."""
    (K, d), N = W.shape, H.shape[1]
    G = scaled_residuals(W, H, b, labels)
    grad_W, grad_H = np.zeros((K, d)), np.zeros((d, N))
    for a in range(d):
        for k in range(K):
            grad_W[k, a] = sum(G[k, i] * H[a, i] for i in range(N)) + lam_W * W[k, a]
        for i in range(N):
            grad_H[a, i] = sum(W[k, a] * G[k, i] for k in range(K)) + lam_H * H[a, i]
    if b is None:
        return grad_W, grad_H, None
    return grad_W, grad_H, np.array([sum(G[k]) + lam_b * b[k] for k in range(K)])


def hessian(W, H, b, labels, lam_W, lam_H, lam_b):
    """The dense Hessian in the order W row-major, H row-major, b (left out without a bias).

    Column by column of the variables: the second derivative is
    sum_i J_i^T S_i J_i / N plus the coupling G_ki between W_ka and H_ai plus the decays,
    where J_i is the derivative of the logits of sample i.
    """
    (K, d), N = W.shape, H.shape[1]
    size = K * d + d * N + (0 if b is None else K)
    Z, G = logits(W, H, b), scaled_residuals(W, H, b, labels)
    full = np.zeros((size, size))
    for i in range(N):
        jacobian = np.zeros((K, size))
        for k in range(K):
            for a in range(d):
                jacobian[k, k * d + a] = H[a, i]
                jacobian[k, K * d + a * N + i] = W[k, a]
            if b is not None:
                jacobian[k, K * d + d * N + k] = 1.0
        full += jacobian.T @ curvature_matrix(Z[:, i]) @ jacobian / N
        for k in range(K):
            for a in range(d):
                row, column = k * d + a, K * d + a * N + i
                full[row, column] += G[k, i]
                full[column, row] += G[k, i]
    for j in range(size):
        full[j, j] += lam_W if j < K * d else lam_H if j < K * d + d * N else lam_b
    return full


# Bounds and closed forms


def lower_bound(W, H, b, labels, lam_W, lam_H, lam_b):
    """Mean entropy of (1-alpha) y_i + alpha p_i, less alpha^2 |G 1|^2 / (2 lam_b).

    alpha = min(1, sqrt(lam_W lam_H)/|G|_2). Needs lam_b > 0, or no bias (b=None), whose term drops.
    """
    if b is not None and not lam_b > 0:
        raise ValueError(f"the reference bound needs lam_b > 0 or b=None, got lam_b={lam_b}")
    Z, G = logits(W, H, b), scaled_residuals(W, H, b, labels)
    K, N = Z.shape
    alpha = min(1.0, np.sqrt(lam_W * lam_H) / np.linalg.svd(G, compute_uv=False)[0])
    bound = 0.0
    for i in range(N):
        one_hot = np.array([float(k == labels[i]) for k in range(K)])
        bound += entropy((1 - alpha) * one_hot + alpha * softmax(Z[:, i])) / N
    if b is not None:
        bound -= alpha**2 * sum(sum(G[k]) ** 2 for k in range(K)) / (2 * lam_b)
    return bound


def is_collapsed(K, n, lam_W, lam_H):
    """Whether the global minimiser is the origin (equal counts, d >= K-1)."""
    return K * K * n * lam_W * lam_H >= 1


def wrong_probability(K, n, lam_W, lam_H):
    """The softmax probability of each wrong class at the global minimiser."""
    return 1 / K if is_collapsed(K, n, lam_W, lam_H) else np.sqrt(n * lam_W * lam_H)


def margin(K, n, lam_W, lam_H):
    """z_y - z_j at the global minimiser."""
    c = wrong_probability(K, n, lam_W, lam_H)
    return 0.0 if is_collapsed(K, n, lam_W, lam_H) else np.log(1 / c - (K - 1))


def global_value(K, n, lam_W, lam_H):
    """The global minimum: log K, or the entropy of (1 - (K-1)c, c, ..., c)."""
    if is_collapsed(K, n, lam_W, lam_H):
        return np.log(K)
    c = wrong_probability(K, n, lam_W, lam_H)
    return -np.log(1 - (K - 1) * c) + (K - 1) * c * margin(K, n, lam_W, lam_H)


def global_norms(K, n, lam_W, lam_H):
    """(|W|_F, |H|_F) at the global minimiser."""
    square_W = (K - 1) * margin(K, n, lam_W, lam_H) * np.sqrt(n * lam_H / lam_W)
    return np.sqrt(square_W), np.sqrt(square_W * lam_W / lam_H)


def global_gram(K, n, lam_W, lam_H):
    """W W^T at the global minimiser: rho/(K-1) (I - 11^T/K)."""
    rho = global_norms(K, n, lam_W, lam_H)[0] ** 2
    return rho / (K - 1) * (np.eye(K) - np.ones((K, K)) / K)


# Neural collapse metrics


def class_statistics(H, labels, mean="class"):
    """Class means (d, K) in the order of the sorted labels, their centre, variances (K,)."""
    classes = sorted({int(y) for y in labels})
    means, variances = [], []
    for k in classes:
        members = [H[:, i] for i in range(H.shape[1]) if labels[i] == k]
        own = sum(members) / len(members)
        means.append(own)
        variances.append(sum(sum((h - own) ** 2) for h in members) / len(members))
    centre = sum(means) / len(means)
    if mean == "sample":
        centre = sum(H[:, i] for i in range(H.shape[1])) / H.shape[1]
    return np.stack(means, axis=1), centre, np.array(variances)


def covariances(H, labels, mean="class"):
    """Sigma_W averaged over samples and Sigma_B averaged over classes, both (d, d)."""
    means, overall, _ = class_statistics(H, labels, mean)
    classes = sorted({int(y) for y in labels})
    d, N = H.shape
    within, between = np.zeros((d, d)), np.zeros((d, d))
    for i in range(N):
        deviation = H[:, i] - means[:, classes.index(int(labels[i]))]
        within += np.outer(deviation, deviation) / N
    for k in range(len(classes)):
        deviation = means[:, k] - overall
        between += np.outer(deviation, deviation) / len(classes)
    return within, between


def nc1_pinv(H, labels, mean="class"):
    """tr(Sigma_W Sigma_B^+)/K, with the pseudo-inverse by eigenvalues (at most K-1 of them)."""
    within, between = covariances(H, labels, mean)
    K = len(set(np.asarray(labels).tolist()))
    values, vectors = np.linalg.eigh(between)
    total = 0.0
    for value, vector in list(zip(values, vectors.T, strict=True))[::-1][: K - 1]:
        if value > 1e-13 * values[-1]:
            total += vector @ within @ vector / value
    return total / K


def nc1_trace(H, labels, mean="class"):
    """tr Sigma_W / tr Sigma_B."""
    within, between = covariances(H, labels, mean)
    return np.trace(within) / np.trace(between)


def cdnv(H, labels):
    """Class-distance normalised variance, averaged over the pairs of classes."""
    means, _, variances = class_statistics(H, labels)
    pairs = [(k, m) for k in range(means.shape[1]) for m in range(k)]
    terms = [
        (variances[k] + variances[m]) / (2 * sum((means[:, k] - means[:, m]) ** 2))
        for k, m in pairs
    ]
    return sum(terms) / len(terms)


def etf_distance(gram):
    """| A/|A|_F - (I - 11^T/K)/sqrt(K-1) |_F for a K x K matrix A."""
    K = len(gram)
    target = (np.eye(K) - np.ones((K, K)) / K) / np.sqrt(K - 1)
    return np.linalg.norm(gram / np.linalg.norm(gram) - target)


def centred_rows(W):
    """W less the mean of its rows."""
    return W - sum(W) / len(W)


def equinorm(vectors):
    """Standard deviation over mean of the norms of the rows."""
    norms = [np.sqrt(sum(row**2)) for row in vectors]
    mean = sum(norms) / len(norms)
    return np.sqrt(sum((norm - mean) ** 2 for norm in norms) / len(norms)) / mean


def equiangularity(vectors):
    """Mean over ordered pairs of |cos + 1/(K-1)| of the rows."""
    K = len(vectors)
    terms = []
    for k in range(K):
        for m in range(K):
            if k != m:
                cosine = vectors[k] @ vectors[m]
                cosine /= np.linalg.norm(vectors[k]) * np.linalg.norm(vectors[m])
                terms.append(abs(cosine + 1 / (K - 1)))
    return sum(terms) / len(terms)


def centred_means(H, labels, mean="class"):
    """M = [mu_k - mu_G], shape (d, K)."""
    means, overall, _ = class_statistics(H, labels, mean)
    return means - overall[:, None]


def nc3_duality(W, H, labels, mean="class"):
    """| W^T/|W|_F - M/|M|_F |_F (Papyan et al. report its square)."""
    M = centred_means(H, labels, mean)
    return np.linalg.norm(W.T / np.linalg.norm(W) - M / np.linalg.norm(M))


def nc4_disagreement(W, H, b, labels):
    """Share of samples on which the classifier and the nearest class mean disagree."""
    means, _, _ = class_statistics(H, labels)
    Z = logits(W, H, b)
    count = 0
    for i in range(H.shape[1]):
        nearest = np.argmin([sum((H[:, i] - means[:, k]) ** 2) for k in range(means.shape[1])])
        count += int(np.argmax(Z[:, i]) != nearest)
    return count / H.shape[1]


def nc4_bias(W, H, b, labels, mean="class"):
    """|W mu_G + b|, which the code of Zhu et al. reports under the name of NC4."""
    overall = class_statistics(H, labels, mean)[1]
    return np.linalg.norm(W @ overall + (0 if b is None else b))
