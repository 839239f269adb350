"""A word with learned vectors: read as the T5 with a larger table reads it, learned through network and T5."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save

from imagen_jax.errors import UserError
from imagen_jax.finetune.words import learned_word, write_word
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.encoders.t5 import T5Config
from imagen_jax.text.inversion import IdEncoder, LearnedWord, WordEncoder
from imagen_jax.train import loop
from imagen_jax.train.config import InversionConfig, TrainConfig
from imagen_jax.train.inversion import InversionObjective
from imagen_jax.train.optimizer import OptimizerConfig
from tests.train import tiny_run

TEXT = tiny_run.text_config(tiny_run.TEXT_DIM, 12)
WORD = "<new>"


def word_of(encoder: TextEncoder, vectors: np.ndarray) -> LearnedWord:
    return LearnedWord(word=WORD, vectors=vectors, encoder=encoder.fingerprint()["encoder"])


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, tiny_run.TEXT_DIM)).astype(np.float32)


def test_a_word_is_read_as_by_a_t5_whose_table_has_its_rows(vectors):
    plain = TextEncoder(TEXT)
    encoder = WordEncoder(TEXT, [word_of(plain, vectors)])
    captions = ["ab", f"a {WORD} b", WORD]
    first = TEXT.sizes().vocab_size
    assert encoder.tokenize(captions)[1:] == [[100, 35, first, first + 1, 35, 101, 1], [first, first + 1, 1]]
    assert encoder.tokenize(["ab"]) == plain.tokenize(["ab"]) and encoder.fingerprint() == plain.fingerprint()
    params = jax.tree.map(np.asarray, plain.params)
    params["token_embedder"]["embedding"] = np.concatenate([params["token_embedder"]["embedding"], vectors])
    larger = dataclasses.replace(TEXT.sizes(), vocab_size=first + 2).network()
    for caption, found in zip(captions, encoder.encode_unpadded(captions), strict=True):
        ids = jnp.asarray(encoder.tokenize([caption]))
        wanted = larger.apply({"params": params}, ids, jnp.ones(ids.shape, bool))[0]
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(["ab"])[0], plain.encode(["ab"])[0], atol=1e-6)


def test_of_words_that_begin_alike_the_longest_is_meant_however_often_they_come(vectors):
    plain = TextEncoder(TEXT)
    words = [dataclasses.replace(word_of(plain, vectors[:1]), word=word) for word in ("<a", "<a>", "a.b")]
    encoder, first = WordEncoder(TEXT, words), TEXT.sizes().vocab_size
    assert encoder.tokenize(["<a><a", "a.b", "axb"]) == [
        [first + 1, first, 1], [first + 2, 1], *plain.tokenize(["axb"])
    ]  # fmt: skip
    assert encoder.count_tokens(["<a>" * 5000]) == [5001]


def objective_of(vectors: np.ndarray) -> InversionObjective:
    sizes = TEXT.sizes()
    assert isinstance(sizes, T5Config)
    stage = tiny_run.tiny_stage(max_text_length=TEXT.max_length, cond_drop_rate=0.0)
    return InversionObjective(stage=stage, num_vectors=2, sizes=sizes, start=vectors)


def test_the_loss_is_the_stages_on_the_words_text_and_its_gradient_is_right(vectors):
    encoder = TextEncoder(TEXT)
    reader = IdEncoder(TEXT, [word_of(encoder, vectors)])
    captions = [f"a {WORD}", f"{WORD} b", "ab", f"a{WORD}b"]
    objective, batch = objective_of(vectors), jax.tree.map(jnp.asarray, tiny_run.tiny_batch(0, 0, 4))
    network = jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, 0.1), jax.eval_shape(lambda: objective.stage.init(jax.random.key(0)))
    )
    network = jax.tree.map(lambda leaf: leaf.value, network, is_leaf=lambda leaf: hasattr(leaf, "value"))
    frozen, rng = {"network": network, "encoder": encoder.params}, jax.random.key(2)

    def loss(vectors: jax.Array) -> jax.Array:
        text, mask = reader.encode(captions)
        made = {**batch, "text": jnp.asarray(text), "text_mask": jnp.asarray(mask)}
        return objective.loss({"vectors": vectors}, frozen, made, rng)[0]

    text, mask = WordEncoder(TEXT, [word_of(encoder, vectors)]).encode(captions)
    made = {**batch, "text": jnp.asarray(text), "text_mask": jnp.asarray(mask)}
    wanted = objective.stage.loss(network, made, rng)[0]
    assert float(loss(jnp.asarray(vectors))) == pytest.approx(float(wanted), rel=1e-5)
    grad = jax.jit(jax.grad(loss))(jnp.asarray(vectors))
    along = np.random.default_rng(1).normal(size=vectors.shape).astype(np.float32)
    step = 1e-2
    near = [loss(jnp.asarray(vectors + sign * step * along)) for sign in (1, -1)]
    measured = (near[0] - near[1]) / (2 * step)
    assert float((grad * along).sum()) == pytest.approx(float(measured), rel=0.02, abs=1e-4)


class Captions(tiny_run.TinyBatches):
    """Batches whose text is read by the encoder that the run gives."""

    def __init__(self, config, *, batch_size, seed, start_step, rows=None, encoder=None):
        super().__init__(config, batch_size=batch_size, seed=seed, start_step=start_step)
        self._encoder = encoder

    def __next__(self):
        batch = super().__next__()
        text, mask = self._encoder.encode([f"a {WORD}"] * self._num)
        return {**batch, "text": text, "text_mask": mask}


@pytest.fixture(scope="module")
def run(base, tmp_path_factory) -> TrainConfig:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imagen_jax.train.setup.BatchIterator", Captions)
        config = tiny_run.tiny_config(
            tmp_path_factory.mktemp("word") / "run",
            stage=tiny_run.tiny_stage(max_text_length=12, cond_drop_rate=0.0),
            data=dataclasses.replace(base.data, store_dir=None, max_text_length=12),
            text=TEXT,
            init_from=base.model_dir,
            inversion=InversionConfig(word=WORD, num_vectors=2, start="a"),
            optimizer=OptimizerConfig(name="adam", learning_rate=0.1, warmup_steps=0),
            ema_decay=0.5,
        )
        loop.train(config, stop_at=4)
        loop.train(config)
        return config


def test_a_run_keeps_the_vectors_alone_and_its_word_is_a_file(run, tmp_path):
    word = learned_word(run.model_dir)
    table = np.asarray(TextEncoder(TEXT).params["token_embedder"]["embedding"])
    assert word.word == WORD and word.vectors.shape == (2, tiny_run.TEXT_DIM)
    assert np.abs(word.vectors - table[3 + ord("a")]).max() > 1e-3
    assert "total parameters: 32\n" in (loop.folders.as_path(run.model_dir) / "model-info.txt").read_text()
    path = str(tmp_path / "word.safetensors")
    write_word(run.model_dir, path, overwrite=False)
    again = LearnedWord.load(path)
    assert (again.word, again.encoder) == (word.word, word.encoder)
    assert again.vectors.tobytes() == word.vectors.tobytes()
    with pytest.raises(UserError, match="is there already"):
        write_word(run.model_dir, path, overwrite=False)
    with pytest.raises(UserError, match="of another text encoder"):
        WordEncoder(dataclasses.replace(TEXT, seed=1), [again])
    whole = {"format": "pt", "encoder": word.encoder}
    for numbers in (np.ones((2, 16), np.int32), np.ones((2, 16), np.complex64), np.full((2, 16), 1e300)):
        (tmp_path / "odd.safetensors").write_bytes(save({WORD: numbers}, whole))
        with pytest.raises(UserError, match=r"expected float32|must be finite"):
            LearnedWord.load(str(tmp_path / "odd.safetensors"))
    content = bytearray((tmp_path / "word.safetensors").read_bytes())
    (tmp_path / "word.safetensors").write_bytes(bytes(content[:-3]))
    with pytest.raises(UserError, match="cannot be read"):
        LearnedWord.load(path)


def test_frozen_parameters_lie_over_a_mesh(vectors):
    spec = objective_of(vectors).frozen_spec(MeshConfig(data=1, fsdp=2).build(jax.devices()[:2]))
    split = [leaf for leaf in jax.tree.leaves(spec["encoder"]) if tuple(leaf.sharding.spec)]
    assert split and spec.keys() == {"network", "encoder"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"init_from": None}, "inversion needs init_from"), ({"data": None}, "without a store_dir")],
)
def test_what_a_word_needs(run, changes, message):
    changes = {**changes, **({"data": dataclasses.replace(run.data, store_dir="x")} if "data" in changes else {})}
    with pytest.raises(UserError, match=message):
        dataclasses.replace(run, **changes)
    with pytest.raises(UserError, match="one word"):
        InversionConfig(word="two words")
