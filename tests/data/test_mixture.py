"""Mixtures: every source in its rate, every example of it in turn, whatever the batch, the hosts and the restarts."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
import seqio
import tensorflow as tf

from imagen_jax.data import tasks
from imagen_jax.data.config import CorpusShare, DataConfig
from imagen_jax.data.mixture import BLOCK, Order, part_lengths
from imagen_jax.data.pipeline import BatchIterator
from imagen_jax.errors import UserError
from imagen_jax.files import send_files
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.train import loop
from imagen_jax.train.config import TrainConfig
from tests.train import tiny_run


def _sources(order: Order, start: int, stop: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    source, own = order.sources(tf.range(start, stop, dtype=tf.int64), seed)
    return source.numpy(), own.numpy()


@pytest.mark.parametrize("rates", [(1.0, 1.0), (0.7, 0.2, 0.1), (5.0, 0.0, 3.0), (1e-9, 1.0), (0.25,) * 4])
def test_parts_are_the_rates_to_within_one(rates):
    lengths = part_lengths(rates)
    assert lengths.sum() == BLOCK
    shares = np.array(rates) / sum(rates) * BLOCK
    assert np.all(np.abs(lengths - shares) <= 1)
    assert np.array_equal(lengths > 0, shares > 0)


def test_every_block_holds_the_rates_and_every_example_of_a_source_comes_once():
    order = Order([50, 70, 9], (0.5, 0.3, 0.2))
    source, own = _sources(order, 0, 5 * BLOCK)
    for number, rate in enumerate((0.5, 0.3, 0.2)):
        mine = np.sort(own[source == number])
        assert np.array_equal(mine, np.arange(len(mine)))
        assert abs(len(mine) - 5 * BLOCK * rate) <= 5
    # Mixed, not one source after the other: among any 64 there are all three.
    assert all(len({*source[i : i + 64]}) == 3 for i in range(0, 5 * BLOCK, 64))
    assert not np.array_equal(source[:BLOCK], source[BLOCK : 2 * BLOCK])
    assert not np.array_equal(source, _sources(order, 0, 5 * BLOCK, seed=4)[0])


def test_records_of_a_source_are_permutations_of_it():
    order = Order([7, 40], (1.0, 3.0))
    source, record = (part.numpy() for part in order.records(tf.range(4 * BLOCK, dtype=tf.int64), 0))
    _, own = _sources(order, 0, 4 * BLOCK, seed=0)
    for number, size in enumerate((7, 40)):
        mine = source == number
        by_turn = record[mine][np.argsort(own[mine])]
        for epoch in range(3):
            assert sorted(by_turn[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_rates_change_at_their_example_and_no_example_comes_twice():
    change = 2 * BLOCK + 300
    order = Order([10**6] * 2, (0.75, 0.25), [(change, (0.25, 0.75))])
    source, own = _sources(order, 0, change + 3 * BLOCK)
    assert np.array_equal(source[:change], _sources(Order([10**6] * 2, (0.75, 0.25)), 0, change)[0])
    assert np.mean(source[change : change + BLOCK] == 1) == 0.75
    for number in range(2):
        mine = own[source == number]
        assert len({*mine.tolist()}) == len(mine)
        # Of the block that the change cuts short, at most its rest is passed over.
        assert mine.max() < len(mine) + BLOCK
        drawn = [int((source[:end] == number).sum()) for end in (500, change + BLOCK)]
        told = [int(order.drawn(end)[number]) for end in (500, change + BLOCK)]
        assert all(abs(a - b) <= BLOCK for a, b in zip(drawn, told, strict=True))


@pytest.mark.parametrize(
    ("rates", "changes", "message"),
    [
        ((0.0, 0.0), [], "sum to 0 from example 0"),
        ((1.0, 1.0), [(8, (0.0, 0.0))], "sum to 0 from example 8"),
        ((1.0, 1.0), [(8, (1.0,))], "2 sources have 1 rates"),
    ],
)
def test_rates_that_say_nothing_are_refused(rates, changes, message):
    with pytest.raises(UserError, match=message):
        Order([5, 5], rates, changes)


@pytest.fixture
def shares(numbered_corpus, numbered_store) -> tuple[CorpusShare, ...]:
    """Corpora of 5 images of 8 pixels and of 20 of 16, in rates 1 and 3."""
    sizes = {"small": (5, 8, 1.0), "large": (20, 16, 3.0)}
    return tuple(
        CorpusShare(
            corpus_dir=numbered_corpus(count, image_size=size, name=name),
            store_dir=numbered_store(count + 2, name=f"{name}-text"),
            rate=rate,
        )
        for name, (count, size, rate) in sizes.items()
    )


def _config(shares, **changes) -> DataConfig:
    return DataConfig(**{"mixture": shares, "image_size": 8, "max_text_length": 3, **changes})


def _batches(config: DataConfig, count: int, **options) -> list[dict[str, np.ndarray]]:
    options = {"batch_size": 32, "seed": 1, "start_step": 0, **options}
    return list(itertools.islice(BatchIterator(config, **options), count))


def _numbers(batch: dict[str, np.ndarray]) -> np.ndarray:
    """The number of each row's example in its source, told by its grey level."""
    return np.round((batch["x0"][:, 0, 0, 0] + 1) * 127.5).astype(int)


def test_images_and_texts_of_a_mixture_belong_together(shares):
    batches = _batches(_config(shares), 64)
    source = np.concatenate([batch["source"] for batch in batches])
    numbers = np.concatenate([_numbers(batch) for batch in batches])
    assert source.dtype == np.int32
    assert abs((source == 0).mean() - 0.25) < 0.002
    assert {*numbers[source == 0]} == {*range(5)} and {*numbers[source == 1]} == {*range(20)}
    for batch in batches[:4]:
        for number, text, mask in zip(_numbers(batch), batch["text"], batch["text_mask"], strict=True):
            assert mask.sum() == 1 + number % 3
            assert (text[mask] == number).all()


def test_a_mixture_is_the_same_in_any_batches_hosts_and_restarts(shares):
    whole = _batches(_config(shares), 8)
    half = _batches(_config(shares), 16, batch_size=16)
    late = _batches(_config(shares), 3, start_step=5)
    rows = _batches(_config(shares), 8, rows=[3, 30])
    for name in whole[0]:
        assert np.array_equal(np.concatenate([b[name] for b in whole]), np.concatenate([b[name] for b in half]))
        assert np.array_equal(np.stack([b[name] for b in late]), np.stack([b[name] for b in whole[5:]]))
        assert np.array_equal(np.stack([b[name] for b in rows]), np.stack([b[name][[3, 30]] for b in whole]))


def test_a_mixture_of_corpora_in_a_bucket_is_that_of_folders(bucket, shares):
    def sent(share: CorpusShare) -> CorpusShare:
        places = {name: f"gs://bucket-a/{share.name}/{name}" for name in ("corpus_dir", "store_dir")}
        for name, place in places.items():
            send_files(getattr(share, name), place)
        return dataclasses.replace(share, **places, name=share.name)

    there = _config(tuple(map(sent, shares)))
    for one, other in zip(_batches(_config(shares), 3), _batches(there, 3), strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_seqio_mixture_of_corpora_is_the_same_mixture(shares):
    for share in shares:
        tasks.add_corpus(f"mixed_{share.name}", share.corpus_dir, share.store_dir)
    names = [f"mixed_{share.name}" for share in shares]
    seqio.MixtureRegistry.add("mixed", [(names[0], 1.0), (names[1], 3.0)])
    try:
        (got,) = _batches(_config("mixed"), 1)
        # seqio sorts the tasks of a Mixture by name.
        (expected,) = _batches(_config(shares[::-1]), 1)
        assert all(np.array_equal(got[name], expected[name]) for name in expected)
        # seqio reads the tasks and the Mixture too.
        task = seqio.get_mixture_or_task(names[0])
        keys = [one["key"] for one in task.get_dataset(None, shuffle=False).as_numpy_iterator()]
        assert keys == [f"example-{i:03d}".encode() for i in range(5)]
        with pytest.raises(UserError, match="'mixed_small' is registered already"):
            tasks.add_corpus(names[0], shares[0].corpus_dir)
    finally:
        seqio.MixtureRegistry.remove("mixed")
        for name in names:
            seqio.TaskRegistry.remove(name)
    with pytest.raises(UserError, match="no seqio Mixture 'mixed'; register it"):
        _batches(_config("mixed"), 1)


def test_position_names_corpora_and_the_rates_so_far(shares):
    config = _config(shares, rate_changes=((4, (1.0, 1.0)), (9, (0.0, 1.0))))
    batches = BatchIterator(config, batch_size=32, seed=1, start_step=3)
    assert batches.source_names == ("small", "large")
    position = batches.position()
    assert position["rates"] == [[0, 1.0, 3.0]]
    assert {*position["corpora"]} == {"small", "large"}
    next(batches)
    assert batches.position()["rates"] == [[0, 1.0, 3.0], [4, 1.0, 1.0]]
    assert batches.epochs(4) == {"small": pytest.approx(32 / 5), "large": pytest.approx(96 / 20)}
    batches.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus_dir": "x"}, "one of corpus_dir, mixture and task, and not two"),
        ({"mixture": None}, "one of corpus_dir, mixture and task, and not two"),
        ({"mixture": ()}, "must be the name of a seqio Mixture or CorpusShares"),
        ({"store_dir": "x"}, "each CorpusShare has its own"),
        ({"rate_changes": ((0, (1.0, 1.0)),)}, "a step .0. must be an integer >= 1"),
        ({"rate_changes": ((5, (1.0, 1.0)), (5, (1.0, 2.0)))}, "expected rising ones"),
        ({"rate_changes": ((5, (1.0, -1.0)),)}, "a rate .-1.0. must be a number of at least 0"),
    ],
)
def test_bad_mixtures_are_refused(shares, changes, message):
    with pytest.raises(UserError, match=message):
        _config(shares, **changes) if "mixture" not in changes else DataConfig(
            **{"image_size": 8, "max_text_length": 3, **changes}
        )


def test_sources_of_one_name_are_refused(shares):
    with pytest.raises(UserError, match="sources of one name .small, small."):
        _config((shares[0], shares[0]))


def test_a_run_tells_the_loss_and_the_epochs_of_each_source_and_resumes_exactly(tmp_path, shares, monkeypatch):
    monkeypatch.setattr(loop, "check_text", lambda config: TextEncoder(config.text))
    build = MeshConfig.build
    monkeypatch.setattr(MeshConfig, "build", lambda self, devices=None: build(self, jax.devices()[:1]))
    stage = tiny_run.tiny_stage(text_embed_dim=4, max_text_length=3)

    def config(name: str, **changes) -> TrainConfig:
        data = _config(shares, **changes)
        return tiny_run.tiny_config(tmp_path / name, stage=stage, data=data, text=tiny_run.text_config(4, 3))

    whole = loop.train(config("whole"))
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert {*lines[-1]["loss_by_source"]} == {"small", "large"}
    assert lines[-1]["epochs"] == {"small": pytest.approx(12 * 4 / 5), "large": pytest.approx(12 * 12 / 20)}
    loop.train(config("parts"), stop_at=5)
    with pytest.raises(UserError, match=r"rates: got \[\[0, 3.0, 1.0\]\], the checkpoint has \[\[0, 1.0, 3.0\]\]"):
        changed = tuple(dataclasses.replace(share, rate=4 - share.rate) for share in shares)
        loop.train(tiny_run.with_changes(config("parts"), data=_config(changed)))
    # What changes later may be set anew.
    assert tiny_run.leaves_equal(whole, loop.train(config("parts", rate_changes=((12, (1.0, 0.0)),))))


def test_rates_that_change_during_a_run_are_followed(shares):
    config = _config(shares, rate_changes=((2, (1.0, 0.0)),))
    batches = _batches(config, 4, batch_size=BLOCK)
    assert [int((batch["source"] == 0).sum()) for batch in batches] == [BLOCK // 4, BLOCK // 4, BLOCK, BLOCK]
