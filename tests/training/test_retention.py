"""Which `step-*` folders stay, and that two runs don't write into one folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from litgpt.errors import LitGPTError
from litgpt.training.loop import fit
from litgpt.training.retention import output_folder
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


@pytest.mark.parametrize("source", ["run", "run/final", "run/best", "run/step-000002", "run/final/model.gguf", "link"])
def test_a_run_that_would_overwrite_what_it_starts_from_is_refused(source: str, tmp_path: Path) -> None:
    out_dir = tmp_path / "run"
    (out_dir / "step-000002").mkdir(parents=True)
    (tmp_path / "link").symlink_to(out_dir / "final")
    with (
        pytest.raises(LitGPTError, match="would overwrite .*; give another"),
        output_folder(out_dir, tmp_path / source),
    ):
        pytest.fail("went on")
    with output_folder(tmp_path / "run2", tmp_path / source, None) as folder:
        assert folder.is_dir()


def test_only_what_a_run_writes_is_its_own(tmp_path: Path) -> None:
    for source in (tmp_path / "checkpoints" / "model", tmp_path.parent, tmp_path / "finals"):
        with output_folder(tmp_path, source):
            pass


def test_a_run_that_fails_before_it_writes_a_file_leaves_no_folder(tmp_path: Path) -> None:
    for kept in (False, True):
        with pytest.raises(LitGPTError), output_folder(tmp_path / "a" / "b") as folder:
            (folder / "logs" / "csv" / "version_0").mkdir(parents=True)
            if kept:
                (folder / "logs" / "csv" / "version_0" / "metrics.csv").touch()
            raise LitGPTError("a mistake")
        assert (tmp_path / "a").exists() == kept
    with pytest.raises(LitGPTError), output_folder(tmp_path) as folder:
        (folder / "logs" / "csv").mkdir(parents=True)
        raise LitGPTError("a mistake")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
