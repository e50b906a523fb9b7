"""What users get wrong about optimizers, and what they are told."""

import optax
import pytest

from kdist import optimizers
from kdist.errors import ConfigError
from kdist.optimizers import schedules


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: optimizers.get("Adm"), ConfigError, r"Unknown optimizer 'Adm'\. Did you mean 'adam'\?"),
        (lambda: optimizers.get("sdg"), ConfigError, "Did you mean 'sgd'"),
        (lambda: optimizers.get("adam", learn_rate=1.0), ConfigError, "Did you mean 'learning_rate'"),
        (lambda: optimizers.get("sgd", beta_1=0.9), ConfigError, "Unknown argument of SGD 'beta_1'"),
        (
            lambda: optimizers.get(optimizers.Adam),
            ConfigError,
            r"the class Adam\. Create one: kdist\.optimizers\.Adam\(",
        ),
        (lambda: optimizers.get(0.1), ConfigError, "Could not interpret optimizer identifier"),
        (lambda: optimizers.get(optax.sgd(0.1), learning_rate=1.0), ConfigError, "go with an optimizer's name"),
        (lambda: optimizers.SGD("fast"), ConfigError, "learning_rate must be a number or a schedule"),
        (lambda: optimizers.SGD(True), ConfigError, "learning_rate must be a number or a schedule"),
        (lambda: optimizers.SGD(momentum=1.5), ConfigError, r"momentum must lie in \[0, 1\]"),
        (lambda: optimizers.SGD(clipnorm=1.0, clipvalue=1.0), ConfigError, "Only one of clipnorm"),
        (lambda: optimizers.SGD(clipnorm=0.0), ConfigError, "A clip must be positive"),
        (lambda: optimizers.SGD(gradient_accumulation_steps=1), ConfigError, "an integer of 2 or more"),
        (lambda: optimizers.SGD(gradient_accumulation_steps=2.0), ConfigError, "an integer of 2 or more"),
        (lambda: optimizers.AdamW(weight_decay=None), ConfigError, "AdamW needs a weight_decay"),
        (lambda: optimizers.Lion(beta_1=0.0), ConfigError, r"beta_1 must lie in \(0, 1\]"),
        (lambda: optimizers.SGD(momentum="much"), ConfigError, r"momentum must lie in \[0, 1\]"),
        (lambda: optimizers.SGD(lr=0.1), ConfigError, "Unknown argument of SGD 'lr'. Did you mean 'learning_rate'"),
        (lambda: optimizers.get("adam", lr=0.1), ConfigError, "Did you mean 'learning_rate'"),
        (lambda: optimizers.SGD(clipnorm="small"), ConfigError, "A clip must be positive"),
        (lambda: optimizers.SGD(weight_decay="some"), ConfigError, "weight_decay must be a number"),
        (lambda: optimizers.SGD(loss_scale_factor=0.0), ConfigError, "loss_scale_factor must be positive"),
        (lambda: optimizers.SGD(use_ema=True, ema_momentum=1.5), ConfigError, r"ema_momentum must lie in \[0, 1\]"),
        (lambda: optimizers.SGD(use_ema=True, ema_overwrite_frequency=-1), ConfigError, "a positive integer"),
        (lambda: optimizers.SGD(use_ema=True, ema_overwrite_frequency=0), ConfigError, "a positive integer"),
        (lambda: optimizers.SGD(use_ema=True, ema_overwrite_frequency=1.5), ConfigError, "a positive integer"),
        (lambda: optimizers.Ftrl(l1_regularization_strength=-1.0), ConfigError, "l1_regularization_strength must be"),
        (lambda: optimizers.Ftrl(l2_regularization_strength=-1.0), ConfigError, "l2_regularization_strength must be"),
        (lambda: optimizers.Ftrl(l2_shrinkage_regularization_strength=-1.0), ConfigError, "l2_shrinkage"),
        (lambda: optimizers.Ftrl(initial_accumulator_value=-1.0), ConfigError, "initial_accumulator_value must be"),
        (lambda: optimizers.Ftrl(learning_rate_power=0.5), ConfigError, "learning_rate_power must be negative"),
        (lambda: optimizers.ScheduleFreeAdamW(beta_1=0.0), ConfigError, "beta_1 must lie in"),
        (lambda: optimizers.Muon(exclude_layers=[3]), ConfigError, "exclude_layers must be a list of strings"),
        (lambda: optimizers.AdamW().exclude_from_weight_decay([3]), ConfigError, "var_list must be a list of strings"),
        (lambda: optimizers.AdamW().exclude_from_weight_decay(var_names=["("]), ConfigError, "regular expressions"),
        (lambda: optimizers.Optimizer(0.1).rule(0.1), NotImplementedError, "must define rule"),
        (lambda: optimizers.get("LossScaleOptimizer"), ConfigError, "made around other optimizers.*OptimizerMap|Adam"),
        (lambda: optimizers.get("multioptimizer"), ConfigError, "made around other optimizers.*OptimizerMap"),
        (lambda: optimizers.get("optimizer"), ConfigError, "Unknown optimizer 'optimizer'"),
        (lambda: optimizers.get({"config": {}}), ConfigError, 'is {"class_name": a name'),
        (lambda: optimizers.get({"class_name": "Adm"}), ConfigError, "Did you mean 'adam'"),
        (lambda: optimizers.get({"class_name": "SGD", "config": {"lr": 1.0}}), ConfigError, "Did you mean 'learning"),
        (lambda: schedules.deserialize({"class_name": "CosineDekay"}), ConfigError, "Did you mean 'CosineDecay'"),
        (lambda: schedules.ExponentialDecay(0.1, 0, 0.5), ConfigError, "decay_steps must be positive. Received: 0"),
        (lambda: schedules.InverseTimeDecay(0.1, -1, 0.5), ConfigError, "decay_steps must be positive"),
        (lambda: schedules.PolynomialDecay(0.1, 0), ConfigError, "decay_steps must be positive"),
        (lambda: schedules.CosineDecay(0.1, 0), ConfigError, "decay_steps must be positive"),
        (lambda: schedules.CosineDecayRestarts(0.1, 0), ConfigError, "first_decay_steps must be positive"),
        (lambda: schedules.PiecewiseConstantDecay([1, 2], [0.1, 0.2]), ConfigError, "one more value than boundaries"),
        (lambda: schedules.PiecewiseConstantDecay([2, 1], [1, 2, 3]), ConfigError, "must increase"),
        (lambda: schedules.LearningRateSchedule()(0), NotImplementedError, "must define __call__"),
        (lambda: setattr(optimizers.SGD(), "learning_rate", abs), TypeError, "can only be set to a number"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


LOSS_SCALE = [
    ({"dynamic": False}, "set loss_scale_factor on the inner_optimizer"),
    ({"clipnorm": 1.0}, "no clipnorm: set it on the inner_optimizer"),
    ({"use_ema": True}, "no use_ema: set it on the inner_optimizer"),
    ({"gradient_accumulation_steps": 2}, "no gradient_accumulation_steps: set it on the inner_optimizer"),
    ({"initial_scal": 2.0}, "Did you mean 'initial_scale'"),
    ({"initial_scale": 0.0}, "initial_scale must be positive"),
    ({"dynamic_growth_steps": 0}, "dynamic_growth_steps must be a positive integer"),
]


@pytest.mark.parametrize(("arguments", "message"), LOSS_SCALE)
def test_loss_scale_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        optimizers.LossScaleOptimizer(optimizers.SGD(), **arguments)


def test_loss_scaling_takes_the_defaults_of_other_optimizers():
    optimizers.LossScaleOptimizer(optimizers.SGD(), dynamic=True, clipnorm=None, use_ema=False, ema_momentum=0.99)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a, b: optimizers.LossScaleOptimizer("sgd"), "Could not interpret optimizer"),
        (lambda a, b: optimizers.LossScaleOptimizer(optimizers.LossScaleOptimizer(a)), "cannot be one too"),
        (lambda a, b: optimizers.MultiOptimizer({"w": a}), "must be a kdist.optimizers.OptimizerMap"),
        (lambda a, b: optimizers.MultiOptimizer(optimizers.OptimizerMap(a), -1.0), "loss_scale_factor must be"),
        (lambda a, b: optimizers.OptimizerMap("sgd"), "Could not interpret optimizer"),
        (lambda a, b: optimizers.OptimizerMap(a, [b]), "optimizer_map must be a dict"),
        (lambda a, b: optimizers.OptimizerMap(a, {"w": "sgd"}), "Could not interpret optimizer"),
        (lambda a, b: optimizers.OptimizerMap(a, {3: b}), "must be a path or a regular expression"),
        (lambda a, b: optimizers.OptimizerMap(a, {"(": b}), "must be a regular expression"),
        (lambda a, b: optimizers.OptimizerMap(a, {"w": optimizers.LossScaleOptimizer(b)}), "put it around"),
        (
            lambda a, b: optimizers.OptimizerMap(optimizers.MultiOptimizer(optimizers.OptimizerMap(a))),
            "put all parts in one OptimizerMap",
        ),
        (lambda a, b: optimizers.OptimizerMap(a, {"w.*": a, ".*w": b})["w"], "Several expressions.*'w'"),
        (lambda a, b: optimizers.OptimizerMap(a, {"w": b}).__setitem__("w", a), "'w' is in the OptimizerMap already"),
    ],
)
def test_part_errors(make, message):
    with pytest.raises(ConfigError, match=message):
        make(optimizers.SGD(), optimizers.Adam())
