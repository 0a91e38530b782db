"""Figures of registrations and of experts, by matplotlib."""
