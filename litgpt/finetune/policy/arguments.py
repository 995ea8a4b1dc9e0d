"""What reinforcement learning needs besides what every finetuning does: rollouts, rewards, a reference."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from litgpt.data import DataModule
from litgpt.engine.inference_model import MAX_CONCURRENT_REQUESTS
from litgpt.errors import UnsupportedError, UsageError
from litgpt.finetune.base import FinetuneArguments, Start
from litgpt.finetune.policy.reward_model import RewardModel
from litgpt.finetune.policy.rewards import loaded, rewards_of
from litgpt.finetune.policy.rollouts import GroupRollouts, Talks
from litgpt.finetune.sampling_answers import Sampler
from litgpt.model import GPT
from litgpt.model.sharding import is_sharded
from litgpt.peft import switched_off
from litgpt.runtime import parameter_dtype
from litgpt.training.batching.batches import Batching
from litgpt.training.policy.losses import PolicyLoss
from litgpt.training.policy.objective import Policy
from litgpt.training.run import Objective, Rollouts


@dataclass(kw_only=True)
class PolicyArguments(FinetuneArguments):
    """The arguments of reinforcement learning."""

    policy: PolicyLoss
    reward: str | list[str] | None
    reward_weights: list[float] | None = None
    group_size: int = 8
    updates: int = 1
    max_new_tokens: int = 256
    temperature: float = 1.0
    environment: str | None = None
    max_turns: int = 1
    mask_truncated: bool = False
    slots: int = MAX_CONCURRENT_REQUESTS
    deterministic: bool = False
    answering = True

    def check_data(self, data: DataModule) -> None:
        if not getattr(data, "asks", False):
            raise UsageError("finetune_grpo asks prompts: give --data Prompts --data.path FILE.")
        for name in ("label_smoothing", "z_loss", "patience", "keep_best"):
            if getattr(self.train, name):
                raise UsageError(f"train.{name} goes by a loss on given answers, and here are none; leave it out.")
        for name, least in (("group_size", 2), ("updates", 1), ("max_new_tokens", 1), ("max_turns", 1), ("slots", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name} must be {least} or more, not {getattr(self, name)}.")
        if not 0 < self.temperature < float("inf"):
            raise UsageError(f"--temperature must be above 0, not {self.temperature}: answers have to differ.")
        if self.max_turns > 1 and self.environment is None:
            raise UsageError("--max_turns is for talks with --environment FILE.py:NAME; leave it out.")

    def fixed(self) -> dict[str, Any]:
        return {"loss": self.policy.kind, "group_size": self.group_size, "updates": self.updates}

    def objective(self, start: Start) -> Callable[[GPT], Objective]:
        """The loss; held to the reference by the adapter switched off, or by a frozen copy of what training starts
        from, where nothing can be switched off."""
        of = partial(Policy, loss=self.policy, temperature=self.temperature)
        if not self.policy.beta:
            return of
        if self.method.switchable and start.update is None:
            return partial(of, reference=switched_off)
        if is_sharded(start.model):
            raise UnsupportedError(
                f"--beta holds --method {self.arguments['method']} to a copy of what training starts from, and this "
                "model is shared out over devices: use --strategy ddp, --method lora, or leave --beta out."
            )
        return partial(of, frozen=copy.deepcopy(start.model).requires_grad_(False).eval())

    def rollouts(self, start: Start) -> Rollouts:
        made = self._rollouts(start)
        self._evaluate = Evaluation(made, start.data.val_dataset, self.eval.max_iters, self.seed)
        start.data.val_dataset = None  # what is validated are rewards
        return made

    def _rollouts(self, start: Start) -> GroupRollouts:
        tokenizer, style = start.tokenizer, start.data.prompt_style  # type: ignore[attr-defined]
        stops = [*tokenizer.stop_ids, *(stop for stop in style.stop_tokens(tokenizer) if None not in stop)]
        sampler = Sampler(start.model, start.fabric, stops, self.max_new_tokens, self.slots, self.deterministic)
        environment = None if self.environment is None else loaded(self.environment)
        return GroupRollouts(
            Talks(
                sampler=sampler,
                tokenizer=tokenizer,
                temperature=self.temperature,
                environment=environment,
                max_turns=self.max_turns,
            ),
            rewards_of(self.reward, self.reward_weights, tokenizer, partial(self._open_reward_model, start)),
            self.policy,
            self.group_size,
            self.updates,
            self.mask_truncated,
            self.seed,
            start.model,
            Batching.of(self.train, 1, self.policy.per_answer),
        )

    def _open_reward_model(self, start: Start, folder: str) -> RewardModel:
        """On the device that trains; without values on ranks that judge nothing."""
        device = start.fabric.device if start.fabric.is_global_zero else "meta"
        return RewardModel(folder, device, parameter_dtype(start.precision))

    def evaluate(self, start: Start) -> Callable[[int], Mapping[str, float]] | None:
        """The tasks, and the reward of answers to held-out prompts."""
        tasks = super().evaluate(start)
        if self._evaluate.dataset is None:
            return tasks

        def both(step: int) -> dict[str, float]:
            return {**self._evaluate(step), **(tasks(step) if tasks is not None else {})}

        return both


class Evaluation:
    """The reward of one answer to each of the first held-out prompts, always drawn with the same random numbers."""

    def __init__(self, rollouts: GroupRollouts, dataset: Any, most: int, seed: int) -> None:
        self.rollouts, self.dataset, self.most, self.seed = rollouts, dataset, most, seed

    def __call__(self, step: int) -> dict[str, float]:
        samples: Sequence[Any] = [self.dataset[at] for at in range(min(self.most, len(self.dataset)))]
        prompts = [(sample["input_ids"].tolist(), sample["row"]) for sample in samples]
        if not prompts:
            return {}
        talks = self.rollouts.talks.run(prompts, random.Random(f"{self.seed} evaluation"))
        return {"val_reward": fmean(self.rollouts.judge(talks)["reward"])}
