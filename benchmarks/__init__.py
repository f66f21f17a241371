"""Measurements, each beside a baseline in the same run; they assert nothing."""
