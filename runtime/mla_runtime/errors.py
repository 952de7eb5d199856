"""The error tree of the toolkit: every error that a user can cause is one of these.

A message says what is wrong, where, the value against its limit, and what to do.
"""

from __future__ import annotations


class MlaError(Exception):
    """Base of every error that this toolkit raises on purpose."""


class ConfigError(MlaError):
    """A model's `config.json` is missing, contradictory, or describes something that is not supported."""


class CheckpointError(MlaError):
    """A checkpoint's files or tensors are missing, damaged, of the wrong shape, or not accounted for."""


class ExportError(MlaError):
    """An export cannot be done as asked: an overflow in the chosen precision, no space, a taken target."""


class BundleError(MlaError):
    """A bundle is damaged, incomplete, of a newer format, or not what its manifest says."""


class VerificationError(MlaError):
    """A bundle was compared with its reference and is outside its gate."""


class BackendError(MlaError):
    """A backend that was asked for is not there, did not load, or refused the graph."""


class EngineError(MlaError):
    """An engine could not be built, or is stale or foreign."""


class InputError(MlaError):
    """Token ids, prompts or sampling parameters that a session cannot take."""


class CapacityError(MlaError):
    """A cache, a context or the memory is too small for what was asked."""


class SessionError(MlaError):
    """A session used from a second thread, or after it or its model was closed."""


class NumericsError(MlaError):
    """A step gave logits that are not finite; names the step."""
