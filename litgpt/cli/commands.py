"""The commands that `litgpt` has, and where each is."""

from __future__ import annotations

COMMANDS: dict[str, tuple[str, str]] = {
    "download": ("litgpt.scripts.download:download", "Download weights or tokenizer data from the Hugging Face Hub."),
    "chat": ("litgpt.chat.base:main", "Chat with a model."),
    "finetune": ("litgpt.finetune.lora:setup", "Finetune a model with LoRA (the same as finetune_lora)."),
    "finetune_lora": ("litgpt.finetune.lora:setup", "Finetune a model with LoRA."),
    "finetune_full": ("litgpt.finetune.full:setup", "Finetune all weights of a model."),
    "finetune_adapter": ("litgpt.finetune.adapter:setup", "Finetune a model with LLaMA-Adapter."),
    "finetune_adapter_v2": ("litgpt.finetune.adapter_v2:setup", "Finetune a model with LLaMA-Adapter V2."),
    "pretrain": ("litgpt.pretrain:setup", "Pretrain a model, from scratch or from a checkpoint."),
    "generate": ("litgpt.generate.base:main", "Generate text from a prompt."),
    "generate_full": ("litgpt.generate.full:main", "Generate text with a fully finetuned model."),
    "generate_adapter": ("litgpt.generate.adapter:main", "Generate text with a model finetuned with LLaMA-Adapter."),
    "generate_adapter_v2": (
        "litgpt.generate.adapter_v2:main",
        "Generate text with a model finetuned with LLaMA-Adapter V2.",
    ),
    "generate_sequentially": (
        "litgpt.generate.sequentially:main",
        "Generate text with the layers spread over several devices.",
    ),
    "generate_speculatively": (
        "litgpt.generate.speculatively:main",
        "Generate text with a small model that drafts for a large one.",
    ),
    "generate_tp": ("litgpt.generate.tp:main", "Generate text with every layer split over several devices."),
    "convert_to_litgpt": (
        "litgpt.scripts.convert_to_litgpt:convert_to_litgpt",
        "Convert a Hugging Face folder to a LitGPT checkpoint.",
    ),
    "convert_from_litgpt": (
        "litgpt.scripts.convert_from_litgpt:convert_from_litgpt",
        "Convert a LitGPT checkpoint to a Hugging Face folder.",
    ),
    "convert_pretrained_checkpoint": (
        "litgpt.scripts.convert_pretrained_checkpoint:convert_pretrained_checkpoint",
        "Strip a pretraining checkpoint of its training state.",
    ),
    "merge_lora": ("litgpt.scripts.merge_lora:merge_lora", "Merge LoRA weights into the model they were trained on."),
    "evaluate": ("litgpt.eval.evaluate:convert_and_evaluate", "Evaluate a model on benchmark tasks."),
    "serve": ("litgpt.deploy.serve:run_server", "Serve a model over HTTP."),
    "validate": ("litgpt.scripts.validate:validate", "Check that a checkpoint folder is complete and consistent."),
    "finetune_dpo": ("litgpt.finetune.dpo:setup", "Train a model on preferences (DPO, IPO, SimPO, ORPO, KTO)."),
    "finetune_distill": ("litgpt.finetune.distill:setup", "Train a model on what a teacher holds likely."),
    "finetune_grpo": ("litgpt.finetune.grpo:setup", "Train a model by rewards of its answers (GRPO and its kin)."),
    "distill prepare": ("litgpt.scripts.distill_prepare:prepare", "Write down once what a teacher holds likely."),
    "quantize": (
        "litgpt.scripts.quantize:quantize_checkpoint",
        "Write a model in few bits, for llama.cpp, transformers and vLLM.",
    ),
    "list": ("litgpt.scripts.local_models:list_models", "List the models on this machine, and how they were trained."),
    "show": ("litgpt.scripts.local_models:show", "Show what a model is, and how it was trained."),
    "rm": ("litgpt.scripts.local_models:rm", "Delete models."),
    "doctor": ("litgpt.scripts.doctor:doctor", "Check this machine, and what is installed on it."),
    "plan": ("litgpt.cli.plan:plan", "Tell what a training command will take, before it runs."),
    "studio": ("litgpt.cli.studio.command:studio", "Show runs in a browser as they go, start and stop them."),
    "recipes": ("litgpt.cli.recipes:list_recipes", "List the recipes that come with litgpt, with what each needs."),
    "recipes show": ("litgpt.cli.recipes:show", "Print all values of a recipe."),
    "recipes cp": ("litgpt.cli.recipes:cp", "Copy a recipe into a file of your own."),
    "data preview": (
        "litgpt.scripts.data_preview:data_preview",
        "Show what a model would learn from data: samples, lengths, what is cut.",
    ),
    "tokenizer train": ("litgpt.data.train_tokenizer:train_tokenizer", "Make a tokenizer of texts of your own."),
    "prepare_starcoder": ("litgpt.data.prepare_starcoder:prepare", "Tokenize StarCoder's files for pretraining."),
    "prepare_slimpajama": ("litgpt.data.prepare_slimpajama:prepare", "Tokenize SlimPajama's files for pretraining."),
    "completion": (
        "litgpt.cli.completion:completion",
        "Print the script by which a shell completes commands.",
    ),
    "demo": ("litgpt.demo:demo", "Pretrain, finetune and talk with a small model in a few minutes."),
}
"""Command -> `module:function` and a one-line summary. LitGPT's come first, in its order."""
