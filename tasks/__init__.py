"""Prefect tasks: one decorator and one core call each."""
