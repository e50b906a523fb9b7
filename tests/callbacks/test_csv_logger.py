"""CSVLogger: a table that a spreadsheet reads, whatever is logged when."""

import csv

import numpy as np
import pytest

from kdist.callbacks import CSVLogger, TerminateOnNaN
from kdist.errors import ConfigError

NAN = float("nan")


def write(path, epochs, **arguments):
    logger = CSVLogger(path, **arguments)
    logger.on_train_begin()
    for epoch, logs in epochs:
        logger.on_epoch_end(epoch, logs)
    logger.close()
    return path.read_text().splitlines()


@pytest.mark.parametrize(
    ("epochs", "lines"),
    [
        ([(0, {"loss": 0.5, "acc": np.float32(1)})], ["epoch,acc,loss,val_acc,val_loss", "0,1.0,0.5,NA,NA"]),
        (
            [(0, {"loss": 2.0}), (1, {"loss": 1.0, "val_loss": 3.0, "more": 1.0})],
            ["epoch,loss,val_loss", "0,2.0,NA", "1,1.0,3.0"],
        ),
        ([(0, {"val_loss": 1.0, "loss": 2.0}), (1, {"loss": 1.0})], ["epoch,loss,val_loss", "0,2.0,1.0", "1,1.0,NA"]),
        ([(4, {"val_f1": np.array([0.5, 1.0])})], ["epoch,val_f1", '4,"[0.5, 1.0]"']),
        ([(0, {"loss": NAN}), (1, {"loss": -np.inf})], ["epoch,loss,val_loss", "0,nan,NA", "1,-inf,NA"]),
        ([(0, {"loss": 1.0, "note": "a, b"})], ["epoch,loss,note,val_loss,val_note", '0,1.0,"a, b",NA,NA']),
    ],
)
def test_tables(tmp_path, epochs, lines):
    assert write(tmp_path / "new" / "log.csv", epochs) == lines
    assert write(tmp_path / "new" / "log.csv", epochs) == lines  # anew, without append


def test_separators(tmp_path):
    assert write(tmp_path / "log.tsv", [(0, {"loss": 1.0})], separator="\t") == ["epoch\tloss\tval_loss", "0\t1.0\tNA"]
    for wrong in ("", "::", 7):
        with pytest.raises(ConfigError, match="separator must be one character"):
            CSVLogger("log", wrong)


def test_append_keeps_the_columns_of_the_file(tmp_path):
    path = tmp_path / "log.csv"
    write(path, [(0, {"loss": 1.0})], append=True)  # there is none yet: it gets a header
    write(path, [(1, {"val_loss": 3.0, "loss": 2.0, "acc": 0.5})], append=True)
    assert write(path, [], append=True) == ["epoch,loss,val_loss", "0,1.0,NA", "1,2.0,3.0"]


def test_append_to_something_else_is_refused(tmp_path):
    path = tmp_path / "log.csv"
    write(path, [(0, {"loss": 1.0})], separator=";")
    with pytest.raises(ConfigError, match="its first column is not 'epoch' with the separator ','"):
        write(path, [(1, {"loss": 1.0})], append=True)
    assert path.read_text() == "epoch;loss;val_loss\n0;1.0;NA\n"
    path.write_text("")
    assert write(path, [(1, {"loss": 1.0})], append=True)[0] == "epoch,loss,val_loss"


def test_real_runs(make_model, data, tmp_path):
    model = make_model(metrics=["mse"])
    logger = CSVLogger(tmp_path / "log.csv", append=True)
    for epochs in (1, 2):  # the object is used again
        model.fit(*data, batch_size=4, validation_data=data, epochs=epochs, verbose=0, callbacks=logger)
    with (tmp_path / "log.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "0", "1"]
    history = model.fit(
        *data, validation_data=data, validation_freq=3, epochs=5, verbose=0, callbacks=CSVLogger(tmp_path / "log.csv")
    ).history
    with (tmp_path / "log.csv").open() as file:
        found = [row["val_loss"] for row in csv.DictReader(file)]
    assert found == ["NA", "NA", str(history["val_loss"][0]), "NA", "NA"]


def test_the_last_line_of_a_run_that_went_wrong(make_model, tmp_path):
    x, y = np.ones((6, 2)), np.full((6, 1), NAN)
    callbacks = [TerminateOnNaN(), CSVLogger(tmp_path / "log.csv")]
    history = make_model().fit(x, y, validation_data=(x, y), epochs=9, verbose=0, callbacks=callbacks)
    assert len(history.epoch) == 1
    assert (tmp_path / "log.csv").read_text().splitlines() == ["epoch,loss,val_loss", "0,nan,nan"]
