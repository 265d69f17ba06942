"""Output that outlives its reader: a closed terminal, a pipe that broke or a full disk under a log must not end a training."""

import os
import sys
from typing import Any, TextIO


class LastingOutput:
    """A text stream that goes silent, with one line on stderr, when it cannot be written to any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lost(error)
        except RuntimeError:
            pass  # a signal's handler wants to write in the middle of a write
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)
        except RuntimeError:
            pass

    def _lost(self, error: OSError) -> None:
        if isinstance(error, BlockingIOError):
            return  # full for a moment: this text is lost, the next may not be
        _silence(self._stream)
        stderr = sys.__stderr__  # sys.stderr may lead to this display
        if stderr is None:
            return
        try:
            print(f"the display cannot be written any more ({error.strerror}); training goes on without it", file=stderr)
        except OSError:  # the same terminal
            _silence(stderr)


def _silence(stream: TextIO) -> None:
    """Everything written from now on goes nowhere, also what Python writes when it ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
