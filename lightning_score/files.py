"""Files that are there whole or not at all."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EIO
from pathlib import Path

from safetensors import SafetensorError

from lightning_score import stopping

OF_A_DISK = re.compile(r"PytorchStreamWriter|unexpected pos|inline_container|iostream|os error")
"""What torch and safetensors say where a disk is full."""


@contextmanager
def replacing(file: str | Path) -> Iterator[Path]:
    """A path beside a file, or a folder, to write to, which is moved to its place in the end; after an error or a signal
    nothing of it is left.

    Args:
        file: where it goes; its folder is made if it does not exist.

    Raises:
        OSError: it cannot be written; the error names `file`. torch's errors of the disk become such ones.
    """
    file = Path(file)
    temporary = file.with_name(f".{os.getpid()}-{file.name[-60:]}")
    with stopping.cleaning(lambda: _remove(temporary)):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(file)
        except OSError as error:
            raise type(error)(error.errno, error.strerror or str(error), str(file)) from error
        except (RuntimeError, SafetensorError) as error:
            if not OF_A_DISK.search(str(error)):
                raise
            cause = error.__context__ if isinstance(error.__context__, OSError) else OSError(EIO, str(error)[:160])
            raise OSError(cause.errno, cause.strerror, str(file)) from error
        finally:
            _remove(temporary)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
