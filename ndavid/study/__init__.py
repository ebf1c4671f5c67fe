"""Studies: a grid of trainings and measurements, run with resume, and what their differences say.

Data flows one way: config -> plan (which steps) -> runner (steps as processes) -> collect (rows) ->
paired (differences to the baseline) -> tables and figures -> report.
"""
