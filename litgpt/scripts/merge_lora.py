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
        checkpoint_dir: Folder with `lit_model.pth.lora` and `hyperparameters.yaml`, or one that PEFT wrote; gets
            `lit_model.pth`.
        pretrained_checkpoint_dir: Folder of the model that was finetuned; null: as the folder itself says.
        precision: What the result is kept in, such as 32-true or bf16-true; null: as the finetuned model.

    Example:
        litgpt merge_lora out/finetune/lora/final
    """
    from litgpt.checkpoint.finetuned import find_update, has_lora
    from litgpt.checkpoint.layout import LIT_MODEL, complete_folder, existing_folder
    from litgpt.checkpoint.merge import merge
    from litgpt.config import CONFIG_FILE
    from litgpt.errors import LitGPTError, MissingFileError
    from litgpt.lora import LoRA
    from litgpt.runtime import parameter_dtype

    dtype = parameter_dtype(precision) if precision else None
    folder = existing_folder(checkpoint_dir)
    if (folder / LIT_MODEL).is_file() and has_lora(folder):
        if precision or pretrained_checkpoint_dir:
            raise LitGPTError(
                f"{folder} has its merged {LIT_MODEL} already; remove that to merge anew, in another precision or with "
                "another model."
            )
        print(f"{folder} has its merged {LIT_MODEL} already; nothing to do.")
        return
    update = find_update(folder, pretrained_checkpoint_dir)
    if update is None or not isinstance(update.method, LoRA):
        raise MissingFileError(
            f"{folder} has no {LIT_MODEL}{LoRA.suffix} to merge (nor updates of PEFT's); give the folder of a "
            "finetune_lora run (…/final)."
        )
    config = merge(update, folder, dtype)
    complete_folder(update.base.dir, folder)
    if update.method.vocabulary is not None or not (folder / CONFIG_FILE).is_file():
        config.save(folder)
    print(f"Merged into {folder / LIT_MODEL}.")
