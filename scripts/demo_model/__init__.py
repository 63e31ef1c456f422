"""The toy model that onegpu ships with: its facts, its training data, its training and its check.

The committed models/demo.gguf took the 2,500 steps of this recipe with two interruptions: until step
1,200 the run was planned for 1,800 steps, so that the learning rates had begun to fall by then, with
facts a little rarer; the polishing was planned at step 2,300. A fresh run therefore gives a like
model, not that very file; sums over threads differ in their last bits in any case.
"""
