"""What this machine is told by its environment: where state lives and which servers to use. Never part of a config."""

from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.errors import ConfigError


class Settings(BaseSettings):
    """Settings of this machine, each from an environment variable.

    Args:
        home: `RANKWEAVE_HOME`, where the embedded default keeps its state.
        store: `RANKWEAVE_STORE`, a folder or `s3://bucket/prefix?endpoint=...`; empty for a folder under `home`.
        tracking_uri: `MLFLOW_TRACKING_URI`; empty for a SQLite file under `home`.
        prefect_api_url: `PREFECT_API_URL`; empty for a server inside this process.
    """

    model_config = SettingsConfigDict(env_prefix="RANKWEAVE_", extra="ignore", populate_by_name=True)

    home: Path = Path(".rankweave")
    store: str = ""
    tracking_uri: str = Field("", validation_alias="MLFLOW_TRACKING_URI")
    prefect_api_url: str = Field("", validation_alias="PREFECT_API_URL")

    @property
    def store_url(self) -> str:
        """Where adapters are exchanged."""
        if "://" in self.store:
            return self.store
        return str(Path(self.store).resolve() if self.store else self.home.resolve() / "store")

    @property
    def mlflow_uri(self) -> str:
        """Where runs and versions are kept."""
        return self.tracking_uri or f"sqlite:///{self.home.resolve() / 'mlflow.db'}"


def read_settings() -> Settings:
    """Read the environment.

    Raises:
        ConfigError: A variable holds something unusable.
    """
    try:
        return Settings()  # pyright: ignore[reportCallIssue]  # every value comes from the environment
    except ValidationError as error:
        raise ConfigError("environment", f"a RANKWEAVE_ variable is not usable: {error}") from None
