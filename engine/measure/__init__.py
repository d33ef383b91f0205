"""How good, how sure, and when to stop: the statistics behind evaluations, rollouts, routing and cascades.

Everything here may be looked at after every item without spoiling its error rate, unless its docstring says otherwise.
"""
