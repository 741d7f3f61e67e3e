"""What a run is: pydantic models that are the Prefect form, presets, and how a config becomes nouns."""
