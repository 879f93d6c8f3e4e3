"""A convex head on fixed features, and the derivative of its meta loss with respect to each training image's weight.

Learning to reweight (Ren et al. 2018) approximates the bilevel problem

    min over w of M(θ*(w)),    θ*(w) = argmin over θ of Σ wᵢ ℓᵢ(θ) + λ/2 |θ|²,

where M is the meta loss. It takes one gradient step in place of the argmin. With softmax regression the inner problem
is strictly convex, so θ*(w) is unique and the implicit function theorem gives the derivative exactly:

    one step:   uᵢ = ⟨∇M(θ), ∇ℓᵢ(θ)⟩                    (the negative derivative per unit of learning rate)
    exact:      vᵢ = ⟨H⁻¹ ∇M(θ*), ∇ℓᵢ(θ*)⟩ = −∂M/∂wᵢ,    H = Σ wᵢ ∇²ℓᵢ(θ*) + λI.

The two differ only by H⁻¹: one step ignores the curvature. As λ grows, λv approaches u.

All tensors are float64. θ is `[D, C]`, features are `[N, D]` (a column of ones gives a bias, which λ penalises too).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dermrw.errors import UserError

NEWTON_STEPS, CG_STEPS = 100, 2000
TOLERANCE = 1e-10  # of the gradient's largest entry; the losses are of the order of 1


class Examples(NamedTuple):
    """Features `[N, D]` and labels `[N]`."""

    x: Tensor
    y: Tensor


def losses(theta: Tensor, examples: Examples, offset: Tensor | float = 0.0) -> Tensor:
    """Returns the cross-entropy of each example `[N]`; `offset` `[C]` is added to the logits."""
    return torch.nn.functional.cross_entropy(examples.x @ theta + offset, examples.y, reduction="none")


def fit(examples: Examples, weights: Tensor, penalty: float, start: Tensor, offset: Tensor | float = 0.0) -> Tensor:
    """Returns θ*(w) `[D, C]`: Newton's method with conjugate gradients and a line search.

    Args:
        examples: the training examples.
        weights: w `[N]`, not negative; their sum is 1 by convention.
        penalty: λ, positive.
        start: θ `[D, C]` to start from.
        offset: `[C]`, added to the logits of all examples: the log class shares of balanced softmax.

    Raises:
        UserError: it does not converge.
    """
    theta = start.clone()

    def objective(at: Tensor) -> Tensor:
        return (weights * losses(at, examples, offset)).sum() + penalty / 2 * at.square().sum()

    value = objective(theta)
    for _ in range(NEWTON_STEPS):
        p = torch.softmax(examples.x @ theta + offset, 1)
        gradient = examples.x.T @ (weights[:, None] * _residuals(p, examples.y)) + penalty * theta
        size = gradient.abs().max().item()
        if size < TOLERANCE:
            return theta
        # an inexact step far from the optimum, a more exact one near it (Dembo et al. 1982)
        step = conjugate_gradients(_hessian(examples.x, p, weights, penalty), gradient, min(0.1, size**0.5))
        slope, length = (gradient * step).sum(), 1.0
        while True:
            candidate = theta - length * step
            reached = objective(candidate)
            if reached <= value - 1e-4 * length * slope or length < 1e-6:
                break
            length /= 2
        theta, value = candidate, reached
    raise UserError(f"the convex head did not converge: its gradient is {size:.1e} after {NEWTON_STEPS} steps")


def one_step_scores(theta: Tensor, examples: Examples, meta: Examples) -> Tensor:
    """Returns uᵢ = ⟨∇M(θ), ∇ℓᵢ(θ)⟩ `[N]`, M the mean cross-entropy of the meta examples."""
    return _along(theta, examples, meta_gradient(theta, meta))


def exact_scores(theta: Tensor, examples: Examples, weights: Tensor, penalty: float, meta: Examples) -> Tensor:
    """Returns vᵢ = −∂M(θ*(w))/∂wᵢ `[N]` at θ = θ*(w), by implicit differentiation."""
    p = torch.softmax(examples.x @ theta, 1)
    hessian = _hessian(examples.x, p, weights, penalty)
    return _along(theta, examples, conjugate_gradients(hessian, meta_gradient(theta, meta), 1e-8))


def meta_gradient(theta: Tensor, meta: Examples) -> Tensor:
    """Returns ∇M(θ) `[D, C]`."""
    return meta.x.T @ _residuals(torch.softmax(meta.x @ theta, 1), meta.y) / len(meta.y)


def conjugate_gradients(product: Callable[[Tensor], Tensor], target: Tensor, tolerance: float) -> Tensor:
    """Returns x with |A x − target| ≤ tolerance · |target|, for a positive definite A given by its product.

    Raises:
        UserError: it does not converge.
    """
    x = torch.zeros_like(target)
    residual = target.clone()
    direction = residual.clone()
    square = residual.square().sum()
    goal = tolerance**2 * square
    for _ in range(CG_STEPS):
        if square <= goal:
            return x
        image = product(direction)
        length = square / (direction * image).sum()
        x += length * direction
        residual -= length * image
        before, square = square, residual.square().sum()
        direction = residual + square / before * direction
    raise UserError(f"conjugate gradients did not converge in {CG_STEPS} steps: use a larger penalty")


def _along(theta: Tensor, examples: Examples, direction: Tensor) -> Tensor:
    """Returns ⟨direction, ∇ℓᵢ(θ)⟩ `[N]`; ∇ℓᵢ is the outer product of the features and the residuals."""
    residuals = _residuals(torch.softmax(examples.x @ theta, 1), examples.y)
    return (residuals * (examples.x @ direction)).sum(1)


def _residuals(p: Tensor, y: Tensor) -> Tensor:
    """Returns p − onehot(y) `[N, C]`, the gradient of cross-entropy with respect to the logits."""
    residuals = p.clone()
    residuals[torch.arange(len(y)), y] -= 1
    return residuals


def _hessian(x: Tensor, p: Tensor, weights: Tensor, penalty: float) -> Callable[[Tensor], Tensor]:
    """Returns the product with H = Σ wᵢ (diag(pᵢ) − pᵢ pᵢᵀ) ⊗ xᵢ xᵢᵀ + λI."""

    def product(direction: Tensor) -> Tensor:
        change = x @ direction  # of the logits [N, C]
        curved = p * (change - (p * change).sum(1, keepdim=True))
        return x.T @ (weights[:, None] * curved) + penalty * direction

    return product
