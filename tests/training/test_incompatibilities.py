"""Options that exclude each other are refused before anything is written."""

from __future__ import annotations

from typing import Any

import pytest

from litgpt.errors import LitGPTError
from litgpt.training.incompatibilities import INCOMPATIBILITIES, TrainingSetup, check_incompatibilities
from litgpt.training.loop import fit
from tests.training.runs import make_run

CLASHES: dict[str, dict[str, Any]] = {
    "optimizer in backward, accumulation": dict(optimizer_in_backward=True, micro_batch_size=2),
    "optimizer in backward, clipping": dict(optimizer_in_backward=True, micro_batch_size=4, max_norm=1.0),
    "optimizer in backward, guard": dict(optimizer_in_backward=True, micro_batch_size=4, guard=0.0),
    "optimizer in backward, 16-mixed": dict(optimizer_in_backward=True, micro_batch_size=4),
    "optimizer in backward, ranks": dict(optimizer_in_backward=True, micro_batch_size=4),
    "guard, 16-mixed": dict(guard=10.0),
    "activation offload, no GPU": dict(activation_offload=True),
    "activation offload, FSDP": dict(activation_offload=True),
    "document masks, padding": dict(document_masks=True, packing=False),
}


@pytest.mark.parametrize("pair", INCOMPATIBILITIES)
def test_what_cannot_hold_together_is_refused(tmp_path, pair):
    run = make_run(tmp_path, train=CLASHES[pair])
    _, sentence = INCOMPATIBILITIES[pair]
    precision = "16-mixed" if "16-mixed" in pair else "32-true"
    sharded = "FSDP" in pair
    ranks = 2 if sharded or "ranks" in pair else 1
    setup = TrainingSetup(run.train, precision, "cuda" if sharded else "cpu", ranks, sharded)
    assert [name for name, (refuses, _) in INCOMPATIBILITIES.items() if refuses(setup)] == [pair]
    assert sentence.endswith(".") and "train." in sentence
    if setup.precision == "32-true" and setup.ranks == 1:
        before = sorted(tmp_path.iterdir())
        with pytest.raises(LitGPTError) as error:
            check_incompatibilities(setup)
        assert str(error.value) == sentence
        with pytest.raises(LitGPTError, match=r"train\."):
            fit(run)
        assert [path for path in sorted(tmp_path.iterdir()) if path.is_dir()] == before
