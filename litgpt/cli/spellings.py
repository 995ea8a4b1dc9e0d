"""What flags are called elsewhere: in Hugging Face's trainers, PEFT, Axolotl, LLaMA-Factory, nanoGPT, mlx-lm, vLLM."""

from __future__ import annotations

from collections.abc import Container, Iterable

ELSEWHERE = {
    "optimizer": "optim optimizer_name optimizer_type",
    "optimizer.lr": "learning_rate lr optimizer_lr max_lr peak_lr max_learning_rate base_lr",
    "optimizer.weight_decay": "weight_decay wd",
    "optimizer.betas": "betas beta1 beta2 adam_beta1 adam_beta2",
    "optimizer.eps": "eps epsilon adam_epsilon",
    "optimizer.momentum": "momentum",
    "train.global_batch_size": "batch_size train_batch_size total_batch_size global_batch gradient_accumulation_steps "
    "gradient_accumulation grad_accum grad_accum_steps accumulate_grad_batches effective_batch_size",
    "train.micro_batch_size": "per_device_train_batch_size per_gpu_train_batch_size device_batch_size microbatch_size "
    "per_device_batch_size mbs",
    "train.epochs": "num_train_epochs num_epochs n_epochs max_epochs",
    "train.max_steps": "max_iters iters steps num_steps total_steps max_train_steps num_iterations num_training_steps",
    "train.lr_warmup_steps": "warmup_steps warmup num_warmup_steps warmup_iters lr_warmup",
    "train.lr_warmup_fraction": "warmup_ratio warmup_fraction",
    "train.lr_schedule": "lr_scheduler_type lr_scheduler scheduler lr_decay_style scheduler_type",
    "train.min_lr": "lr_min min_learning_rate lr_end",
    "train.max_norm": "max_grad_norm grad_clip clip_grad gradient_clip_val gradient_clipping grad_norm_clip",
    "train.max_seq_length": "max_length max_seq_len cutoff_len sequence_len sequence_length seq_len seq_length "
    "block_size model_max_length context_length max_model_len",
    "train.log_interval": "logging_steps log_every log_every_n_steps steps_per_report",
    "train.save_interval": "save_steps save_every checkpoint_every save_freq",
    "train.keep_last": "save_total_limit",
    "train.keep_best": "load_best_model_at_end",
    "train.patience": "early_stopping_patience",
    "train.activation_checkpointing": "gradient_checkpointing grad_checkpoint activation_checkpoint "
    "use_gradient_checkpointing",
    "train.compile": "torch_compile",
    "train.label_smoothing": "label_smoothing_factor",
    "train.packing": "sample_packing pack",
    "eval.interval": "eval_steps eval_interval eval_every val_interval validation_steps steps_per_eval "
    "val_check_interval",
    "eval.max_iters": "eval_iters val_batches limit_val_batches",
    "logger_name": "report_to logger",
    "log.project": "wandb_project project project_name",
    "log.run": "run_name wandb_run_name experiment_name",
    "out_dir": "output_dir output save_path save_dir out",
    "output_dir": "out_dir output out",
    "resume": "resume_from_checkpoint resume_from",
    "precision": "bf16 fp16 dtype torch_dtype mixed_precision compute_dtype",
    "quantize": "load_in_4bit load_in_8bit quantization quantization_bit",
    "devices": "num_gpus gpus n_gpus num_devices nproc_per_node tensor_parallel_size",
    "num_nodes": "nnodes",
    "seed": "random_seed manual_seed data_seed",
    "access_token": "hf_token token hub_token",
    "tokenizer_dir": "tokenizer tokenizer_name tokenizer_path",
    "initial_checkpoint_dir": "init_from pretrained_model_name_or_path resume_from",
    "lora_r": "lora_rank rank lora_dim r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_target": "lora_target_modules target_modules lora_modules lora_layers lora_target_linear",
    "lora_dora": "use_dora",
    "lora_rslora": "use_rslora",
    "lora_plus_ratio": "loraplus_lr_ratio loraplus_ratio",
    "lora_modules_to_save": "modules_to_save additional_target",
    "lora_init": "init_lora_weights",
    "data": "dataset dataset_name datasets train_file data_path train_data train_data_path data_dir dataset_path",
    "data.val_split_fraction": "val_set_size val_split val_size validation_split_percentage test_size",
    "data.num_workers": "num_workers dataloader_num_workers",
    "data.mask_prompt": "train_on_inputs completion_only_loss assistant_only_loss",
    "max_new_tokens": "max_tokens n_predict num_predict max_length max_gen_len",
    "temperature": "temp",
    "num_samples": "num_return_sequences n",
    "sys_prompt": "system system_prompt",
    "checkpoint_dir": "model model_name_or_path base_model model_path model_id pretrained_model_name_or_path",
    "model_name": "model",
}
"""Flag → its names elsewhere. Where a command lacks the flag, the next one with that name counts."""
ARGUMENTS = frozenset(ours.partition(".")[2] for ours in ELSEWHERE if ours.startswith("optimizer."))
"""Of optimizers."""


def spelled_here(flag: str, known: Container[str], all_flags: Iterable[str]) -> str:
    """The flag (without dashes) that is meant by one of another tool, or written in another way; empty: none.

    Args:
        flag: As it was typed, without dashes in front: `learning-rate`, `train.learning_rate`.
        known: What the command has; or anything below one of its flags.
        all_flags: What of that can be counted up.
    """
    typed = flag.replace("-", "_").lower()
    last = typed.rpartition(".")[2]
    alike = [ours for ours in all_flags if ours.lower() == typed or ours.lower().replace(".", "_") == typed]
    meant = [ours for ours, names in ELSEWHERE.items() if last in names.split() and ours in known]
    same_end = [ours for ours in all_flags if ours.rpartition(".")[2] == last]
    return next(iter((*alike, *meant, *same_end)), "")
