import pytest
import torch

from imagery2flow.encoder.supervised import Outputs, Supervised, as_predictions, load_supervised, outputs_of
from imagery2flow.run.errors import InputError


def test_probabilities_sum_to_1_and_keep_the_order_of_the_logits():
    raw = torch.tensor([[1.0, 2.0, -1.0], [300.0, 0.0, 0.0]])
    found = as_predictions(raw, Outputs("classes", ("a", "b", "c"), column="city"))
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2))
    assert found.argmax(dim=1).tolist() == [1, 0]


@pytest.mark.parametrize(("target_scale", "expected"), [(None, [[14.0, 2.5]]), (100.0, [[200.0, -50.0]])])
def test_scores_come_back_in_the_targets_units(target_scale, expected):
    outputs = Outputs("targets", ("overall", "planet"), (10.0, 3.0), (2.0, 1.0), target_scale=target_scale)
    assert as_predictions(torch.tensor([[2.0, -0.5]]), outputs).tolist() == expected


def test_outputs_come_back_from_lists_and_texts():
    outputs = Outputs("targets", ("overall",), (10.0,), (2.0,), "", ("Almaty (ALA)",), 100.0)
    assert outputs_of({"outputs": outputs.as_plain()}) == outputs
    assert all(isinstance(value, str | list | float) for value in outputs.as_plain().values())


def test_the_seed_decides_the_head():
    heads = [Supervised(torch.nn.Flatten(), 4, 3, seed).head.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_a_checkpoint_without_labels_predicts_nothing(trained):
    with pytest.raises(InputError, match=r"trained without labels and predicts nothing; train one with .*--objective classify or regress"):
        load_supervised(trained.checkpoint)
