"""Comparison of processes: the first that differs is named, with what differs."""

import jax
import jax.numpy as jnp
import pytest

from imagen_jax.errors import UserError
from imagen_jax.train import hosts


def test_a_process_that_differs_is_named_with_the_line_that_differs():
    one = {"config": "A.x = 1\nA.y = 2\n", "jax": "0.10.2", "data": {"corpus": "a"}}
    assert hosts.differences([one, dict(one)]) == []
    other = {"config": "A.x = 1\nA.y = 3\n", "jax": "0.10.1", "data": {"corpus": "b"}}
    assert hosts.differences([one, one, other]) == [
        "config: process 2 has 'A.y = 3', process 0 has 'A.y = 2'",
        "data: process 2 has {'corpus': 'b'}, process 0 has {'corpus': 'a'}",
        "jax: process 2 has '0.10.1', process 0 has '0.10.2'",
    ]
    assert hosts.differences([{"config": "a"}, {"config": "a\nb"}]) == ["config: process 1 has 'b', process 0 has ''"]
    assert hosts.differences([{}, {"store": 1}]) == ["store: process 1 has 1, process 0 has None"]


def test_processes_that_differ_are_refused_in_one_line(monkeypatch):
    hosts.check_same(lambda: pytest.fail("alone, nothing is asked for"))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts, "gathered", lambda mine: [mine, mine.replace(b"abc", b"abd")])
    with pytest.raises(UserError, match="not alike: git_revision: process 1 has 'abd', process 0 has 'abc'; give all"):
        hosts.check_same(lambda: {"git_revision": "abc"})


def test_programs_are_told_apart_wherever_their_source_lies():
    def compiled(source: str, name: str) -> object:
        space: dict = {"jnp": jnp}
        exec(compile(source, name, "exec"), space)
        return jax.jit(space["f"]).lower(jnp.ones(3)).compile()

    source = "def f(x):\n    return jnp.sin(x) * 2\n"
    first = hosts.program(compiled(source, "/one/a.py"))
    assert first == hosts.program(compiled("\n\n" + source, "/two/b.py")) != {}
    assert first != hosts.program(compiled(source.replace("2", "3"), "/one/a.py"))
    assert hosts.program(lambda state, batch, frozen: None) == {}


def test_facts_hold_the_code_and_its_versions():
    facts = hosts.code_and_config("text")
    assert facts["config"] == "text" and facts["jax"] == jax.__version__ and len(facts["source"]) == 16
