"""What is put around the shm provider's verbs, so that users see neither the kernel's errors nor that the directory was removed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pymq.provider._shm.files import Removed, raise_translated

if TYPE_CHECKING:
    from pymq.provider._shm.renewal import Renewable

Function = TypeVar("Function", bound=Callable[..., Any])


def translating(function: Function) -> Function:
    """No error of the kernel's escapes."""

    @functools.wraps(function)
    def call(self: Renewable, *args: Any, **kwargs: Any) -> Any:
        try:
            return function(self, *args, **kwargs)
        except OSError as error:
            raise_translated(error, self.path)

    return cast(Function, call)


def again(function: Function) -> Function:
    """As `translating`; where the directory turns out to be removed, it is made again, and the call begins again."""

    @functools.wraps(function)
    def call(self: Renewable, *args: Any, **kwargs: Any) -> Any:
        seen = self._words
        try:
            return function(self, *args, **kwargs)
        except Removed:
            self._begin_anew(seen)
            return function(self, *args, **kwargs)

    return translating(cast(Function, call))


def there(function: Function) -> Function:
    """As `again`; looks first whether the directory is still there."""
    go = again(function)

    @functools.wraps(function)
    def call(self: Renewable, *args: Any, **kwargs: Any) -> Any:
        self._look()
        return go(self, *args, **kwargs)

    return cast(Function, call)
