"""Whole journeys: what brings data, training and evaluation together. These three do not know each other."""
