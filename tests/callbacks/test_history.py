"""History: one value a name and epoch, as Keras's."""

from kdist.callbacks import History


def test_it_records_each_epoch_and_the_three_parameters():
    history = History()
    history.set_params({"verbose": "auto", "epochs": 5, "steps": 3, "rows": 99})
    history.on_train_begin()
    for epoch, logs in [(2, {"loss": 3.0}), (3, {"loss": 2.0, "val_loss": 4.0}), (4, None)]:
        history.on_epoch_end(epoch, logs)
    assert history.epoch == [2, 3, 4]
    assert history.history == {"loss": [3.0, 2.0], "val_loss": [4.0]}
    assert history.params == {"verbose": "auto", "epochs": 5, "steps": 3}


def test_one_object_in_two_fits_keeps_the_values_and_forgets_the_epochs():
    history = History()
    for epoch in (0, 1):
        history.on_train_begin()
        history.on_epoch_end(epoch, {"loss": float(epoch)})
    assert history.epoch == [1]
    assert history.history == {"loss": [0.0, 1.0]}
