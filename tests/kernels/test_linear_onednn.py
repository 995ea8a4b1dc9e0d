"""float32 products by oneDNN give MKL's numbers, and their gradients."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from litgpt.engine.engine import Engine
from litgpt.engine.sampling import Sampling
from litgpt.kernels import linear
from litgpt.kernels.linear import ONEDNN_MIN_ROWS, use_fast_linear
from litgpt.training import loss as loss_module
from litgpt.training.loop import fit
from litgpt.training.loss import linear_cross_entropy
from litgpt.training.metrics.loggers import read_metrics
from tests.checkpoint.anonymous import peak_growth
from tests.training.runs import make_run, make_samples, tiny_model

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def fits(monkeypatch) -> None:
    """Every processor computes this way, if not faster, and small products, too."""
    monkeypatch.setattr(linear, "FASTER_WITH_ONEDNN", True)
    monkeypatch.setattr(linear, "ONEDNN_MIN_PRODUCTS", 1)


@pytest.fixture
def products(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of all weights that oneDNN multiplied with."""
    found = []

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        found.append(tuple(weight.shape))
        return real(x, weight, bias)

    real = linear.onednn_product
    monkeypatch.setattr(linear, "onednn_product", counted)
    monkeypatch.setattr(loss_module, "onednn_product", counted)
    return found


def pair(bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    """A plain layer, and one that computes this way."""
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, bias=bias)
    quick = copy.deepcopy(plain)
    use_fast_linear(quick, headroom=0)
    return plain, quick


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(24,), (0, 24), (1, 24), (ONEDNN_MIN_ROWS, 24), (2, 5, 24), (2, 1, 3, 24)])
def test_the_same_numbers(bias, shape, products):
    plain, quick = pair(bias)
    x = torch.randn(shape)
    with torch.no_grad():
        y = quick(x)
        torch.testing.assert_close(y, plain(x))
    assert y.is_contiguous() and bool(products) is (x.numel() >= ONEDNN_MIN_ROWS * 24)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained", ["input", "weight", "both"])
@pytest.mark.parametrize("way", ["as it comes", "expanded", "transposed", "checkpointed"])
def test_the_same_gradients(bias, trained, way, products):
    gradients = []
    for layer in pair(bias):
        torch.manual_seed(1)
        x = (torch.randn(24, 7).t() if way == "transposed" else torch.randn(7, 24)).requires_grad_(trained != "weight")
        layer.requires_grad_(trained != "input")
        y = checkpoint(layer, x, use_reentrant=False) if way == "checkpointed" else layer(x)
        loss = y.sum() if way == "expanded" else (y * torch.randn(40, 7).t()).sum()
        gradients.append(torch.autograd.grad(loss, [t for t in (x, *layer.parameters()) if t.requires_grad]))
    assert products
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("of_input", "of_weight"), [(True, False), (False, True), (True, True)])
def test_only_what_gradients_need_is_kept(of_input, of_weight):
    x, (_, layer) = torch.randn(5, 24, requires_grad=of_input), pair()
    layer.requires_grad_(of_weight)
    kept: list[int] = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()), lambda _: None):
        layer(x)
    assert kept == [t.data_ptr() for t, wanted in ((x, of_weight), (layer.weight, of_input)) if wanted]


def test_other_precisions_and_compiled_code_are_torchs_own(products):
    x, (plain, layer) = torch.randn(8, 24), pair()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    torch.testing.assert_close(torch.compile(layer, backend="eager")(x), plain(x))
    assert layer.double()(x.double()).dtype == torch.float64
    assert not products


def test_only_plain_layers_of_float32_are_changed_and_once():
    class Other(nn.Linear):
        pass

    model = nn.ModuleList([nn.Linear(4, 4).double(), Other(4, 4), nn.Linear(4, 4)])
    use_fast_linear(model, headroom=0)
    assert ["forward" in vars(module) for module in model] == [False, False, True]
    first = model[2].forward
    use_fast_linear(model, headroom=0)
    assert model[2].forward is first


def test_other_processors_are_left_alone(monkeypatch):
    monkeypatch.setattr(linear, "FASTER_WITH_ONEDNN", False)
    layer = nn.Linear(4, 4)
    use_fast_linear(layer, headroom=0)
    assert "forward" not in vars(layer)


def test_copies_compute_with_their_own_weights():
    _, layer = pair(bias=False)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        with torch.no_grad():
            other.weight.zero_()
            assert not other(torch.ones(8, 24)).any()
            assert layer(torch.ones(8, 24)).any()


@pytest.mark.parametrize("frozen", [False, True])
def test_the_loss_is_the_same(frozen, products):
    torch.manual_seed(0)
    hidden = torch.randn(37, 8, requires_grad=True)
    weight, targets = torch.randn(50, 8, requires_grad=not frozen), torch.randint(50, (37,))
    wanted = [hidden] if frozen else [hidden, weight]
    loss = linear_cross_entropy(hidden, weight, targets)
    expected = F.cross_entropy(F.linear(hidden.double(), weight.double()), targets, reduction="sum")
    torch.testing.assert_close(loss, expected.float())
    assert products == [(50, 8), (8, 50)]
    for ours, theirs in zip(torch.autograd.grad(loss, wanted), torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_training_computes_this_way_and_learns_the_same(tmp_path, monkeypatch, products):
    losses, counts = [], []
    for fits in (True, False):
        monkeypatch.setattr(linear, "FASTER_WITH_ONEDNN", fits)
        fit(make_run(tmp_path / str(fits), val_dataset=make_samples([9, 14], seed=5)))
        found = read_metrics(tmp_path / str(fits) / "logs" / "csv" / "version_0" / "metrics.csv")
        losses.append([row[name] for row in found for name in ("loss", "val_loss") if row.get(name) is not None])
        counts.append(len(products))
    assert {(24, 16), (16, 24), (40, 16)} <= set(products) and counts[0] == counts[1]
    assert len(losses[0]) >= 4 and losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_engines_compute_this_way(monkeypatch, products):
    answers, counts = [], []
    for fits in (True, False):
        monkeypatch.setattr(linear, "FASTER_WITH_ONEDNN", fits)
        engine = Engine(tiny_model())
        answers.append(engine.submit(list(range(3, 11)), Sampling(temperature=0), max_new_tokens=6).result())
        counts.append(len(products))
    assert answers[0] == answers[1] and counts[0] == counts[1] > 0


def test_small_products_are_torchs_own(monkeypatch, products):
    monkeypatch.setattr(linear, "ONEDNN_MIN_PRODUCTS", 8 * 24 * 40)
    _, layer = pair()
    layer(torch.randn(7, 24))
    assert not products
    layer(torch.randn(8, 24))
    assert products


MANY_LENGTHS = """
import torch
from litgpt.kernels.linear import onednn_product

torch.set_num_threads(1)
x, weight = torch.randn(2000, 64), torch.randn(64, 64)

def run(first, last):
    for length in range(first, last):
        onednn_product(x[:length], weight)
        torch.mm(x[:length].bfloat16(), weight.bfloat16())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux tells a process's own memory")
def test_many_lengths_leave_memory_where_it_was():
    """In a process of its own; without bounds it is a gigabyte."""
    first, others = peak_growth(MANY_LENGTHS, "run(1, 200)", "run(200, 1200)")
    assert others < 100e6, f"{others} bytes more, after {first} for the first two hundred"
