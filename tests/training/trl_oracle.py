"""TRL's losses on given tensors: run by a python that has TRL, `python trl_oracle.py CASES RESULTS`.

CASES is a list of dictionaries, saved by `torch.save`: `loss` names one of the functions below, the rest are its
tensors and numbers. RESULTS is a list of losses with their gradients by the tensor `log_probs`. Everything is computed
by TRL's own methods; what they ask of a trainer beside the loss (devices, metrics) is a stand-in.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


def trainer(**own: Any) -> SimpleNamespace:
    """What a loss asks of its trainer."""
    same: Any = lambda x, **_: x  # noqa: E731
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        gather=same,
        gather_for_metrics=same,
        reduce=same,
        sync_gradients=True,
    )
    values = dict(
        accelerator=accelerator,
        model=SimpleNamespace(training=True),
        _metrics={"train": defaultdict(list)},
        aux_loss_enabled=False,
        current_gradient_accumulation_steps=1,
        _total_train_tokens=0,
        _tp_size=1,
        get_tp_size=lambda: 1,
    )
    return SimpleNamespace(**{**values, **own})


def outputs(log_probs: Tensor, mask: Tensor) -> Any:
    """A model that gives these log-probabilities `(B, T - 1)`."""
    zero = torch.zeros_like(log_probs)
    found = SimpleNamespace(
        log_probs=log_probs, entropy=zero, mean_logits=zero, is_top1=zero.bool(), label_mask=mask, logits=zero
    )
    return lambda **_: found


def dpo(log_probs: Tensor, reference: Tensor, mask: Tensor, beta: float, kinds: list[str], weights: list[float]) -> Any:
    """Rows are all chosen answers, then all rejected ones; `mask`: which tokens `(B, T)` are answers'."""
    from trl import DPOTrainer

    own = trainer(
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=kinds,
        loss_weights=weights,
        beta=beta,
        use_weighting=False,
    )
    ref_chosen, ref_rejected = reference.sum(1).chunk(2)
    inputs = dict(input_ids=mask.long(), attention_mask=torch.ones_like(mask), completion_mask=mask)
    inputs |= dict(ref_chosen_logps=ref_chosen, ref_rejected_logps=ref_rejected)
    return DPOTrainer._compute_loss(own, outputs(log_probs, mask[:, 1:]), inputs, False)


def kto(
    log_probs: Tensor,
    reference: Tensor,
    mask: Tensor,
    label: Tensor,
    others: Tensor,
    reference_others: Tensor,
    **own: Any,
) -> Any:
    """`others`: log-probabilities `(B,)` of answers to other prompts."""
    from trl import KTOTrainer

    stub = trainer(
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        _compute_kl_logps=lambda model, batch: others,
        **own,
    )
    inputs = dict(input_ids=mask.long(), attention_mask=torch.ones_like(mask), completion_mask=mask, label=label)
    inputs |= dict(ref_logps=reference.sum(1), ref_KL_logps=reference_others)
    return KTOTrainer._compute_loss(stub, outputs(log_probs, mask[:, 1:]), inputs, False)


def cpo(log_probs: Tensor, **own: Any) -> Any:
    """SimPO, and DPO with smoothed labels: `log_probs` `(2, P)` are means, or ratios to the reference."""
    from trl.experimental.cpo import CPOTrainer

    return CPOTrainer.cpo_loss(trainer(alpha=0.0, **own), *log_probs)[0].mean()


def orpo(log_probs: Tensor, beta: float) -> Any:
    """The odds ratio alone; it computes in float32. `log_probs` `(2, P)` are means."""
    from trl.experimental.orpo import ORPOTrainer

    return -ORPOTrainer.odds_ratio_loss(trainer(beta=beta), *log_probs)[0].mean()


def dft(log_probs: Tensor, mask: Tensor) -> Any:
    """`log_probs` `(B, T)` are 0 where `mask` is."""
    from trl import SFTTrainer

    args = SimpleNamespace(loss_type="dft", average_tokens_across_devices=False)
    own = trainer(args=args, compute_loss_func=None, label_smoother=None)
    own.accelerator.parallelism_config = None
    inputs = dict(labels=mask.long(), attention_mask=mask.long())
    return SFTTrainer.compute_loss(own, outputs(log_probs, mask), inputs)


def grpo(
    log_probs: Tensor, old: Tensor, reference: Tensor, mask: Tensor, advantages: Tensor, longest: int, **own: Any
) -> Any:
    """All `(B, T)` but the advantages `(B,)`."""
    from trl import GRPOTrainer

    args = SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1)
    stub = trainer(
        args=args,
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs, torch.zeros_like(log_probs), None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        use_vllm=False,
        max_completion_length=longest,
        _entropy_bonus_enabled=False,
        **own,
    )
    inputs = dict(prompt_ids=mask[:, :1], prompt_mask=mask[:, :1], completion_ids=mask, completion_mask=mask)
    inputs |= dict(advantages=advantages, old_per_token_logps=old, ref_per_token_logps=reference)
    return GRPOTrainer._compute_loss(stub, None, {**inputs, "num_items_in_batch": mask.sum()})


def rloo(log_probs: Tensor, old: Tensor, mask: Tensor, advantages: Tensor, **own: Any) -> Any:
    """As `grpo`; TRL puts the divergence into rewards, so there is none in the loss."""
    from trl import RLOOTrainer

    stub = trainer(
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs, torch.zeros_like(log_probs), None), **own
    )
    inputs = dict(prompt_ids=mask[:, :1], prompt_mask=mask[:, :1], completion_ids=mask, completion_mask=mask)
    inputs |= dict(advantages=advantages, old_logps=(old * mask).sum(1))
    return RLOOTrainer._compute_loss(stub, None, inputs)


def jsd(log_probs: Tensor, teacher: Tensor, beta: float, temperature: float) -> Any:
    """`log_probs` are the student's logits `(B, T, V)`; 0: forward, 1: reverse KL."""
    from trl.experimental.gkd import GKDTrainer

    return GKDTrainer.generalized_jsd_loss(log_probs, teacher, beta=beta, temperature=temperature, reduction="sum")


LOSSES = {function.__name__: function for function in (dpo, kto, cpo, orpo, dft, grpo, rloo, jsd)}


def main(cases: str, results: str) -> None:
    """Computes all cases."""
    found = []
    for case in torch.load(cases, weights_only=True):
        function = LOSSES[case.pop("loss")]
        leaf = case["log_probs"].clone().requires_grad_(True)
        loss = function(**{**case, "log_probs": leaf})
        (gradient,) = torch.autograd.grad(loss, leaf)
        found.append({"loss": loss.detach(), "gradient": gradient})
    torch.save(found, results)


if __name__ == "__main__":
    main(*sys.argv[1:])
