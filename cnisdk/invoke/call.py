"""Run a plugin once and read its answer (spec §5: success is exit status 0; an error is a JSON object)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .._light import Any
from ..errors import CNIError, DecodingError, InternalError, error_for_code
from ..spec.codec import loads
from .process import GRACE, STDERR_TAIL, Finished, execute, pass_on

# The verbs whose answer is on stdout. The answer to all others is the exit status alone.
_ANSWERED = frozenset({"ADD", "VERSION"})


def run(
    path: str,
    *,
    environ: Mapping[str, str],
    stdin: bytes,
    timeout: float | None = None,
    grace: float = GRACE,
    on_stderr: Callable[[bytes], object] = pass_on,
) -> bytes:
    """Run a plugin and return its output.

    Args:
        path: Its executable, see :func:`.get_plugin_path`.
        environ: All of its environment, ``CNI_COMMAND`` included.
        stdin: Its network configuration.
        timeout: Seconds it may take; None means for ever. After that its process group is stopped.
        grace: Seconds it then has to undo its work.
        on_stderr: Called with each piece of its stderr as it comes; by default it goes to this process's own.

    Raises:
        CNIError: The error the plugin reported, with its code.
        DecodingError: (6) It printed no answer where one is due, or no JSON object.
        InternalError: (999) It failed without an error object.
        IOFailureError: (5) It could not be run.
        InvalidEnvironmentError: (4) A value cannot be passed in an environment.
        TryAgainLaterError: (11) It did not finish in time.
    """
    finished = execute([path], environ=environ, stdin=stdin, timeout=timeout, grace=grace, on_stderr=on_stderr)
    return interpret(finished, path, environ, stdin)


def interpret(finished: Finished, path: str, environ: Mapping[str, str], stdin: bytes) -> bytes:
    """Return the output of a plugin that succeeded; raise the error of one that failed.

    Unlike the reference, an error object counts with any exit status, and another object (a result, ``{}``) never
    becomes an error without a text. An error quotes the output, but nothing of the request.

    Args:
        finished: The process.
        path: Its executable.
        environ: Its environment, ``CNI_COMMAND`` included.
        stdin: The configuration it was given.
    """
    printed = _parse(finished.stdout)
    if finished.returncode == 0:
        if _is_error(printed) and printed["code"]:
            raise _reported(printed)
        if environ.get("CNI_COMMAND", "") not in _ANSWERED or isinstance(printed, dict):
            return finished.stdout
    elif _is_error(printed):
        raise _reported(printed)
    from ._excerpt import quote

    stdout = quote(finished.stdout, stdin, environ)
    stderr = quote(finished.stderr, stdin, environ, tail=True, cut=len(finished.stderr) >= STDERR_TAIL)
    about = f"plugin {path}; its stderr: {stderr}" if stderr else f"plugin {path}"
    if finished.returncode == 0:
        raise DecodingError(
            f"netplugin succeeded but printed {stdout or 'nothing'}, expected one JSON object", details=about
        )
    if stdout:
        what = "printed no error object but" if isinstance(printed, dict) else "error parsing its diagnostic message"
        raise InternalError(f"netplugin failed but {what} {stdout}: {finished.reason}", details=about)
    if stderr:
        raise InternalError(f"netplugin failed: {stderr}: {finished.reason}", details=f"plugin {path}")
    raise InternalError(f"netplugin failed with no error message: {finished.reason}", details=f"plugin {path}")


def _parse(data: bytes) -> Any:
    if not data:
        return None
    try:
        return loads(data)
    except CNIError:
        import json  # which reads what another program may print: NaN, or UTF-16
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _is_error(printed: Any) -> bool:
    """Return whether a document is an error object: its code is a number, as the spec says, and its text not empty."""
    return (
        isinstance(printed, dict)
        and type(printed.get("code")) is int
        and printed["code"] >= 0
        and isinstance(printed.get("msg"), str)
        and isinstance(printed.get("details", ""), str)
        and bool(printed["msg"] or printed.get("details"))
    )


def _reported(printed: dict[str, Any]) -> CNIError:
    return error_for_code(printed["code"], printed["msg"], printed.get("details", ""))
