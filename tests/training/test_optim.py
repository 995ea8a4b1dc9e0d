"""Optimizers by name, path and dictionary."""

from __future__ import annotations

import pytest
import torch

from litgpt.errors import LitGPTError
from litgpt.training.optim import make_optimizer
from tests.training.runs import tiny_model


def parameters(**changes):
    return list(tiny_model(**changes).named_parameters())


@pytest.mark.parametrize(
    ("spec", "kind", "rate"),
    [
        ("AdamW", torch.optim.AdamW, 1e-3),
        ("torch.optim.SGD", torch.optim.SGD, 1e-3),
        ({"class_path": "torch.optim.RMSprop", "init_args": {"lr": 0.5}}, torch.optim.RMSprop, 0.5),
        ({"class_path": "AdamW"}, torch.optim.AdamW, 1e-3),
    ],
)
def test_a_spec_names_a_class_and_its_arguments(spec, kind, rate):
    optimizer = make_optimizer(spec, parameters())
    assert type(optimizer) is kind
    assert {group["lr"] for group in optimizer.param_groups} == {rate}


def test_norms_and_biases_have_no_weight_decay():
    named = parameters(bias=True, norm_class_name="LayerNorm")
    optimizer = make_optimizer({"class_path": "AdamW", "init_args": {"weight_decay": 0.1}}, named)
    matrices, vectors = optimizer.param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.dim() >= 2 for parameter in matrices["params"])
    assert all(parameter.dim() == 1 for parameter in vectors["params"])
    assert len(matrices["params"]) + len(vectors["params"]) == len(named)


def test_fused_where_torch_has_it_and_nobody_chose():
    assert make_optimizer("AdamW", parameters()).defaults["fused"] is True
    assert make_optimizer("AdamW", parameters(), fused=False).defaults["fused"] is None
    chosen = {"class_path": "AdamW", "init_args": {"fused": False}}
    assert make_optimizer(chosen, parameters()).defaults["fused"] is False


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("AdmW", "no optimizer 'AdmW'. Closest: AdamW"),
        ("no_such_package.Adam", "no_such_package cannot be imported"),
        ("torch.nn.Linear", "no optimizer 'torch.nn.Linear'"),
        ("LBFGS", "LBFGS evaluates the model several times"),
        ({"class_path": "AdamW", "init_args": {"learning_rat": 1}}, "no argument 'learning_rat'"),
        ({"class_path": "AdamW", "init_args": {"lr": -1.0}}, "refuses its arguments"),
        ({"lr": 0.1}, "needs a class_path"),
    ],
)
def test_what_cannot_be_followed_is_one_sentence(spec, sentence):
    with pytest.raises(LitGPTError, match=sentence):
        make_optimizer(spec, parameters())


def test_nothing_to_train_is_refused():
    with pytest.raises(LitGPTError, match="Nothing trains"):
        make_optimizer("AdamW", [])


def test_stacked_biases_and_gates_do_not_decay():
    shapes = {"fc_1_bias": (4, 8), "attn.gating_factor": (1, 1, 4, 1), "wte.weight": (8, 4), "ln_f.weight": (4,)}
    named = [(name, torch.nn.Parameter(torch.ones(shape))) for name, shape in shapes.items()]
    decaying, others = make_optimizer({"class_path": "AdamW", "init_args": {"weight_decay": 0.1}}, named).param_groups
    assert [parameter.shape for parameter in decaying["params"]] == [(8, 4)]
    assert len(others["params"]) == 3 and others["weight_decay"] == 0
