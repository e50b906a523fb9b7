"""Why two ways to train part, as a rule, and what to do: a text each."""

HELD = (
    "Dropout and other draws differ from device to device by design: here every draw gives the same value, and nothing "
    "is dropped."
)
NOT_SYNCHRONISED = (
    "BatchNorm without an axis name normalises by the rows of its own device, which are fewer on more devices. Give it "
    "axis_name={axes!r}, or take it as it is, with enough rows a device."
)
FILLED = (
    "{rows} rows do not divide over {n} devices, and the rows that fill the batch count in its statistics. Choose a "
    "batch_size that divides."
)
OF_MICROBATCHES = (
    "Batch statistics are those of a microbatch, which holds other rows on other devices: by design. To compare all "
    "else, set microbatches to 1."
)
OTHER_ROWS = (
    "What it gives for a row, or what a remat or scan before it gives, depends on the other rows of its device, or on "
    "how many they are (x.mean(0), x.shape[0]). Compute each row by itself, or reduce over the devices too: "
    "jax.lax.pmean(..., {axes!r})."
)
ONE_NUMBER = (
    "The loss returns one number for the rows of a device, and the mean of these is the loss of the batch only where "
    "it is a plain mean over rows. Return a value a row."
)
AFTER_THE_OUTPUTS = (
    "The outputs agree, and what follows does not: a loss or a train_step that compares the rows of its device with "
    "each other, or a penalty that is no mean over rows. Make the loss a value a row."
)
IN_PYTHON = (
    "Something is drawn, counted or read in Python while the step is traced (np.random, a counter, the time) and "
    "stands as a constant in each program. Draw from the module's own random streams, and keep counts in its state."
)
UNSEEDED = (
    "The same rows came out otherwise when they were read again: an augmentation draws from a generator without a seed "
    "of its own. Draw from the generator that grain.transforms.RandomMap hands to it, which the seed, the epoch and "
    "the row decide."
)
NOT_FINITE = "NaN and infinity compare with nothing: look for them in the data (kdist train --check-finite) first."
ROUNDING = "This may be the rounding of {dtype}: try --precision float32 to see."
