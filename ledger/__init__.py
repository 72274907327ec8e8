"""Enrolments and conversions, booked with their tallies."""
