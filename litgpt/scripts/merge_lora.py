"""`litgpt merge_lora`: adds what LoRA learned to the weights it was learned beside."""

from __future__ import annotations

from pathlib import Path


def merge_lora(
    checkpoint_dir: Path,
    pretrained_checkpoint_dir: Path | None = None,
    precision: str | None = None,
) -> None:
    """Merge LoRA weights into the model they were trained on.

    Args:
        checkpoint_dir: Folder with `lit_model.pth.lora` and `hyperparameters.yaml`; gets `lit_model.pth`.
        pretrained_checkpoint_dir: Folder of the model that was finetuned; null: as `hyperparameters.yaml` says.
        precision: What the result is kept in, such as 32-true or bf16-true; null: as the finetuned model.
    """
    from litgpt.checkpoint.finetuned import read_hyperparameters
    from litgpt.checkpoint.layout import CONFIG_FILE, LIT_MODEL, existing_folder, find_checkpoint
    from litgpt.checkpoint.merge import merge
    from litgpt.lora import LoRA
    from litgpt.runtime import parameter_dtype

    dtype = parameter_dtype(precision) if precision else None
    folder = existing_folder(checkpoint_dir)
    if (folder / LIT_MODEL).is_file():
        print(f"{folder} has its merged {LIT_MODEL} already; nothing to do.")
        return
    lora, trained_on = read_hyperparameters(folder, LoRA.suffix)
    assert isinstance(lora, LoRA)
    base = find_checkpoint(pretrained_checkpoint_dir or trained_on)
    merge(folder, lora, base, dtype)
    if not (folder / CONFIG_FILE).is_file():
        base.config.save(folder)
    print(f"Merged into {folder / LIT_MODEL}.")
