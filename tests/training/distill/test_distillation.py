"""Distillation against formulas over all logits at once, values and gradients, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from litgpt.errors import LitGPTError, UsageError
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.training.batching.packing import pack, pad
from litgpt.training.distill import objective as chunked
from litgpt.training.distill.divergences import DistillationLoss
from litgpt.training.distill.objective import Distillation
from litgpt.training.distill.stored import MANIFEST, Manifest, StoredTeacher, write
from litgpt.training.distill.teachers import Asked, BestTokens, ModelTeacher
from litgpt.training.loss import IGNORED
from tests.training.runs import VOCABULARY, make_samples, tiny_model

LOSSES = {
    "forward": DistillationLoss("forward_kl", alpha=0.7, temperature=2.0),
    "reverse": DistillationLoss("reverse_kl", alpha=1.0, temperature=0.5),
    "jsd": DistillationLoss("jsd", alpha=0.4, jsd_beta=0.3),
    "cross-entropy": DistillationLoss(alpha=0.0),
}
SAMPLES = make_samples([5, 17, 9, 12, 3], masked=True)


def double(seed: int) -> GPT:
    return tiny_model(seed).double()


def oracle(loss: DistillationLoss, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """The sum over tokens `(N,)`, from all logits `(N, V)`, as TRL's generalized_jsd_loss and PyTorch have it."""
    q, p = ((logits / loss.temperature).log_softmax(-1) for logits in (student, teacher))
    if loss.divergence == "forward_kl":
        found = F.kl_div(q, p, reduction="sum", log_target=True)
    elif loss.divergence == "reverse_kl":
        found = F.kl_div(p, q, reduction="sum", log_target=True)
    else:
        beta = loss.jsd_beta or 0.5
        mixture = (beta * p.exp() + (1 - beta) * q.exp()).log()
        found = beta * F.kl_div(mixture, p, reduction="sum", log_target=True)
        found = found + (1 - beta) * F.kl_div(mixture, q, reduction="sum", log_target=True)
    entropy = F.cross_entropy(student, targets, reduction="sum")
    return loss.alpha * loss.temperature**2 * found + (1 - loss.alpha) * entropy


def expected(loss: DistillationLoss, student: GPT, teacher: GPT) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for sample in SAMPLES:
        ids, targets = sample["input_ids"][None, :-1], sample["labels"][1:]
        kept = targets != IGNORED
        total = total + oracle(loss, student(ids)[0][kept], teacher(ids)[0][kept].detach(), targets[kept])
    return total


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_is_the_formula_however_it_is_cut(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "HELD_AT_ONCE", 1 << 40)  # chunks of 16 tokens
    student, teacher, loss = double(0), double(1), LOSSES[name]
    wanted = expected(loss, student, teacher)
    parameters = list(student.parameters())
    gradients = torch.autograd.grad(wanted, parameters)
    objective = Distillation(student, loss, ModelTeacher(teacher))
    assert not any("teacher" in name for name, _ in objective.named_parameters())
    for batch in (pack(SAMPLES), pad(SAMPLES)):
        found = objective(batch.inputs, batch.targets, batch.lengths)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        for one, other in zip(torch.autograd.grad(found, parameters), gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_a_student_equal_to_its_teacher_has_no_divergence_and_no_gradient(divergence: str, tmp_path: Path) -> None:
    student, teacher = tiny_model(0), tiny_model(0)
    LoRA(r=2, mlp=True, dropout=0.0).attach(student)
    batch = pack(SAMPLES)
    known = ModelTeacher(teacher).ask(Asked(batch.inputs, batch.targets, batch.lengths, None))
    best = known.log_probs(slice(None), teacher.head(known.hidden), 1.0)[1].topk(5)  # type: ignore[attr-defined]
    few = BestTokens(best.indices, best.values)

    class Given:
        def ask(self, asked: Asked) -> BestTokens:
            return few

    for which in (ModelTeacher(teacher), Given()):
        objective = Distillation(student, DistillationLoss(divergence, alpha=1.0), which)
        loss = objective(batch.inputs, batch.targets, batch.lengths)
        loss.backward()
        assert (
            abs(float(loss.detach())) < 1e-4 and objective.metrics(objective.measured().tolist())["divergence"] < 1e-5
        )
        assert max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) < 1e-4


def test_evaluation_is_plain_cross_entropy_with_the_divergence_beside_it() -> None:
    student, batch = tiny_model(0), pack(SAMPLES)
    objective = Distillation(student, LOSSES["forward"], ModelTeacher(tiny_model(1))).eval()
    found = objective(batch.inputs, batch.targets, batch.lengths).detach()
    count = int((batch.targets != IGNORED).sum())
    plain = expected(LOSSES["cross-entropy"], student, student).detach()
    torch.testing.assert_close(found.double(), plain.double(), rtol=1e-5, atol=1e-5)
    sums = objective.measured()
    assert sums is not None and objective.metrics(sums.tolist())["cross_entropy"] == pytest.approx(float(plain) / count)
    assert objective.metrics(sums.tolist())["divergence"] > 0.01


def test_a_rank_short_of_samples_computes_a_zero_with_gradients() -> None:
    objective = Distillation(tiny_model(0), LOSSES["forward"], ModelTeacher(tiny_model(1)))
    batch = pack([])
    loss = objective(batch.inputs, batch.targets, batch.lengths)
    loss.backward()
    assert float(loss.detach()) == 0


# ------------------------------------------------------------------------------------------------------- on disk


def manifest(**changes: Any) -> Manifest:
    values = dict(
        teacher="t", train="a", val="", max_seq_length=32, top_k=4, temperature=1.0, vocabulary=VOCABULARY, version=1
    )
    return Manifest(**{**values, **changes})


def ask(samples: Any) -> BestTokens:
    """The tokens t, t + 1, … of a sample whose first token is t, for each target."""
    rows = [sample["input_ids"][0] for sample in samples for _ in range(int((sample["labels"][1:] != IGNORED).sum()))]
    ids = (torch.stack(rows)[:, None] + torch.arange(4)) % VOCABULARY
    return BestTokens(ids, ids.float().neg())


def test_what_is_stored_comes_back_for_its_own_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litgpt.training.distill.stored.SAMPLES_PER_FILE", 2)
    sets = {"train": SAMPLES, "val": SAMPLES[:1]}
    assert write(tmp_path / "a", manifest(), sets, ask) == 6
    (tmp_path / "a" / "train-00001.safetensors").unlink()
    assert write(tmp_path / "a", manifest(), sets, ask) == 2  # as a run that was stopped goes on
    teacher = StoredTeacher(tmp_path / "a", {"train": 5, "val": 1}, VOCABULARY)
    chosen = [teacher.of("train", SAMPLES)[at] for at in (3, 0, 4)] + [teacher.of("val", SAMPLES)[0]]
    for batch in (pack(chosen, 8), pad(chosen, 8)):
        known = teacher.ask(Asked(batch.inputs, batch.targets, batch.lengths, batch.given))
        assert isinstance(known, BestTokens)
        cut = [{"input_ids": sample["input_ids"], "labels": sample["labels"][:9]} for sample in chosen]
        assert torch.equal(known.ids, ask(cut).ids) and torch.equal(known.values, ask(cut).values)
    for other, complaint in ((manifest(train="b"), "another training set"), (manifest(top_k=5), "another top_k")):
        with pytest.raises(LitGPTError, match=complaint):
            write(tmp_path / "a", other, sets, ask)
    (tmp_path / "a" / "val-00000.safetensors").write_bytes(b"damaged")
    with pytest.raises(LitGPTError, match=r"val-00000.safetensors is missing or damaged"):
        StoredTeacher(tmp_path / "a", {"train": 5, "val": 1}, VOCABULARY)
    (tmp_path / "a" / MANIFEST).write_text("{}")
    with pytest.raises(LitGPTError, match="is none of `litgpt distill prepare`"):
        Manifest.read(tmp_path / "a")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"alpha": 1.5}, "--alpha"),
        ({"temperature": 0.0}, "--temperature"),
        ({"jsd_beta": 0.5}, "--jsd_beta is for"),
        ({"divergence": "jsd", "jsd_beta": 1.0}, "between 0 and 1"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        DistillationLoss(**settings)
