"""Gradients of attention: against float64, in the compute type, and without saved weights."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun

from imagen_jax.cost.jaxprs import bodies
from imagen_jax.models.attention import Attention, AttentionSpec, softmax_attention
from imagen_jax.models.layers import rematerialised

ROWS, POSITIONS, TOKENS, HEADS, WIDTH = 3, 10, 7, 2, 8


def in_float64(query, key, value, mask, given):
    """The output and its gradients by the rules of calculus, in NumPy."""
    query, key, value, given = (x.astype(np.float64).transpose(0, 2, 1, 3) for x in (query, key, value, given))
    logits = query @ key.swapaxes(-1, -2) / math.sqrt(WIDTH) + np.where(mask, 0.0, -np.inf)[:, None, None]
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    flow = given @ value.swapaxes(-1, -2)
    d_logits = weights * (flow - (weights * flow).sum(-1, keepdims=True)) / math.sqrt(WIDTH)
    found = (weights @ value, d_logits @ key, d_logits.swapaxes(-1, -2) @ query, weights.swapaxes(-1, -2) @ given)
    return [x.transpose(0, 2, 1, 3) for x in found]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_output_and_gradients_are_those_of_calculus(dtype, tolerance):
    rng = np.random.default_rng(0)
    shapes = (POSITIONS, POSITIONS + TOKENS, POSITIONS + TOKENS, POSITIONS)
    arrays = [jnp.asarray(3 * rng.normal(size=(ROWS, n, HEADS, WIDTH)), dtype) for n in shapes]
    mask = rng.random((ROWS, POSITIONS + TOKENS)) > 0.4
    *leaves, given = arrays
    out, back = jax.vjp(lambda *leaves: softmax_attention(*leaves, jnp.asarray(mask), dtype), *leaves)
    expected = in_float64(*(np.asarray(x, np.float64) for x in leaves), mask, np.asarray(given, np.float64))
    for found, one in zip((out, *back(given)), expected, strict=True):
        assert found.dtype == dtype
        np.testing.assert_allclose(np.asarray(found, np.float64), one, atol=tolerance * abs(one).max(), rtol=0)


def _layer(remat):
    """A layer's loss, parameters and inputs, in bfloat16."""
    spec = AttentionSpec(head_dim=WIDTH, dtype=jnp.bfloat16, remat=remat)
    layer = rematerialised(Attention, remat)(spec, over_image=True, over_text=True)
    x, text = jnp.ones((ROWS, 4, 5, HEADS * WIDTH)), jnp.ones((ROWS, TOKENS, 6))
    inputs = (x, text, jnp.ones((ROWS, TOKENS), bool))
    params = layer.init(jax.random.key(0), *inputs)
    return lambda params: layer.apply(params, *inputs).astype(jnp.float32).sum(), params


def _dots(jaxpr):
    """Operands' types and the output's shape of each matmul."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(({str(var.aval.dtype) for var in equation.invars}, equation.outvars[0].aval.shape))
        for body in bodies(equation.params):
            found += _dots(body)
    return found


# Of the weights' size: logits and the gradient of weights, and with `matmuls` the logits once more; never the output.
@pytest.mark.parametrize(("remat", "products"), [("none", 2), ("matmuls", 3)])
def test_matmuls_are_of_the_compute_type_and_the_weights_are_computed_again(remat, products):
    loss, params = _layer(remat)
    gradient = jax.make_jaxpr(jax.grad(loss))(params)
    dots = _dots(gradient.jaxpr)
    assert all(types == {"bfloat16"} for types, _ in dots)
    weights = (ROWS, HEADS, 20, 20 + TOKENS)
    assert [shape for _, shape in dots].count(weights) == products
    assert len(dots) == 3 * 5 + (remat == "matmuls")
    assert all(np.isfinite(leaf).all() for leaf in jaxpr_as_fun(gradient)(*jax.tree.leaves(params)))
