"""How far two computations of the same thing may lie apart by rounding alone."""

import torch
from torch import Tensor, nn

# many models compute norms and softmax in float32, whatever their weights
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
# float32 products rounded to TF32 or bf16, where the user allows that on a GPU
_ROUNDED_PRODUCTS = 2e-2
_LOW_PRECISION = 0.1


def rounding_tolerance(model: nn.Module) -> float:
    """Return the relative error that rounding may cause in a model, by its coarsest parameters."""
    if not all(parameter.is_floating_point() for parameter in model.parameters()):
        return (
            _LOW_PRECISION  # kernels for quantised weights round the other factor too, to bf16 for instance
        )
    parameters = list(model.parameters())
    coarsest = max({p.dtype for p in parameters}, key=lambda dtype: torch.finfo(dtype).eps)
    if coarsest == torch.float32 and any(p.is_cuda for p in parameters):
        rounded = torch.backends.cuda.matmul.fp32_precision not in ("none", "ieee")
        return _ROUNDED_PRODUCTS if rounded else _TOLERANCE[coarsest]
    return _TOLERANCE.get(coarsest, _LOW_PRECISION)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the largest relative error of a row; rows that are not finite must agree in that."""
    broken = ~torch.isfinite(expected).all(dim=1)
    if not torch.equal(broken, ~torch.isfinite(found).all(dim=1)):
        return float("inf")
    difference = torch.linalg.vector_norm(found - expected, dim=1)
    scale = torch.linalg.vector_norm(expected, dim=1)
    error = torch.where(difference == 0, 0.0, difference / scale)
    return float(torch.where(broken, 0.0, error).max())
