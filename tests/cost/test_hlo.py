"""Trip counts of loops, as XLA:CPU compiles them and as the TPU compiler writes them."""

import jax
import jax.numpy as jnp
import pytest

from imagen_jax.cost import hlo


def trips(function, *args) -> list[int]:
    """Iterations of every loop of the compiled program; what XLA states is taken away, so that they are worked out."""
    module = hlo.parse(jax.jit(function).lower(*args).compile().as_text().replace("known_trip_count", "unstated"))
    return sorted(
        hlo.trip_count(module, name, instruction)
        for name in hlo.run_counts(module)
        for instruction in module.computations[name].values()
        if instruction.opcode == "while"
    )


@pytest.mark.parametrize("length", [2, 7])
def test_a_scan(length):
    assert trips(lambda x: jax.lax.scan(lambda h, _: (jnp.sin(h), None), x, length=length)[0], 1.0) == [length]


def test_nested_scans():
    def outer(h, x):
        return jax.lax.fori_loop(0, 4, lambda i, h: jnp.sin(h @ h) * i, h), h

    assert trips(lambda x, xs: jax.lax.scan(outer, x, xs), jnp.ones((3, 3)), jnp.ones(6)) == [4, 6]


@pytest.mark.parametrize(("start", "stop", "step", "expected"), [(0, 12, 3, 4), (0, 13, 3, 5), (2, 12, 1, 10)])
def test_counters_with_a_start_and_a_step(start, stop, step, expected):
    def loop(x):
        state = (jnp.int32(start), x)
        return jax.lax.while_loop(lambda s: s[0] < stop, lambda s: (s[0] + step, jnp.sin(s[1] @ s[1])), state)[1]

    assert trips(loop, jnp.ones((3, 3))) == [expected]


def test_a_loop_that_depends_on_data_counts_once():
    assert trips(lambda x: jax.lax.while_loop(lambda h: h.sum() > 1, lambda h: jnp.sin(h), x), jnp.ones(9)) == [1]


def test_a_conditional_runs_both_sides():
    module = hlo.parse(
        """
%yes (p: f32[2]) -> f32[2] {
  ROOT %p = f32[2]{0} parameter(0)
}

%no (q: f32[2]) -> f32[2] {
  ROOT %q = f32[2]{0} parameter(0)
}

ENTRY %main (a: pred[], b: f32[2]) -> f32[2] {
  %a = pred[] parameter(0)
  %b = f32[2]{0} parameter(1)
  ROOT %c = f32[2]{0} conditional(%a, %b, %b), true_computation=%yes, false_computation=%no
}
"""
    )
    assert hlo.run_counts(module) == {"main": 1, "yes": 1, "no": 1}
