import pytest
import torch

from imagery2flow.run import device
from imagery2flow.run.device import choose_device, choose_precision, deterministic_on_cpu, generator, make_fabric, seeded
from imagery2flow.run.errors import InputError


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_auto_takes_the_cpu_where_there_is_no_gpu(no_gpu):
    assert choose_device("auto") == torch.device("cpu")
    assert choose_device("cpu") == torch.device("cpu")


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(InputError, match="--device cuda:2 is not on this machine, which has 2 GPUs; use --device auto"):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    ("name", "problem"), [("cuda", "is not on this machine"), ("meta", "is not on this machine"), ("gpu", "is no device")]
)
def test_an_unknown_or_absent_device_is_refused(no_gpu, name, problem):
    with pytest.raises(InputError, match=f"--device {name} {problem}; use"):
        choose_device(name)


def test_precision_is_what_was_asked_for_or_what_the_device_has(monkeypatch):
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu) == ("fp32", "asked for")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert choose_precision("auto", cpu) == ("bf16", "this CPU has bf16 instructions")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert choose_precision("auto", cpu)[0] == "fp32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert choose_precision("auto", torch.device("cuda")) == ("fp32", "this GPU has no bf16 units")


def test_the_fabric_says_what_was_chosen_and_why():
    fabric, sentence = make_fabric("cpu", "fp32")
    assert (fabric.device, fabric.world_size) == (torch.device("cpu"), 1)
    assert sentence.startswith("device cpu, 1 process(es), fp32 (asked for), ")


def test_a_generator_gives_the_same_numbers_on_every_machine():
    numbers = torch.randint(1000, (4,), generator=generator(42, 1, 2))
    assert numbers.tolist() == [793, 706, 373, 199]
    assert torch.equal(numbers, torch.randint(1000, (4,), generator=generator(42, 1, 2)))


def test_generators_of_other_seeds_or_keys_differ():
    keys = [(42,), (43,), (42, 0), (42, 1), (42, 0, 1), (42, 1, 0)]
    drawn = {tuple(torch.rand(3, generator=generator(*key)).tolist()) for key in keys}
    assert len(drawn) == len(keys)


def test_initialisation_is_seeded_and_the_global_generator_restored():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with seeded(1):
        first = torch.nn.Linear(2, 2).weight
    assert torch.equal(torch.rand(2), expected)
    with seeded(1):
        assert torch.equal(torch.nn.Linear(2, 2).weight, first)


@pytest.mark.parametrize(("kind", "deterministic"), [("cpu", True), ("cuda", False)])
def test_only_cpu_sums_are_made_deterministic_and_the_setting_is_restored(kind, deterministic):
    with pytest.raises(RuntimeError, match="inside"), deterministic_on_cpu(torch.device(kind)):
        assert torch.are_deterministic_algorithms_enabled() is deterministic
        raise RuntimeError("inside")
    assert not torch.are_deterministic_algorithms_enabled()
    assert device.torch.utils.deterministic.fill_uninitialized_memory
