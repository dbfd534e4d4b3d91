"""Sizes of layers that exist only when there are so many, a gate with a setting, and a limit."""

import optuna
import optunahub

module = optunahub.load_local_module("samplers/structured", registry_root="package")


def objective(trial: optuna.Trial) -> float:
    layers = trial.suggest_int("layers", 1, 4)
    widths = [trial.suggest_int(f"width_{k}", 8, 256, log=True) for k in range(layers)]
    dropout = 0.0
    if trial.suggest_categorical("drop", (False, True)):
        dropout = trial.suggest_float("dropout", 0.0, 0.5)
    trial.set_constraint("size", sum(widths) / 300 - 1)
    return 1.0 / layers + sum(8 / width for width in widths) / layers + (dropout - 0.2) ** 2


sampler = module.StructuredSampler(seed=0)
study = optuna.create_study(sampler=sampler)
study.optimize(objective, n_trials=40)
print(sampler.recommend(study).params)
