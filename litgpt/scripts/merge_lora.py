"""`litgpt merge_lora`: adds what LoRA learned to the weights it was learned beside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from litgpt.errors import LitGPTError

if TYPE_CHECKING:
    from litgpt.lora import LoRA


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
    from litgpt.checkpoint.layout import CONFIG_FILE, LIT_MODEL, existing_folder, find_checkpoint
    from litgpt.checkpoint.merge import merge
    from litgpt.runtime import parameter_dtype

    dtype = parameter_dtype(precision) if precision else None
    folder = existing_folder(checkpoint_dir)
    if (folder / LIT_MODEL).is_file():
        print(f"{folder} has its merged {LIT_MODEL} already; nothing to do.")
        return
    lora, trained_on = read_hyperparameters(folder)
    base = find_checkpoint(pretrained_checkpoint_dir or trained_on)
    merge(folder, lora, base, dtype)
    if not (folder / CONFIG_FILE).is_file():
        base.config.save(folder)
    print(f"Merged into {folder / LIT_MODEL}.")


def read_hyperparameters(folder: Path) -> tuple[LoRA, Path]:
    """The LoRA settings of a run, and the folder of the model it started from.

    Raises:
        LitGPTError: The file is missing or doesn't tell.
    """
    import yaml

    from litgpt.checkpoint.layout import HYPERPARAMETERS
    from litgpt.lora import LoRA

    path = folder / HYPERPARAMETERS
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        settings = {name.removeprefix("lora_"): value for name, value in content.items() if name.startswith("lora_")}
        return LoRA(**settings), Path(content["checkpoint_dir"])
    except FileNotFoundError:
        raise LitGPTError(
            f"{folder} has no {HYPERPARAMETERS}, which says how it was trained; give the folder of a finetune_lora run."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
        raise LitGPTError(
            f"{path} does not hold the settings of a finetune_lora run (lora_*, checkpoint_dir)."
        ) from None
