"""The toy model that onegpu ships with: its facts, its training data, its training and its check.

State: the committed models/demo.gguf comes from an earlier state of this recipe (1,200 steps,
stopped and resumed twice with changed lengths and task weights), so a fresh run does not give
that file. In samples of the check it reached its targets for taught questions and paraphrases
and missed the one for tool calls by far (31 of 100): among several tools it picks the wrong one.
The circuits in induction.py that carry and fetch tool names, and the higher share of tool
sessions, are meant to mend that; no full training with them has been run yet.
"""
