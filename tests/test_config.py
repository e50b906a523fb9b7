"""Config: fields with types and defaults, what they become, and how a config is found."""

import dataclasses
import json
import sys

import flax.linen as nn
import jax
import pytest

import kdist
from kdist import config as configs
from kdist.config import Config, Data
from kdist.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Run(Config):
    """A run of the tests."""

    width: int = 3

    def make_module(self):
        return nn.Dense(self.width)


def test_every_field_has_a_type_a_default_and_a_place_in_json():
    for field in dataclasses.fields(Config):
        assert field.type and field.default is not dataclasses.MISSING, field.name
    assert Config().to_dict() == {field.name: field.default for field in dataclasses.fields(Config)}
    assert json.loads(json.dumps(Run().to_dict()))["width"] == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().epochs = 3


def test_replace_makes_a_copy_of_the_same_class_and_refuses_unknown_fields():
    run = Run()
    other = run.replace(width=5, metrics=("mae",))
    assert isinstance(other, Run) and (other.width, other.metrics) == (5, ("mae",)) and run.width == 3
    with pytest.raises(ConfigError, match="Unknown config field 'widht'.*Did you mean 'width'.*Known: .*batch_size"):
        run.replace(widht=4)


def test_what_a_subclass_must_define():
    with pytest.raises(NotImplementedError, match="Config must define make_module"):
        Config().make_module()
    with pytest.raises(NotImplementedError, match="Run must define make_data"):
        Run().make_data()
    assert Data(1) == (1, None, None, None)


def test_the_model_is_what_the_fields_say():
    run = Run(name="mine", seed=7, optimizer="sgd", learning_rate=0.25, loss="mae", steps_per_execution=4)
    model = run.replace(devices=2, precision="mixed_bfloat16", microbatches=2, metrics=("mse",)).make_model()
    assert (model.name, model.seed, model.compiled) == ("mine", 7, True)
    assert (model.optimizer.name, model.optimizer.learning_rate) == ("sgd", 0.25)
    trainer = model.trainer
    assert (trainer.steps_per_execution, trainer.microbatches, trainer.precision.name) == (4, 2, "mixed_bfloat16")
    assert trainer.distribution.num_devices == 2
    assert Run().make_model().trainer.distribution.num_devices == jax.device_count()
    assert Run(optimizer="adam").make_optimizer().learning_rate == pytest.approx(1e-3)


def test_a_model_made_by_the_config_is_taken_as_it_is():
    @dataclasses.dataclass(frozen=True)
    class Ready(Run):
        def make_module(self):
            return kdist.Sequential([nn.Dense(self.width)], name="own")

    model = Ready().make_model()
    assert isinstance(model, kdist.Sequential) and model.name == "own" and model.compiled


@pytest.mark.parametrize("devices", [0, 9, -1])
def test_devices_that_are_not_there(devices):
    with pytest.raises(ConfigError, match=rf"devices must lie in 1 .. 8. Received: {devices}"):
        Run(devices=devices).make_model()


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"optimizer": "adamm"}, "Did you mean 'adam'"),
        ({"loss": "msee"}, "Did you mean 'mse'"),
        ({"metrics": ("acc", "maee")}, "Unknown metric 'maee'"),
        ({"learning_rate": "fast"}, "learning_rate.*'fast'"),
    ],
)
def test_names_are_checked_when_the_model_is_made(fields, words):
    with pytest.raises(ConfigError, match=words):
        Run(**fields).make_model()


# Finding one -------------------------------------------------------------------------------------

BODY = "import kdist\ndef config():\n    return kdist.Config(name='from the file')\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a config file, and forgets its module afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = []

    def write(body, name="a_config_of_the_tests.py"):
        path = tmp_path / name
        path.write_text(body)
        names.append(path.stem)
        return str(path)

    yield write
    for name in names:
        sys.modules.pop(name, None)


def test_a_file_is_loaded_with_its_neighbours(write):
    write("WIDTH = 11\n", "a_neighbour_of_the_tests.py")
    path = write(
        "import kdist\nfrom a_neighbour_of_the_tests import WIDTH\n" + BODY.replace("'from", "str(WIDTH) + ' from")
    )
    assert configs.load(path).name == "11 from the file"


def test_a_function_of_a_module_is_called(write, tmp_path):
    write(BODY)
    sys.path.insert(0, str(tmp_path))
    assert configs.load("a_config_of_the_tests:config").name == "from the file"
    with pytest.raises(ConfigError, match="a_config_of_the_tests:nothing does not define `nothing`"):
        configs.load("a_config_of_the_tests:nothing")


@pytest.mark.parametrize(
    "body, words",
    [
        ("x = 1\n", "does not define `config`.*def config"),
        ("config = 3\n", "does not define `config`"),
        ("def config():\n    return {'epochs': 3}\n", "must return a kdist.Config.*{'epochs': 3}"),
        ("import kdist\ndef config():\n    return kdist.Config\n", "must return a kdist.Config"),
        ("def config():\n    pass\n", "must return a kdist.Config.*None"),
    ],
)
def test_files_that_hold_no_config(body, words, write):
    with pytest.raises(ConfigError, match=words):
        configs.load(write(body))


@pytest.mark.parametrize(
    "source, words",
    [
        ("nowhere/else.py", "no config file nowhere/else.py"),
        ("digits", "CONFIG.py.*module:function.*'digits'"),
        ("no_such_module_here:config", "no_such_module_here"),
    ],
)
def test_sources_that_are_not_there(source, words):
    with pytest.raises(ConfigError, match=words):
        configs.load(source)


def test_an_error_inside_a_config_file_is_shown_as_it_is(write):
    with pytest.raises(ZeroDivisionError):
        configs.load(write("1 / 0\n"))
