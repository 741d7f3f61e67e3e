"""Chances of being drawn, by going through every way in which a cohort can be filled."""

from collections.abc import Mapping


def inclusion(chances: Mapping[str, float], places: int) -> dict[str, float]:
    """Return each client's chance of a place when every next one is drawn in proportion among those left."""
    found = dict.fromkeys(chances, 0.0)
    if places == 0:
        return found
    total = sum(chances.values())
    for first, weight in chances.items():
        others = {client: w for client, w in chances.items() if client != first}
        found[first] += weight / total
        for client, chance in inclusion(others, min(places - 1, len(others))).items():
            found[client] += weight / total * chance
    return found


def norm_chances(norms: Mapping[str, float], floor: float) -> dict[str, float]:
    """Return what each client's chance of the first place is."""
    return {c: (1 - floor) * norm / sum(norms.values()) + floor / len(norms) for c, norm in norms.items()}
