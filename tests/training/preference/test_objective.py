"""A step on preferences, however it is packed, against every sequence computed by itself from all its logits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from litgpt.args import EvalArgs, TrainArgs
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.peft import switched_off
from litgpt.runtime import make_fabric
from litgpt.training.batching.batches import Batch, Batching
from litgpt.training.loop import fit
from litgpt.training.loss import IGNORED
from litgpt.training.preference.losses import PreferenceLoss
from litgpt.training.preference.objective import Preferences
from litgpt.training.preference.reference import with_reference
from litgpt.training.step import begin
from tests.training.runs import VOCABULARY, Samples, column, make_run, tiny_model

LOSSES = {
    "dpo": PreferenceLoss("dpo", label_smoothing=0.1),
    "dpo, by length": PreferenceLoss("dpo", length_normalization=True, sft_weight=0.3),
    "ipo": PreferenceLoss("ipo"),
    "simpo": PreferenceLoss("simpo"),
    "orpo": PreferenceLoss("orpo", beta=0.5),
    "kto": PreferenceLoss("kto", desirable_weight=1.5),
}


def make_pairs(count: int = 7, single: bool = False, seed: int = 0) -> Samples:
    """Samples of two sequences of random ids; the first third of each is its prompt."""
    generator = torch.Generator().manual_seed(seed)
    samples = Samples()
    for number in range(count):
        sizes = torch.randint(4, 14, (2,), generator=generator).tolist()
        ids = [torch.randint(VOCABULARY, (size,), generator=generator) for size in sizes]
        labels = [part.clone() for part in ids]
        for part in labels:
            part[: max(1, len(part) // 3)] = IGNORED
        sample = {
            "input_ids": torch.cat(ids),
            "labels": torch.cat(labels),
            "documents": torch.tensor([sizes[0], sizes[1] - 1]),
        }
        samples.append({**sample, "given": torch.tensor([float(number % 3 > 0)])} if single else sample)
    return samples


def policy() -> GPT:
    """With an update that is no longer zero."""
    model = tiny_model()
    LoRA(r=2, mlp=True, dropout=0.0).attach(model)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def answer_log_probs(model: GPT, sample: dict[str, Tensor]) -> list[Tensor]:
    """The log-probabilities of the answer's tokens, of each sequence of a sample by itself."""
    size = int(sample["documents"][0])
    found = []
    for part in (slice(None, size), slice(size, None)):
        ids, labels = sample["input_ids"][part], sample["labels"][part][1:]
        each = model(ids[None, :-1])[0].log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)
        found.append(each[labels != IGNORED])
    return found


def oracle(model: GPT, loss: PreferenceLoss, samples: Samples) -> Tensor:
    """The mean loss over samples."""
    ours = [answer_log_probs(model, sample) for sample in samples]
    with torch.no_grad(), switched_off(model):
        frozen = [answer_log_probs(model, sample) for sample in samples]
    reduce = torch.mean if loss.normalised else torch.sum

    def table(found: list[list[Tensor]]) -> Tensor:
        return torch.stack([torch.stack([reduce(part) for part in parts]) for parts in found])

    now, before = table(ours), table(frozen) if loss.referenced else torch.zeros(len(samples), 2)
    if loss.kind == "kto":
        divergence = (now - before)[:, 1].mean().clamp(min=0).detach()
        wanted = torch.tensor([bool(sample["given"][0]) for sample in samples])
        return loss.of_singles((now - before)[:, 0], wanted, divergence).mean()
    losses = loss.of_pairs(*now.unbind(1), *before.unbind(1)).mean()
    return losses - loss.sft * torch.cat([parts[0] for parts in ours]).mean()


def computed(objective: Preferences, batches: list[Batch], fabric: Any) -> Tensor:
    """The mean loss over samples, as a step computes it."""
    begin(fabric, objective, batches)
    total = torch.zeros(())
    for batch in batches:
        for part in batch.of_rank(0):
            total = total + objective(part.inputs, part.targets, part.lengths, part.given)
    return total / sum(batch.units for batch in batches)


@pytest.fixture(scope="module")
def fabric() -> Any:
    return make_fabric(1, precision="32-true", device="cpu")


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_is_the_mean_over_samples_however_they_are_packed(name: str, fabric: Any) -> None:
    loss, model = LOSSES[name], policy()
    samples = make_pairs(single=loss.kind == "kto")
    trained = [p for name, p in model.named_parameters() if "lora" in name]
    expected = oracle(model, loss, samples)
    gradients = torch.autograd.grad(expected, trained)
    frozen = with_reference(fabric, switched(model), samples, Batching(3, None, True), ("a",), None)
    for reference, dataset in ((switched_off, samples), (None, frozen)):
        objective = Preferences(model, loss, reference).train()
        for size, packing in ((1, True), (7, True), (3, False), (2, True)):
            batching = Batching.of(TrainArgs(micro_batch_size=size, packing=packing), 2, per_sample=True)
            found = computed(objective, [batching.cut([dataset[at] for at in range(len(dataset))], 1)], fabric)
            torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)
            for one, other in zip(torch.autograd.grad(found, trained), gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def switched(model: GPT) -> GPT:
    """The same model without its update."""
    plain = tiny_model()
    plain.load_state_dict(
        {name.replace(".linear.", "."): v for name, v in model.state_dict().items() if "lora" not in name}
    )
    return plain


def test_padding_is_counted_by_sequences_and_pairs_stay_together() -> None:
    samples = make_pairs(5)
    batch = Batching.of(TrainArgs(micro_batch_size=2, max_seq_length=13), 2, True).cut(samples, 2)
    assert batch.units == 5 and batch.limit == 26
    for rank in (0, 1):
        for part in batch.of_rank(rank):
            assert part.lengths is not None and (len(part.lengths) % 2 == 0 or part.inputs.numel() == 1)


def test_a_rank_short_of_samples_adds_nothing() -> None:
    model = policy()
    nothing = Preferences(model, LOSSES["dpo"], switched_off)(
        torch.zeros(1, 1, dtype=torch.long), torch.full((1, 1), IGNORED), (1,)
    )
    assert nothing == 0 and nothing.requires_grad


def test_the_metrics_are_those_of_the_samples(fabric: Any) -> None:
    model, loss = policy(), PreferenceLoss("dpo")
    samples = make_pairs()
    with torch.no_grad():
        ours = torch.stack([torch.stack([part.sum() for part in answer_log_probs(model, s)]) for s in samples])
        with switched_off(model):
            frozen = torch.stack([torch.stack([part.sum() for part in answer_log_probs(model, s)]) for s in samples])
    rewards = 0.1 * (ours - frozen)
    objective = Preferences(model, loss, switched_off)
    computed(objective, [Batching(3, None, True, True).cut(samples, 1)], fabric)
    sums = objective.measured()
    assert sums is not None
    found = objective.metrics(sums.tolist())
    assert found["accuracy"] == pytest.approx(float((rewards[:, 0] > rewards[:, 1]).float().mean()))
    assert found["margin"] == pytest.approx(float((rewards[:, 0] - rewards[:, 1]).mean()), abs=1e-6)
    assert found["rejected_log_prob"] == pytest.approx(float(ours[:, 1].mean()), rel=1e-5)


# --------------------------------------------------------------------------------------------------------- the loop


def train(out_dir: Path, loss: PreferenceLoss, ranks: int = 1, precomputed: bool = False, **settings: Any) -> None:
    model = tiny_model()
    method = LoRA(r=2, mlp=True, dropout=0.0)
    torch.manual_seed(1)
    method.attach(model)
    samples, val = (make_pairs(n, loss.kind == "kto", seed) for n, seed in ((7, 0), (5, 9)))
    fabric = make_fabric(ranks, precision="32-true", device="cpu", seed=3)
    if precomputed:
        made = [with_reference(fabric, model, part, Batching(2, None, True), ("a",), None) for part in (samples, val)]
        samples, val = made  # type: ignore[assignment]
    own = dict(global_batch_size=3, max_steps=6, save_interval=3, max_norm=1.0)
    run = make_run(
        out_dir,
        model=model,
        owns=method.owns,
        weights_file="lit_model.pth.lora",
        train_dataset=samples,
        val_dataset=val,
        train={**own, **settings.pop("train", {})},
        eval=EvalArgs(interval=2, initial_validation=True),
        objective=lambda model: Preferences(model, loss, None if precomputed else switched_off),
        fabric=fabric,
        **settings,
    )
    fit(run)


NAMES = ("loss", "val_loss", "grad_norm", "accuracy", "margin", "val_accuracy", "val_margin")


def test_the_first_loss_is_the_logarithm_of_two_and_falls(tmp_path: Path) -> None:
    train(tmp_path, PreferenceLoss("dpo"), train={"max_steps": 30, "save_interval": None})
    losses = column(tmp_path, "loss")
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6) and losses[-1] < 0.6
    assert column(tmp_path, "val_loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert (column(tmp_path, "accuracy")[0], column(tmp_path, "accuracy")[-1]) == (0.5, 1.0)
    page = (tmp_path / "report.html").read_text()
    assert "Validation accuracy, last" in page and "margin of rewards" in page and "val_ppl" not in page


@pytest.mark.parametrize("kind", ["dpo", "kto", "orpo"])
def test_packed_is_padded_and_a_resumed_run_is_one_that_never_stopped(
    kind: str, tmp_path: Path, no_picture: None
) -> None:
    loss = PreferenceLoss(kind)
    train(tmp_path / "whole", loss)
    train(tmp_path / "padded", loss, train={"packing": False, "micro_batch_size": 3}, precomputed=loss.referenced)
    for name in NAMES:
        whole, padded = column(tmp_path / "whole", name), column(tmp_path / "padded", name)
        if name == "accuracy" and loss.referenced:  # before the first step margins are rounding alone
            whole, padded = whole[1:], padded[1:]
        assert whole == pytest.approx(padded, abs=2e-5), name
    train(tmp_path / "parts", loss, resume=tmp_path / "whole" / "step-000003")
    for name in NAMES:
        assert column(tmp_path / "parts", name) == column(tmp_path / "whole", name), name
