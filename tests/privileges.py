"""Tests may run as root, whom no file permission stops; what they test is run by others."""

from __future__ import annotations

import ctypes
import os
import sys

import pytest

_CAPABILITY_VERSION_3 = 0x20080522
_KEPT = ~(1 << 1 | 1 << 2 | 1 << 3)  # all but CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER


def drop_privileges() -> None:
    """From here on, permissions bind this process too. There is no way back: call it in a process of its own."""
    if not sys.platform.startswith("linux"):
        pytest.skip("drops root's capabilities as Linux does")
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    for i in range(3):  # effective, permitted, inheritable of capabilities 0 to 31
        data[i] &= _KEPT & 0xFFFFFFFF
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")
