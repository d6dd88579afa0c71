import pandas as pd

from imagery2flow.figures.results import loss_curve
from imagery2flow.run.files import save_figure

HISTORY = pd.DataFrame(
    {"epoch": [1, 2, 3], "loss": [4.0, 3.0, 2.5], "chance": [5.5] * 3, "retrieval": [0.1, 0.4, 0.6], "spread": [0.3, 0.6, 0.8]}
)


def drawn(axis):
    """Label and values of every line."""
    return {line.get_label(): line.get_ydata().tolist() for line in axis.get_lines()}


def test_the_loss_is_drawn_against_its_chance_level_beside_the_signs_of_learning():
    left, right = loss_curve(HISTORY).axes
    assert drawn(left) == {"NT-Xent loss": [4.0, 3.0, 2.5], "chance, log(2N - 1)": [5.5, 5.5, 5.5]}
    assert list(drawn(right).values()) == [[0.1, 0.4, 0.6], [0.3, 0.6, 0.8]]
    assert left.get_ylim()[0] == 0  # a loss near chance must look so
    assert (left.get_xlabel(), left.get_ylabel()) == ("epoch", "loss (nats)")


def test_equal_histories_give_equal_files(tmp_path):
    for name in ("a", "b"):
        for suffix in ("png", "svg", "pdf"):
            save_figure(tmp_path / f"{name}.{suffix}", loss_curve(HISTORY))
    for suffix in ("png", "svg", "pdf"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_with_labels_training_and_validation_are_drawn_where_they_were_measured():
    history = pd.DataFrame({"epoch": [1, 2], "lr": 0.1, "loss": [2.0, 1.0], "accuracy": [0.2, 0.6]})
    left, right = loss_curve(history).axes
    assert [line.get_label() for line in (*left.lines, *right.lines)] == ["training", "accuracy, training"]
    validated = history.assign(validation_loss=[2.5, 1.5], validation_r2=[-0.1, 0.4]).drop(columns="accuracy")
    left, right = loss_curve(validated).axes
    assert [line.get_label() for line in (*left.lines, *right.lines)] == ["training", "validation", "R2, validation"]
    assert right.lines[0].get_ydata().tolist() == [-0.1, 0.4]
