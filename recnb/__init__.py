"""Helpers behind the recnb notebooks: data, recommenders, metrics, claims and lesson manners."""

__version__ = "0.1.0"
