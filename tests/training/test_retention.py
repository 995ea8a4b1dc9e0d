"""Which `step-*` folders stay, and that two runs don't write into one folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from litgpt.errors import LitGPTError
from litgpt.training.loop import fit
from litgpt.training.state import resume_point
from tests.training.runs import Samples, make_run, make_samples

pytestmark = pytest.mark.usefixtures("no_picture")


def steps(out_dir: Path) -> list[str]:
    return sorted(path.name for path in out_dir.glob("step-*"))


def test_the_newest_steps_are_kept(tmp_path):
    fit(make_run(tmp_path, train={"max_steps": 7, "save_interval": 1, "keep_last": 2}))
    assert steps(tmp_path) == ["step-000006", "step-000007"]


def test_keeping_goes_on_after_a_resume(tmp_path):
    fit(make_run(tmp_path, train={"max_steps": 3, "save_interval": 1}))
    resume = resume_point("auto", tmp_path)
    fit(make_run(tmp_path, train={"max_steps": 5, "save_interval": 1, "keep_last": 2}, resume=resume))
    assert steps(tmp_path) == ["step-000004", "step-000005"]


def test_what_another_run_or_the_user_wrote_is_not_deleted(tmp_path):
    fit(make_run(tmp_path, train={"max_steps": 9, "save_interval": 3}))
    (tmp_path / "step-notes").mkdir()
    run = make_run(tmp_path, train={"max_steps": 5, "save_interval": 1, "keep_last": 1})

    class Merging(Samples):
        """Someone puts a merged model into the first folder while the run goes on."""

        def __getitem__(self, index):
            if (tmp_path / "step-000001").is_dir():
                (tmp_path / "step-000001" / "merged.pth").touch()
            return super().__getitem__(index)

    run.train_dataset = Merging(run.train_dataset)
    fit(run)
    others = ["step-000006", "step-000009", "step-notes"]
    assert steps(tmp_path) == ["step-000001", "step-000005", *others]


def test_a_second_run_at_the_same_time_is_refused(tmp_path):
    def second(step: int) -> None:
        with pytest.raises(LitGPTError, match="Another run is writing to"):
            fit(make_run(tmp_path))
        refused.append(step)

    refused: list[int] = []
    fit(make_run(tmp_path, val_dataset=make_samples([9]), train={"max_steps": 1}, sample=second))
    assert refused == [1]
    fit(make_run(tmp_path))
