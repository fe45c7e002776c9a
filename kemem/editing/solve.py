"""The least-squares update of a layer: new associations stored, old ones disturbed as little as may be."""

import torch
from jaxtyping import Float
from torch import Tensor

from kemem.errors import BadInput

WAYS = ("auto", "cholesky", "woodbury", "lu")


def closed_form(
    keys: Float[Tensor, "M N"],
    residual: Float[Tensor, "D N"],
    moment: Float[Tensor, "M M"],
    *,
    weight: float,
    factor: Float[Tensor, "M M"] | None = None,
    way: str = "auto",
) -> Float[Tensor, "D M"]:
    """The update that stores N new associations beside those which a layer's keys on ordinary text stand for.

    Meng et al. 2023, eq. 14:  Delta = R K^T (lambda C + K K^T)^-1.
    keys K: one new key a column. residual R: what the layer's output still lacks at each, as its share. moment C:
    uncentred second moment of ordinary keys. weight lambda: how many average keys the old ones count as; above 0.
    In float64, whatever comes in. way: "cholesky" factors the M x M matrix, with min(N, D) right-hand sides;
    "woodbury" factors an N x N one, given `factor`, the lower Cholesky factor of C, which serves every edit;
        Delta = R (I + K^T G)^-1 G^T,  G = (lambda C)^-1 K;
    "lu" is the general solver of the released code; "auto" takes the one with fewer operations.
    Refused: a weight of 0 or less, a matrix that is not positive definite.
    """
    if not weight > 0:
        raise BadInput(
            f"expected a weight above 0 for the old keys; got {weight}; 15000 is usual for 6B models."
        )
    if way not in WAYS:
        raise BadInput(f"expected way to be one of {', '.join(WAYS)}; got {way!r}; choose one of these.")
    K, R, C = keys.double(), residual.double(), moment.to(keys.device, torch.float64)
    M, N = K.shape
    if way == "auto":
        way = "woodbury" if factor is not None and _woodbury_pays(M, N, len(R)) else "cholesky"
    if way == "woodbury":
        lower = torch.linalg.cholesky(C) if factor is None else factor.to(C)
        G = torch.cholesky_solve(K, lower) / weight  # [M N]
        inner = torch.eye(N, dtype=K.dtype, device=K.device) + K.T @ G
        return torch.cholesky_solve(R.T, torch.linalg.cholesky(inner)).T @ G.T
    A = weight * C + K @ K.T  # [M M]
    if way == "lu":
        return R @ torch.linalg.solve(A, K).T
    lower, fault = torch.linalg.cholesky_ex(A)
    if fault:
        raise BadInput(
            f"expected moments that are positive definite; got a matrix that is not, from its row {int(fault)} on; "
            "measure them on more tokens than the layer has memories."
        )
    if len(R) > N:
        return R @ torch.cholesky_solve(K, lower).T
    return torch.cholesky_solve(K @ R.T, lower).T  # D right-hand sides instead of N


def _woodbury_pays(M: int, N: int, D: int) -> bool:
    """Whether N x N is less work: multiplications of both ways, the factor of C being there already.

    Only for 2 N <= M: with more, the condition of C costs it digits that the M x M matrix does not lose.
    """
    if 2 * N > M:
        return False
    woodbury = 2 * M * M * N + M * N * N + N**3 / 3 + D * N * (N + M)
    direct = M * M * N + M**3 / 3 + M * M * 2 * min(N, D) + M * N * D
    return woodbury < direct


def equality(
    keys: Float[Tensor, "M N"],
    residual: Float[Tensor, "D N"],
    moment: Float[Tensor, "M M"],
    *,
    ridge: float = 0.0,
) -> Float[Tensor, "D M"]:
    """The smallest update, measured on ordinary keys, that meets every new association exactly.

    EMMET (Gupta et al. 2024), of which ROME (Meng et al. 2022, eq. 2) is N = 1:
        Delta = R (K^T C^-1 K)^-1 K^T C^-1.
    ridge: added to the diagonal of K^T C^-1 K, which keys that are alike make singular; the associations are then met
    nearly. Refused: more associations than memories without a ridge, a moment that is not positive definite.
    """
    K, R, C = keys.double(), residual.double(), moment.to(keys.device, torch.float64)
    M, N = K.shape
    if N > M and ridge == 0:
        raise BadInput(
            f"expected no more than {M} associations, one a memory, to be met exactly; got {N}; give fewer, or a ridge."
        )
    lower, fault = torch.linalg.cholesky_ex(C)
    if fault:
        raise BadInput(
            "expected moments that are positive definite; got some that are not; measure them on more tokens than the "
            "layer has memories."
        )
    G = torch.cholesky_solve(K, lower)  # C^-1 K
    inner = K.T @ G + ridge * torch.eye(N, dtype=K.dtype, device=K.device)
    factor, fault = torch.linalg.cholesky_ex(inner)
    if fault:
        raise BadInput(
            "expected keys that differ, to meet each association exactly; got some that depend on others; leave "
            "requests on one subject out, or give a ridge."
        )
    return torch.cholesky_solve(R.T, factor).T @ G.T
