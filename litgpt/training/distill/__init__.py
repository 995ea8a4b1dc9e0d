"""Distillation: a student learns the distributions over next tokens of a teacher."""
