"""What distillation adds to finetuning: teachers, and answers of the student itself."""
