"""Analysis of expert routing: loads, maps, interventions, controls and scores."""
