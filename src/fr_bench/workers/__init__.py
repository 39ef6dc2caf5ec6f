"""One process of a run from birth to death: builds its part from the plan, connects, trains, saves."""
