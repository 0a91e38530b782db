"""Matplotlib figures of registrations and experts."""
