"""Optimizers by name, path and dictionary."""

from __future__ import annotations

import copy
import sys

import pytest
import torch

from litgpt.config import Config
from litgpt.errors import LitGPTError, UsageError
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.training.optim.muon import Muon, fused_parts, orthogonalized
from litgpt.training.optim.optimizers import (
    StepsInBackward,
    check_optimizer,
    dotted,
    find_class,
    gradient_norm,
    make_optimizer,
    scale_rates,
)
from tests.peft.test_lora import EXPERTS, LLAMA, NEOX
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
        ("SparseAdam", "SparseAdam takes sparse gradients alone"),
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


@pytest.mark.parametrize("sizes", [LLAMA, NEOX, EXPERTS], ids=["llama", "neox", "experts"])
def test_what_decays_does_not_depend_on_the_rank(sizes):
    def sorted_out(rank: int) -> tuple[set[str], set[str]]:
        built, method = GPT.skeleton(Config(**sizes)), LoRA(r=rank, dora=sizes is not EXPERTS, target="attn.*,mlp.*")
        method.attach(built)
        named = {name: parameter for name, parameter in built.named_parameters() if method.owns(name)}
        groups = make_optimizer({"class_path": "AdamW", "init_args": {"weight_decay": 0.1}}, named.items()).param_groups
        decaying = {name for name, p in named.items() if any(p is own for own in groups[0]["params"])}
        return decaying, {*named} - decaying

    assert sorted_out(1) == sorted_out(2) == sorted_out(3)
    assert all(name.endswith("magnitude") for name in sorted_out(1)[1])


def test_everything_decays_on_request():
    spec = {"class_path": "AdamW", "init_args": {"weight_decay": 0.1}}
    (group,) = make_optimizer(spec, parameters(), decay_all=True).param_groups
    assert group["weight_decay"] == 0.1 and len(group["params"]) == len(parameters())


@pytest.mark.parametrize("spec", ["AdamW", {"class_path": "SGD", "init_args": {"lr": 0.001}}])
def test_loras_b_learns_at_a_multiple_of_as_rate(spec):
    """LoRA+: the groups that decay and those that don't are split, nothing is lost or there twice."""
    model, method = tiny_model(), LoRA(r=2, dora=True, plus_ratio=16.0)
    method.attach(model)
    named = [(name, parameter) for name, parameter in model.named_parameters() if method.owns(name)]
    optimizer = make_optimizer(spec, named)
    scale_rates(optimizer, named, method.rate_factor)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert {name.rpartition(".")[2]: round(rates[id(parameter)], 6) for name, parameter in named} == {
        "lora_A": 0.001,
        "lora_B": 0.016,
        "lora_magnitude": 0.001,
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(named)
    assert optimizer.param_groups[0]["lr"] == 0.001, "what logs show"


def test_the_norm_is_that_of_all_gradients():
    model = tiny_model()
    torch.stack([parameter.square().sum() for parameter in model.parameters()]).sum().backward()
    everything = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    torch.testing.assert_close(gradient_norm(model.parameters()), everything.norm())
    assert gradient_norm([torch.nn.Parameter(torch.ones(2))]) == 0


# -------------------------------------------------------------------------------------------------------- 8 bits


@pytest.mark.parametrize("name", ["AdamW8bit", "bitsandbytes.optim.Lion8bit"])
def test_8_bit_optimizers_keep_a_quarter_of_the_state(name):
    pytest.importorskip("bitsandbytes")
    named = [("transformer.h.0.mlp.fc.weight", torch.nn.Parameter(torch.ones(128, 64)))]
    optimizer = make_optimizer(name, named)
    parameter = named[0][1]
    before = parameter.detach().clone()
    parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert not torch.equal(before, parameter)
    states = [value for key, value in optimizer.state[parameter].items() if key in ("state1", "state2")]
    assert states and all(state.dtype == torch.uint8 for state in states)


def test_paged_optimizers_are_refused_on_a_cpu():
    pytest.importorskip("bitsandbytes")
    with pytest.raises(LitGPTError, match="this run is on the CPU: use AdamW8bit"):
        make_optimizer("PagedAdamW8bit", parameters())


def test_without_bitsandbytes_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(LitGPTError, match=r"pip install 'litgpt\[quant\]'"):
        make_optimizer("AdamW8bit", parameters())


# ---------------------------------------------------------------------------------------------------------- Muon


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    model = tiny_model(norm_class_name="LayerNorm", bias=True)
    named = dict(model.named_parameters())
    optimizer = make_optimizer("Muon", named.items(), parts=fused_parts(model))
    muons = {id(parameter) for group in optimizer.param_groups if group["muon"] for parameter in group["params"]}
    for name, parameter in named.items():
        hidden = name.startswith("transformer.h.") and parameter.dim() == 2
        assert (id(parameter) in muons) == hidden, name
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(named)
    decays = [(group["muon"], group["weight_decay"]) for group in optimizer.param_groups]
    assert decays == [(True, 0.1), (True, 0.1), (False, 0.1), (False, 0.0)]


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
def test_muon_steps_as_torch_does(shape, adjust):
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    settings = dict(lr=0.1, weight_decay=0.2, momentum=0.9)
    expected = torch.optim.Muon([theirs], adjust_lr_fn=adjust, **settings)
    found = Muon([{"params": [ours], "muon": True, "parts": []}], adjust_lr_fn=adjust, **settings)
    for _ in range(3):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        found.step()
        expected.step()
    moved = (theirs - 1).norm()
    assert (ours - theirs).norm() < 0.02 * moved  # products of bfloat16 are rounded in another order


def test_an_orthogonalized_matrix_has_singular_values_near_one():
    torch.manual_seed(0)
    matrices = torch.randn(3, 32, 48) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    values = torch.linalg.svdvals(orthogonalized(matrices, 5).float())
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_fused_matrices_are_treated_as_what_they_hold():
    model = tiny_model()
    qkv = model.transformer.h[0].attn.qkv.weight
    sizes = fused_parts(model)["transformer.h.0.attn.qkv.weight"]
    assert sizes == [16, 8, 8]
    torch.manual_seed(0)
    qkv.grad = torch.randn_like(qkv)
    parts = [torch.nn.Parameter(part.detach().clone()) for part in qkv.split(sizes)]
    for part, gradient in zip(parts, qkv.grad.split(sizes), strict=True):
        part.grad = gradient.clone()
    make_optimizer("Muon", [("transformer.h.0.attn.qkv.weight", qkv)], parts=fused_parts(model)).step()
    make_optimizer(
        "torch.optim.Muon", [(f"transformer.h.{i}.attn.q.weight", part) for i, part in enumerate(parts)]
    ).step()
    assert torch.equal(qkv, torch.cat(parts))


def test_stacked_experts_and_lora_updates_are_matrices_too():
    model = tiny_model(mlp_class_name="LLaMAMoE", n_expert=4, n_expert_per_token=2, moe_intermediate_size=16)
    method = LoRA(r=2)
    method.attach(model)
    named = [(name, parameter) for name, parameter in model.named_parameters() if method.owns(name)]
    assert fused_parts(model)["transformer.h.0.attn.qkv.lora_A"] == [2, 2]
    for name, parameter in [*named, ("transformer.h.0.mlp.experts.fc_1", model.transformer.h[0].mlp.experts.fc_1)]:
        optimizer = make_optimizer("Muon", [(name, parameter)], parts=fused_parts(model))
        parameter.requires_grad_(True)
        parameter.grad = torch.randn_like(parameter)
        before = parameter.detach().clone()
        optimizer.step()
        assert not torch.equal(before, parameter) and parameter.isfinite().all()


def test_adamws_part_has_its_own_rate():
    optimizer = make_optimizer({"class_path": "Muon", "init_args": {"lr": 0.02, "adamw_lr": 3e-4}}, parameters())
    assert {(group["muon"], group["lr"]) for group in optimizer.param_groups} == {(True, 0.02), (False, 3e-4)}


def test_muon_without_a_hidden_matrix_is_refused():
    with pytest.raises(LitGPTError, match="none of what trains is one"):
        make_optimizer("Muon", [("lm_head.weight", torch.nn.Parameter(torch.ones(4, 4)))])
    assert find_class("Muon") is find_class("torch.optim.Muon") is Muon


# ---------------------------------------------------------------------------------------------- in the backward pass


OPTIMIZERS = ["AdamW", "SGD", "Muon", {"class_path": "RMSprop", "init_args": {"momentum": 0.9}}]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("spec", OPTIMIZERS)
def test_steps_in_the_backward_pass_are_the_same_steps(spec, tied):
    plain = tiny_model(tie_embeddings=tied)
    early = copy.deepcopy(plain)
    early.tie()
    ids = torch.randint(40, (2, 9))
    optimizers = [make_optimizer(spec, model.named_parameters(), parts=fused_parts(model)) for model in (plain, early)]
    in_backward = StepsInBackward(optimizers[1])
    for step in range(3):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 / (step + 1)
        plain(ids).square().mean().backward()
        norm = gradient_norm(plain.parameters())
        optimizers[0].step()
        optimizers[0].zero_grad()
        early(ids).square().mean().backward()
        torch.testing.assert_close(in_backward.norm(), norm)
        assert all(parameter.grad is None for parameter in early.parameters())
    for name, parameter in early.named_parameters():
        assert torch.equal(parameter, dict(plain.named_parameters())[name]), name
    in_backward.end()
    early(ids).square().mean().backward()
    assert all(parameter.grad is not None for parameter in early.parameters())


def test_in_the_backward_pass_one_gradient_is_there_at_a_time():
    model = tiny_model(n_layer=4)
    most = 0

    def count(_: torch.Tensor) -> None:
        nonlocal most
        held = [parameter.grad.nbytes for parameter in model.parameters() if parameter.grad is not None]
        most = max(most, sum(held))

    for parameter in model.parameters():
        parameter.register_hook(count)  # before a gradient is put into place, the last one is gone
        parameter.register_post_accumulate_grad_hook(count)  # and before it is freed again
    StepsInBackward(make_optimizer("AdamW", model.named_parameters()))
    model(torch.randint(40, (2, 9))).square().mean().backward()
    assert most == max(parameter.nbytes for parameter in model.parameters())


MISTAKES = [
    ("AdanW", {}, "no optimizer 'AdanW'. Closest: AdamW"),
    ("no.such.module.Class", {}, "cannot be imported"),
    ("LBFGS", {}, "use AdamW"),
    ("AdamW", {"learning_rate": 1e-3}, "has no argument 'learning_rate'"),
    ("AdamW", {"lr": -1.0}, "refuses its arguments"),
    ("AdamW", {"lr": "abc"}, "refuses its arguments"),
    ("AdamW", {"lr": None}, "refuses its arguments"),
    ("AdamW", {"betas": 0.9}, "refuses its arguments"),
    ("AdamW", {"betas": [0.9]}, "refuses its arguments"),
    ("AdamW", {"betas": [0.9, 0.95, 0.9]}, "refuses its arguments"),
    ("AdamW", {"betas": ["a", "b"]}, "refuses its arguments"),
    ("AdamW", {"eps": "tiny"}, "refuses its arguments"),
    ("SGD", {"nesterov": True}, "refuses its arguments"),
    ("Adafactor", {"eps": 1.0}, "refuses its arguments"),
]


@pytest.mark.parametrize(("name", "arguments", "sentence"), MISTAKES)
def test_a_mistake_is_told_before_there_is_a_model(name, arguments, sentence):
    with pytest.raises(UsageError, match=sentence) as caught:
        check_optimizer({"class_path": name, "init_args": arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adafactor", "Muon", "RMSprop", "torch.optim.Adam"])
def test_what_makes_sense_passes(name):
    check_optimizer(name)
    check_optimizer({"class_path": name, "init_args": {"lr": 1e-3, "weight_decay": 0.1}})


def test_with_arguments_an_optimizer_is_written_as_litgpt_takes_it():
    given = {"class_path": "AdamW", "init_args": {"lr": 1e-3}}
    assert dotted(given) == {**given, "class_path": "torch.optim.AdamW"}
    assert dotted("AdamW") == dotted({"class_path": "AdamW"}) == "AdamW"
    assert dotted("torch.optim.SGD") == "torch.optim.SGD"
