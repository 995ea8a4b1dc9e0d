"""The loop: equal losses however samples are cut, limits, saving, stopping and going on."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from litgpt.args import EvalArgs
from litgpt.checkpoint.reader import load_pth
from litgpt.errors import LitGPTError
from litgpt.kernels.linear import use_fast_linear
from litgpt.lora import LoRA
from litgpt.runtime import make_fabric
from litgpt.training import loop
from litgpt.training.loop import fit
from litgpt.training.metrics import metrics as run_metrics
from litgpt.training.metrics import report
from litgpt.training.metrics.validation import Validations
from litgpt.training.optim.optimizers import make_optimizer
from litgpt.training.run import Identity, Interrupted, Run
from litgpt.training.schedule import Counters
from litgpt.training.state import SavedState, TrainingState, load_state, resume_point
from tests.training.runs import (
    LENGTHS,
    Killed,
    Samples,
    column,
    make_run,
    make_samples,
    metrics,
    tiny_model,
    weights,
)

pytestmark = pytest.mark.usefixtures("no_picture")


# ------------------------------------------------------------------------------------------------ equal however cut

CUTS = {
    "packed, 1 sample": dict(micro_batch_size=1),
    "packed, 2 samples": dict(micro_batch_size=2),
    "packed, all samples": dict(micro_batch_size=8),
    "padded, 1 sample": dict(micro_batch_size=1, packing=False),
    "padded, 4 samples": dict(micro_batch_size=4, packing=False),
}


@pytest.mark.parametrize("cut", list(CUTS)[1:])
def test_micro_batches_and_packing_change_neither_losses_nor_weights(tmp_path, cut):
    runs = {}
    for number, settings in enumerate((CUTS["packed, 1 sample"], CUTS[cut])):
        out_dir = tmp_path / str(number)
        run = make_run(
            out_dir,
            model=tiny_model().double(),
            train_dataset=make_samples(LENGTHS, masked=True),
            train={"global_batch_size": 8, "max_norm": 1.0, **settings},
            optimizer={"class_path": "SGD", "init_args": {"lr": 0.5}},
        )
        fit(run)
        runs[number] = (column(out_dir, "loss"), weights(run))
    assert runs[0][0] == pytest.approx(runs[1][0], abs=1e-6)
    torch.testing.assert_close(runs[0][1], runs[1][1], rtol=1e-6, atol=1e-6)


def test_the_loss_of_a_step_is_the_mean_over_its_target_tokens(tmp_path):
    samples = make_samples([5, 30, 9, 17], masked=True)
    model = tiny_model()
    total, count = 0.0, 0
    for sample in samples:
        logits = model(sample["input_ids"][None, :-1])[0].detach()
        wanted = sample["labels"][1:]
        total += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
        count += int((wanted != -100).sum())
    fit(make_run(tmp_path, model=model, train_dataset=samples, train={"max_steps": 1}))
    assert column(tmp_path, "loss")[0] == pytest.approx(total / count, abs=1e-5)


def test_validation_is_the_mean_over_target_tokens_too(tmp_path):
    samples = make_samples(LENGTHS, seed=3, masked=True)
    found = []
    for number, micro_batch_size in enumerate((1, 3)):
        run = make_run(
            tmp_path / str(number),
            val_dataset=samples,
            train={"max_steps": 1, "micro_batch_size": micro_batch_size},
            eval=EvalArgs(initial_validation=True),
        )
        fit(run)
        found.append(column(tmp_path / str(number), "val_loss"))
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert len(found[0]) == 2


def test_validation_in_between_reads_its_first_micro_batches_and_the_last_one_all(tmp_path):
    class Counting(Samples):
        read = 0

        def __getitem__(self, index):
            Counting.read += 1
            return super().__getitem__(index)

    shown: list[tuple[int, int]] = []
    run = make_run(
        tmp_path,
        val_dataset=Counting(make_samples(LENGTHS)),
        train={"max_steps": 2, "micro_batch_size": 2},
        eval=EvalArgs(interval=1, max_iters=2),
        sample=lambda step: shown.append((step, Counting.read)),
    )
    result = fit(run)
    assert shown == [(1, 4), (2, 4 + len(LENGTHS))]
    assert result.val_loss == column(tmp_path, "val_loss")[-1]


def test_a_bfloat16_validation_is_the_same_before_and_after_text_is_generated(tmp_path):
    """Whose engine lets linear layers compute in another way."""
    model = tiny_model(n_embd=64, intermediate_size=96).bfloat16()
    run = make_run(
        tmp_path,
        model=model,
        fabric=make_fabric(1, precision="bf16-true", device="cpu"),
        val_dataset=make_samples(LENGTHS),
        train={"max_steps": 2},
        eval=EvalArgs(interval=1),
        optimizer={"class_path": "SGD", "init_args": {"lr": 0.0}},
        sample=lambda step: use_fast_linear(model, headroom=0),
        whole_final_validation=False,
    )
    fit(run)
    before, after = column(tmp_path, "val_loss")
    assert before == after


@pytest.mark.parametrize("val_dataset", [None, Samples()])
def test_without_validation_data_nothing_is_validated(tmp_path, val_dataset):
    run = make_run(tmp_path, val_dataset=val_dataset, eval=EvalArgs(interval=1, initial_validation=True))
    assert fit(run).val_loss is None
    assert column(tmp_path, "val_loss") == []


# ------------------------------------------------------------------------------------------------------------ limits

LIMITS: dict[str, tuple[dict, int]] = {
    "max_steps": (dict(max_steps=5), 5),
    "epochs, the last step smaller": (dict(epochs=2, max_steps=None, global_batch_size=5), 5),
    "max_tokens": (dict(max_tokens=250, max_steps=None, global_batch_size=len(LENGTHS)), 2),
    "the first one reached": (dict(epochs=1, max_steps=100, global_batch_size=4), 3),
    "max_time": (dict(max_time=0.0, max_steps=100), 0),
}


@pytest.mark.parametrize("case", LIMITS)
def test_a_run_ends_at_its_limit(tmp_path, case):
    settings, steps = LIMITS[case]
    result = fit(make_run(tmp_path, train=settings))
    assert result.steps == steps
    assert result.final.is_dir()
    if "epochs" in settings and steps == 5:
        assert result.epochs == 2
        assert result.tokens == 2 * sum(length - 1 for length in LENGTHS)


def test_max_time_ends_a_run_in_between(tmp_path):
    result = fit(make_run(tmp_path, train={"max_time": 0.5, "max_steps": 10**6, "log_interval": 1000}))
    assert 0 < result.steps < 10**6


def test_the_rate_falls_to_the_lowest(tmp_path):
    train = {"max_steps": 4, "lr_warmup_steps": 1, "min_lr": 1e-3, "global_batch_size": 2}
    fit(make_run(tmp_path, train=train))
    rates = column(tmp_path, "learning_rate")
    assert rates[:2] == pytest.approx([0.5e-2, 1e-2])
    assert rates[1] > rates[2] > rates[3] > 1e-3


# ------------------------------------------------------------------------------------------- saving and going on


def full(out_dir: Path, **fields) -> Run:
    return make_run(out_dir, **fields)


def lora(out_dir: Path, **fields) -> Run:
    """With dropout, so that random numbers matter."""
    method, model = LoRA(r=2, dropout=0.5, head=True), tiny_model()
    torch.manual_seed(7)
    method.attach(model)
    return make_run(out_dir, model=model, owns=method.owns, weights_file="lit_model.pth.lora", **fields)


@pytest.mark.parametrize("kind", [full, lora])
@pytest.mark.parametrize(
    "limit", [dict(max_steps=7), dict(epochs=2, max_steps=None), dict(max_tokens=900, max_steps=None)]
)
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path, kind: Callable[..., Run], limit):
    train = {"save_interval": 3, "max_norm": 1.0, "lr_warmup_steps": 2, **limit}
    eval = EvalArgs(interval=2)
    data = dict(train_dataset=make_samples(LENGTHS), val_dataset=make_samples([9, 9, 20], seed=5), eval=eval)
    whole = kind(tmp_path / "whole", train=train, **data)
    fit(whole)
    stopped = kind(tmp_path / "stopped", train={**train, "max_steps": 4}, **data)
    stopped.train.max_steps = limit.get("max_steps")
    stopped.sample = lambda step: (_ for _ in ()).throw(Killed) if step == 4 else None
    with pytest.raises(Killed):
        fit(stopped)
    resumed = kind(tmp_path / "stopped", train=train, resume=resume_point("auto", tmp_path / "stopped"), **data)
    assert resumed.resume == tmp_path / "stopped" / "step-000003"
    fit(resumed)
    assert timeless(metrics(tmp_path / "stopped")) == timeless(metrics(tmp_path / "whole"))
    assert torch.equal(weights(whole), weights(resumed))


def timeless(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    def is_of_the_machine(name: str) -> bool:
        return name.endswith(("tokens_per_second", "_time")) or name == "peak_memory_gb"

    return [{name: value for name, value in row.items() if not is_of_the_machine(name)} for row in rows]


def test_final_holds_weights_alone_and_a_step_what_is_needed_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(run_metrics, "draw_loss", report.draw_loss)
    monkeypatch.setattr(run_metrics, "write_report", report.write_report)
    result = fit(make_run(tmp_path, train={"save_interval": 3}))
    assert sorted(file.name for file in result.final.iterdir()) == ["lit_model.pth"]
    step = tmp_path / "step-000003"
    assert sorted(file.name for file in step.iterdir()) == ["lit_model.pth", "training_state.pt"]
    assert result.curve == tmp_path / "loss.png"
    assert result.curve.read_bytes().startswith(b"\x89PNG")
    assert result.report == tmp_path / "report.html" and result.report.is_file()


def test_frozen_parameters_stay_and_owned_ones_move(tmp_path):
    run = lora(tmp_path)
    before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    fit(run)
    for name, parameter in run.model.named_parameters():
        assert torch.equal(before[name], parameter) != run.owns(name), name
    assert set(load_pth(tmp_path / "final" / "lit_model.pth.lora")) == {name for name in before if run.owns(name)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_step_saves_and_can_be_resumed(tmp_path, number, capfd, request):
    whole = make_run(tmp_path / "whole", train={"max_steps": 6})
    fit(whole)
    run = make_run(tmp_path / "run", train={"max_steps": 6})

    class Signalling(Samples):
        reads = 0

        def __getitem__(self, index):
            Signalling.reads += 1
            if Signalling.reads == 10:  # in the third step
                os.kill(os.getpid(), number)
            return super().__getitem__(index)

    before = signal.default_int_handler
    request.addfinalizer(partial(signal.signal, number, signal.signal(number, before)))  # it may be ignored here
    run.train_dataset = Signalling(run.train_dataset)
    with pytest.raises(
        Interrupted, match=rf"Stopped by {number.name} after step 3.*step-000003.*--resume auto"
    ) as caught:
        fit(run)
    assert caught.value.exit_code == (130 if number == signal.SIGINT else 1)
    said = "\nStopping: all is saved after this step" in capfd.readouterr().err
    assert said == (number != signal.SIGHUP), "at once, and not to a terminal that is gone"
    assert signal.getsignal(number) is before
    resumed = make_run(tmp_path / "run", train={"max_steps": 6}, resume=resume_point("auto", tmp_path / "run"))
    fit(resumed)
    assert torch.equal(weights(whole), weights(resumed))
    assert column(tmp_path / "run", "loss") == column(tmp_path / "whole", "loss")


# ------------------------------------------------------------------------------------- what is kept, and when it ends


def fake_validations(monkeypatch, found: list[float]) -> None:
    """Validations find these losses, one after the other."""
    losses = iter(found)
    monkeypatch.setattr(loop, "validate", lambda *arguments: next(losses))


def test_the_best_weights_are_kept(tmp_path, monkeypatch):
    fake_validations(monkeypatch, [3.0, 2.0, float("nan"), 2.5])
    seen = []
    run = make_run(
        tmp_path,
        val_dataset=make_samples([9, 9]),
        train={"max_steps": 4, "keep_best": True},
        eval=EvalArgs(interval=1),
        sample=lambda step: seen.append(weights(run)),
    )
    result = fit(run)
    best = torch.cat([tensor.flatten() for tensor in load_pth(tmp_path / "best" / "lit_model.pth").values()])
    assert result.best == tmp_path / "best"
    assert sorted(best.tolist()) == sorted(seen[1].tolist()) != sorted(seen[3].tolist())


def patient(out_dir: Path, **fields) -> Run:
    train = {"max_steps": 9, "save_interval": 1, "patience": 2}
    return make_run(out_dir, val_dataset=make_samples([9]), train=train, eval=EvalArgs(interval=1), **fields)


def test_a_run_whose_validation_no_longer_improves_ends(tmp_path, monkeypatch, capsys):
    fake_validations(monkeypatch, [3.0, 2.0, 2.0, 2.5, 1.0])
    result = fit(patient(tmp_path))
    assert result.steps == 4 and result.val_loss == 2.5
    assert "Stopped early: 2 validations in a row found no lower loss than 2.0000, of step 2" in capsys.readouterr().out


def test_patience_is_not_forgotten_over_a_resume(tmp_path, monkeypatch):
    fake_validations(monkeypatch, [3.0, 2.0, 2.0, 2.5])
    fit(patient(tmp_path))
    fake_validations(monkeypatch, [2.5, 1.0])
    assert fit(patient(tmp_path, resume=tmp_path / "step-000003")).steps == 4


def test_validations_of_another_size_are_not_compared(tmp_path, monkeypatch):
    fake_validations(monkeypatch, [1.0, 3.0, 2.0, 1.5, 9.0])  # before training, three steps, at the end
    run = make_run(
        tmp_path,
        val_dataset=make_samples([9, 9, 9]),
        train={"keep_best": True, "patience": 1},
        eval=EvalArgs(interval=1, max_iters=1, initial_validation=True),
    )
    kept: list[int] = []
    save = run.save
    run.save = lambda folder: (kept.append(len(metrics(tmp_path))), save(folder))[1]
    assert fit(run).steps == 3
    assert len(kept) == 4  # three times best/, then final/


def test_a_signal_before_a_validation_only_puts_it_off(tmp_path):
    data = dict(val_dataset=make_samples([9, 20], seed=5), eval=EvalArgs(interval=2))
    whole = make_run(tmp_path / "whole", train={"max_steps": 6, "patience": 9}, **data)
    fit(whole)
    run = make_run(tmp_path / "run", train={"max_steps": 6, "patience": 9}, **data)

    class Signalling(Samples):
        reads = 0

        def __getitem__(self, index):
            Signalling.reads += 1
            if Signalling.reads == 14:  # in the fourth step
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__getitem__(index)

    run.train_dataset = Signalling(run.train_dataset)
    with pytest.raises(Interrupted, match="after step 4"):
        fit(run)
    resume = resume_point("auto", tmp_path / "run")
    fit(make_run(tmp_path / "run", train={"max_steps": 6, "patience": 9}, resume=resume, **data))
    assert timeless(metrics(tmp_path / "run")) == timeless(metrics(tmp_path / "whole"))


def test_what_is_told_to_ignore_the_end_of_the_terminal_does(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:

        class Signalling(Samples):
            def __getitem__(self, index):
                os.kill(os.getpid(), signal.SIGHUP)
                return super().__getitem__(index)

        assert (
            fit(make_run(tmp_path, train_dataset=Signalling(make_samples([5, 9])), train={"max_steps": 2})).steps == 2
        )
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_outlives_its_terminal_and_its_folder(tmp_path, monkeypatch):
    class Deleting(Samples):
        reads = 0

        def __getitem__(self, index):
            Deleting.reads += 1
            if Deleting.reads == 10:  # in the third step
                shutil.rmtree(tmp_path / "run")
            return super().__getitem__(index)

    run = make_run(tmp_path / "run", train_dataset=Deleting(make_samples(LENGTHS)), train={"max_steps": 5})
    monkeypatch.setattr(run.fabric, "print", lambda *args: (_ for _ in ()).throw(OSError(errno.EIO, "gone")))
    assert (fit(run).final / "lit_model.pth").is_file()
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5]


def test_resuming_goes_on_with_the_run_that_wrote_last(tmp_path):
    fit(make_run(tmp_path, train={"max_steps": 9, "save_interval": 3}))
    fit(make_run(tmp_path, train={"max_steps": 2, "save_interval": 2}))  # another one, into the same folder
    assert resume_point("auto", tmp_path) == tmp_path / "step-000002"


def test_a_folder_that_is_being_replaced_cannot_be_resumed_from(tmp_path, monkeypatch):
    fit(make_run(tmp_path, train={"max_steps": 2, "save_interval": 2}))
    run = make_run(tmp_path, train={"max_steps": 2, "save_interval": 2}, seed=2)
    run.save = lambda folder: (_ for _ in ()).throw(Killed)
    with pytest.raises(Killed):
        fit(run)
    with pytest.raises(LitGPTError, match="Cannot resume in .*step-000002 has no training_state.pt"):
        resume_point("auto", tmp_path)


@pytest.mark.parametrize("train", [{"patience": 1}, {"keep_best": True}])
def test_going_by_a_validation_that_there_is_not_is_refused(tmp_path, train):
    with pytest.raises(LitGPTError, match="nothing is validated"):
        fit(make_run(tmp_path, train=train))


# ------------------------------------------------------------------------------------------------- what is refused


def test_an_empty_data_set_is_refused(tmp_path):
    with pytest.raises(LitGPTError, match="training data set is empty"):
        fit(make_run(tmp_path, train_dataset=Samples()))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (dict(seed=2), "seed = 1337, this one has 2"),
        (dict(train={"global_batch_size": 2}), "global_batch_size = 4, this one has 2"),
        (dict(train_dataset=make_samples(LENGTHS[:-1])), "training samples = 12, this one has 11"),
        (dict(train_dataset=make_samples(LENGTHS, seed=1)), "had content of the training data = "),
        (dict(optimizer="SGD"), "optimizer = AdamW, this one has SGD"),
        (dict(optimizer="AdamW", owns=lambda name: "wte" in name, weights_file="lit_model.pth"), "no place for"),
        (dict(model=tiny_model(n_layer=1)), r"no place for|lacks"),
    ],
)
def test_a_resume_that_would_be_another_run_is_refused(tmp_path, change, sentence):
    fit(make_run(tmp_path, train={"save_interval": 2}))
    with pytest.raises(LitGPTError, match=sentence):
        fit(make_run(tmp_path, resume=tmp_path / "step-000002", **change))


def test_a_resumed_run_takes_the_optimizers_settings_from_its_own_command(tmp_path):
    fit(make_run(tmp_path, train={"save_interval": 2}))
    changed = {"class_path": "AdamW", "init_args": {"lr": 1e-2, "betas": (0.5, 0.6), "weight_decay": 0.3}}
    run = make_run(tmp_path, resume=tmp_path / "step-000002", optimizer=changed)
    optimizer = make_optimizer(changed, run.model.named_parameters())
    state = TrainingState(Counters(), Validations(), Identity())
    load_state(run, SavedState.read(tmp_path / "step-000002"), optimizer, state)
    assert state.counters.step == 2
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.6)
    assert len(optimizer.state) == len(list(run.model.parameters()))


def test_a_disk_too_full_for_the_state_is_one_sentence_and_leaves_no_step(tmp_path):
    resource = pytest.importorskip("resource")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    run = make_run(tmp_path, train={"save_interval": 2})
    save = run.save

    def save_and_fill(folder: Path) -> None:
        save(folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))

    run.save = save_and_fill
    try:
        with pytest.raises(LitGPTError, match=r"The disk is full: \S+training_state\.pt could not be written"):
            fit(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not [path for path in tmp_path.iterdir() if path.name != "logs"]


def settings_of(rank: int, **train: int) -> dict[str, Any]:
    """A command's."""
    data = {"class_path": "litgpt.data.JSON", "init_args": {"json_path": "a.json"}}
    return {"train": train, "lora_r": rank, "data": data, "out_dir": f"out{rank}", "betas": [0.9, 0.95]}


def test_a_resumed_run_tells_which_settings_are_others(tmp_path, capsys):
    fit(make_run(tmp_path, train={"save_interval": 2}, settings=settings_of(4, max_steps=3)))
    step = tmp_path / "step-000002"
    capsys.readouterr()
    fit(make_run(tmp_path, resume=step, settings=settings_of(4, max_steps=3)))
    assert f"Going on after step 2, from {step}.\n" in capsys.readouterr().out, "nothing to tell"
    fit(make_run(tmp_path, resume=step, settings=settings_of(8, log_interval=5)))
    changes = (
        "Other settings than before: train.max_steps null (was 3), lora_r 8 (was 4), train.log_interval 5 (was null)."
    )
    assert changes in capsys.readouterr().out


def test_settings_that_change_what_is_computed_must_not_be_others(tmp_path):
    fit(
        make_run(tmp_path, train={"save_interval": 2}, settings=settings_of(4), fixed={"lora_r": 4, "lora_dora": False})
    )
    change = dict(settings=settings_of(4), fixed={"lora_r": 4, "lora_dora": True})
    with pytest.raises(LitGPTError, match="lora_dora = false, this one has true"):
        fit(make_run(tmp_path, resume=tmp_path / "step-000002", **change))


def test_a_state_from_before_settings_were_kept_is_gone_on_with(tmp_path, capsys):
    fit(make_run(tmp_path, train={"save_interval": 2}))
    path = tmp_path / "step-000002" / "training_state.pt"
    content = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in content.items() if name not in ("header", "settings")}, path)
    capsys.readouterr()
    result = fit(make_run(tmp_path, resume=path.parent, settings=settings_of(4), fixed={"lora_r": 4}))
    assert result.steps == 3 and "Other settings" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"PK\x03\x04 cut off", b"", b"junk\n", b"junk", b"\x80\x02cos\nsystem\n."])
def test_a_damaged_state_is_one_sentence(tmp_path, content):
    fit(make_run(tmp_path, train={"save_interval": 2}))
    (tmp_path / "step-000002" / "training_state.pt").write_bytes(content)
    with pytest.raises(LitGPTError, match=r"training_state\.pt is damaged"):
        fit(make_run(tmp_path, resume=tmp_path / "step-000002"))


def test_a_step_without_targets_is_skipped_and_said(tmp_path, capsys):
    samples = make_samples([8] * 4)
    for sample in samples:
        sample["labels"].fill_(-100)
    run = make_run(tmp_path, train_dataset=samples, train={"max_steps": 1})
    before = weights(run)
    fit(run)
    assert "none of its samples has a token to learn from" in capsys.readouterr().out
    assert torch.equal(before, weights(run))


# --------------------------------------------------------------------------------------------------- other precisions


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_16_bit_precisions_learn(tmp_path, precision):
    from litgpt.runtime import make_fabric, parameter_dtype

    run = make_run(tmp_path, fabric=make_fabric(1, precision=precision, device="cpu"), train={"max_steps": 30})
    fit(run)
    assert next(run.model.parameters()).dtype == parameter_dtype(precision)
    found = column(tmp_path, "loss")
    assert sum(found[-3:]) < sum(found[:3]) - 0.5
