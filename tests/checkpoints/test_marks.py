"""best.json and finished.json, and what they keep from being removed."""

import pytest

from imagen_jax.checkpoints import folders, marks
from imagen_jax.errors import UserError


def put(run, *steps):
    for step in steps:
        folders.checkpoint_dir(run, step).mkdir(parents=True)


def test_the_best_is_never_removed(tmp_path):
    put(tmp_path, 1, 2, 3, 4, 5)
    marks.write_best(tmp_path, 2, {"value": 1.0})
    folders.remove_old(tmp_path, 2)
    assert folders.saved_steps(tmp_path) == [2, 4, 5]
    assert folders.existing(tmp_path, "best").name == "checkpoint_2"
    marks.write_best(tmp_path, 4, {"value": 2.0})
    folders.remove_old(tmp_path, 1)
    assert folders.saved_steps(tmp_path) == [4, 5]


def test_the_best_that_is_not_there_is_told(tmp_path):
    put(tmp_path, 4)
    with pytest.raises(UserError, match=r"there is no .*best.json.*choose from 4"):
        folders.existing(tmp_path, "best")
    marks.write_best(tmp_path, 2, {})
    with pytest.raises(UserError, match="names step 2, whose checkpoint is gone"):
        folders.existing(tmp_path, "best")


@pytest.mark.parametrize("content", ["{", "[]", '{"step": "2"}', '{"step": -1}'])
def test_where_it_is_damaged_nothing_is_removed(tmp_path, capsys, content):
    put(tmp_path, 1, 2, 3)
    (tmp_path / marks.BEST).write_text(content)
    with pytest.raises(UserError, match="remove it"):
        marks.best_step(tmp_path)
    folders.remove_old(tmp_path, 1)
    assert folders.saved_steps(tmp_path) == [1, 2, 3]
    assert "no old checkpoint is removed" in capsys.readouterr().err


def test_the_end_of_a_run_is_noted(tmp_path):
    assert marks.finished_step(tmp_path) is None
    marks.write_finished(tmp_path, 7)
    assert marks.finished_step(tmp_path) == 7
