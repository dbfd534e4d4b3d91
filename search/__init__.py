"""The search: an Optuna study on PostgreSQL over techniques and settings of the trainer."""
