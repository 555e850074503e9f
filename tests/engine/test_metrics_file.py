import json

import pytest

from d2kd.engine.metrics_file import cut_metrics


def written(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def step(iteration, **more):
    return {"iteration": iteration, "total_loss": 1.0, **more}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_trained_again_is_taken_out_and_a_cut_line_with_it(tmp_path):
    path = tmp_path / "metrics.json"
    written(path, step(0), step(1), step(2), step(3))
    path.write_text(path.read_text() + '{"iteration": 4, "total_l')
    cut_metrics(path, 2, evaluated_again=False)
    assert rows(path) == [step(0), step(1)]
    cut_metrics(path, 0, evaluated_again=False)
    assert rows(path) == []


def test_an_iteration_that_was_written_twice_is_there_once(tmp_path):
    path = tmp_path / "metrics.json"
    written(path, step(0), step(1, lr=1.0), step(1, lr=2.0), step(2))
    cut_metrics(path, 9, evaluated_again=False)
    assert rows(path) == [step(0), step(1, lr=2.0), step(2)]


@pytest.mark.parametrize("again", [False, True])
def test_the_last_evaluation_of_a_run_that_is_made_longer_is_that_of_its_last_step(tmp_path, again):
    path = tmp_path / "metrics.json"
    written(path, step(0), step(1), {"iteration": 2, "bbox/AP": 5.0})
    cut_metrics(path, 2, evaluated_again=again)
    assert rows(path) == [step(0), step(1) if again else step(1, **{"bbox/AP": 5.0})]


def test_without_a_file_there_is_none_after(tmp_path):
    cut_metrics(tmp_path / "metrics.json", 0, evaluated_again=False)
    assert not list(tmp_path.iterdir())
