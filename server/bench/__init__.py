"""`onegpu bench`: the same questions to several OpenAI-compatible servers in turn, and what came of them.

client      one streaming request on a connection of its own, and what it measured
probe       what a server takes and tells, before anything is measured
texts       prompts from a seed
dialogues   questions of several steps: conversations, tools
scenarios   who asks what: the published list
driver      one row against one server
session     A B A B over all rows
statistics  percentiles, medians of rounds, ratios
report      the table and the JSON; chart: the SVG

The client shares its processor with the server on a small machine, so it is lean: sockets without
flow control, a C parser, one wake-up for whatever has arrived.
"""
