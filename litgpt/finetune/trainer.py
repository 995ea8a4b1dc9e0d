"""Training as an API: the verbs of a training loop, for loops of the user's own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from litgpt.args import EvalArgs, TrainArgs, hyperparameters
from litgpt.checkpoint.atomic import atomic_folder
from litgpt.checkpoint.finetuned import find_finetuned
from litgpt.checkpoint.fingerprint import fingerprint
from litgpt.checkpoint.hub import auto_download
from litgpt.checkpoint.layout import LIT_MODEL, find_checkpoint
from litgpt.checkpoint.reader import load_model
from litgpt.data import SFTDataset
from litgpt.engine.inference_model import InferenceModel, prompting_of
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError, quoted
from litgpt.finetune.base import save
from litgpt.finetune.sampling_answers import Sampler
from litgpt.model import GPT
from litgpt.peft.named import METHODS, named_method
from litgpt.runtime import make_fabric, parameter_dtype, pick_device, quantized_precision
from litgpt.tokenizer import Tokenizer
from litgpt.training.batching.batches import Batching
from litgpt.training.batching.packing import GIVEN
from litgpt.training.loss import NextToken
from litgpt.training.metrics.validation import Validations
from litgpt.training.optim.optimizers import optimizer_for
from litgpt.training.policy.losses import KINDS, PolicyLoss
from litgpt.training.policy.objective import ADVANTAGE, OLD, Policy
from litgpt.training.run import Identity, Objective, Run
from litgpt.training.schedule import Counters
from litgpt.training.sharded import write_optimizer
from litgpt.training.state import SavedState, TrainingState, load_state, load_weights, save_state
from litgpt.training.step import OptimizerStep

Loss = str | Callable[[GPT], Objective]


@dataclass(frozen=True)
class Sampled:
    """An answer of the model that trains."""

    text: str
    prompt_ids: list[int]
    ids: list[int]
    """The token that ended it included."""
    log_probs: list[float]
    """The engine's, of each token."""
    truncated: bool

    def sample(self, advantage: float) -> dict[str, Any]:
        """What a policy loss learns from it."""
        ids = torch.tensor([*self.prompt_ids, *self.ids])
        labels = ids.clone()
        labels[: len(self.prompt_ids)] = -100
        return {"input_ids": ids, "labels": labels, "advantage": advantage, "log_probs": self.log_probs}


class Trainer:
    """A model that trains: gradients, steps and answers, one call each, by the parts of which every command is made.

    Args:
        checkpoint_dir: The model to start from, or its name on the hub.
        method: lora, full, adapter or adapter_v2.
        optimizer: A class of torch.optim by name, or `class_path` and `init_args`.
        precision: Of the arithmetic: 32-true, bf16-true, bf16-mixed.
        quantize: Keep frozen weights in few bits.
        micro_batch_size: Samples that go through the model together, packed without padding.
        max_norm: Gradients longer than this are clipped.
        seed: Of the start of updates, and of answers without a seed of their own.
        settings: LoRA's, such as `lora_r=16`.

    Raises:
        LitGPTError: The model can't be opened, or a setting makes no sense.

    Example:
        trainer = Trainer("HuggingFaceTB/SmolLM2-135M-Instruct", lora_r=16)
        trainer.forward_backward([{"instruction": "2 + 2 =", "output": "4"}])
        trainer.optim_step(lr=1e-4)
        print(trainer.sample(["3 + 3 ="], max_new_tokens=8)[0].text)
        trainer.save_state("out/mine")
    """

    def __init__(
        self,
        checkpoint_dir: str | Path,
        method: str = "lora",
        optimizer: str | dict[str, Any] = "AdamW",
        precision: str | None = None,
        quantize: str | None = None,
        micro_batch_size: int = 1,
        max_norm: float | None = None,
        seed: int = 1337,
        **settings: Any,
    ) -> None:
        if method not in METHODS:
            raise LitGPTError(f"method is {quoted(method)}; it must be one of {', '.join(METHODS)}.")
        if wrong := next((name for name in settings if not name.startswith("lora_") or method != "lora"), None):
            raise LitGPTError(f"Trainer has no setting {quoted(wrong)} with the method {method}.")
        if method == "full" and quantize is not None:
            raise LitGPTError("quantize keeps frozen weights in few bits, and full trains them; leave it out.")
        folder = auto_download(checkpoint_dir)
        if find_finetuned(folder) is not None:
            raise LitGPTError(
                f"{folder} holds updates; give the folder of the model, and call load_state with this one."
            )
        self.method = named_method(method, settings)
        self.checkpoint = find_checkpoint(folder)
        numbers = quantized_precision(quantize, precision, training=True, device=pick_device())
        self.fabric = make_fabric(1, 1, numbers, seed=seed)
        place = self.fabric.device if quantize else "cpu"
        self.model = load_model(self.checkpoint, place, parameter_dtype(numbers), quantize)
        self.method.check(self.model)
        self.method.attach(self.model)
        tokenizer_dir, self.style = prompting_of(self.checkpoint)
        self.tokenizer = Tokenizer(tokenizer_dir)
        of_method = {f"lora_{name}": value for name, value in self.method.settings().items() if name != "vocabulary"}
        given = {"checkpoint_dir": self.checkpoint.path, "precision": precision, "quantize": quantize, **of_method}
        self._run = Run(
            model=self.model,
            train_dataset=[],
            val_dataset=None,
            save=self._save,
            fabric=self.fabric,
            train=TrainArgs(micro_batch_size=micro_batch_size, global_batch_size=micro_batch_size, max_norm=max_norm),
            eval=EvalArgs(),
            out_dir=Path(tempfile.gettempdir()),
            optimizer=optimizer,
            seed=seed,
            base=(fingerprint(self.checkpoint), self.checkpoint.path) if self.method.suffix else None,
            owns=self.method.owns,
            weights_file=f"{LIT_MODEL}{self.method.suffix}",
            settings=hyperparameters(given),
        )
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = self.method.owns(name) and parameter.is_floating_point()
        objective = self.fabric.setup_module(NextToken(self.model))
        self._optimizer = self.fabric.setup_optimizers(
            optimizer_for(self.model, optimizer, self._run.train, self.fabric.strategy.precision.precision)
        )
        self._step = OptimizerStep(self._run, objective, self._optimizer, self.fabric.print)
        self._state = TrainingState(Counters(), Validations(), Identity())
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._drawn = 0

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return self._state.counters.step

    def forward_backward(
        self, samples: Sequence[Mapping[str, Any]], loss: Loss = "cross_entropy", **settings: Any
    ) -> dict[str, float]:
        """Adds the gradients of the mean loss of some samples to those that are there.

        Args:
            samples: Each has `input_ids` and `labels` (-100: not learned), or `instruction` and `output`, put into the
                model's prompt style. For a policy loss also `advantage` and, unless they are fresh, the `log_probs` of
                the labels when they were drawn; `Sampled.sample` makes them.
            loss: cross_entropy (a mean over tokens), dft, grpo, dr_grpo, dapo or rloo; or what makes an `Objective`.
            settings: Of a policy loss, such as `clip=0.2`.

        Returns:
            `loss`, `tokens`, and what the loss measures.

        Raises:
            LitGPTError: A sample makes no sense.
        """
        objective = self._objective(loss, settings)
        made = [self._sample(number, sample, objective) for number, sample in enumerate(samples)]
        batch = Batching.of(self._run.train, objective.sequences, objective.per_sample).cut(made, 1) if made else None
        if batch is None or not batch.targets:
            raise LitGPTError("There is nothing to learn: give at least one sample with a token that is learned.")
        self.model.train()
        counters = self._state.counters  # dropout follows from them, so that a state goes on exactly
        torch.manual_seed((self._run.seed * 1_000_003 + counters.samples * 7919) % 2**63)
        self._step.objective = self.fabric.setup_module(objective, move_to_device=False)
        total = self._step.gradients(batch)
        sums = objective.measured()
        measured = {} if sums is None else objective.metrics(sums.tolist())
        counters.samples += len(made)
        counters.tokens += batch.tokens
        return {"loss": float(total) / batch.units, "tokens": float(batch.targets), **measured}

    def optim_step(self, lr: float | None = None) -> dict[str, float]:
        """Steps by the gradients that there are, and clears them.

        Args:
            lr: The learning rate of this step. None: the optimizer's own.

        Returns:
            `grad_norm`, before clipping.

        Raises:
            LitGPTError: There are no gradients.
        """
        if not any(parameter.grad is not None for parameter in self.model.parameters()):
            raise LitGPTError("There are no gradients to step by; call forward_backward first.")
        for group, usual in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = usual if lr is None else lr
        norm = self._step.norm(wanted=True)
        self._step.apply()
        self._state.counters.step += 1
        return {"grad_norm": float(norm) if norm is not None else float("nan")}

    def sample(
        self,
        prompts: Sequence[str | Sequence[int]],
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        n: int = 1,
        seed: int | None = None,
    ) -> list[Sampled]:
        """Answers by the model as it is now, `n` to each prompt, one behind the other.

        Args:
            prompts: Texts, put into the model's prompt style, or token ids.
            max_new_tokens: Of an answer.
            temperature: 0 always takes the best token.
            n: Answers to each.
            seed: Makes them repeatable.

        Raises:
            LitGPTError: A prompt or a number makes no sense.
        """
        asked = InferenceModel(self.model, self.tokenizer, self.style)
        encoded = [asked.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
        ids = [one for one in encoded for _ in range(n)]
        if seed is None:
            self._drawn += 1
            seed = (self._run.seed + 7919 * self._drawn) % 2**63
        samplings = [Sampling(temperature, logprobs=0, seed=(seed + at) % 2**63) for at in range(len(ids))]
        sampler = Sampler(self.model, self.fabric, asked.stops, max_new_tokens)
        return [
            Sampled(self.tokenizer.decode(answer.ids), prompt, answer.ids, answer.log_probs, answer.truncated)
            for prompt, answer in zip(ids, sampler.answers(ids, samplings), strict=True)
        ]

    def save_state(self, folder: str | Path) -> Path:
        """Writes what was learned, as every command opens it, with what `load_state` needs to go on exactly."""
        with atomic_folder(folder) as unfinished:
            self._save(unfinished)
            save_state(unfinished, self._run, write_optimizer(unfinished, self._optimizer.optimizer), self._state)
        return Path(folder)

    def load_state(self, folder: str | Path) -> None:
        """Goes on from a folder of `save_state`; gradients that there are are dropped.

        Raises:
            LitGPTError: It holds no state, or one of another model, method or optimizer.
        """
        saved = SavedState.read(Path(folder))
        load_weights(self._run, saved.folder)
        load_state(self._run, saved, self._optimizer.optimizer, self._state)
        self._optimizer.zero_grad()

    def _save(self, folder: Path) -> None:
        settings = dict(self._run.settings)
        save(folder, self.method, self.style, self.model, self.checkpoint, settings, self._run.base)

    def _objective(self, loss: Loss, settings: Mapping[str, Any]) -> Objective:
        if callable(loss):
            return loss(self.model)
        if loss in KINDS:
            return Policy(self.model, PolicyLoss(loss, **settings))
        if loss not in ("cross_entropy", "dft") or settings:
            known = ", ".join(("cross_entropy", "dft", *KINDS))
            raise LitGPTError(
                f"There is no loss {quoted(loss)} with the settings {quoted(dict(settings))}; known: {known}."
            )
        return NextToken(self.model, dft=loss == "dft")

    def _sample(self, number: int, sample: Mapping[str, Any], objective: Objective) -> dict[str, Any]:
        """A sample as objectives read it."""
        if "input_ids" not in sample:
            made = SFTDataset([dict(sample)], self.tokenizer, self.style, self.model.max_seq_length, mask_prompt=True)[
                0
            ]
            return {**sample, "input_ids": made["input_ids"], "labels": made["labels"]}
        made = {**sample, **{name: torch.as_tensor(sample[name]) for name in ("input_ids", "labels")}}
        if made["input_ids"].shape != made["labels"].shape:
            raise LitGPTError(f"Sample {number} has {len(made['input_ids'])} tokens and {len(made['labels'])} labels.")
        if isinstance(objective, Policy):
            known = torch.as_tensor(sample.get("log_probs", []))
            if ADVANTAGE not in sample or (len(known) and len(known) != int((made["labels"][1:] != -100).sum())):
                raise LitGPTError(f"Sample {number} needs an `advantage`, and `log_probs` of all its labels or none.")
            made |= {GIVEN: torch.tensor([float(number)]), ADVANTAGE: torch.as_tensor(float(sample[ADVANTAGE]))}
            made |= {OLD: known} if len(known) else {}
        return made
