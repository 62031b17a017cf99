"""Errors of weights, and warnings that a caller may want to filter."""


class WeightsError(RuntimeError):
    """Weights could not be found, or are not what they should be."""


class AlphaWeightsNotFound(WeightsError):
    """No source has this file of alpha weights."""


class HashMismatch(WeightsError):
    """A file does not have the SHA-256 that it should have."""


class IncompatibleCheckpoint(WeightsError):
    """A file does not hold the weights that are needed, or could only be read by running code from it."""


class ZeroAlpha(UserWarning):
    """A model was loaded with alpha weights of zero: it is plain CLIP, and ignores every mask."""


class TunedTower(UserWarning):
    """A model was loaded without the alpha weights that its image tower was tuned with: it is not plain CLIP either."""


class MasksIgnored(UserWarning):
    """A mask was given to a model whose alpha weights are all zero, or such a model was opened."""


class WordsNeverRead(UserWarning):
    """A text has words outside the small vocabulary of the model."""
