"""What can be wrong with weights."""


class WeightsError(RuntimeError):
    """Weights could not be found, or are not what they should be."""


class AlphaWeightsNotFound(WeightsError):
    """No source has this file of alpha weights."""


class HashMismatch(WeightsError):
    """A file's bytes are not those its name promises."""


class IncompatibleCheckpoint(WeightsError):
    """A file holds something else than the weights that are needed, or could only be read by running code from it."""
