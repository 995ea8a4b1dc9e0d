"""Groups of answers to prompts, their rewards and advantages: what a step of reinforcement learning learns from."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from litgpt.checkpoint.reader import load_pth
from litgpt.checkpoint.writer import save_state
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError, one_line, quoted
from litgpt.finetune.policy.rewards import Reward, place_of
from litgpt.finetune.sampling_answers import Sampler
from litgpt.model.sharding import is_sharded
from litgpt.reading import read_json
from litgpt.tokenizer import Tokenizer
from litgpt.training.batching.batches import Batching
from litgpt.training.batching.packing import GIVEN
from litgpt.training.loss import IGNORED
from litgpt.training.policy.losses import PolicyLoss
from litgpt.training.policy.objective import ADVANTAGE, NOW, NUMBERS, OLD, SAMPLED, Policy

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from litgpt.model import GPT

Environment = Callable[..., Any]
Result = TypeVar("Result")
FILE, NUMBERS_FILE = "rollouts.pth", "rollouts.json"
SHOWN = 1000
"""Characters of an answer that the report shows."""


@dataclass
class Talk:
    """A prompt with all that the model said to it, and what an environment said in between."""

    prompt: list[int]
    row: Mapping[str, Any]
    ids: list[int] = field(default_factory=list)
    """Behind the prompt."""
    own: list[bool] = field(default_factory=list)
    """Which of these the model said."""
    log_probs: list[float] = field(default_factory=list)
    """The engine's, of what the model said."""
    truncated: bool = False


@dataclass(kw_only=True)
class Talks:
    """Lets the model talk: to the end of its answer, or turn by turn with an environment.

    Args:
        sampler: Draws answers.
        tokenizer: The model's.
        temperature: Answers are drawn at.
        environment: Called with `prompt`, `completion` (all that follows it so far) and the row's columns; returns the
            text that the model is to read next, or None where the talk is over. None: every talk is one answer.
        max_turns: Answers of the model in a talk, at most.
    """

    sampler: Sampler
    tokenizer: Tokenizer
    temperature: float
    environment: Environment | None = None
    max_turns: int = 1

    def run(self, prompts: Sequence[tuple[list[int], Mapping[str, Any]]], drawn: random.Random) -> list[Talk]:
        """One talk about each prompt, with random numbers from `drawn`; the same on every rank."""
        talks = [Talk(list(ids), row) for ids, row in prompts]
        going = talks
        for turn in range(self.max_turns):
            samplings = [Sampling(self.temperature, logprobs=0, seed=drawn.getrandbits(62)) for _ in going]
            answers = self.sampler.answers([talk.prompt + talk.ids for talk in going], samplings)
            for talk, answer in zip(going, answers, strict=True):
                talk.ids += answer.ids
                talk.own += [True] * len(answer.ids)
                talk.log_probs += answer.log_probs
                talk.truncated = answer.truncated
            if self.environment is None or turn + 1 == self.max_turns:
                break
            going = self._replied([talk for talk in going if not talk.truncated])
            if not going:
                break
        return talks

    def _replied(self, talks: list[Talk]) -> list[Talk]:
        """Those that go on, with what the environment said."""
        replies = on_first_rank(self.sampler.fabric, lambda: [self._reply(talk) for talk in talks])
        going = []
        for talk, reply in zip(talks, replies, strict=True):
            if reply is None:
                continue
            ids = self.tokenizer.encode_ids(reply, bos=False)
            talk.ids += ids
            talk.own += [False] * len(ids)
            if self.sampler.fits(talk.prompt + talk.ids):
                going.append(talk)
            else:
                talk.truncated = True
        return going

    def _reply(self, talk: Talk) -> str | None:
        assert self.environment is not None
        try:
            given = {**talk.row, "completion": self.tokenizer.decode(talk.ids)}
            reply = self.environment(**given)
        except LitGPTError:
            raise
        except (Exception, SystemExit) as error:
            raise LitGPTError(f"The environment fails{place_of(error)}: {one_line(error)}.") from error
        if reply is not None and not isinstance(reply, str):
            raise LitGPTError(f"The environment returns {quoted(reply)}; it has to return a text, or None at the end.")
        return reply or None


@dataclass
class GroupRollouts:
    """Answers in groups, and what is learned of them.

    Args:
        talks: Lets the model talk.
        rewards: What answers are worth.
        loss: Makes advantages of that.
        group_size: Answers to each prompt.
        updates: Optimizer steps that learn from each portion.
        mask_truncated: Learn nothing from answers that were cut off.
        seed: Of what is drawn.
        model: What trains.
        batching: How micro-batches are made.
    """

    talks: Talks
    rewards: Sequence[Reward]
    loss: PolicyLoss
    group_size: int
    updates: int
    mask_truncated: bool
    seed: int
    model: GPT
    batching: Batching

    def __post_init__(self) -> None:
        self._number, self._made = -1, [dict[str, Any]()][:0]
        self._text = ""

    @property
    def fabric(self) -> Fabric:
        """Whose ranks share the work."""
        return self.talks.sampler.fabric

    def make(self, number: int, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """As `Rollouts.make`."""
        if number != self._number:
            self._number, self._made = number, self._learned(number, samples)
        elif self.exact:  # the weights have moved since
            self._replay(self._made)
        return self._made

    @property
    def exact(self) -> bool:
        """Whether the log-probabilities that learn are the engine's, to the bit; it notes those of temperature 1."""
        return self.talks.sampler.deterministic and self.talks.temperature == 1

    def _replay(self, made: list[dict[str, Any]]) -> None:
        """Gives the samples the log-probabilities that the engine finds now."""
        turns = [(at, *turn) for at, sample in enumerate(made) for turn in turns_of(sample["labels"])]
        ids = [sample["input_ids"].tolist() for sample in made]
        found = self.talks.sampler.replayed(
            [ids[at][:start] for at, start, _ in turns], [ids[at][start:end] for at, start, end in turns]
        )
        now: list[list[float]] = [[] for _ in made]
        for (at, _, _), log_probs in zip(turns, found, strict=True):
            now[at] += log_probs
        for sample, log_probs in zip(made, now, strict=True):
            sample[NOW] = torch.tensor(log_probs)

    def _learned(self, number: int, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        prompts = [(sample["input_ids"].tolist(), sample["row"]) for sample in samples for _ in range(self.group_size)]
        talks = self.talks.run(prompts, random.Random(f"{self.seed} rollout {number}"))
        found = self.judge(talks)
        totals = torch.tensor(found["reward"], dtype=torch.float64).view(-1, self.group_size)
        advantages = self.loss.advantages(totals).flatten()
        numbers = self._numbers(talks, found, totals)
        made = [self._sample(at, talk, advantages[at]) for at, talk in enumerate(talks)]
        made[0][NUMBERS] = numbers
        if self.exact:
            for sample in made:
                sample[OLD] = sample[NOW] = sample[SAMPLED]
        elif self.updates > 1:
            self._add_old(made)
        self._text = self._shown(talks, found["reward"])
        return made

    def judge(self, talks: Sequence[Talk]) -> dict[str, list[float]]:
        """The `reward` of each talk, and what it is made of, by name; computed on one rank."""
        return on_first_rank(self.fabric, lambda: self._judged(talks))

    def _judged(self, talks: Sequence[Talk]) -> dict[str, list[float]]:
        names = sorted({name for talk in talks for name in talk.row} - {"prompt", "completion"})
        columns = {name: [talk.row.get(name) for talk in talks] for name in names}
        prompts = [str(talk.row["prompt"]) for talk in talks]
        said = [self.talks.tokenizer.decode(talk.ids) for talk in talks]
        found = {reward.name: reward.of(prompts, said, columns) for reward in self.rewards}
        weighted = [[reward.weight * value for value in found[reward.name]] for reward in self.rewards]
        return {"reward": [sum(parts) for parts in zip(*weighted, strict=True)], **found}

    def _numbers(self, talks: Sequence[Talk], found: Mapping[str, list[float]], totals: Tensor) -> dict[str, float]:
        """What is told of all answers of a step."""
        own = {f"reward_{name}": fmean(values) for name, values in found.items() if name != "reward"}
        return {
            "reward": fmean(found["reward"]),
            "reward_std": float(totals.std(1).mean()),
            "equal_groups": float((totals == totals[:, :1]).all(1).double().mean()),
            **(own if len(own) > 1 else {}),
            "answer_tokens": fmean(sum(talk.own) for talk in talks),
            "truncated": fmean(talk.truncated for talk in talks),
        }

    def _sample(self, number: int, talk: Talk, advantage: Tensor) -> dict[str, Any]:
        ids = torch.tensor([*talk.prompt, *talk.ids])
        labels = ids.clone()
        labels[: len(talk.prompt)] = IGNORED
        labels[len(talk.prompt) :][~torch.tensor(talk.own, dtype=torch.bool)] = IGNORED
        if talk.truncated and self.mask_truncated:
            labels[:] = IGNORED
        return {
            "input_ids": ids,
            "labels": labels,
            GIVEN: torch.tensor([float(number)]),
            ADVANTAGE: advantage,
            SAMPLED: torch.tensor(talk.log_probs),
        }

    @torch.no_grad()
    def _add_old(self, made: list[dict[str, Any]]) -> None:
        """Gives the samples the log-probabilities that the trainer finds now, which later steps need."""
        fabric, policy = self.fabric, Policy(self.model, self.loss, self.talks.temperature)
        training = self.model.training
        policy.eval()
        batch = self.batching.cut(made, fabric.world_size)
        found: dict[int, Tensor] = {}
        plan = (of_ranks[fabric.global_rank] for of_ranks in batch.plan)
        for chosen, part in zip(plan, batch.of_rank(fabric.global_rank), strict=True):
            if not chosen and not is_sharded(self.model):  # whose ranks go through it together
                continue
            inputs, targets = fabric.to_device((part.inputs, part.targets))
            with fabric.autocast():
                log_probs = policy.log_probs(self.model, inputs, targets, part.lengths).cpu()
            sizes = [inputs.size(1)] * inputs.size(0) if part.lengths is None else list(part.lengths)
            pieces = zip(log_probs.split(sizes), part.targets.flatten().split(sizes), strict=True)
            found.update({at: each[of != IGNORED] for at, (each, of) in zip(chosen, pieces, strict=True)})
        self.model.train(training)
        if fabric.world_size > 1:
            parts: list[dict[int, Tensor]] = [{}] * fabric.world_size
            torch.distributed.all_gather_object(parts, found)
            found = {at: values for part in parts for at, values in part.items()}
        for at, sample in enumerate(made):
            sample[OLD] = found[at]

    def _shown(self, talks: Sequence[Talk], rewards: Sequence[float]) -> str:
        """The best and the worst answer of a portion."""
        places = sorted(range(len(talks)), key=lambda at: rewards[at])
        shown = []
        for at in dict.fromkeys((places[-1], places[0])):
            said = self.talks.tokenizer.decode(talks[at].ids)
            shown.append(f"{talks[at].row['prompt'][-SHOWN:]}\n→ {said[:SHOWN]}\n(reward {rewards[at]:g})")
        return "\n\n".join(shown)

    def shown(self) -> str | None:
        """As `Rollouts.shown`."""
        return self._text or None

    def save(self, folder: Path, step: int) -> None:
        """As `Rollouts.save`."""
        if step % self.updates == 0 or not self._made:
            return
        names = [name for name in self._made[0] if name not in (NUMBERS, NOW)]
        state = {f"{at}.{name}": sample[name] for at, sample in enumerate(self._made) for name in names}
        save_state(folder / FILE, {name: tensor.clone() for name, tensor in state.items()})
        told = {"number": self._number, "answers": len(self._made), "numbers": self._made[0][NUMBERS]}
        (folder / NUMBERS_FILE).write_text(json.dumps(told), encoding="utf-8")

    def restore(self, folder: Path) -> None:
        """As `Rollouts.restore`."""
        if not (folder / FILE).is_file():
            return
        state, told = load_pth(folder / FILE), read_json(folder / NUMBERS_FILE)
        try:
            count, self._number = int(told["answers"]), int(told["number"])
            names = (*("input_ids", "labels", GIVEN, ADVANTAGE, SAMPLED), *([OLD] if f"0.{OLD}" in state else []))
            self._made = [{name: state[f"{at}.{name}"].clone() for name in names} for at in range(count)]
            self._made[0][NUMBERS] = {str(name): float(value) for name, value in told["numbers"].items()}
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            raise LitGPTError(f"{folder / FILE} is damaged; resume from another step.") from None


def turns_of(labels: Tensor) -> list[tuple[int, int]]:
    """Where the answers in a talk begin and end."""
    learned = torch.nn.functional.pad((labels != IGNORED).int(), (1, 1)).diff()
    starts, ends = ((learned == sign).nonzero().flatten().tolist() for sign in (1, -1))
    return list(zip(starts, ends, strict=True))


def on_first_rank(fabric: Fabric, work: Callable[[], Result]) -> Result:
    """What `work` returns on the first rank, on every rank.

    Raises:
        LitGPTError: It does there; on every rank, so that none waits for the others.
    """
    found: tuple[Result | None, str | None] = (None, None)
    if fabric.is_global_zero:
        try:
            found = (work(), None)
        except LitGPTError as error:
            if fabric.world_size == 1:
                raise
            found = (None, str(error))
    result, mistake = fabric.broadcast(found)
    if mistake is not None:
        raise LitGPTError(mistake)
    return cast(Result, result)
