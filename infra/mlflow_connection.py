"""The door to MLflow: connecting, and turning its failures into our errors.

What lives here: the client that `tracking` and `model_registry` share, its time limits, the translation of
errors. What does not: anything that knows what a run or a version is.
Nothing of MLflow is imported before it is needed: it takes two seconds.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from tasks.errors import RegistryError, RegistryUnavailableError

if TYPE_CHECKING:
    from mlflow import MlflowClient

# By default MLflow retries for about four minutes, reports usage over the network, prints the run's address
# on standard output when a run ends, draws a progress bar per file, and copies a uv project of the working
# folder into every model.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",
}


def connect(tracking_uri: str) -> "MlflowClient":
    """Return a client of MLflow's tracking and registry at one address.

    Environment variables of MLflow that nobody has set get values that suit a run that must not hang: few
    retries, a short time-out, no usage reports.

    Args:
        tracking_uri: Where MLflow is.

    Returns:
        The client; a server has not been asked anything yet, a database has been opened.

    Raises:
        RegistryError: The address is none that MLflow knows, or the database cannot be used.
        RegistryUnavailableError: The database server does not answer.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    with reaching(tracking_uri, "connecting"):
        _probe_database(tracking_uri)
        return MlflowClient(tracking_uri, tracking_uri)


@contextlib.contextmanager
def reaching(tracking_uri: str, doing: str) -> Iterator[None]:
    """Turn whatever MLflow and the libraries under it raise into our errors.

    Args:
        tracking_uri: Where MLflow is, for the message; passwords are left out.
        doing: What was being done, for the message.

    Yields:
        Nothing; the calls to MLflow go inside.

    Raises:
        RegistryError: MLflow refused.
        RegistryUnavailableError: MLflow did not answer, or said that it cannot now.
    """
    try:
        yield
    except _library_errors() as error:
        subject = f"MLflow at {readable(tracking_uri)}, {doing}"
        # The libraries quote the address as it was given, password and all.
        reason = _first_line(error).replace(tracking_uri.rstrip("/"), readable(tracking_uri).rstrip("/"))
        if _is_outage(error, urlsplit(tracking_uri).scheme):
            raise RegistryUnavailableError(
                subject,
                "does not answer",
                got=reason,
                remedy="check the address and that MLflow runs, then resume the run",
            ) from error
        raise RegistryError(subject, "refused", got=reason) from error


def readable(tracking_uri: str) -> str:
    """Return an address without its user name and password.

    Args:
        tracking_uri: Where MLflow is.

    Returns:
        The address, fit to be shown.
    """
    parts = urlsplit(tracking_uri)
    if "@" not in parts.netloc:
        return tracking_uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def sqlite_path(tracking_uri: str) -> Path | None:
    """Return the database file of an SQLite address, None for any other address.

    Args:
        tracking_uri: Where MLflow is.

    Returns:
        Absolute path of the file.
    """
    # As SQLAlchemy reads it: three slashes and a relative path, or four for an absolute one.
    scheme, _, path = tracking_uri.partition(":///")
    return Path(unquote(path)).absolute() if scheme.startswith("sqlite") and path else None


def _probe_database(tracking_uri: str) -> None:
    # MLflow itself tries a database that does not answer ten times, for more than a minute.
    if urlsplit(tracking_uri).scheme.partition("+")[0] not in {"sqlite", "postgresql", "mysql", "mssql"}:
        return
    import sqlalchemy

    database = sqlite_path(tracking_uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    engine = sqlalchemy.create_engine(tracking_uri)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def _library_errors() -> tuple[type[Exception], ...]:
    # Asked for only while an error travels, so nothing heavy is imported before. OSError covers `requests`.
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, Boto3Error, BotoCoreError, ClientError, OSError, ImportError)


def _is_outage(error: BaseException, scheme: str) -> bool:
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    causes = list(_causes(error))
    if any(isinstance(cause, requests.exceptions.SSLError) for cause in causes):
        return False
    if any(isinstance(cause, (requests.ConnectionError, requests.Timeout)) for cause in causes):
        return True
    if isinstance(error, MlflowException) and error.error_code in {
        "TEMPORARILY_UNAVAILABLE",
        "REQUEST_LIMIT_EXCEEDED",
    }:
        return True
    if scheme in {"http", "https"}:
        return isinstance(error, MlflowException) and error.get_http_status_code() >= 500
    return isinstance(error, OperationalError) and not scheme.startswith("sqlite")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
